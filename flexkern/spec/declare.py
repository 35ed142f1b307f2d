"""How an operator is declared: a class whose attributes are its arguments, in the order of its schema.

Everything that must agree about an operator is made from that class: the schema that torch knows, the checks of
its fake kernel, the look for shared memory, the arguments by name for implementations in Python, and the struct
and the unpacking of the C++ ones (build_tools/bindings.py). The package needs neither torch nor anything else
of flexkern, because the build reads it where torch cannot be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, field, fields, make_dataclass
from typing import Any, TypeVar

from .argument import EXACT, argument, argument_of
from .record import Spec
from .rules import Rule

__all__ = ["SPECS", "operator", "operator_of_each_rule"]

# Attributes of a declaration that stand for what its rule declares.
STATES, COUNT, NUMBERS = "states", "step", "rule"
_Record = TypeVar("_Record", bound=type)


def operator_of_each_rule(
    rules: Iterable[type[Rule]],
    *,
    returns: str,
    one: bool = False,
    lacks: dict[str, str] | None = None,
    by_rows: bool = False,
) -> Callable[[_Record], _Record]:
    """Declares the operators of a family that exist for each rule: decorates the class of what they share.

    Its docstring begins with what such an operator does; the operators' own classes are named after the rule.
    """

    def declare(declared: _Record) -> _Record:
        family = declared.__module__.rpartition(".")[2]
        for rule in rules:
            own = type(f"{rule.NAME}{declared.__name__}", (declared,), {"__doc__": declared.__doc__})
            own.__module__ = declared.__module__
            name = rule.operator(family)
            operator(name, returns=returns, one=one, lacks=lacks, rule=rule, by_rows=by_rows)(own)
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
    by_rows: bool = False,
) -> Callable[[_Record], _Record]:
    """Declares an operator: decorates the class of its arguments, whose docstring begins with what it does.

    Where the class has the attributes ``states``, ``step`` and ``rule``, the operator has the arguments that
    ``rule`` declares, and the attributes of a call are the rule's state, in its order (without those that its
    numbers do not need, whatever was given), the number of the step of each weight (none where the rule does
    not count), and its numbers as one record.
    """

    def declare(declared: _Record) -> _Record:
        columns = list(_attributes(declared, rule))
        record: Any = make_dataclass(declared.__name__, columns, bases=(declared,))
        record.__module__, record.__doc__ = declared.__module__, declared.__doc__
        if rule is not None:
            states, numbers = rule.STATES, [f.name for f in fields(rule)]
            nothing: Any = () if _is_of_list(declared, STATES) else None
            record.states = property(
                lambda self: [getattr(self, s) if s in self.rule.needs() else nothing for s in states]
            )
            record.rule = property(lambda self: rule(*(getattr(self, n) for n in numbers)))
            if not rule.COUNTS_STEPS:
                record.step = () if _is_of_list(declared, COUNT) else None
        family = declared.__module__.rpartition(".")[2]
        does = (declared.__doc__ or "").partition("\n")[0]
        arguments = tuple(argument_of(f) for f in fields(record))
        record.spec = Spec(
            name, family, arguments, returns, one, recorded, lacks or {}, rule, does, record, by_rows
        )
        SPECS[name] = record.spec
        return record

    return declare


SPECS: dict[str, Spec] = {}


def _is_of_list(declared: type, name: str) -> bool:
    """Whether what a rule declares for ``name`` is there once for each weight of a list."""
    found = (vars(cls).get("__annotations__", {}) for cls in declared.__mro__)
    return next(a[name] for a in found if name in a).startswith("Sequence[")


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
            kind = _kind(annotation)
            for state, meaning in rule.STATES.items():
                about = argument(
                    meaning, written=True, dtypes=EXACT, optional=True, default=None, shape=("weight",)
                )
                yield state, kind, about
        elif rule is not None and name == COUNT:
            if rule.COUNTS_STEPS:
                meaning = "the number of this step of each weight, counted from 1: one element each"
                yield name, _kind(annotation), argument(meaning, dtypes="float32", optional=True, default=None)
        elif rule is not None and name == NUMBERS:
            yield from ((f.name, f.type, field(default=f.default, metadata=f.metadata)) for f in fields(rule))
        else:
            yield name, annotation, default if isinstance(default, Field) else field(default=default)


def _kind(annotation: str) -> str:
    """What a rule's own tensors are in an operator, one for each weight."""
    return "Sequence[Tensor]" if annotation.startswith("Sequence[") else "Tensor | None"
