"""The synapses of one layer as the kernels take them, on the host: checks, addresses, numbers, sources."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from flexkern.fields import SOURCE_FLOATS, SOURCE_INTS, Kind
from flexkern.triton_kernels.arguments import check_sources, check_tensors, device_number
from flexkern.triton_kernels.field import source_row
from flexkern.triton_kernels.memory import ALIGNMENT
from flexkern.triton_kernels.metaplastic import TRITON_DTYPES

__all__ = [
    "NOTHING",
    "check_layer",
    "check_units",
    "is_aligned",
    "layer_addresses",
    "rule_arguments",
    "source_arguments",
    "threshold_arguments",
]

Source = tuple[int, int, int, int, int, int, float, float]
# A constant 0 that is never looked at.
NOTHING: Source = (int(Kind.CONSTANT), 0, 0, 0, 0, 0, 0.0, 0.0)


def check_units(tensor: Tensor, name: str, weight: Tensor, units: int) -> None:
    """A contiguous float32 tensor with an element for each of ``units``, on the weight's device.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    if tensor.dtype is not torch.float32:
        raise TypeError(f"{name} must be torch.float32, got {tensor.dtype}")
    if tensor.numel() != units:
        raise ValueError(f"{name} must have {units} elements, one for each unit, got {tensor.numel()}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
    if tensor.device != weight.device:
        raise ValueError(f"{name} must be on the device of weight, {weight.device}, got {tensor.device}")


def check_layer(
    weight: Tensor,
    anchor: Sequence[Tensor],
    flexibility: Sequence[Tensor],
    alpha: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
    momentum_buffer: Sequence[Tensor],
    master: Sequence[Tensor],
    silent: Sequence[Tensor],
    hebbian: bool,
    read: Sequence[Tensor],
) -> None:
    """Checks a weight [out, in] and its state; ``read`` are the other tensors of the step, which it only reads.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    from flexkern.ops._checks import check_memory  # here, because flexkern.ops imports this package

    if weight.dtype not in TRITON_DTYPES:
        raise TypeError(f"weight must be one of {[str(d) for d in TRITON_DTYPES]}, got {weight.dtype}")
    if weight.dim() != 2:
        raise ValueError(f"weight must be a matrix [out, in], got shape {tuple(weight.shape)}")
    one = [weight]
    check_tensors(one, "weight", one, weight.dtype)
    check_tensors(master, "master", [] if weight.dtype is torch.float32 else one, torch.float32)
    check_tensors(momentum_buffer, "momentum_buffer", one if momentum_buffer else [], torch.float32)
    half_ints, half_floats = len(sources) // 2, len(parameters) // 2
    check_sources(anchor, "anchor", one, sources[:half_ints], parameters[:half_floats])
    if alpha:
        check_tensors(alpha, "alpha", one, torch.float32)
    else:
        check_sources(flexibility, "flexibility", one, sources[half_ints:], parameters[half_floats:])
    if silent:
        rows, words = weight.shape[0], triton.cdiv(weight.shape[1], 32)
        (mask,) = silent
        if mask.dtype is not torch.int32 or tuple(mask.shape) != (rows, words):
            raise ValueError(f"silent must be int32 [{rows}, {words}], got {mask.dtype} {tuple(mask.shape)}")
        if not mask.is_contiguous() or mask.device != weight.device:
            raise ValueError(f"silent must be contiguous and on {weight.device}, got {mask.device}")
        if hebbian and not anchor:
            raise ValueError("anchor must be a tensor: Hebbian insertion writes it")
    written_anchor, read_anchor = (anchor, []) if silent and hebbian else ([], anchor)
    check_memory(
        [weight, *momentum_buffer, *master, *silent, *written_anchor],
        [*read, *read_anchor, *flexibility, *alpha],
    )


def layer_addresses(
    weight: Tensor,
    alpha: Sequence[Tensor],
    momentum_buffer: Sequence[Tensor],
    master: Sequence[Tensor],
    silent: Sequence[Tensor],
) -> list[int]:
    """Addresses of weight, master, momentum, alpha and silent; 0 for what is not there."""
    lists = ([weight], master, momentum_buffer, alpha, silent)
    return [tensors[0].data_ptr() if tensors else 0 for tensors in lists]


def threshold_arguments(threshold: float, tensor: Tensor | None, weight: Tensor) -> tuple[float, int, int]:
    """The threshold as a number, the address of a tensor (0: the number counts), and its step from row to row.

    Raises:
        TypeError, ValueError: if the tensor does not fit.
    """
    if tensor is None:
        return float(threshold), 0, 0
    check_units(tensor, "threshold_tensor", weight, 1 if tensor.numel() == 1 else weight.shape[0])
    return 0.0, tensor.data_ptr(), int(tensor.numel() > 1)


def rule_arguments(
    weight: Tensor,
    lr: float,
    lr_tensor: Tensor | None,
    scale: float,
    scale_tensor: Tensor | None,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    skip_nonfinite: bool,
) -> tuple[float | int, ...]:
    """lr, its address, scale, its address, and the rule's other numbers as :func:`update.sgd` takes them.

    Raises:
        ValueError: if lr or scale is a tensor that does not fit.
    """
    return (
        *device_number(lr, lr_tensor, "lr_tensor", weight),
        *device_number(scale, scale_tensor, "scale_tensor", weight),
        float(weight_decay), float(momentum), 1.0 - dampening, -1.0 if maximize else 1.0, int(nesterov),
        int(skip_nonfinite),
    )  # fmt: skip


def source_arguments(
    anchor: Sequence[Tensor],
    flexibility: Sequence[Tensor],
    alpha: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
) -> tuple[Source, Source]:
    """The sources of anchor and flexibility, as in :func:`field.source_tile`."""
    half_ints, half_floats = len(sources) // 2, len(parameters) // 2
    a = _source(anchor, sources[:half_ints], parameters[:half_floats])
    if alpha:
        return a, NOTHING
    return a, _source(flexibility, sources[half_ints:], parameters[half_floats:])


def _source(stored: Sequence[Tensor], sources: Sequence[int], parameters: Sequence[float]) -> Source:
    if stored:
        return (int(Kind.STORED), stored[0].data_ptr(), 0, 0, 0, 0, 0.0, 0.0)
    (kind, seed, stream, offset, purpose), (p0, p1) = source_row(
        sources[:SOURCE_INTS], parameters[:SOURCE_FLOATS]
    )
    return (kind, 0, seed, stream, offset, purpose, p0, p1)


def is_aligned(addresses: Sequence[int], anchor: Source, flexibility: Source) -> bool:
    """Whether all addresses suit the widest access, and the fields begin with a whole Philox block."""
    sources = (anchor, flexibility)
    return not any(address % ALIGNMENT for address in (*addresses, *(s[1] for s in sources))) and not any(
        s[4] % 4 for s in sources
    )
