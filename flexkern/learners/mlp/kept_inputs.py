"""What replay and joint training have in common: training inputs are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexkern.learners.mlp.base import MLPLearner
from flexkern.learners.mlp.network import linear_layers

__all__ = ["KeepsInputs"]


class KeepsInputs(MLPLearner):
    """Keeps training inputs, as features, with the labels that it was told."""

    def __init__(self, *args: Any, **common: Any) -> None:
        super().__init__(*args, **common)
        features = linear_layers(self.model)[0].in_features
        self._inputs = torch.zeros((0, features), dtype=torch.float32, device=self.device)
        self._labels = torch.zeros(0, dtype=torch.int64, device=self.device)

    @property
    def inputs_kept(self) -> int:
        """How many training inputs are kept now."""
        return len(self._labels)

    def _extra_state(self) -> dict[str, Tensor]:
        return {"inputs": self._inputs, "labels": self._labels}

    def _load_extra_state(self, state: dict[str, Tensor]) -> None:
        inputs, labels = state["inputs"], state["labels"]
        expected = (len(labels), self._inputs.shape[1])
        if labels.dim() != 1 or tuple(inputs.shape) != expected or inputs.dtype is not torch.float32:
            raise ValueError(
                f"extra.inputs is {inputs.dtype} {list(inputs.shape)}, and must be float32 {expected}"
            )
        if labels.dtype is not torch.int64:
            raise ValueError(f"extra.labels is {labels.dtype}, and must be int64")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(f"extra.labels must be in [0, {self.classes}), and is not")
        self._inputs, self._labels = inputs, labels
