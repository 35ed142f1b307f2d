"""Sizes at which the metaplasticity experiments take a second."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "items": 4, "train_per_item": 30, "test_per_item": 20, "epochs": 2, "batch_size": 20, "width": 12,
    "seeds": (0, 1),
}  # fmt: skip
