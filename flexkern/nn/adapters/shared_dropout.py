"""An adapter's dropout where several processes share a batch: each sample's is that of the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from flexkern import ops
from flexkern.fields import Field, Purpose

__all__ = ["adapted_from"]


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
