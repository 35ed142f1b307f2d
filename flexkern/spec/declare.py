"""How an operator is declared: a class whose attributes are its arguments, in the order of its schema.

Everything that must agree about an operator is made from that class: the schema that torch knows, the checks of
its fake kernel, the look for shared memory, the arguments by name for implementations in Python, and the struct
and the unpacking of the C++ ones (build_tools/bindings.py). The package needs neither torch nor anything else
of flexkern, because the build reads it where torch cannot be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from .rules import Rule

__all__ = [
    "EXACT",
    "LARGEST_NUMBER",
    "SHARED_MEMORY",
    "SPECS",
    "Argument",
    "Arguments",
    "Spec",
    "argument",
    "check_extents",
    "number",
    "operator",
    "operator_of_each_rule",
    "single",
]

LARGEST_NUMBER = 1e38  # kernels compute in float32, and with a few times the scale
SHARED_MEMORY = "a tensor that is updated in place shares memory with another argument; pass a .clone() of one"

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
    meaning: str = "",
) -> Any:
    """A number of a declaration, refused outside [low, high]; ``low=None``: not looked at."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high})


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


def single(a: Argument) -> Argument:
    """The argument of the overload that takes one tensor in place of a list."""
    if a.type != "Tensor[]":
        return a
    return replace(a, type="Tensor")


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

    def reads(self) -> list[Tensor]:
        """The tensors that the call only reads."""
        tensors = [
            a for a in self.spec.arguments if a.holds_tensors and not (a.written and self._is_written(a))
        ]
        return [t for a in tensors for t in self._tensors(a)]

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
            ValueError: if one does.
        """
        check_extents(list(_extents([t for _, t in self.writes()], self.reads())))

    def check_tensors(self) -> None:
        """Devices, dtypes and shapes are as they were declared.

        Raises:
            ValueError: naming the argument that does not fit.
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
        allowed = []
        for name in a.dtypes:
            like = getattr(self, name, None)
            if like is None:
                allowed.append(name)
            else:
                first = like[0] if isinstance(like, (list, tuple)) else like
                allowed.append(str(first.dtype).removeprefix("torch."))
        if allowed and str(tensor.dtype).removeprefix("torch.") not in allowed:
            raise ValueError(f"{a.name} must be {' or '.join(allowed)}, got {tensor.dtype}")

    def _check_shape(self, a: Argument, tensor: Tensor, sizes: dict[str, int]) -> None:
        assert a.shape is not None
        if len(a.shape) == 1 and isinstance(like := getattr(self, a.shape[0], None), type(tensor)):
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
            known = {n: sizes[n] for n in a.shape if n in sizes}
            raise ValueError(f"{a.name} must be [{', '.join(a.shape)}] with {known}, got {tuple(tensor.shape)}")


def _extents(written: Sequence[Tensor], read: Sequence[Tensor]) -> Iterator[tuple[int, int, bool]]:
    for tensors, is_written in ((written, True), (read, False)):
        for tensor in tensors:
            if tensor.numel():
                start = tensor.data_ptr()
                yield start, start + tensor.numel() * tensor.element_size(), is_written


def check_extents(extents: list[tuple[int, int, bool]]) -> None:
    """Of ranges in memory (begin, end, whether it is written) no written one meets another.

    An extent may lie inside a larger one that began before it, so what is remembered is how far any of them
    reached, and how far any written one did.

    Raises:
        ValueError: if one does.
    """
    extents.sort()
    any_end = written_end = -1
    for begin, end, is_written in extents:
        if begin < (any_end if is_written else written_end):
            raise ValueError(SHARED_MEMORY)
        any_end = max(any_end, end)
        if is_written:
            written_end = max(written_end, end)


# Attributes of a declaration that stand for what its rule declares.
STATES, NUMBERS = "states", "rule"
_Record = TypeVar("_Record", bound=type)


def operator_of_each_rule(
    rules: Iterable[type[Rule]], *, returns: str, one: bool = False, lacks: dict[str, str] | None = None
) -> Callable[[_Record], _Record]:
    """Declares the operators of a family that exist for each rule: decorates the class of what they share.

    Its docstring begins with what such an operator does; the operators' own classes are named after the rule.
    """

    def declare(declared: _Record) -> _Record:
        family = declared.__module__.rpartition(".")[2]
        for rule in rules:
            own = type(f"{rule.NAME}{declared.__name__}", (declared,), {"__doc__": declared.__doc__})
            own.__module__ = declared.__module__
            operator(rule.operator(family), returns=returns, one=one, lacks=lacks, rule=rule)(own)
        return declared

    return declare


def operator(
    name: str,
    *,
    returns: str,
    one: bool = False,
    recorded: bool = False,
    lacks: dict[str, str] | None = None,
    rule: type[Rule] | None = None,
) -> Callable[[_Record], _Record]:
    """Declares an operator: decorates the class of its arguments, whose docstring begins with what it does.

    Where the class has the attributes ``states`` and ``rule``, the operator has the arguments that ``rule``
    declares, and the attributes of a call are the rule's state, in its order, and its numbers as one record.
    """

    def declare(declared: _Record) -> _Record:
        columns = list(_attributes(declared, rule))
        record: Any = make_dataclass(declared.__name__, columns, bases=(declared,))
        record.__module__, record.__doc__ = declared.__module__, declared.__doc__
        if rule is not None:
            states, numbers = rule.STATES, [f.name for f in fields(rule)]
            record.states = property(lambda self: [getattr(self, state) for state in states])
            record.rule = property(lambda self: rule(*(getattr(self, n) for n in numbers)))
        family = declared.__module__.rpartition(".")[2]
        does = (declared.__doc__ or "").partition("\n")[0]
        arguments = tuple(_argument(f) for f in fields(record))
        record.spec = Spec(name, family, arguments, returns, one, recorded, lacks or {}, rule, does, record)
        SPECS[name] = record.spec
        return record

    return declare


SPECS: dict[str, Spec] = {}


def _attributes(declared: type, rule: type[Rule] | None) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of each argument, in order: a class's own come before those of its bases."""
    annotated: dict[str, tuple[Any, Any]] = {}
    for cls in declared.__mro__:
        for name, annotation in vars(cls).get("__annotations__", {}).items():
            annotated.setdefault(name, (annotation, vars(cls).get(name, field())))
    for name, (annotation, default) in annotated.items():
        if name == "spec":
            continue
        if rule is not None and name == STATES:
            several = annotation == "Sequence[States]"
            kind = "Sequence[Tensor]" if several else "Tensor | None"
            for state, meaning in rule.STATES.items():
                about = argument(
                    meaning, written=True, dtypes=EXACT, optional=True, default=None, shape=("weight",)
                )
                yield state, kind, about
        elif rule is not None and name == NUMBERS:
            yield from ((f.name, f.type, field(default=f.default, metadata=f.metadata)) for f in fields(rule))
        else:
            yield name, annotation, default if isinstance(default, Field) else field(default=default)


# The dtypes of all state of a weight: float64 belongs to a float64 weight, which only the reference takes.
EXACT = ("float32", "float64")


def _argument(f: Any) -> Argument:
    kind = _SCHEMA[f.type]
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
        meaning=f.metadata.get("meaning", ""),
    )
