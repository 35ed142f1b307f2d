"""An operator, and the arguments of one call of it by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .argument import Argument, single
from .rules import Rule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SHARED_MEMORY", "Arguments", "Spec", "check_extents", "extents"]

SHARED_MEMORY = (
    "{} shares memory with another argument, {}, and one of them is updated in place; pass a .clone() of one"
)


@dataclass(frozen=True)
class Spec:
    """All that is said of one operator.

    Attributes:
        name: as in ``torch.ops.flexkern``.
        family: its file's name on each floor of the house.
        arguments: in the order of the schema.
        returns: as in a schema.
        one: whether there is an overload ``name.one`` that takes one tensor where the operator takes a list.
        recorded: whether autograd looks at calls (see :class:`flexkern.ops.operator.Operator`).
        lacks: backends without a kernel of it, each with what serves instead.
        rule: the rule of a step; None where the operator is no step.
        does: one line for people.
        record: the class of the arguments by name.
        by_rows: whether a direct call returns the two rows of its result in place of it.
    """

    name: str
    family: str
    arguments: tuple[Argument, ...]
    returns: str
    one: bool
    recorded: bool
    lacks: dict[str, str]
    rule: type[Rule] | None
    does: str
    record: Any
    by_rows: bool = False

    @property
    def schema(self) -> str:
        """Arguments and results as torch reads them, without the name."""
        return self._schema(self.arguments)

    @property
    def schema_of_one(self) -> str:
        """The schema of the overload that takes one tensor for each list of tensors."""
        return self._schema([single(a) for a in self.arguments])

    def _schema(self, arguments: Sequence[Argument]) -> str:
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        each = ", ".join(a.schema(next(letters) if a.written else "") for a in arguments)
        return f"({each}) -> {self.returns}"

    def has_no_kernel(self, backend: str) -> str | None:
        """Why ``backend`` cannot run it, or None."""
        if backend not in self.lacks:
            return None
        kernel = {"cuda": "CUDA C++", "cpu": "C++", "triton": "Triton"}[backend]
        return f"{self.name} has no {kernel} kernel; {self.lacks[backend]}"


class Arguments:
    """The arguments of one call by name: what implementations in Python take."""

    spec: ClassVar[Spec]

    @classmethod
    def of_call(cls, given: Sequence[Any]) -> Any:
        """From the values that a dispatcher passes, which leaves out trailing ones that have their defaults."""
        arguments = cls.spec.arguments
        values = [*given, *(a.default for a in arguments[len(given) :])]
        return cls(*(() if v is None and a.is_list else v for a, v in zip(arguments, values, strict=True)))

    def values(self) -> list[Any]:
        """All of them in the order of the schema."""
        return [getattr(self, a.name) for a in self.spec.arguments]

    def _tensors(self, a: Argument) -> Sequence[Tensor]:
        value = getattr(self, a.name)
        return value if a.is_list else () if value is None else (value,)

    def _is_written(self, a: Argument) -> bool:
        if isinstance(a.written, bool):
            return a.written
        given = [getattr(self, name) for name in a.written]
        return all(value is not None and value is not False for value in given)

    def writes(self) -> list[tuple[str, Tensor]]:
        """The tensors that the call updates, each with its argument's name."""
        tensors = [a for a in self.spec.arguments if a.written and self._is_written(a)]
        return [(a.name, t) for a in tensors for t in self._tensors(a)]

    def reads(self) -> list[tuple[str, Tensor]]:
        """The tensors that the call only reads, each with its argument's name."""
        tensors = [
            a for a in self.spec.arguments if a.holds_tensors and not (a.written and self._is_written(a))
        ]
        return [(a.name, t) for a in tensors for t in self._tensors(a)]

    def replaced(self, written: Sequence[Tensor]) -> Any:
        """The same call with other tensors to update, which come in the order of :meth:`writes`."""
        remaining = iter(written)
        changes = {}
        for a in self.spec.arguments:
            if a.written and self._is_written(a):
                tensors = [next(remaining) for _ in self._tensors(a)]
                changes[a.name] = tensors if a.is_list else tensors[0] if tensors else None
        return type(self)(**{**vars(self), **changes})

    def results(self) -> Sequence[tuple[Any, Sequence[int]]]:
        """The dtype (or its name) and the shape of each result; a device of their own they do not have."""
        return ()

    # ------------------------------------------------------------------ checks

    def check_memory(self) -> None:
        """No tensor that the call updates shares memory with another of its tensors.

        For implementations in Python; of compiled ones build_tools/bindings.py generates the same check.

        Raises:
            ValueError: if one does, naming both.
        """
        check_extents([*extents(self.writes(), is_written=True), *extents(self.reads(), is_written=False)])

    def check_given(self) -> None:
        """Nothing is missing, and what is updated for each weight of a list is there for each, in its shape.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        weights = getattr(self, "weight", None)
        for a in self.spec.arguments:
            value = getattr(self, a.name)
            if a.holds_tensors and not a.optional and value is None:
                raise TypeError(f"{a.name} must be a tensor, got None")
            if a.is_list and a.written and self._tensors(a) and weights is not None:
                shapes = [[tuple(t.shape) for t in tensors] for tensors in (value, weights)]
                if shapes[0] != shapes[1]:
                    raise ValueError(f"{a.name} must have the shapes of weight, {shapes[1]}, got {shapes[0]}")

    def check_numbers(self) -> None:
        """Numbers are in the ranges that were declared.

        Raises:
            ValueError: naming the argument that is not.
        """
        for a in self.spec.arguments:
            value = getattr(self, a.name)
            if a.low is not None and not a.low <= value <= (math.inf if a.high is None else a.high):
                raise ValueError(f"{a.name} must be in [{a.low}, {a.high}], got {value}")

    def check_dtypes(self) -> None:
        """Dtypes are as they were declared, also of tensors that the call does not read.

        Raises:
            TypeError: naming the argument that does not fit.
        """
        for a in self.spec.arguments:
            if a.holds_tensors:
                for tensor in self._tensors(a):
                    self._check_dtype(a, tensor)

    def check_tensors(self) -> None:
        """Devices, dtypes and shapes are as they were declared.

        Raises:
            TypeError, ValueError: naming the argument that does not fit.
        """
        tensors = [(a, t) for a in self.spec.arguments if a.holds_tensors for t in self._tensors(a)]
        sizes: dict[str, int] = {}
        for a, tensor in tensors:
            first = tensors[0][1]
            if tensor.device != first.device and not (tensor.numel() == 1 and tensor.device.type == "cpu"):
                raise ValueError(f"{a.name} is on {tensor.device}, {tensors[0][0].name} on {first.device}")
            self._check_dtype(a, tensor)
            if a.shape is not None and not a.is_list:
                self._check_shape(a, tensor, sizes)

    def _check_dtype(self, a: Argument, tensor: Tensor) -> None:
        allowed: dict[str, None] = {}
        for name in a.dtypes:
            like = getattr(self, name, None)
            if like is None or (a.is_list and not like):
                allowed[f"torch.{name}"] = None
            else:
                first = like[0] if isinstance(like, (list, tuple)) else like
                allowed[str(first.dtype)] = None
        if allowed and str(tensor.dtype) not in allowed:
            raise TypeError(f"{a.name} must be {' or '.join(allowed)}, got {tensor.dtype}")

    def _check_shape(self, a: Argument, tensor: Tensor, sizes: dict[str, int]) -> None:
        assert a.shape is not None
        like: Any = getattr(self, a.shape[0], None)
        if len(a.shape) == 1 and hasattr(like, "shape"):
            if tuple(tensor.shape) != tuple(like.shape):
                raise ValueError(
                    f"{a.name} must have the shape of {a.shape[0]}, {tuple(like.shape)}, got "
                    f"{tuple(tensor.shape)}"
                )
            return
        fits = tensor.dim() == len(a.shape)
        if fits:
            fits = all(size == sizes.setdefault(n, size) for n, size in zip(a.shape, tensor.shape, strict=True))
        if not fits:
            known = ", ".join(f"{n} = {sizes[n]}" for n in a.shape if n in sizes)
            form = f"[{', '.join(a.shape)}]{' with ' if known else ''}{known}"
            raise ValueError(f"{a.name} must be {form}, got {tuple(tensor.shape)}")


# Begin and end in memory, whether it is written, and the argument's name.
Extent = tuple[int, int, bool, str]


def extents(tensors: Sequence[tuple[str, Tensor]], *, is_written: bool) -> Iterator[Extent]:
    """The ranges in memory of contiguous tensors with their arguments' names; empty ones have none."""
    for name, tensor in tensors:
        if tensor.numel():
            start = tensor.data_ptr()
            yield start, start + tensor.numel() * tensor.element_size(), is_written, name


def check_extents(ranges: list[Extent]) -> None:
    """Of ranges in memory no written one meets another.

    An extent may lie inside a larger one that began before it, so what is remembered is how far any of them
    reached, and how far any written one did.

    Raises:
        ValueError: if one does, naming both.
    """
    ranges.sort()
    farthest = farthest_written = (-1, "")
    for begin, end, is_written, name in ranges:
        before, other = farthest if is_written else farthest_written
        if begin < before:
            raise ValueError(SHARED_MEMORY.format(name, other))
        farthest = max(farthest, (end, name))
        if is_written:
            farthest_written = max(farthest_written, (end, name))
