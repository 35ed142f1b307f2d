"""How a folder's run grows: by seeds, by methods, and by tasks at the end of its stream."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from flexkern.runs.incremental.config import Config, DataConfig, MethodConfig, Paper, StreamConfig
from flexkern.runs.seeds import said_seeds, united

__all__ = ["Growth", "config_of", "differences", "grow"]

# May change between two calls of one run: where things lie, not what they are.
_FREE = ("out", "data.path", "data.in_memory")
_LISTS = ("stream.order", "data.domains", "data.classes")  # with more in them there may be more tasks
_COUNTS = ("stream.experiences",)


class Growth(NamedTuple):
    """What comes of the run of a folder and the one that is asked for.

    config: all that the folder will have. What it had comes first, so that its files keep their names.
    added: seeds, methods and tasks that it does not have yet, a phrase each.
    differs: what cannot be both, a phrase each.
    """

    config: Config
    added: list[str]
    differs: list[str]


def grow(known: Mapping[str, Any], config: Config) -> Growth:
    """Puts together the configuration in a folder's results and another one.

    Whether a longer stream begins with the tasks that were learned, only its images tell.
    """
    seeds = united(known["seeds"], config.seeds)
    new_seeds = seeds[len(known["seeds"]) :]
    of_known = {method["name"]: method for method in known["methods"]}
    new_methods = [method for method in config.methods if method.name not in of_known]
    now = config.asdict()
    added = [f"seed{'s' * (len(new_seeds) > 1)} {said_seeds(new_seeds)}"] if new_seeds else []
    added += [f"method {method.name!r}" for method in new_methods]
    differs = []
    for method in now["methods"]:
        before = of_known.get(method["name"], method)
        differs += [f"method {method['name']!r}: {phrase}" for phrase in differences(before, method)]
    shared = [{k: v for k, v in c.items() if k not in ("seeds", "methods")} for c in (known, now)]
    before_by_key, now_by_key = map(_flat, shared)
    for phrase in differences(*shared):
        key = phrase.partition(" ")[0]
        longer = _is_longer(key, before_by_key.get(key), now_by_key.get(key))
        (added if longer else differs).append(phrase)
    methods = (*_methods(known, config), *new_methods)
    return Growth(dataclasses.replace(config, seeds=seeds, methods=methods), added, differs)  # type: ignore[type-var]


def _methods(known: Mapping[str, Any], config: Config) -> tuple[MethodConfig, ...]:
    """Those of results, as the configuration has them where it has them too."""
    given = {method.name: method for method in config.methods}
    return tuple(given.get(values["name"]) or _method(values) for values in known["methods"])


def _method(values: Mapping[str, Any]) -> MethodConfig:
    paper = values["paper"]
    return MethodConfig(**{**values, "paper": None if paper is None else Paper(**paper)})


def config_of(known: Mapping[str, Any]) -> Config:
    """The configuration that results have.

    Raises:
        ValueError, KeyError, TypeError: if it is of a version that had other keys.
    """
    tables = {"data": DataConfig(**known["data"]), "stream": StreamConfig(**known["stream"])}
    methods = tuple(map(_method, known["methods"]))
    return Config(**{**known, **tables, "methods": methods})  # type: ignore[arg-type]


def _is_longer(key: str, before: Any, now: Any) -> bool:
    if key in _COUNTS:
        return isinstance(before, int) and isinstance(now, int) and now > before
    if key not in _LISTS or not (isinstance(before, list) and isinstance(now, list)):
        return False
    if key == "data.classes":  # whose order the seed makes
        return set(before) < set(now)
    return now[: len(before)] == before


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What is not the same in two configurations, one phrase per key, which it begins with."""
    before, now = _flat(old), _flat(new)
    return [
        f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if key not in _FREE and before.get(key) != now.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables and lists of tables as one table with dotted keys."""
    if isinstance(value, Mapping):
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    return {
        k: v for name, part in items for k, v in _flat(part, f"{prefix}.{name}" if prefix else name).items()
    }
