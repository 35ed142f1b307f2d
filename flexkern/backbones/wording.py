"""What is said of a backbone that cannot be taken."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["refuse_weights", "words"]

_SHOWN = 3


def words(error: Exception, most: int = 200) -> str:
    """An exception of somebody's library in one line of at most so many characters."""
    return " ".join((str(error) or type(error).__name__).split())[:most]


def refuse_weights(name: str, faults: Sequence[tuple[Sequence[str], str]]) -> None:
    """Raises ValueError for the first of these that has names of weights: what is wrong, and three of them."""
    for keys, what in faults:
        if keys:
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            raise ValueError(f"backbone: {name!r} {what} {', '.join(keys[:_SHOWN])}{more}")
