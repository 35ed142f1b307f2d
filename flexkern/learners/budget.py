"""A bound on what is allocated while a learner is made from a file that someone else may have written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["Budget"]

# Functions that take sizes as one number after the other; most take a tuple too.
_ONE_BY_ONE = (
    "empty", "zeros", "ones", "rand", "randn", "new_empty", "new_zeros", "new_ones", "eye", "arange",
    "randperm", "tril_indices", "triu_indices", "repeat", "expand",
)  # fmt: skip


class Budget(TorchFunctionMode):
    """While it is entered, no tensor of more than so many numbers is made from sizes that are given as numbers.

    What a learner's constructor makes is bounded so by what its file holds, whatever its record says: a record
    of a few bytes can ask for terabytes. It holds for every class, also a user's, because torch's own functions
    are watched: those that make a tensor of given sizes, or one like another.

    Args:
        numbers: of one tensor.

    Raises:
        ValueError: from within, in place of the allocation.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if (
            getattr(func, "namespace", None) == "flexkern"
        ):  # operators of ours fill what there is; lists are seeds to them
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _ONE_BY_ONE:
            self._check([a for a in args if type(a) is int])
        elif name.endswith("_like"):
            self._check(args[0].shape)
        for value in (*args, *kwargs.values()):
            if isinstance(value, (list, tuple)) and value and all(type(n) is int for n in value):
                self._check(value)
        return func(*args, **kwargs)

    def _check(self, sizes: Iterable[int]) -> None:
        sizes = list(sizes)
        if math.prod(abs(n) for n in sizes) > self.numbers:
            raise ValueError(f"asks for a tensor of {sizes}, more than {self.numbers:,} numbers")
