"""Writes docs/operators.md: every operator, its arguments, bytes, backends and refusals, from flexkern/spec.

    python scripts/tables.py

What a function does is said once: in the declaration of its operator, or, where it has none of its own, in the
first line of its docstring; what it raises, in its docstring. Only the equation is said here.
tests/test_tables.py fails where the page is not as this writes it.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from flexkern import ops
from flexkern.spec import SPECS, Argument, Spec

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = {"cpu": "CPU", "cuda": "CUDA", "triton": "Triton"}
# The order of the families; others come after them.
FAMILIES = ("metaplastic", "displacement", "synapse", "linear", "adapter", "prototype", "field", "mask")
# Functions that call an operator of another name. What has none here is made of torch's own operators.
CALLS = {
    "gated_sgd_": "metaplastic_sgd_",
    "gated_adamw_": "metaplastic_adamw_",
    "gated_displacement_": "scale_displacement_",
    "flexibility_field": "fill_field_",
    "materialize": "fill_field_",
}
_ADAMW = """\
m <- beta1 m + (1 - beta1) g
v <- beta2 v + (1 - beta2) g^2
d = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay w
w <- w - lr alpha d"""
_SILENT = """\
functional:  w <- w - lr alpha g
silent:      c = post pre (or as given); where c >= theta:
             w <- a (insert="init") or eta c ("hebbian")"""
EQUATIONS = {
    "metaplastic_gate": "k = scale (1 - f) / f |w - a|\nalpha = 1 - tanh(k)^2 = sech(k)^2",
    "metaplastic_sgd_": "w <- w - lr alpha g\nalpha = sech(scale (1 - f) / f |w - a|)^2",
    "gated_sgd_": "w <- w - lr alpha g,  alpha as given",
    "metaplastic_adamw_": f"{_ADAMW}\nalpha = sech(scale (1 - f) / f |w - a|)^2",
    "gated_adamw_": f"{_ADAMW},  alpha as given",
    "scale_displacement_": "w <- w0 + alpha (w - w0)\nalpha = sech(scale (1 - f) / f |w0 - a|)^2",
    "gated_displacement_": "w <- w0 + alpha (w - w0),  alpha as given",
    "synapse_step_": _SILENT,
    "linear_step_": f"g = grad_out^T x, never written\n{_SILENT}",
    "gated_adapter": "t = index of the sample;  -1: out = residual, else\n"
    "h = dropout(relu(x down[t] + down_bias[t]))\nout = residual + scale (h up[t] + up_bias[t])",
    "prototype_logits": "logits[n, c] =\n  sum_k openings[n, k] w[c, k] cos(features[n, k], prototypes[c, k])",
    "complete_prototypes": "P[old, new] = share P[new, new]\n"
    "share = softmax over new classes of cos(P[old, own], P[new, own])",
    "materialize": "r = Philox4x32-10(key, counter)[index mod 4]\n"
    "key = seed,  counter = (index / 4, stream, purpose)\n"
    "u = ((r >> 9) + 0.5) 2^-23,  then the distribution's quantile at u",
    "flexibility_field": "f = ((r >> 9) + 0.5) 2^-23,  r as in materialize",
    "pack_mask": "bit j of words[i, k] = mask[i, 32 k + j]",
    "unpack_mask": "mask[i, 32 k + j] = bit j of words[i, k]",
}
# What moves in some usual calls, by the names of the tensors.
_MORE = {"momentum": ("momentum_buffer",), "amsgrad": ("max_exp_avg_sq",)}
_OWN = {"metaplastic_adamw_": ("exp_avg", "exp_avg_sq"), "gated_adamw_": ("exp_avg", "exp_avg_sq")}
_RETURNED = {
    "gated_adapter": "[S, L, d], of the dtype of x",
    "prototype_logits": "[N, C], float32 (float64 if the features are)",
    "complete_prototypes": "[C, K, dim], of the dtype of the prototypes",
    "materialize": "float32, of the shape that was given",
    "flexibility_field": "float32, of the shape that was given",
    "pack_mask": "int32 [rows, ceil(columns / 32)]",
    "unpack_mask": "bool [rows, columns]",
}
SIZES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2, "int32": 4, "int64": 8, "bool": 1}


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


# ------------------------------------------------------------------ bytes


def usual_calls(line: Line) -> dict[str, tuple[str, ...]]:
    """What a call is named by, and the tensors of a weight's size that it moves; only for steps."""
    parameters = inspect.signature(getattr(ops, line.name)).parameters
    if line.spec is None or "weight" not in parameters:
        return {}
    given = tuple(n for n in ("weight", "grad", "before") if n in parameters) + _OWN.get(line.name, ())
    calls = {}
    if "flexibility" in parameters:
        calls["f and a stored"] = (*given, "anchor", "flexibility")
        calls["f procedural"] = (*given, "anchor")
        calls["f and a procedural"] = given
    if "alpha" in parameters:
        calls["alpha stored"] = (*given, "alpha")
    return calls


def moved(spec: Spec, names: Iterable[str]) -> int:
    """Bytes per weight that a float32 call with these tensors reads and writes.

    A tensor that is always written is read, too: a step is made in place.
    """
    arguments = {a.name: a for a in spec.arguments}
    if spec.record.__name__ == "MetaplasticGate":  # which writes its result
        return _bytes(arguments["weight"]) + sum(_bytes(arguments[name]) for name in names)
    return sum(_bytes(arguments[name]) * (1 + (arguments[name].written is True)) for name in names)


def _bytes(a: Argument) -> int:
    return SIZES["float32" if not set(a.dtypes) <= set(SIZES) else a.dtypes[0]]


def _bytes_line(line: Line) -> str:
    if line.spec is None:
        return ""
    spec, public = line.spec, inspect.signature(getattr(ops, line.name)).parameters
    calls = usual_calls(line)
    if not calls:
        return f"**Bytes moved**: {_operands(spec)}."
    said = ", ".join(f"**{moved(spec, names)}** ({what})" for what, names in calls.items())
    more = [f"{what} adds {moved(spec, names)}" for what, names in _MORE.items() if names[0] in public]
    if "silent" in public:
        more.append("the mask of silent synapses adds 1/8, and as much where it is written")
    if "grad_out" in public:
        more.append("x and grad_out are read beside these")
    return f"**Bytes moved** per weight, all in float32: {'; '.join([said, *more])}."


def _operands(spec: Spec) -> str:
    """What each tensor of a call moves, in the sizes of its shape."""
    if spec.family == "field":
        return "4 written for each number, none read"
    if spec.family == "mask":
        return "1 for each element of the bool matrix, 1/8 for its bit"
    tensors = [a for a in spec.arguments if a.holds_tensors and a.shape and len(a.shape) > 1]
    each = [f"4 {' '.join(a.shape or ())} ({a.name})" for a in tensors]
    return f"in float32 at most {' + '.join(each)} read, and as much as x written"


# ------------------------------------------------------------------ as Markdown


def _plain(text: str) -> str:
    """Words of a docstring in Markdown."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


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


def _dtype_of(a: Argument, names: set[str]) -> str:
    return " or ".join(f"that of {name}" if name in names else name for name in a.dtypes)


def _shape_of(a: Argument, names: set[str]) -> str:
    if a.shape is None:
        return "any" if not a.is_list else "any, one each"
    if len(a.shape) == 1 and a.shape[0] in names:
        return "any" if a.shape[0] == a.name else f"that of {a.shape[0]}"
    return f"[{', '.join(a.shape)}]"


def _range(a: Argument) -> str:
    if a.low is None:
        return "a switch" if a.type == "bool" else "a number"
    return "a number" if a.low < -1 else f"a number >= {a.low:g}"


def _arguments(line: Line) -> Iterator[str]:
    """One row for each argument of the function that the declaration knows."""
    assert line.spec is not None
    spec, public = line.spec, inspect.signature(getattr(ops, line.name)).parameters
    declared = {a.name: a for a in spec.arguments}
    numbers = {f.name for f in fields(spec.rule)} if spec.rule is not None else set()
    for name, a in declared.items():
        if name not in public and name not in numbers | {"eta", "prune"} & {*declared}:
            continue
        if a.holds_tensors:
            how = (
                "updated"
                if a.written is True
                else f"written with {' and '.join(a.written)}"
                if a.written
                else "read"
            )
            yield f"| `{name}` | {_dtype_of(a, {*declared})} | {_shape_of(a, {*declared})} | {how} |"
        else:
            kind = _range(a)
            if f"{name}_tensor" in declared:
                kind += ", or a float32 tensor of one element" + (
                    " (or one per row)" if name == "threshold" else ""
                )
            default = "" if a.required or name in public else f"; {a.default} by default"
            yield f"| `{name}` | {kind}{default} | | read |"


def _described(line: Line) -> Iterator[str]:
    """One row for each argument, in the docstring's words: of a function that no declaration describes."""
    text = inspect.getdoc(getattr(ops, line.name)) or ""
    found = re.search(r"^Args:\n((?: {4}.*\n?)+)", text, re.MULTILINE)
    for entry in re.sub(r"\n {5,}", " ", found[1] if found else "").splitlines():
        names, _, meaning = entry.strip().partition(": ")
        yield f"| {', '.join(f'`{name}`' for name in names.split(', '))} | {_cell(_plain(meaning))} |"


def _results(line: Line) -> str:
    """Shapes and dtypes of what comes out, in the names of the declaration."""
    returns = inspect.signature(getattr(ops, line.name)).return_annotation
    if returns == "None":
        return ""
    if line.spec is None or line.spec.family in ("field", "mask", "adapter"):
        return _RETURNED[line.name]
    shown: dict[str, object] = {
        a.name: SimpleNamespace(shape=a.shape, dtype=a.dtypes[0]) if a.holds_tensors and a.shape else True
        for a in line.spec.arguments
    }
    dtype, shape = line.spec.record(**shown).results()[0]
    if shape == ("weight",):
        return "a tensor of the dtype and shape of weight"
    return f"`{returns.partition(' ')[0]}`, {dtype} [{shape[1]}] each"


def _raises(line: Line) -> str:
    """What the docstring says that is raised; of a function that refers to another, what that one's says."""
    text = inspect.getdoc(getattr(ops, line.name)) or ""
    found = re.search(r"^Raises:\n((?:    .*\n?)+)", text, re.MULTILINE)
    if found is None:
        referred = re.search(r"what is raised, are those of :func:`(\w+)`|all else as in :func:`(\w+)`", text)
        assert referred is not None, f"{line.name} does not say what it raises"
        return f"as `{next(filter(None, referred.groups()))}`"
    entries = re.sub(r"\n {5,}", " ", found[1]).strip().splitlines()
    said = (re.sub(r"^([A-Z][\w, ]+): ", r"`\1` ", entry.strip()).rstrip(".") for entry in entries)
    return _plain("; ".join(said))


def section(line: Line) -> str:
    """All that is known of one function."""
    called = "" if line.spec is None or line.name == line.spec.name else f" It calls `{line.spec.name}`."
    does = line.does if line.does.startswith("w0") else f"{line.does[:1].upper()}{line.does[1:]}"
    parts = [f"## {line.name}", f"{does}.{called}"]
    parts.append(f"```text\n{EQUATIONS[line.name]}\n```")
    parts.append(f"```text\n{_signature(line)}\n```")
    if line.spec is None or line.spec.family == "field":
        parts.append("\n".join(["| argument | what it is |", "| --- | --- |", *_described(line)]))
    else:
        rows = ["| argument | dtype or range | shape | |", "| --- | --- | --- | --- |", *_arguments(line)]
        parts.append("\n".join(rows))
    facts = [f"**Backends**: {_backends(line)}."]
    if results := _results(line):
        facts.insert(0, f"**Returns** {results}.")
    facts += [fact for fact in (_bytes_line(line), f"**Determinism**: {_determinism(line)}.") if fact]
    facts.append(f"**Raises** {_raises(line)}.".replace(".).", ".)"))
    return "\n\n".join([*parts, "\n".join(f"- {fact}" for fact in facts)])


def _signature(line: Line) -> str:
    signature = inspect.signature(getattr(ops, line.name))
    names = []
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        default = "" if p.default is p.empty else f"={p.default!r}"
        names.append(f"**{p.name}" if p.kind is p.VAR_KEYWORD else f"{p.name}{default}")
    return textwrap.fill(f"flexkern.ops.{line.name}({', '.join(names)})", 72, subsequent_indent="    ")


def _backends(line: Line) -> str:
    if line.spec is None:
        return "torch's own operators on every device"
    own = [name for key, name in BACKENDS.items() if not line.spec.has_no_kernel(key)]
    missing = "".join(f"; {line.spec.has_no_kernel(key)}" for key in line.spec.lacks)
    return f"{', '.join(own)}, and plain PyTorch{missing}"


def _determinism(line: Line) -> str:
    if line.spec is None:
        return "that of torch's products"
    if line.spec.family in ("field", "mask"):
        return "the same bits on every backend"
    if line.spec.family in ("metaplastic", "displacement", "synapse"):
        return "the same bits at each call and with any number of threads; between backends within roundings"
    return (
        "the same bits at each call and with any number of threads; its products are the library's, which "
        "multiplies otherwise on another processor"
    )


PAGE = """\
# The operators

Written by `python scripts/tables.py` from `flexkern/spec`. All are functions of `flexkern.ops`; [their
docstrings](api/ops.md) say what each argument means. How they compute it, and what bounds them, is in
[design.md](design.md), the formulas in one place in [mathematics.md](mathematics.md).

| operator | what it does | dtypes | CPU | CUDA | Triton |
| --- | --- | --- | --- | --- | --- |
{rows}

Every operator with kernels also has an implementation in plain PyTorch, `flexkern/reference`, and only that one
computes in float64. The dtypes are those of the weight, or of what takes its place. *torch*: a few of torch's
own operators on every device, and no kernel of this package.

**What holds for all.** A step takes one tensor, or lists of equal length: that is one call. Tensors may have
any strides; those that are not in row-major order go through copies. What is updated may share memory with no
other argument. All tensors lie on one device. What does not fit is refused before anything changes: a
`TypeError` for a type or dtype, a `ValueError` for a value, shape or device, each naming the argument. What is
the same to the bit, and how far off the rest may be, is in [determinism.md](determinism.md). All work under
`torch.compile(fullgraph=True)`. In shapes the same name is the same size throughout one call; `words`
is ceil(in / 32).

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

{sections}
"""


def page() -> str:
    """docs/operators.md."""
    rows = []
    for line in lines():
        cells = (f"[`{line.name}`](#{line.name})", _cell(line.does), _dtypes(line), *_kernels(line))
        rows.append(f"| {' | '.join(cells)} |")
    return PAGE.format(rows="\n".join(rows), sections="\n\n".join(section(line) for line in lines()))


def main() -> None:
    """Writes the page."""
    (ROOT / "docs" / "operators.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
