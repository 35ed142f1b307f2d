"""Experience replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.learners.mlp.kept_inputs import KeepsInputs
from flexkern.learners.mlp.rows import Rows, gathered
from flexkern.learners.registry import register_method
from flexkern.plain import whole_number

__all__ = ["ReplayMLP"]

_RESERVOIR, _REPLAY = 2, 3  # what a random choice is for


@register_method("replay")
class ReplayMLP(KeepsInputs):
    """Experience replay from a small memory (Chaudhry et al. 2019, arXiv 1902.10486, algorithm 1).

    Each step's batch is joined with inputs drawn from memory, without repeats, and the step is taken on the
    mean cross-entropy over both. The memory is a uniform sample of all training inputs of the items that have
    ended (reservoir sampling: Vitter 1985, algorithm R), with the labels that the learner was told, so that
    wrong labels are kept too. While an item is learned, the memory holds earlier items only.

    Args:
        memory: how many inputs are kept, at most.
        replay_batch: how many a step draws; None: as many as its batch has. Never more than there are.
        input_shape, classes, widths, features, lr, momentum, batch_size, seed, device: as in
            :class:`flexkern.learners.MetaplasticMLP`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    _takes_rows = True

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        memory: int = 200,
        replay_batch: int | None = None,
        **common: Any,
    ) -> None:
        memory = whole_number(memory, "memory")
        if replay_batch is not None:
            replay_batch = whole_number(replay_batch, "replay_batch")
        super().__init__(input_shape, classes, **common)
        self._configuration |= {"memory": memory, "replay_batch": replay_batch}
        self._seen = 0  # inputs that the reservoir is a sample of

    def _count_drawn(self, batch: int) -> int:
        return min(self._configuration["replay_batch"] or batch, self.inputs_kept)

    def _label_counts(self, labels: Tensor) -> Tensor:
        # Of what is drawn from memory, as many as are expected.
        drawn = sum(self._count_drawn(len(batch)) for batch in labels.split(self.batch_size))
        kept = self._labels.bincount(minlength=self.classes).double() / max(self.inputs_kept, 1)
        return super()._label_counts(labels) + drawn * kept

    def _batch(self, inputs: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        count = self._count_drawn(len(labels))
        if count == 0:
            return inputs, labels
        rng = self._rng(_REPLAY, self._epochs_done, step)
        drawn = torch.from_numpy(rng.choice(self.inputs_kept, count, replace=False)).to(self.device)
        return torch.cat([inputs, self._inputs[drawn]]), torch.cat([labels, self._labels[drawn]])

    def _after_item(self, inputs: Tensor | Rows, labels: Tensor) -> None:
        rows, slots, size = _reservoir(
            self._configuration["memory"], self._seen, len(labels), self._rng(_RESERVOIR)
        )
        kept_inputs, kept_labels = self._inputs.new_empty((size, inputs.shape[1])), labels.new_empty(size)
        kept_inputs[: self.inputs_kept], kept_labels[: self.inputs_kept] = self._inputs, self._labels
        to, of = (torch.from_numpy(x).to(self.device) for x in (slots, rows))
        kept_inputs[to], kept_labels[to] = gathered(inputs, of), labels[of]
        self._inputs, self._labels = kept_inputs, kept_labels
        self._seen += len(labels)

    def _extra_state(self) -> dict[str, Tensor]:
        return super()._extra_state() | {"seen": torch.tensor(self._seen)}

    def _load_extra_state(self, state: dict[str, Tensor]) -> None:
        super()._load_extra_state(state)
        seen = state["seen"]
        if seen.dim() or seen.dtype is not torch.int64 or int(seen) < self.inputs_kept:
            raise ValueError(f"extra.seen must be an int64 of at least {self.inputs_kept}, got {seen}")
        self._seen = int(seen)


def _reservoir(
    memory: int, seen: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Which of ``count`` new inputs enter a reservoir that is a sample of ``seen``: Vitter's algorithm R.

    Input number n, from 0, takes slot n while the reservoir fills, and then slot j with j uniform on 0..n, if
    there is such a slot.

    Returns:
        The new inputs that are in it in the end, the slot of each, and how many slots are then full.
    """
    numbers = np.arange(seen, seen + count)
    slots = np.where(numbers < memory, numbers, rng.integers(0, numbers + 1))
    size = min(memory, seen + count)
    rows = np.flatnonzero(slots < memory)
    last = np.full(size, -1)
    last[slots[rows]] = rows  # of several inputs for one slot NumPy keeps the last, as the algorithm does
    taken = np.flatnonzero(last >= 0)
    return last[taken], taken, size
