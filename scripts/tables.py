"""Writes the tables of the operators: the one of README.md, and docs/operators.md.

    python scripts/tables.py

What a function does is said once: in the declaration of its operator (flexkern/spec), or, where it has none of
its own, in the first line of its docstring. tests/test_tables.py fails where the files are not as this writes
them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from flexkern import ops
from flexkern.spec import SPECS, Spec

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- operators -->", "<!-- /operators -->"
BACKENDS = ("cpu", "cuda", "triton")
# The order of the families; others come after them.
FAMILIES = ("metaplastic", "displacement", "synapse", "linear", "adapter", "prototype", "field", "mask")
# Functions that call an operator of another name. What has none here is made of torch's own operators.
CALLS = {
    "gated_sgd_": "metaplastic_sgd_",
    "gated_displacement_": "scale_displacement_",
    "flexibility_field": "fill_field_",
    "materialize": "fill_field_",
}


class Line(NamedTuple):
    """A public function: its name, what it does, and the operator that it calls, if there is one."""

    name: str
    does: str
    spec: Spec | None


def lines() -> list[Line]:
    """One for each public function of flexkern.ops, by family, then in the order of the file."""
    functions = [f for f in (getattr(ops, name) for name in ops.__all__) if inspect.isfunction(f)]
    return [
        Line(f.__name__, _does(f), SPECS.get(CALLS.get(f.__name__, f.__name__)))
        for f in sorted(functions, key=_position)
    ]


def _position(function: Callable[..., object]) -> tuple[int, str, int]:
    family = function.__module__.rpartition(".")[2]
    known = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
    return known, family, inspect.getsourcelines(function)[1]


def _does(function: Callable[..., object]) -> str:
    spec = SPECS.get(function.__name__)
    if spec is not None:
        return spec.does
    first = (inspect.getdoc(function) or "").partition("\n")[0].removesuffix(".").replace("``", "`")
    return first[:1].lower() + first[1:]


# ------------------------------------------------------------------ as Markdown


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _dtypes(line: Line) -> str:
    """Of the first tensor, which decides that of the others."""
    if line.spec is None:
        return "any floating-point"
    names = {a.name for a in line.spec.arguments}  # a dtype may be that of another argument
    said = (a.dtypes for a in line.spec.arguments if a.dtypes and not names.intersection(a.dtypes))
    return ", ".join(next(said))


def _kernels(line: Line) -> Iterator[str]:
    for backend in BACKENDS:
        yield "torch" if line.spec is None else "no" if line.spec.has_no_kernel(backend) else "yes"


def short_table() -> str:
    """That of README.md: the function, and what it does."""
    rows = [f"| `flexkern.ops.{line.name}` | {_cell(line.does)} |" for line in lines()]
    return "\n".join(["| operator | what it does |", "| --- | --- |", *rows])


def with_table(readme: str) -> str:
    """The text of README.md with the table of today.

    Raises:
        ValueError: if the text has no place for it.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README.md has no {START} ... {END}")
    return f"{before}{START}\n{short_table()}\n{END}{after}"


PAGE = """\
# The operators

Written by `python scripts/tables.py` from `flexkern/spec`. All are functions of `flexkern.ops`: their
docstrings say what each argument is. How they compute it, and what bounds them, is in [design.md](design.md).

| operator | what it does | dtypes | CPU | CUDA | Triton |
| --- | --- | --- | --- | --- | --- |
{rows}

Every operator with kernels also has an implementation in plain PyTorch, `flexkern/reference`, and only that one
computes in float64. The dtypes are those of the weight, or of what takes its place; what the other tensors may
be is in the docstrings. *torch*: a few of torch's own operators on every device, and no kernel of this package.

{reasons}

## Which backend computes a call

`auto`, which holds where nothing is asked for, takes the compiled kernels for tensors on the CPU. For tensors
on a GPU it takes the first that runs on that GPU, in the order of `flexkern/backends/tuning.toml`; mostly that
is CUDA, then Triton, then plain PyTorch. Each GPU of a machine is asked for itself, once:

- CUDA runs where the library has a binary for the GPU (one of sm_80 serves sm_80, sm_86 and sm_89, not sm_75),
  or where the driver compiles its PTX: the GPU is newer than all that were built for, and the driver at least
  as new as the nvcc. In any case the driver is of that nvcc's major version, or newer. Orin and Xavier need a
  binary of their own.
- Triton runs on sm_70 and newer, and on AMD's GPUs. When it starts it needs a C compiler and Python's headers.

`flexkern.use_backend` and `FLEXKERN_BACKEND` choose one; where it cannot serve, that is an error, and never
another backend. `flexkern info` shows what serves each operator on each kind of GPU here, and why the rest does
not.
"""


def page() -> str:
    """docs/operators.md."""
    rows: list[str] = []
    reasons: dict[str, None] = {}
    for line in lines():
        cells = (f"`{line.name}`", _cell(line.does), _dtypes(line), *_kernels(line))
        rows.append(f"| {' | '.join(cells)} |")
        if line.spec is not None:
            reasons |= {f"- {line.spec.has_no_kernel(backend)}.": None for backend in line.spec.lacks}
    return PAGE.format(rows="\n".join(rows), reasons="\n".join(reasons))


def main() -> None:
    """Writes both files."""
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text()))
    (ROOT / "docs" / "operators.md").write_text(page())


if __name__ == "__main__":
    main()
