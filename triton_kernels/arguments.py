"""Checks of the operators' arguments, as in the compiled operators: the kernels address memory by number."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flexkern.fields import SOURCE_FLOATS, SOURCE_INTS, Kind

__all__ = ["check_counts", "check_sources", "check_tensors", "device_number"]


def check_tensors(tensors: Sequence[Tensor], name: str, weights: Sequence[Tensor], dtype: torch.dtype) -> None:
    """One contiguous tensor of ``dtype`` for each weight, with its number of elements and on its device.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    if len(tensors) != len(weights):
        raise ValueError(f"{name} has {len(tensors)} tensors but {len(weights)} weights need one")
    for tensor, weight in zip(tensors, weights, strict=True):
        if tensor.dtype is not dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if tensor.numel() != weight.numel():
            raise ValueError(f"{name} has {tensor.numel()} elements but weight has {weight.numel()}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
        if tensor.device != weights[0].device:
            raise ValueError(
                f"{name} must be on the device of weight, {weights[0].device}, got {tensor.device}"
            )


def check_sources(
    stored: Sequence[Tensor],
    name: str,
    weights: Sequence[Tensor],
    sources: Sequence[int],
    parameters: Sequence[float],
) -> None:
    """The anchors (or the flexibilities) of all weights: ``sources`` and ``parameters`` are their rows only.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    if sources:
        if (len(sources), len(parameters)) != (SOURCE_INTS * len(weights), SOURCE_FLOATS * len(weights)):
            raise ValueError(f"sources and parameters need a row for the {name} of each weight")
        kinds = sources[::SOURCE_INTS]
        weights = [w for w, kind in zip(weights, kinds, strict=True) if kind == Kind.STORED]
    check_tensors(stored, name, weights, torch.float32)


def check_counts(counts: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """The number of the step of each weight: one float32 element on its device.

    Raises:
        ValueError: naming what does not fit.
    """
    if len(counts) != len(weights):
        raise ValueError(f"step has {len(counts)} tensors but {len(weights)} weights need one")
    for count, weight in zip(counts, weights, strict=True):
        if count.numel() != 1 or count.dtype is not torch.float32 or count.device != weight.device:
            raise ValueError(
                f"step must be one float32 element on {weight.device}, got {count.dtype}, shape "
                f"{tuple(count.shape)}, on {count.device}"
            )


def device_number(value: float, tensor: Tensor | None, name: str, weight: Tensor) -> tuple[float, int]:
    """lr or scale as a number, and the address from which the kernel reads it; 0 where the number counts.

    A tensor on the CPU beside weights on a GPU is read here.

    Raises:
        ValueError: if the tensor is not one float32 element on the weight's device or the CPU.
    """
    if tensor is None:
        return float(value), 0
    if tensor.numel() != 1 or tensor.dtype is not torch.float32:
        raise ValueError(f"{name} must be one float32 element, got {tensor.dtype}, shape {tuple(tensor.shape)}")
    if tensor.device == weight.device:
        return 0.0, tensor.data_ptr()
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on {weight.device} or the CPU, got {tensor.device}")
    return tensor.item(), 0
