"""Reading the records of units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["accuracy", "by_network", "memorised_count", "of_network"]

Record = dict[str, Any]


def by_network(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each network, by seed, in the order in which networks first come."""
    return {name: of_network(records, name) for name in dict.fromkeys(r["network"] for r in records)}


def of_network(records: Sequence[Record], name: str) -> list[Record]:
    """The records of one network, by seed."""
    return sorted((r for r in records if r["network"] == name), key=lambda r: r["seed"])


def accuracy(of: Sequence[Record], part: str) -> NDArray[np.float64]:
    """[seeds, presentations, items]: accuracy on each item after each presentation of a part."""
    return np.array([r["parts"][part]["accuracy"] for r in of], dtype=np.float64)


def memorised_count(of: Sequence[Record], part: str) -> NDArray[np.float64]:
    """[seeds, presentations]: how many items are memorised after each presentation of a part."""
    return np.array([[len(m) for m in r["parts"][part]["memorised"]] for r in of], dtype=np.float64)
