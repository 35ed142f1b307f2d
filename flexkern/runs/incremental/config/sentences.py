"""What pydantic finds wrong with a configuration, in our words: the key, what it must be, what it was."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union

import annotated_types
import pydantic.dataclasses
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs
from typing_extensions import dataclass_transform

from flexkern.plain import nearest
from flexkern.spec.argument import shown

__all__ = ["STRICT", "Mistake", "Said", "first_mistake", "meant", "record_in", "said", "strict", "unknown_key"]

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_Class = TypeVar("_Class", bound=type[Any])
_RANGES = ("less_than", "less_than_equal", "greater_than", "greater_than_equal")
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


class Said(NamedTuple):
    """In an annotation: what its values are called, where the types say too little."""

    words: str


class Mistake(NamedTuple):
    """The first thing that is wrong: its key, with dots into tables of tables, and a sentence about it."""

    key: str
    sentence: str


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def strict(of: _Class) -> _Class:
    """A frozen pydantic dataclass without conversions and unknown keys, whose mistakes are one sentence.

    Raises:
        ValueError: when an object is made, naming the key.
    """
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=STRICT)(of)

    def begin(self: Any, /, *given: Any, **named: Any) -> None:
        try:
            made.__pydantic_validator__.validate_python(ArgsKwargs(given, named), self_instance=self)
        except ValidationError as error:
            raise ValueError(first_mistake(error, made.__pydantic_fields__).sentence) from None

    made.__init__ = begin
    return made


def first_mistake(error: ValidationError, fields: Mapping[str, FieldInfo]) -> Mistake:
    """What to tell of an error of a model with these fields."""
    errors = error.errors(include_url=False)
    # A key that is written wrongly is not missing.
    first = next((e for e in errors if e["type"] in _UNKNOWN), errors[0])
    # Of a union there is one for each of its types: a number outside its range is of the right one.
    same = [e for e in errors if e["loc"][:1] == first["loc"][:1]]
    found = next((e for e in same if e["type"] in _RANGES), first)
    place, kind = found["loc"], found["type"]
    if not place:
        return Mistake("", _own_words(found))
    field = fields.get(str(place[0]))
    depth = 1
    while field is not None and len(place) > depth and (inner := record_in(field.annotation)) is not None:
        fields, field = inner.model_fields, inner.model_fields.get(str(place[depth]))
        depth += 1
    key = ".".join(map(str, place[:depth]))
    if kind in _UNKNOWN:
        return Mistake(key, unknown_key(key, fields))
    if kind == "missing" and len(place) == depth:
        return Mistake(key, f"{key} is missing")
    if kind == "value_error":
        return Mistake(key, _own_words(found))
    about = [] if field is None else field.metadata
    hint = Any if field is None else field.annotation
    named = key
    inside = len(place) > depth and isinstance(place[depth], int) and kind != "missing"  # of a list
    if kind == "less_than_equal" and (inside or not any(isinstance(one, Said) for one in about)):
        what = f"at most {found['ctx']['le']}"
    elif inside:
        named, what = f"{key}[{place[depth]}]", said(typing.get_args(hint)[0])
    else:
        what = said(hint, about)
    return Mistake(key, f"{named} must be {what}, got {shown(found['input'])}")


def _own_words(found: Any) -> str:
    """Of a check of ours: its sentence, which names the key."""
    return str(found["ctx"]["error"])


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to say of a key that there is not."""
    known = sorted(known)
    return f"unknown key {shown(key)}{meant(key.rpartition('.')[2], known)}; allowed are {', '.join(known)}"


def meant(name: str, known: Iterable[str]) -> str:
    """`` (did you mean x?)`` where one of the known names is like this one, else nothing."""
    hint = nearest(name, known).removeprefix("; ").replace("'", "")
    return hint and f" ({hint})"


def record_in(hint: Any) -> type[BaseModel] | None:
    """The model that an annotation has, or may have beside None; None if it has none."""
    for one in _members(hint):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _members(hint: Any) -> list[Any]:
    """The types of a union but None; of another annotation, itself."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [one for one in typing.get_args(hint) if one is not type(None)]
    return [hint]


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "a table"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "texts"}
_LISTS = (tuple, list, collections.abc.Sequence)


def said(hint: Any, about: Iterable[Any] = ()) -> str:
    """What values of an annotation are called, with the range that ``about``, its metadata, gives them."""
    about = list(about)
    words = next((one.words for one in about if isinstance(one, Said)), None)
    if words is not None:
        return words
    members, origin, inner = _members(hint), typing.get_origin(hint), typing.get_args(hint)
    if len(members) > 1 or members[0] is not hint:
        return " or ".join(said(one, about) for one in members)
    if origin is Annotated:
        return said(inner[0], [*inner[1:], *about])
    if origin is Literal:
        return repr(inner[0]) if len(inner) == 1 else f"one of {', '.join(inner)}"
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)} {_several(inner[0])}"
    if origin in _LISTS:
        return f"a list of {_several(inner[0])}"
    if origin in (dict, collections.abc.Mapping) or record_in(hint) is not None:
        return "a table"
    return _WORDS.get(hint, "a value") + _range(about)


def _several(hint: Any) -> str:
    """What there is in a list."""
    if typing.get_origin(hint) in _LISTS:
        return f"lists of {_several(typing.get_args(hint)[0])}"
    return _SEVERAL.get(hint, "values")


def _range(about: Iterable[Any]) -> str:
    """The lower end; the upper one is said to those who are over it."""
    least = next((one.ge for one in about if isinstance(one, annotated_types.Ge)), None)
    return "" if least is None else f" of at least {least}"
