"""Joint training: all inputs are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern.learners.mlp.kept_inputs import KeepsInputs
from flexkern.learners.mlp.rows import Rows, together
from flexkern.learners.registry import register_method

__all__ = ["JointMLP"]


@register_method("joint")
class JointMLP(KeepsInputs):
    """Keeps every training input, and at each item trains on all seen so far: not a continual
    learner.

    Each item goes on from the weights as they are, for its epochs over everything. An item that is shown again
    is kept again. Memory, checkpoints and the time of an item grow with the stream.

    Args:
        input_shape, classes, widths, features, lr, momentum, batch_size, seed, device: as in
            :class:`flexkern.learners.MetaplasticMLP`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    trains_on_all = True
    _takes_rows = True

    def _training_set(self, inputs: Tensor | Rows, labels: Tensor) -> tuple[Tensor, Tensor]:
        return together(self._inputs, inputs), torch.cat([self._labels, labels])

    def _after_item(self, inputs: Tensor, labels: Tensor) -> None:
        self._inputs, self._labels = inputs, labels
