"""What the record of a checkpoint must be: looked at before anything is made from it."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import flexkern.version
from flexkern.spec.argument import LARGEST_NUMBER, shown

__all__ = [
    "FORMAT",
    "OLDEST",
    "argument_names",
    "arguments",
    "check_configuration",
    "check_fields",
    "check_format",
    "check_record",
]

OLDEST, FORMAT = 1, 2
"""Formats of records that this version reads; it writes the last. 2: with sums, the fingerprint of the whole
backbone, and the version that wrote it; 1: without; the first of 1 name a class as "learner", no method."""

_COUNT = (int, 0)
# Type, and the range of a number (its end, if not _MOST). None: it may be null.
_RECORD: dict[str, tuple[Any, ...]] = {
    "format": (int,), "family": (str,), "method": (str,), "class": (str,), "configuration": (dict,),
    "frozen": (str, None), "progress": (dict,), "model": (dict,), "optimizer": (dict, None),
}  # fmt: skip
_ALSO: dict[str, tuple[Any, ...]] = {"version": (str,), "frozen_name": (str,), "notes": (dict,)}
_PROGRESS: dict[str, tuple[Any, ...]] = {
    "items_learned": _COUNT, "epochs_done": _COUNT, "begun": (dict, None),
}  # fmt: skip
_ANSWERS: dict[str, tuple[Any, ...]] = {  # of the progress; files of earlier versions have none of it
    "class_names": (list,), "decoded_size": (int, 1, None), "calibration": (dict,), "tensors": _COUNT,
}  # fmt: skip
_CALIBRATION: dict[str, tuple[Any, ...]] = {"log_temperature": (float, -100, 100), "images": (int, 0, 2**62)}
_OLD_MLP: dict[str, tuple[Any, ...]] = {
    "format": (int,), "learner": (str,), "configuration": (dict,), "features": (str, None),
    "items_learned": _COUNT, "epochs_done": _COUNT, "item_name": (str, None), "optimizer": (dict,),
}  # fmt: skip
_OLD_VIT: dict[str, tuple[Any, ...]] = {
    "format": (int,), "learner": (str,), "configuration": (dict,), "backbone": (str,),
    "tasks_learned": _COUNT, "classes_seen": _COUNT, "begun": (dict, None),
}  # fmt: skip
_OPTIMIZER: dict[str, tuple[Any, ...]] = {"state": (dict,), "param_groups": (list,)}
_MOST = 2**31  # items, epochs and classes: more nobody has, and generators' seeds are made of them


def check_format(record: dict[str, Any]) -> None:
    """Refuses a record of a later version, whatever else it has.

    Raises:
        ValueError: with the version that reads it.
    """
    number = record.get("format")
    if type(number) is int and number > FORMAT:
        writer = record.get("version")
        of = f"flexkern {writer}" if isinstance(writer, str) else "a later version of flexkern"
        raise ValueError(
            f"holds {record.get('class')!r} in format {number}, which {of} wrote; this is flexkern "
            f"{flexkern.version.__version__}, which reads formats up to {FORMAT}: install {of} or a later one"
        )


def check_record(record: dict[str, Any]) -> None:
    """Keys and types of a record, and the ranges of its numbers.

    Raises:
        ValueError: naming the field.
    """
    if "learner" in record:
        vit = "backbone" in record
        optional = {"training": (dict, None)} if vit else {"model": (dict,)}
        check_fields(record, _OLD_VIT if vit else _OLD_MLP, optional=optional)
        training = record.get("training")
        if training is not None:
            check_fields(training, {"epochs_done": _COUNT, "optimizer": (dict, None)}, "training.")
        optimizer = (training or {}).get("optimizer") if vit else record["optimizer"]
        begun = record["begun"] if vit else None
    else:
        check_fields(record, _RECORD, optional=_ALSO)
        progress = record["progress"]
        own_of_family = {"classes_seen": _COUNT, "row_classes": (list,), **_ANSWERS}
        check_fields(progress, _PROGRESS, "progress.", optional=own_of_family, others=True)
        if "calibration" in progress:
            check_fields(progress["calibration"], _CALIBRATION, "progress.calibration.")
        for n, name in enumerate(progress.get("class_names", [])):
            if not isinstance(name, (str, type(None))):
                raise ValueError(f"progress.class_names.{n} must be a string or null, got {shown(name)}")
        for n, c in enumerate(progress.get("row_classes", [])):
            if type(c) is not int:
                raise ValueError(f"progress.row_classes.{n} must be a whole number, got {shown(c)}")
        optimizer, begun, vit = record["optimizer"], progress["begun"], record["family"] == "vit"
        if vit and "classes_seen" not in progress:
            raise ValueError("progress.classes_seen is missing")
        if begun is None and progress["epochs_done"]:
            raise ValueError(f"progress.epochs_done is {progress['epochs_done']}, and no item was begun")
    if begun is not None:
        own = {"name": (str,), "classes": (int, 1)} if vit else {"name": (str,)}
        again = {"known": (int, 0, begun["classes"])} if type(begun.get("classes")) is int else {}
        where = "begun." if "learner" in record else "progress.begun."
        check_fields(begun, own, where, optional=again, others=True)
    if optimizer is not None:
        check_fields(optimizer, _OPTIMIZER, "optimizer.")
        for n, group in enumerate(optimizer["param_groups"]):
            if not isinstance(group, dict) or not isinstance(group.get("params"), list):
                raise ValueError(f"optimizer.param_groups.{n} must be an object with a list of params")
        for key, state in optimizer["state"].items():
            if not isinstance(state, dict):
                raise ValueError(f"optimizer.state.{key} must be an object, got {shown(state)}")


def check_fields(
    values: Any,
    fields: Mapping[str, tuple[Any, ...]],
    prefix: str = "",
    *,
    optional: Mapping[str, tuple[Any, ...]] | None = None,
    others: bool = False,
) -> None:
    """Raises ValueError, naming the field, unless ``values`` has these and (without ``others``) no more."""
    optional = optional or {}
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'record'} must be an object, got {shown(values)}")
    for name in fields:
        if name not in values:
            raise ValueError(f"{prefix}{name} is missing")
    for name, value in values.items():
        known = fields.get(name, optional.get(name))
        if known is None:
            if others:
                continue
            raise ValueError(f"{prefix}{name[:40]} is no field of it; it has {sorted({*fields, *optional})}")
        kind, *rest = known
        if value is None and None in rest:
            continue
        if type(value) is not kind:
            raise ValueError(f"{prefix}{name} must be {_NAMES[kind]}, got {shown(value)}")
        bounds = [n for n in rest if n is not None]
        if bounds:
            low, high = [*bounds, _MOST][:2]
            if not low <= value <= high:
                raise ValueError(f"{prefix}{name} must be in [{low}, {high}], got {shown(value)}")


_NAMES = {int: "a whole number", float: "a number", str: "a string", dict: "an object", list: "a list"}


# ------------------------------------------------------------------ constructors' arguments


def check_configuration(of: type, values: dict[str, Any], prefix: str = "configuration.") -> None:
    """Whether a class could be made from these arguments, by the types that its constructors say.

    So it holds for every registered class. What a constructor takes as ``**keywords`` is looked for in the
    classes above it; what none of them names, and ranges, are left to the constructor.

    Raises:
        ValueError: naming the field.
    """
    for name, (hint, required) in _arguments(of).items():
        if name in values:
            if not _fits(values[name], hint):
                raise ValueError(f"{prefix}{name[:40]} must be {_said(hint)}, got {shown(values[name])}")
        elif required:
            raise ValueError(f"{prefix}{name} is missing")


def argument_names(of: type) -> tuple[str, ...]:
    """Names of the arguments of a learner's constructor, those that it hands on to its parents' included."""
    unnamed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [p.name for _, parameters in _constructors(of) for p in parameters if p.kind not in unnamed]
    return tuple(name for name in dict.fromkeys(named) if name != "configuration")  # what its parents make


def _constructors(of: type) -> Iterator[tuple[Any, list[inspect.Parameter]]]:
    """The constructors of a class and of its parents, as far as each takes more than it names, and what they
    take."""
    for parent in of.__mro__:
        if "__init__" not in vars(parent) or parent is object:
            continue
        constructor = vars(parent)["__init__"]
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        yield constructor, parameters
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            return


def arguments(of: type) -> dict[str, tuple[Any, Any]]:
    """Type and default of each argument of a learner's constructor, those that it hands on to its parents'
    included. Types have what ``Annotated`` adds to them; what must be given has ``inspect.Parameter.empty``."""
    found: dict[str, tuple[Any, Any]] = {}
    for constructor, parameters in _constructors(of):
        try:
            hints = typing.get_type_hints(constructor, include_extras=True)
        except Exception:  # of a user's class, names that only a type checker sees
            hints = {}
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, (hints.get(p.name, Any), p.default))
    return found


def _arguments(of: type) -> dict[str, tuple[Any, bool]]:
    """Type of each argument of a class, and whether it must be given; frozen networks and the like are not
    in a checkpoint."""
    found = {
        name: (hint, default is inspect.Parameter.empty) for name, (hint, default) in arguments(of).items()
    }
    for name in ("features", "backbone", "device", "cuda_graph", "features_cache", "configuration"):
        if name in found and found[name][0] not in (int, float, str):
            del found[name]
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON can be an argument of this type; True of types that JSON does not have."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _fits(value, inner[0])
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(v, inner[0]) for v in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if origin in (list, collections.abc.Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(v, h) for v in value for h in inner)
    if origin in (dict, collections.abc.Mapping):
        return isinstance(value, dict)
    if hint is type(None):
        return value is None
    if hint is float:
        # No more than kernels can take, which have it in 32 bits, or as an int in 64.
        return (type(value) is float and abs(value) <= LARGEST_NUMBER) or (
            type(value) is int and abs(value) < 2**63
        )
    if hint in (int, str, bool):
        return type(value) is hint
    if dataclasses.is_dataclass(hint):
        return isinstance(value, (dict, hint))  # type: ignore[arg-type]
    return True


def _said(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
