"""The synapses of one layer as the kernels take them, on the host: checks, addresses, numbers, sources."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flexkern.fields import SOURCE_FLOATS, SOURCE_INTS, Kind
from flexkern.spec.layers import Layer
from flexkern.spec.mask import words_in_row
from flexkern.triton_kernels.arguments import check_counts, check_sources, check_tensors, device_number
from flexkern.triton_kernels.field import Source, computed_source
from flexkern.triton_kernels.memory import ALIGNMENT
from flexkern.triton_kernels.metaplastic import TRITON_DTYPES
from flexkern.triton_kernels.rules import MOST_STATES, rule_numbers

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

Rows = tuple[Sequence[int], Sequence[float]]
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


def _listed(tensor: Tensor | None) -> list[Tensor]:
    return [] if tensor is None else [tensor]


def check_layer(given: Layer) -> None:
    """Checks a weight [out, in] and its state.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    weight = given.weight
    if weight.dtype not in TRITON_DTYPES:
        raise TypeError(f"weight must be one of {[str(d) for d in TRITON_DTYPES]}, got {weight.dtype}")
    if weight.dim() != 2:
        raise ValueError(f"weight must be a matrix [out, in], got shape {tuple(weight.shape)}")
    one = [weight]
    check_tensors(one, "weight", one, weight.dtype)
    check_tensors(_listed(given.master), "master", [] if weight.dtype is torch.float32 else one, torch.float32)
    for name, state in zip(type(given.rule).STATES, given.states, strict=True):
        check_tensors(_listed(state), name, _listed(weight if state is not None else None), torch.float32)
    if type(given.rule).COUNTS_STEPS:
        check_counts(_listed(given.step), one)
    (a_ints, a_floats), (f_ints, f_floats) = _source_rows(given)
    check_sources(_listed(given.anchor), "anchor", one, a_ints, a_floats)
    if given.alpha is not None:
        check_tensors([given.alpha], "alpha", one, torch.float32)
        if given.flexibility is not None:  # nothing reads it
            check_tensors([given.flexibility], "flexibility", one, torch.float32)
    else:
        check_sources(_listed(given.flexibility), "flexibility", one, f_ints, f_floats)
    if given.silent is not None:
        rows, words = weight.shape[0], words_in_row(weight.shape[1])
        mask = given.silent
        if mask.dtype is not torch.int32 or tuple(mask.shape) != (rows, words):
            raise ValueError(f"silent must be int32 [{rows}, {words}], got {mask.dtype} {tuple(mask.shape)}")
        if not mask.is_contiguous() or mask.device != weight.device:
            raise ValueError(f"silent must be contiguous and on {weight.device}, got {mask.device}")
        if given.hebbian and given.anchor is None:
            raise ValueError("anchor must be a tensor: Hebbian insertion writes it")
    given.check_memory()


def layer_addresses(given: Layer) -> list[int]:
    """Addresses of weight, master, alpha, the states and silent; 0 for what is not there."""
    states = [*given.states, *[None] * (MOST_STATES - len(given.states))]
    tensors = (given.weight, given.master, given.alpha, *states, given.silent)
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def threshold_arguments(given: Layer) -> tuple[float, int, int]:
    """The threshold as a number, the address of a tensor (0: the number counts), and its step from row to row.

    Raises:
        TypeError, ValueError: if the tensor does not fit.
    """
    tensor, weight = given.threshold_tensor, given.weight
    if tensor is None:
        return float(given.threshold), 0, 0
    check_units(tensor, "threshold_tensor", weight, 1 if tensor.numel() == 1 else weight.shape[0])
    return 0.0, tensor.data_ptr(), int(tensor.numel() > 1)


def rule_arguments(given: Layer) -> tuple[float | int, ...]:
    """lr, its address, scale, its address, the rule's numbers, the address of the number of the step (0: the
    rule does not count), and whether what is not finite is skipped.

    Raises:
        ValueError: if lr or scale is a tensor that does not fit.
    """
    return (
        *device_number(given.lr, given.lr_tensor, "lr_tensor", given.weight),
        *device_number(given.scale, given.scale_tensor, "scale_tensor", given.weight),
        *rule_numbers(given.rule), 0 if given.step is None else given.step.data_ptr(),
        int(given.skip_nonfinite),
    )  # fmt: skip


def _source_rows(given: Layer) -> tuple[Rows, Rows]:
    """The rows of ``sources`` and ``parameters`` of the anchor, and those of the flexibility."""
    i, f = len(given.sources) // 2, len(given.parameters) // 2
    return (given.sources[:i], given.parameters[:f]), (given.sources[i:], given.parameters[f:])


def source_arguments(given: Layer) -> tuple[Source, Source]:
    """The sources of anchor and flexibility, as in :func:`field.source_tile`."""
    a_rows, f_rows = _source_rows(given)
    device = given.weight.device
    a = _source(given.anchor, *a_rows, device)
    return a, NOTHING if given.alpha is not None else _source(given.flexibility, *f_rows, device)


def _source(
    stored: Tensor | None, sources: Sequence[int], parameters: Sequence[float], device: torch.device
) -> Source:
    if stored is not None:
        return (int(Kind.STORED), stored.data_ptr(), 0, 0, 0, 0, 0.0, 0.0)
    return computed_source(sources[:SOURCE_INTS], parameters[:SOURCE_FLOATS], device)


def is_aligned(addresses: Sequence[int], anchor: Source, flexibility: Source) -> bool:
    """Whether all addresses suit the widest access, and the fields begin with a whole Philox block."""
    sources = (anchor, flexibility)
    return not any(address % ALIGNMENT for address in (*addresses, *(s[1] for s in sources))) and not any(
        s[4] % 4 for s in sources
    )
