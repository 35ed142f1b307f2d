"""Configurations with random changes: written and read again they are equal, or the file is named."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from flexkern.runs.incremental.config import Config, read_config
from flexkern.runs.incremental.config.file_schema import file_model
from flexkern.runs.incremental.config.method_options import family_of
from fuzz.harness import fuzzer

_BASE: dict[str, Any] = {
    "title": "a run", "seeds": [1, 2], "device": "cpu", "out": "out/x",
    "backbone": {"name": "small"},
    "data": {"kind": "pack", "path": "x.npz", "size": 32, "classes": [3, "50-52"], "train_per_class": 5},
    "stream": {"increment": 2, "base": 1, "seed": "run"},
    "learner": {"epochs": 7, "lr": 0.1},
    "mlp": {"epochs": 3, "widths": [8, 9]},
    "methods": [
        {"name": "A", "method": "artsy", "rank": 4, "gate": {"gate": "mlp", "theta": 0.5}},
        {"name": "B", "method": "simplecil", "paper": {"average": 90, "last": 80, "source": "a paper"}},
        {"name": "C", "method": "metaplastic", "scale": 2.0, "network": "hybrid"},
        {"name": "D", "method": "joint", "family": "mlp", "features": "pixels"},
    ],
}  # fmt: skip
_VALUES = (
    "1", "0", "-1", "2.5", "true", "nan", "inf", "-inf", str(2**31 + 1), str(2**53), str(2**64), str(10**40),
    "9" * 4400, '""', '"x"', '"0-5"', '"5-0"', '"0-99999999999999"', '"\\u0000"', '"digits"', '"folder"', "[]",
    "[1, 1]", "[[1]]", "[{a = 1}]", "{}", "{a = 1}", "{a = {b = [nan]}}", "1979-05-27", "07:32:00",
    "[" * 2000, "[" * 25 + "]" * 25, "{a = " * 25 + "1" + "}" * 25, '"""', "=", "0x", "1e400", "''",
)  # fmt: skip


@functools.cache
def _file() -> Path:
    made = tempfile.TemporaryDirectory(prefix="fuzz")
    _kept.append(made)
    return Path(made.name) / "c.toml"


_kept: list[Any] = []  # removed when the process ends


def _toml(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, _Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


class _Raw:
    """A value that is text of TOML, right or wrong."""

    def __init__(self, text: str) -> None:
        self.text = text


def _change(table: Any, rng: np.random.Generator) -> None:
    """One change, somewhere in the tables and lists."""
    keys = list(table) if isinstance(table, dict) else list(range(len(table)))
    if not keys:
        return
    key = keys[rng.integers(len(keys))]
    if isinstance(table[key], (dict, list)) and rng.random() < 0.8:
        _change(table[key], rng)
        return
    way = rng.integers(4)
    if way == 0:
        del table[key]
    elif way == 1 and isinstance(table, dict):
        name = str(key)
        place = int(rng.integers(len(name)))
        table[name[:place] + str(rng.choice(["", "x", "_", "é"])) + name[place + 1 :] or "x"] = table.pop(key)
        for odd in [k for k in table if not k.isascii() or not k]:
            table[json.dumps(odd)] = table.pop(odd)
    elif way == 2 and isinstance(table, dict):
        names = ["seed", "device", "order", "test_per_class", "classes", "precision", "paper", "options", "x",
                 "test_share", "broken", "in_memory", "family", "features", "widths"]  # fmt: skip
        table[str(rng.choice(names))] = _Raw(_VALUES[rng.integers(len(_VALUES))])
    else:
        table[key] = _Raw(_VALUES[rng.integers(len(_VALUES))])


@fuzzer("configurations", quick=800, full=400_000)
def configurations(rng: np.random.Generator) -> str:
    """A valid configuration with up to three changes of keys, values and types, or of bytes of the file."""
    table = json.loads(json.dumps(_BASE))
    for _ in range(rng.integers(4)):
        _change(table, rng)
    content = "".join(f"{key} = {_toml(value)}\n" for key, value in table.items()).encode()
    if rng.random() < 0.1:
        place = int(rng.integers(len(content) + 1))
        content = content[:place] + rng.bytes(int(rng.integers(1, 4))) + content[place + int(rng.integers(3)) :]
    path = _file()
    path.write_bytes(content)
    try:
        config = read_config(path)
    except ValueError as error:
        message = str(error)
    else:
        _check_again(config)
        return "right"
    assert message.startswith(f"{path}: "), f"the file is not named: {message}"
    assert len(message) < 20_000
    return "refused"


def _check_again(config: Config) -> None:
    """What it holds, written as a file again, is the same configuration."""
    plain = config.asdict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    again = {key: value for key, value in plain.items() if value is not None}
    again["backbone"] = {"name": again["backbone"]}
    again["methods"] = [
        {
            **m["options"],
            "name": m["name"],
            "method": m["method"],
            **({"family": m["family"]} if "family" in m else {}),
            **({"paper": _given(m["paper"])} if m["paper"] else {}),
        }
        for m in plain["methods"]
    ]
    again["data"], again["stream"] = _given(again["data"]), _given(again["stream"])
    path = _file()
    path.write_text("".join(f"{_key(k)} = {_keyed(v)}\n" for k, v in again.items()), encoding="utf-8")
    assert read_config(path) == config
    if all(family_of(method) is not None for method in config.methods):
        _model().model_validate_json(json.dumps(again))  # the schema refuses nothing that is right


@functools.cache
def _model() -> Any:
    return file_model()


def _given(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def _key(name: str) -> str:
    return json.dumps(name)


def _keyed(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_keyed(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_keyed, value)) + "]"
    return json.dumps(value)
