"""The options of methods, as models that are made from the constructors that take them.

What an option may be is said once: by the annotation in the constructor of a learner, in
:class:`flexkern.learners.Recipe`, :class:`flexkern.learners.Reserve` and :class:`flexkern.nn.GateOptions`.
Ranges are theirs to check, too.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from flexkern.learners import METHODS, MLP_METHODS, Recipe, Reserve, schema
from flexkern.learners.registry import defaults_of
from flexkern.runs.incremental.config.models import RESERVED, MethodConfig
from flexkern.runs.incremental.config.sentences import STRICT, Mistake, first_mistake, meant

__all__ = ["ELSEWHERE", "FAMILIES", "Option", "family_of", "method_model", "mistake_in", "options_of"]

FAMILIES = {"vit": METHODS, "mlp": MLP_METHODS}
"""The methods that a configuration may name, by their family; a name that two have is the first one's."""

ELSEWHERE = ("precision",)
"""Options of methods that are keys of the whole file, and so not in ``[learner]``."""
_PLAIN = (bool, int, float, str, type(None))
_NOT_OF_FILES = ("features", "reserve")  # objects that a perceptron's constructor takes
# Of methods on a perceptron, beside what their constructors take.
_OF_RUNS: dict[str, tuple[Any, Any, str]] = {
    "features": (
        Literal["backbone", "pixels"],
        "backbone",
        "what the perceptron learns from: what the frozen backbone sees, or the pixels in [0, 1].",
    ),
    "epochs": (int, None, "passes over each task's images."),
}


class Option(NamedTuple):
    """One option of a method.

    hint: its type, of what JSON has; a mapping that is the fields of a record has that record's model.
    default: where nothing is said.
    meaning: what the docstring says of it.
    """

    hint: Any
    default: Any
    meaning: str


def mistake_in(config: MethodConfig) -> Mistake | None:
    """What is wrong with the types and names of a method's options; None where nothing is, or where there is no
    such method among those of its family."""
    family = family_of(config)
    if family is None:
        return None
    model = method_model(config.method, family)
    for key in config.options:
        if key not in model.model_fields:
            hint = meant(key, model.model_fields)
            has = ", ".join(sorted(model.model_fields))
            return Mistake(key, f"method {config.method!r} has no option {key!r}{hint}; it has {has}")
    try:
        # From JSON, which has lists where Python has tuples.
        model.model_validate_json(json.dumps(config.options))
    except ValidationError as error:
        return first_mistake(error, model.model_fields)
    return None


def family_of(config: MethodConfig) -> str | None:
    """The family whose method is meant; None if there is no such method."""
    families = FAMILIES if config.family is None else (config.family,)
    return next((family for family in families if config.method in FAMILIES[family]), None)


def method_model(method: str, family: str = "vit") -> type[BaseModel]:
    """A model of all options of one of the methods of a family."""
    learner: Any = FAMILIES[family][method]  # a name may be registered anew
    return _model_of(learner, method, family)


@cache
def _model_of(learner: Any, method: str, family: str) -> type[BaseModel]:
    return _model(f"options of {method}", learner.__doc__, options_of(method, family))


def _model(title: str, doc: str | None, options: Mapping[str, Option]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for name, option in options.items():
        # An attribute may not have the name of a method of pydantic's models (copy, json).
        about = Field(default=option.default, description=option.meaning or None)
        fields[name] = (option.hint, about)
    first = _plain_text(inspect.cleandoc(doc or "").partition("\n\n")[0])
    return create_model(
        title, __config__=ConfigDict(**STRICT, title=title, protected_namespaces=()), __doc__=first, **fields
    )


def options_of(method: str, family: str = "vit") -> dict[str, Option]:
    """All options of one of the methods of a family, first those that the method itself has."""
    return _of_perceptron(method) if family == "mlp" else _of_transformer(method)


def _of_perceptron(method: str) -> dict[str, Option]:
    learner = MLP_METHODS[method]
    given, arguments = defaults_of("mlp", method), schema.arguments(learner)
    meanings: dict[str, str] = {}
    for parent in reversed(learner.__mro__):
        meanings |= {k: v for k, v in _meanings(parent.__doc__).items() if "as in" not in v}
    if "reserve" in arguments:  # whose fields the constructor takes one by one
        hints = typing.get_type_hints(Reserve)
        arguments |= {f.name: (hints[f.name], f.default) for f in dataclasses.fields(Reserve)}
        meanings |= _meanings(Reserve.__doc__)
    found: dict[str, Option] = {}
    for name, (hint, default) in arguments.items():
        if name in RESERVED or name in _NOT_OF_FILES:
            continue
        default = given.get(name, default)
        default = default if isinstance(default, (*_PLAIN, tuple)) else None
        found[name] = Option(_of_json(hint), default, meanings.get(name, ""))
    epochs = learner.default_epochs
    for name, (hint, default, meaning) in _OF_RUNS.items():
        default = epochs if name == "epochs" and isinstance(epochs, int) else default
        found[name] = Option(hint, default, meaning)
    return found


def _of_transformer(method: str) -> dict[str, Option]:
    learner = METHODS[method]
    recipe, given = learner.default_recipe(), defaults_of("vit", method)
    meanings = _meanings(Recipe.__doc__)
    for parent in reversed(learner.__mro__):
        meanings |= {k: v for k, v in _meanings(parent.__doc__).items() if "as in" not in v}
    arguments, of_recipe = schema.arguments(learner), typing.get_type_hints(Recipe)
    found: dict[str, Option] = {}
    for name in (*(n for n in learner.options() if n not in of_recipe), *of_recipe):
        if name in RESERVED:
            continue
        if name in of_recipe:
            hint, default = of_recipe[name], getattr(recipe, name)
        else:
            hint, default = arguments[name]
        default = given.get(name, None if default is inspect.Parameter.empty else default)
        found[name] = Option(_of_json(hint), default, meanings.get(name, ""))
    return found


def _of_json(hint: Any) -> Any:
    """A type without what JSON, and so TOML, does not have; anything, where nothing is left."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        record: Any = next((one for one in inner[1:] if dataclasses.is_dataclass(one)), None)
        return _of_json(inner[0]) if record is None else _record_model(record)
    if origin in (Union, types.UnionType):
        kept = [one for one in map(_of_json, inner) if one is not Any]
        return Union[tuple(kept)] if kept else Any  # noqa: UP007 - made from a list
    if hint in _PLAIN or origin is Literal:
        return hint
    if origin is tuple:
        return tuple[tuple(one if one is Ellipsis else _of_json(one) for one in inner)]  # type: ignore[misc]
    if origin in (list, collections.abc.Sequence):
        return list[_of_json(inner[0])]  # type: ignore[misc]
    if origin in (dict, collections.abc.Mapping):
        return dict[str, Any]
    return Any


@cache
def _record_model(record: Any) -> type[BaseModel]:
    """A model of the fields of a dataclass whose fields all have defaults."""
    hints, meanings = typing.get_type_hints(record, include_extras=True), _meanings(record.__doc__)
    options = {
        f.name: Option(_of_json(hints[f.name]), f.default, meanings.get(f.name, ""))
        for f in dataclasses.fields(record)
    }
    return _model(record.__name__, record.__doc__, options)


def _meanings(doc: str | None) -> dict[str, str]:
    """What a docstring says of each argument, by its name; several may be said of at once."""
    return {name: text for names, text in _arguments_in(doc) for name in names}


def _arguments_in(doc: str | None) -> Iterator[tuple[list[str], str]]:
    said = inspect.cleandoc(doc or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    for entry in re.split(r"\n(?=    \w)", f"\n{said}")[1:]:
        names, _, text = entry.strip().partition(":")
        yield [name.strip() for name in names.split(",")], _plain_text(text)


def _plain_text(text: str) -> str:
    """A docstring's words without the marks of its roles, in one line."""
    return " ".join(re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`").split())
