"""Wrong arguments of every kind, and a look at memory that a refusal must not have changed."""

from __future__ import annotations

import decimal
import fractions
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.draw import SHAPES, either

__all__ = ["Memory", "has_memory", "has_values", "odd_number", "odd_tensor", "odd_value", "tensors_in"]


class _Subclass(Tensor):
    pass


def _inference() -> Tensor:
    with torch.inference_mode():
        return torch.tensor(0.1)


_VALUES: tuple[Any, ...] = (
    None, True, False, "0.1", "auto", b"1", 1j, [0.1], (0.1,), {}, object(), decimal.Decimal("0.1"),
    np.bool_(True),
    np.array(0.1), np.array([0.1, 0.2]), np.array(["skip", "init"]), ["skip"], float, range(3), np.complex64(1),
)  # fmt: skip
_NUMBERS: tuple[Any, ...] = (
    -1, -1.0, math.nan, math.inf, -math.inf, 2**64, 2**63, -(2**63),
    10**400, 10**5000, fractions.Fraction(1, 3),
    fractions.Fraction(10**400), np.float32(0.1), np.float16(0.1), np.int64(1), 1e39, 1e300, 3.4e38, 5e-324,
    1e-46, -0.0, 0, 0.0, 1, 2, 7, 0.5,
)  # fmt: skip
_TENSORS = (
    lambda: torch.tensor(0.1, dtype=torch.float64), lambda: torch.tensor(1), lambda: torch.tensor([0.1, 0.2]),
    lambda: torch.empty(0), lambda: torch.zeros((), device="meta"), lambda: torch.tensor(0.1),
    lambda: torch.tensor(0.1, requires_grad=True), lambda: torch.tensor([0.1]).to_sparse(),
    lambda: torch.tensor(0.1, dtype=torch.bfloat16), lambda: torch.full((1, 1), 0.1), lambda: torch.tensor(1j),
    lambda: torch.tensor(True), lambda: torch.nn.Parameter(torch.tensor(0.1)),
    lambda: torch.tensor(0.1).as_subclass(_Subclass), _inference,
    lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]),
    lambda: torch.quantize_per_tensor(torch.zeros(1), 0.1, 0, torch.qint8), lambda: torch.ones(1).to_mkldnn(),
)  # fmt: skip
_DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int32,
    torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16, torch.uint64,
)  # fmt: skip


def odd_value(rng: np.random.Generator) -> Any:
    return either(rng, *_VALUES)


def odd_number(rng: np.random.Generator) -> Any:
    """In place of a number: one that may be out of range, or none at all, or a tensor."""
    kind = rng.integers(3)
    return either(rng, *_NUMBERS) if kind else odd_value(rng) if rng.integers(2) else either(rng, *_TENSORS)()


def odd_tensor(rng: np.random.Generator, tensor: Any, others: Iterable[Tensor]) -> Any:
    """In place of a tensor: another dtype, shape, layout, device or class, memory of another, no tensor."""
    t = tensor.detach() if isinstance(tensor, Tensor) else torch.zeros(3, 4)
    if t.layout is not torch.strided or t.is_nested or t.is_meta:
        return odd_value(rng)
    kind = int(rng.integers(28))
    try:
        return _ODD[kind](rng, t, [o for o in others if o.layout is torch.strided and o.device.type == "cpu"])
    except (RuntimeError, ValueError, TypeError, IndexError):  # no such layout of such a dtype
        return odd_value(rng)


def _other_dtype(rng: np.random.Generator, t: Tensor, _: Any) -> Any:
    return t.to(either(rng, *_DTYPES))


def _part_of_another(rng: np.random.Generator, t: Tensor, others: list[Tensor]) -> Any:
    """Elements of another tensor's storage, wherever."""
    fit = [o for o in others if o.dtype == t.dtype and o.untyped_storage().nbytes() >= t.nbytes > 0]
    if not fit:
        return t
    storage = fit[rng.integers(len(fit))].untyped_storage()
    start = int(rng.integers(storage.nbytes() // t.element_size() - t.numel() + 1))
    return torch.empty(0, dtype=t.dtype).set_(storage, start, t.shape)


def _in_inference_mode(rng: np.random.Generator, t: Tensor, _: Any) -> Any:
    with torch.inference_mode():
        return t.clone()


def _huge_strides(rng: np.random.Generator, t: Tensor, _: Any) -> Any:
    """Contiguous whatever its strides are, where sizes are 1."""
    strides = [2**40 if n <= 1 else s for n, s in zip(t.shape, t.contiguous().stride(), strict=True)]
    return torch.zeros(max(1, t.numel()), dtype=t.dtype).as_strided(t.shape, strides)


_ODD: tuple[Any, ...] = (
    _other_dtype, _other_dtype, _part_of_another, _part_of_another, _in_inference_mode, _huge_strides,
    lambda rng, t, o: t.reshape(-1),
    lambda rng, t, o: t.unsqueeze(0),
    lambda rng, t, o: torch.zeros(either(rng, *SHAPES), dtype=t.dtype),
    lambda rng, t, o: t.to_sparse(),
    lambda rng, t, o: t.to_sparse_csr(),
    lambda rng, t, o: t.to("meta"),
    lambda rng, t, o: t.as_subclass(_Subclass),
    lambda rng, t, o: torch.nn.Parameter(t.clone(), t.is_floating_point()),
    lambda rng, t, o: t.clone().requires_grad_() * 1,
    lambda rng, t, o: torch.zeros((1,) * t.dim(), dtype=t.dtype).expand(t.shape),
    lambda rng, t, o: torch.zeros(t.numel() + 10, dtype=t.dtype).as_strided(t.shape, (1,) * t.dim()),
    lambda rng, t, o: t.numpy(),
    lambda rng, t, o: t.tolist(),
    lambda rng, t, o: [t],
    lambda rng, t, o: [t, t],
    lambda rng, t, o: [],
    lambda rng, t, o: o[rng.integers(len(o))] if o else t,
    lambda rng, t, o: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    lambda rng, t, o: torch.nested.nested_tensor([t.float(), t.float()]),
    lambda rng, t, o: t.float().to_mkldnn(),
    lambda rng, t, o: odd_number(rng),
    lambda rng, t, o: odd_value(rng),
)  # fmt: skip
assert len(_ODD) == 28


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


class Memory:
    """All bytes of the storages of these arguments' tensors, around the tensors too."""

    def __init__(self, arguments: Any) -> None:
        # Under a subclass or autograd the storage is the same.
        self.tensors = [t for t in tensors_in(arguments) if has_memory(t)]
        self.versions = [None if t.is_inference() else t._version for t in self.tensors]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in self.tensors}
        self.storages = {at: (storage, _bytes_of(storage).clone()) for at, storage in storages.items()}

    def has_changed(self) -> bool:
        """Whether a byte is another, or a tensor thinks that it was written."""
        versions = [None if t.is_inference() else t._version for t in self.tensors]
        return versions != self.versions or any(
            not torch.equal(_bytes_of(storage), before) for storage, before in self.storages.values()
        )

    def has_changed_outside(self, written: Iterable[Tensor]) -> bool:
        """Whether a byte is another that belongs to none of these."""
        expected = {at: before.clone() for at, (_, before) in self.storages.items()}
        for t in written:
            if not has_memory(t):
                continue
            t = t.detach()
            at = t.untyped_storage().data_ptr()
            if at in expected and 0 not in t.stride():  # nobody writes to an expanded one
                place = torch.empty(0, dtype=t.dtype).set_(
                    expected[at].untyped_storage(), t.storage_offset(), t.shape, t.stride()
                )
                place.copy_(t)
        return any(
            not torch.equal(_bytes_of(storage), expected[at]) for at, (storage, _) in self.storages.items()
        )


def has_values(t: Tensor) -> bool:
    """Whether it is an ordinary tensor on the CPU."""
    return not t.is_nested and t.layout is torch.strided and t.device.type == "cpu" and not t.is_quantized


def has_memory(t: Tensor) -> bool:
    """Whether it is one of at least one byte."""
    return has_values(t) and t.untyped_storage().nbytes() > 0


def _bytes_of(storage: Any) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)
