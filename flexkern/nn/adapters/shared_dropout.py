"""An adapter's dropout where several processes share a batch: each sample's is that of the whole batch; and
where a backward pass computes it again."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from flexkern import ops
from flexkern.distributed import first_row, rows_from
from flexkern.fields import Field, Purpose

__all__ = ["AsNow", "adapted_from"]


def adapted_from(
    first: int,
    x: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    *,
    scale: float,
    residual: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """:func:`flexkern.ops.gated_adapter` of one task, for the samples from number ``first`` on of a batch.

    The operator draws dropout by a value's position in its batch, from 0 on. Here it is that in the whole
    batch, drawn from torch's generator once for a call, as the operator does it. Waits for the device.
    """
    seed = int(torch.randint(1 << 62, (1,), dtype=torch.int64, device=x.device))
    hidden = torch.relu(x @ down.to(x.dtype) + down_bias.to(x.dtype))
    before = first * hidden.shape[1] * hidden.shape[2]
    field = Field.uniform(seed, purpose=Purpose.DROPOUT).shard(before)
    share = torch.tensor(dropout_p, dtype=torch.float32, device=x.device)
    kept = ops.materialize(field, hidden.shape, device=x.device) >= share
    hidden = torch.where(kept, hidden * (1 / (1 - dropout_p)), 0.0)
    out = scale * (hidden @ up.to(hidden.dtype) + up_bias.to(hidden.dtype))
    return out.to(x.dtype) if residual is None else residual + out.to(residual.dtype)


class AsNow:
    """The context in which a bank's dropout is what it was when this was made: a backward pass may compute a
    block again when the bank is no longer trained, and nobody says any more whose rows these are."""

    def __init__(self, bank: nn.Module) -> None:
        self._bank, self._trained, self._first = bank, bank.training, first_row()
        self._left = ExitStack()

    def __enter__(self) -> None:
        self._left.callback(setattr, self._bank, "training", self._bank.training)
        self._bank.training = self._trained
        self._left.enter_context(rows_from(self._first))

    def __exit__(self, *raised: object) -> None:
        self._left.close()
