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

from flexkern.learners import METHODS, MLP_METHODS
from flexkern.nn import GateOptions
from flexkern.runs.incremental.config import Config, DataConfig, MethodConfig, Paper, StreamConfig, read_config
from flexkern.runs.incremental.config import shipped as shipped_configurations
from flexkern.runs.incremental.config.file_schema import own_keys
from flexkern.runs.incremental.config.method_options import FAMILIES, method_model
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

[learner]  # for all methods on a transformer
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

PERCEPTRONS = """\
[mlp]  # for all methods on a perceptron
epochs = 5
widths = [512, 512]

[[methods]]
name = "Metaplastic"
method = "metaplastic"
network = "hybrid"

[[methods]]
name = "Joint, on pixels"
method = "joint"
family = "mlp"
features = "pixels\"\
"""

MEASURED = (
    ("`average`", "avg",
     "average accuracy: the mean of `seen` over the tasks (iCaRL, PILOT)"),
    ("`seen`", "last",
     "accuracy on all classes seen so far; after the last task it is last accuracy"),
    ("`forgetting`", "forgot",
     "best accuracy on each task since it was learned, less that of now: mean over earlier tasks "
     "(Chaudhry et al. 2018)"),
    ("`learning_accuracy`", "learned",
     "plasticity: accuracy on each task right after it was learned, mean over tasks (Riemer et al. 2019)"),
    ("`backward_transfer`", "BWT",
     "accuracy on each task now, less that right after it was learned: mean over earlier tasks (Lopez-"
     "Paz and Ranzato 2017)"),
    ("`forward_transfer`", "FWT",
     "accuracy on each domain just before it is learned, less chance (one over the classes): mean over "
     "domains (Lopez-Paz and Ranzato 2017). Domain-incremental streams only: elsewhere a class is not "
     "answered before it is learned, and accuracy on it is 0 by construction"),
    ("`masked`", "told",
     "task-incremental accuracy: the answer is the likeliest of the task's own classes (van de Ven and "
     "Tolias 2019)"),
    ("`task_named`", "named",
     "share of images that are answered with a class of the right task; class-incremental streams only"),
    ("`top5`", "top 5",
     "the right class is among the five likeliest"),
    ("`macro`, `per_class`", "macro",
     "accuracy on each class, and its mean over the classes"),
    ("`anytime`", "anytime",
     "area under the curve of accuracy against the images seen (Koh et al. 2022), tested after each "
     "task; online streams only"),
)  # fmt: skip

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

`flexkern run class-incremental FILE --dry-run` says what would be done, what the folder has of it, and about
how long the rest will take; it writes nothing. Each method is tried for about two seconds on some images, and
the rest is in proportion: an estimate, without what grows with the tasks. `flexkern fit` and the experiments of
`flexkern run` have `--dry-run` too.

## A run that grows

The folder of a run (`out`) keeps what it has, and the same command with more adds to it. What has ended is not
learned again, what was stopped goes on, and the results are those of one run that had it all at once, to the
bit:

- **seeds**: `flexkern run class-incremental FILE --seeds 0,1` after `--seeds 0` learns seed 1. They are numbers
  and ranges, `0,1,2` or `0-4`, here and in `flexkern demo` and the experiments of `flexkern run`, whose folders
  grow by seeds too; `--seeds 3` is seed 3 alone, beside those that the folder has.
- **methods**: one more `[[methods]]` in the file. What the folder has comes first in its tables.
- **tasks**, at the end of the stream: `stream.order`, `data.domains` or `stream.experiences` with more in it,
  where the tasks that were learned stay the same ones (of `data.classes` the seed makes another order). Their
  learners must have been kept, by `--keep`. Perceptrons have an output for each class of their stream: for them
  the classes must stay the same, as with domains.

If anything else differs, nothing is done: the setting is named, and what the folder holds. Then give another
`--out`, or `--restart`, which discards what is there. While a command works in a folder, a second one is
refused, and told which process has it.

## The whole file

{whole}

## `[data]`

{data}

## `[stream]`

{stream}

## `[backbone]`

{backbone}

## `[[methods]]`

One table for each method that is compared. Its other keys are options of the method, below; what all methods on
a transformer have in common may stand once, in `[learner]`, and what all on a perceptron have, in `[mlp]`. An
option of a method comes before the same one there.

{methods}

A method on a transformer learns from images. One on a perceptron learns from features: what the frozen
`[backbone]` sees of an image, or its pixels. The features are kept in a folder beside the results while the run
goes on, so that each image passes the backbone once for all methods, seeds and epochs, unless the stream is
online. A name that only one family has needs no `family`; {both} without it {is_are} the transformer's.

```toml
{perceptrons}
```

### `paper`

{paper}

## What is measured

After each task, in `results.json`; the table that a run prints has the first three, `--all` adds a second table
with the others, of which the last task's are shown. Shares from 0 to 1, over all test images so far where
nothing else is said; `null` where it has no meaning, and no key where a run of an earlier version did not
measure it.

{measured}

Formulas are in `flexkern.metrics`; `learner.evaluate(stream)` gives all that one pass can say, and
`AccuracyMatrix` what takes several.

## Options of all methods on a transformer

{others}

{common}
{own}
## `gate` of artsy and ease

The options of `flexkern.nn.GateOptions`.

{gate}

## Options of all methods on a perceptron

{mlp_others}

{mlp_common}
{mlp_own}"""


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


def _measured() -> str:
    rows = [f"| {key} | {column} | {meaning} |" for key, column, meaning in MEASURED]
    return "\n".join(["| key | in the table | what it is |", "| --- | --- | --- |", *rows])


def _options(family: str) -> tuple[str, str, str]:
    """Of all methods of a family: the table of what all have, whose defaults it has, and tables of each."""
    every = {method: method_model(method, family).model_fields for method in FAMILIES[family]}
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
        of_others = [
            f"\n`{k} = {_default(own[m][k]).strip('`')}` is the default of {m}.\n"
            if own[m][k].default is not None
            else f"\nOf {m} the default is to leave `{k}` out.\n"
            for m in alike[1:]
            for k in keys
            if own[m][k].default != keys[k].default
        ]
        of_family = " (perceptron)" if family == "mlp" else ""
        parts.append(f"\n## Options of {' and '.join(alike)}{of_family}\n\n{table(keys)}\n{''.join(of_others)}")
    differ = f"Where a default is not the same for all, it is that of {first}; {' and '.join(others)}."
    return table(common), differ if others else "Defaults are the same for all.", "".join(parts)


def page() -> str:
    """docs/configuration.md."""
    common, others, own = _options("vit")
    mlp_common, mlp_others, mlp_own = _options("mlp")
    every = {method: method_model(method).model_fields for method in METHODS}
    first = next(iter(every))
    both = [f"`{method}`" for method in METHODS if method in MLP_METHODS]
    record: Any = record_in(every[first]["gate"].annotation)
    assert record.__name__ == GateOptions.__name__
    method_keys = _without(own_keys(MethodConfig), ("options", "paper"))
    what = f"on a transformer {', '.join(METHODS)}; on a perceptron {', '.join(MLP_METHODS)}"
    method_keys["method"] = FieldInfo(annotation=str, description=f"what learns: {what}")
    whole = _without(own_keys(Config), TABLES)
    return PAGE.format(
        example=EXAMPLE, perceptrons=PERCEPTRONS, shipped=_shipped(), whole=table(whole),
        data=table(own_keys(DataConfig)), stream=table(own_keys(StreamConfig)),
        backbone=table(own_keys(BackboneConfig)), methods=table(method_keys),
        measured=_measured(), paper=table(own_keys(Paper)), others=others, common=common, own=own,
        gate=table(record.model_fields),
        both=" and ".join(both), is_are="is" if len(both) == 1 else "are",
        mlp_common=mlp_common, mlp_others=mlp_others, mlp_own=mlp_own,
    )  # fmt: skip


def main() -> None:
    """Writes the page."""
    PATH.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
