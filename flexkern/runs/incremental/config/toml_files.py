"""Configurations as TOML files: found, read, and checked table by table."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexkern.plain import nearest
from flexkern.runs.incremental.config.method_options import ELSEWHERE, family_of, mistake_in
from flexkern.runs.incremental.config.models import (
    RESERVED,
    BackboneConfig,
    Config,
    DataConfig,
    MethodConfig,
    Paper,
    StreamConfig,
)
from flexkern.runs.incremental.config.sentences import unknown_key

__all__ = ["CONFIGS", "find_config", "parse_config", "read_config", "shipped"]

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
_NOT_SHARED = (*RESERVED, *ELSEWHERE, "name", "method", "family", "paper")  # not in [learner]
_SHARED = {"vit": "learner", "mlp": "mlp"}
"""Tables of what all methods of a family have in common."""


def shipped() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}


def find_config(name: str) -> Path:
    """The file of that path, or of that name among those shipped.

    Raises:
        FileNotFoundError: if there is neither.
    """
    known = shipped()
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if name in known:
        return known[name]
    hint = nearest(name, known) or f"; shipped ones are {', '.join(known)}"
    raise FileNotFoundError(f"no configuration at {name!r}{hint}")


def read_config(path: Path) -> Config:
    """Reads and checks a TOML file.

    Raises:
        ValueError: naming the file, the table and the key.
        ImportError: on Python 3.10 without tomli, which has no reader of TOML of its own.
    """
    try:
        return parse_config(_toml().loads(path.read_text(encoding="utf-8")))
    except RecursionError as error:
        raise ValueError(f"{path}: its tables or lists are nested too deeply") from error
    except ValueError as error:  # of TOML's reader too
        raise ValueError(f"{path}: {error}") from error


def _toml() -> Any:
    for module in ("tomllib", "tomli"):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise ImportError(
        "Python 3.10 cannot read TOML by itself: pip install tomli, or use Python 3.11", name="tomli"
    )


def parse_config(table: Mapping[str, Any]) -> Config:
    """Checks what TOML's reader gave.

    ``[learner]`` has options of all methods on a transformer, ``[mlp]`` of those on a perceptron; those of a
    method come before them. ``[backbone]`` has one key, ``name``: "small" (embedded), a folder, or a name on
    the Hugging Face hub.

    Raises:
        ValueError: naming the table and the key.
    """
    keys = {f.name for f in dataclasses.fields(Config)} | {*_SHARED.values()}  # type: ignore[arg-type]
    unknown = [key for key in table if key not in keys]
    if unknown:
        raise ValueError(unknown_key(unknown[0], keys))
    for key in ("data", "stream", "methods"):
        if key not in table:
            raise ValueError(f"{'[[methods]]' if key == 'methods' else f'[{key}]'} is missing")
    if not isinstance(table["methods"], list):
        raise ValueError("methods must be a list of tables: [[methods]]")
    values = dict(table)
    common = {family: _table(values.pop(name, {}), name) for family, name in _SHARED.items()}
    for family, name in _SHARED.items():
        elsewhere = [key for key in common[family] if key in _NOT_SHARED]
        if elsewhere:
            raise ValueError(f"[{name}]: {elsewhere[0]} has a place of its own, outside of [{name}]")
    values["data"] = _section(DataConfig, values["data"], "data")
    values["stream"] = _section(StreamConfig, values["stream"], "stream")
    values["methods"] = tuple(
        _method(entry, common, f"methods, entry {i + 1}") for i, entry in enumerate(values["methods"])
    )
    if common["mlp"] and all(family_of(method) != "mlp" for method in values["methods"]):
        raise ValueError("[mlp]: it has options of methods on a perceptron, and [[methods]] has none")
    if "backbone" in values:
        values["backbone"] = _section(BackboneConfig, values["backbone"], "backbone").name
    return Config(**values)


def _method(entry: Any, common: Mapping[str, Mapping[str, Any]], where: str) -> MethodConfig:
    options = dict(_table(entry, where))
    for key in ("name", "method"):
        if key not in options:
            raise ValueError(f"{where}: {key} is missing")
    paper = options.pop("paper", None)
    given = {key: options.pop(key) for key in ("name", "method")}
    given["paper"] = None if paper is None else _section(Paper, paper, f"{where}, paper")
    if "family" in options:
        given["family"] = options.pop("family")
    try:
        family = family_of(MethodConfig(**given, options=options)) or "vit"
        method = MethodConfig(**given, options={**common[family], **options})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    mistake = mistake_in(method)
    if mistake is not None:
        own = mistake.key.partition(".")[0] in options
        table = where if own else f"{where}, by [{_SHARED[family]}]"
        raise ValueError(f"{table}: {mistake.sentence}")
    return method


def _section(section: Any, value: Any, where: str) -> Any:
    """A model of a table, with the table's name in what it says of mistakes."""
    values = _table(value, where)
    try:
        return section(**values)
    except ValueError as error:
        raise ValueError(f"[{where}]: {error}") from error


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a table ([{where}]), got {value!r}")
    return value
