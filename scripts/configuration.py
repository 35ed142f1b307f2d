"""Writes docs/configuration.md: every key of a configuration of `flexkern run class-incremental`.

    python scripts/configuration.py

A key's type, default and meaning are said once: in the models of flexkern/runs/incremental/config, and, of an
option of a method, in the constructor that takes it and its docstring. tests/scripts/test_configuration.py
fails where the page is not as this writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from flexkern.learners import METHODS
from flexkern.nn import GateOptions
from flexkern.runs.incremental.config import Config, DataConfig, MethodConfig, Paper, StreamConfig, read_config
from flexkern.runs.incremental.config import shipped as shipped_configurations
from flexkern.runs.incremental.config.file_schema import own_keys
from flexkern.runs.incremental.config.method_options import method_model
from flexkern.runs.incremental.config.models import BackboneConfig
from flexkern.runs.incremental.config.sentences import record_in, said

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "docs" / "configuration.md"
TABLES = ("data", "stream", "backbone", "methods")  # keys of the whole that are tables

EXAMPLE = """\
title = "Birds, five at a time"
out = "out/birds"

[data]
kind = "folder"
path = "birds"  # with the folders train and test
size = 256

[stream]
increment = 5

[backbone]
name = "google/vit-base-patch16-224-in21k"

[learner]  # for all methods
epochs = 10

[[methods]]
name = "Artsy"
method = "artsy"
rank = 16
gate = { gate = "ridge", gating = "topk", k = 2 }

[[methods]]
name = "SimpleCIL"
method = "simplecil\"\
"""

PAGE = """\
# Configurations

Written by `python scripts/configuration.py` from the models that check a file; `flexkern run class-incremental
--schema` prints the same as a JSON schema, for editors. A configuration is a TOML file:

```toml
{example}
```

Run it by `flexkern run class-incremental FILE`. All of it is checked before an image is read: a key that there
is not, a value of another type and a number outside its range are named, with their table. Where a default is
empty, or a meaning says None, the key is left out.

## Those that come with flexkern

`flexkern run class-incremental NAME --data PATH`. Orders of classes and increments are PILOT's
(github.com/sun-hailong/LAMDA-PILOT), whose folders are read as they are: `train` and `test`, in each one folder
for each class.

| name | what it is |
| --- | --- |
{shipped}

## The whole file

{whole}

## `[data]`

{data}

## `[stream]`

{stream}

## `[backbone]`

{backbone}

## `[[methods]]`

One table for each method that is compared. Its other keys are options of the method, below; what all methods
have in common may stand once, in `[learner]`. An option of a method comes before the same one in `[learner]`.

{methods}

### `paper`

{paper}

## Options of all methods

Where a default is not the same for all, it is that of {first}; {others}.

{common}
{own}
## `gate` of artsy and ease

The options of `flexkern.nn.GateOptions`.

{gate}
"""


def table(keys: Mapping[str, FieldInfo], defaults: Mapping[str, Any] | None = None) -> str:
    """One row for each key."""
    rows = [
        f"| `{name}` | {_kind(field)} | {_default(field, (defaults or {}).get(name))} | "
        f"{_cell(field.description or '')} |"
        for name, field in keys.items()
    ]
    return "\n".join(["| key | what | default | meaning |", "| --- | --- | --- | --- |", *rows])


def _kind(field: FieldInfo) -> str:
    return _cell(said(field.annotation, field.metadata))


def _default(field: FieldInfo, other: Any = None) -> str:
    if field.is_required():
        return "needed"
    value = field.default if other is None else other
    if value is None:
        return ""
    if isinstance(value, dict):
        return f"`{{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in value.items())} }}`"
    return f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    text = text.replace("|", "\\|")
    return text if text.endswith("...") else text.removesuffix(".")


def _shipped() -> str:
    rows = []
    for name, path in shipped_configurations().items():
        rows.append(f"| `{name}` | {_cell(read_config(path).title)} |")
    return "\n".join(rows)


def _without(keys: Mapping[str, FieldInfo], left_out: Any) -> dict[str, FieldInfo]:
    return {name: field for name, field in keys.items() if name not in left_out}


def page() -> str:
    """docs/configuration.md."""
    every = {method: method_model(method).model_fields for method in METHODS}
    first = next(iter(every))
    common = {n: f for n, f in every[first].items() if all(n in of for of in every.values())}
    others = [
        f"`{name} = {json.dumps(of[name].default)}` of {method}"
        for method, of in every.items()
        for name in common
        if of[name].default != common[name].default
    ]
    own = {method: _without(of, common) for method, of in every.items()}
    same = {method: next(m for m in own if list(own[m]) == list(own[method])) for method in own}
    parts = []
    for method, keys in own.items():
        alike = [m for m in own if same[m] == method]
        if not alike or not keys:
            continue
        differ = [
            f"\n`{k} = {_default(own[m][k]).strip('`')}` is the default of {m}.\n"
            for m in alike[1:]
            for k in keys
            if own[m][k].default != keys[k].default
        ]
        parts.append(f"\n## Options of {' and '.join(alike)}\n\n{table(keys)}\n{''.join(differ)}")
    record: Any = record_in(every[first]["gate"].annotation)
    assert record.__name__ == GateOptions.__name__
    method_keys = _without(own_keys(MethodConfig), ("options", "paper"))
    method_keys["method"] = FieldInfo(annotation=str, description=f"what learns: {', '.join(METHODS)}")
    whole = _without(own_keys(Config), TABLES)
    return PAGE.format(
        example=EXAMPLE, shipped=_shipped(), whole=table(whole),
        data=table(own_keys(DataConfig)), stream=table(own_keys(StreamConfig)),
        backbone=table(own_keys(BackboneConfig)), methods=table(method_keys),
        paper=table(own_keys(Paper)), first=first, others=" and ".join(others) or "there is none",
        common=table(common), own="".join(parts), gate=table(record.model_fields),
    )  # fmt: skip


def main() -> None:
    """Writes the page."""
    PATH.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
