"""One argument of an operator, as it is declared."""

from __future__ import annotations

import numbers
from dataclasses import MISSING, Field, dataclass, field, replace
from typing import Any

__all__ = [
    "EXACT",
    "LARGEST_NUMBER",
    "SMALLEST_NUMBER",
    "Argument",
    "argument",
    "argument_of",
    "number",
    "shown",
    "single",
]

LARGEST_NUMBER = 1e38  # kernels compute in float32, and with a few times the scale
SMALLEST_NUMBER = 2.0**-149  # of float32; 2**-150 and less round to 0
# The dtypes of all state of a weight: float64 belongs to a float64 weight, which only the reference takes.
EXACT = ("float32", "float64")

# What an annotation means in a schema, and as a member of a C++ struct. Lists that may be missing are empty
# there.
_SCHEMA = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor?",
    "Sequence[Tensor]": "Tensor[]",
    "Sequence[int]": "int[]",
    "Sequence[float]": "float[]",
    "int": "int",
    "float": "float",
    "bool": "bool",
}


def shown(value: object) -> str:
    """A value in a message: the beginning of a long one. Python prints no integer of more than 4300 digits."""
    if type(value) is int and abs(value) >> 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, numbers.Number):
        return str(value)
    try:
        text = repr(value)
    except Exception:  # whatever a foreign class does
        text = ""
    if not text:
        return f"a {type(value).__name__}"
    return text if len(text) < 200 else f"{text[:60]} ... ({type(value).__name__})"


@dataclass(frozen=True)
class Argument:
    """One argument of an operator.

    Attributes:
        name: of the argument, in every language.
        type: as in a schema, without what says that it is written or may be missing.
        optional: whether None may be passed. A list that is None arrives as an empty one.
        default: None where there is none. What has a default comes last, and is left out where it has it: an
            argument that is passed costs up to 0.2 microseconds, one that is not 0.04, and an empty list 0.4.
        required: whether there is no default.
        written: whether it is updated in place; names of other arguments: only where all of these are given and
            not False.
        dtypes: names of the dtypes that a tensor may have, or of an argument whose dtype it has.
        shape: of a tensor, in names that mean the same size everywhere in one call; the name of an argument as
            the only entry: its shape. None: anything.
        low, high: the range of a number.
        zero_is_special: whether a number that is not 0 but is 0 in float32 is refused, because 0 means
            something else than a small number.
        meaning: for people.
    """

    name: str
    type: str
    optional: bool
    default: object
    required: bool
    written: bool | tuple[str, ...]
    dtypes: tuple[str, ...]
    shape: tuple[str, ...] | None
    low: float | None
    high: float | None
    zero_is_special: bool
    meaning: str

    @property
    def holds_tensors(self) -> bool:
        """Whether it is a tensor or a list of them."""
        return self.type.startswith("Tensor")

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return self.type.endswith("[]")

    def schema(self, alias: str) -> str:
        """This argument in a schema; ``alias`` is the letter of a written one."""
        kind = self.type.replace("Tensor", f"Tensor({alias}!)", 1) if self.written else self.type
        default = "" if self.required else f"={self.default}"
        return f"{kind}{'?' if self.optional else ''} {self.name}{default}"


def argument(
    meaning: str = "",
    *,
    written: bool | tuple[str, ...] = False,
    dtypes: str | tuple[str, ...] = (),
    shape: tuple[str, ...] | None = None,
    optional: bool = False,
    default: Any = MISSING,
) -> Any:
    """An attribute of a declaration; see :class:`Argument`."""
    given = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    about = {
        "meaning": meaning, "written": written, "dtypes": given, "shape": shape, "optional": optional,
    }  # fmt: skip
    return field(default=default, metadata=about)


def number(
    default: Any = MISSING,
    *,
    low: float | None = None,
    high: float | None = LARGEST_NUMBER,
    zero_is_special: bool = False,
    meaning: str = "",
) -> Any:
    """A number of a declaration, refused outside [low, high]; ``low=None``: not looked at."""
    about = {"meaning": meaning, "low": low, "high": high, "zero_is_special": zero_is_special}
    return field(default=default, metadata=about)


def single(a: Argument) -> Argument:
    """The argument of the overload that takes one tensor in place of a list."""
    if a.type != "Tensor[]":
        return a
    return replace(a, type="Tensor")


def argument_of(f: Field[Any]) -> Argument:
    """The argument that an attribute declares."""
    kind = _SCHEMA[str(f.type)]
    is_required = f.default is MISSING
    return Argument(
        name=f.name,
        type=kind.removesuffix("?"),
        optional=kind.endswith("?") or f.metadata.get("optional", False),
        default=None if is_required else f.default,
        required=is_required,
        written=f.metadata.get("written", False),
        dtypes=f.metadata.get("dtypes", ()),
        shape=f.metadata.get("shape"),
        low=f.metadata.get("low"),
        high=f.metadata.get("high"),
        zero_is_special=f.metadata.get("zero_is_special", False),
        meaning=f.metadata.get("meaning", ""),
    )
