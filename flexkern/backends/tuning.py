"""Which configuration (tile, warps, stages) a kernel has on which GPU, and which backend an operator takes.

The table is tuning.toml: a row for each kernel, variant and target, with the reason for it.
``python scripts/tune.py`` races configurations on the GPU that is here and writes the rows it has measured.
Nothing here imports Triton before a kernel is about to be launched, nor reads the table before it is asked.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from flexkern.backends.shared import fitting

__all__ = [
    "Table",
    "architecture",
    "as_toml",
    "config",
    "fastest",
    "known_as",
    "launch_options",
    "read",
    "table",
    "trial",
]

FILE = Path(__file__).with_name("tuning.toml")
# What the compiler is told, as opposed to what the kernel is told.
_OPTIONS = ("num_warps", "num_stages", "maxnreg")
# Configurations that are tried in this context, by kernel and variant; the last one counts.
_trials: ContextVar[tuple[tuple[tuple[str, str], dict[str, int]], ...]] = ContextVar(
    "flexkern_trials", default=()
)

_Row = TypeVar("_Row")

Configurations = dict[str, dict[str, dict[str, tuple[dict[str, int], str]]]]
Backends = dict[str, dict[str, tuple[tuple[str, ...], str]]]


class Table(NamedTuple):
    """The rows of tuning.toml.

    Attributes:
        configurations: kernel, variant, target to the configuration and its reason.
        backends: operator, target to the backends, the fastest first, and the reason.
    """

    configurations: Configurations
    backends: Backends


_table: Table | None = None


def table() -> Table:
    """The table, read when it is first asked for."""
    global _table
    if _table is None:  # no functools.cache: torch.compile traces choose(), and would look past a cache
        _table = read(FILE)
    return _table


def read(path: Path) -> Table:
    """The table of a file like tuning.toml.

    Raises:
        ValueError: if it is not TOML.
        KeyError: if a row has no reason (``why``), or one of backends no ``order``.
    """
    text = path.read_text(encoding="utf-8")
    try:
        toml: Any = importlib.import_module("tomllib")
    except ImportError:  # Python 3.10
        toml = importlib.import_module("tomli")
    found = toml.loads(text)
    configurations: Configurations = {
        kernel: {
            variant: {target: (row, row.pop("why")) for target, row in rows.items()}
            for variant, rows in variants.items()
        }
        for kernel, variants in found["kernels"].items()
    }
    backends: Backends = {
        operator: {target: (tuple(row["order"]), row["why"]) for target, row in rows.items()}
        for operator, rows in found["backends"].items()
    }
    return Table(configurations, backends)


@functools.cache
def architecture(device: torch.device) -> str:
    """What kernels are cut for: "sm_90", "gfx942" and so on, or "interpreter"."""
    from triton import knobs

    if knobs.runtime.interpret:
        return "interpreter"
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{10 * major + minor}"


def known_as(architecture: str) -> tuple[str, ...]:
    """The targets by which the table may know an architecture: its own, its family's, and what all share."""
    return (architecture, "hip" if architecture.startswith("gfx") else "cuda", "any")


def config(kernel: str, variant: str, architecture: str, *, bounded: bool = True) -> dict[str, int]:
    """The configuration of a kernel's variant on an architecture: the table's, or what of it fits there.

    One that is tried is taken as it is.

    Args:
        kernel, variant: as in the table; a kernel that it does not have gets the row of the kernel "other". In
            Triton's interpreter the variant "interpreter", where there is one: small, so that small tensors
            have several tiles.
        architecture: from :func:`architecture`.
        bounded: whether registers may be bounded: not where rows are not aligned, as addresses then take more.
            The variant of that name with "-unaligned" then has the row, where there is one.

    Raises:
        KeyError: if the table has the kernel, but no such variant of it, or no row of it for the architecture.
    """
    found = next((tried for key, tried in reversed(_trials.get()) if key == (kernel, variant)), None)
    if found is None:
        configurations = table().configurations
        variants = configurations.get(kernel)
        rows = configurations["other"]["any"] if variants is None else variants[variant]
        if variants is not None and not bounded:
            rows = variants.get(f"{variant}-unaligned", rows)
        if variants is not None and architecture == "interpreter":
            rows = variants.get("interpreter", rows)
        row = _row_of(rows, architecture, f"{kernel} {variant}")[0]
        found = _of_this_triton(_fitting(kernel, variant, row, architecture))
    return found if bounded else {name: value for name, value in found.items() if name != "maxnreg"}


# Of a variant on an architecture the row of the table, and what of it fits: a launch takes 2 us less for it.
_fitted: dict[tuple[str, str, str], tuple[dict[str, int], dict[str, int]]] = {}


def _fitting(kernel: str, variant: str, row: dict[str, int], architecture: str) -> dict[str, int]:
    key = kernel, variant, architecture
    of_row, fits = _fitted.get(key, (None, {}))
    if of_row is not row:
        fits = fitting(kernel, variant, row, architecture)
        _fitted[key] = row, fits
    return fits


def _of_this_triton(row: dict[str, int]) -> dict[str, int]:
    """A row without a bound on registers that is for older versions of Triton only."""
    if "maxnreg_before" not in row:
        return row
    older = _triton_version() < row["maxnreg_before"]
    return {k: v for k, v in row.items() if k != "maxnreg_before" and (older or k != "maxnreg")}


@functools.cache
def _triton_version() -> int:
    """306 is 3.6."""
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return 100 * int(major) + int(minor)


def _row_of(rows: Mapping[str, _Row], architecture: str, name: str) -> _Row:
    """The row of the nearest target that has one."""
    for target in known_as(architecture):
        if target in rows:
            return rows[target]
    raise KeyError(f"the tuning table has no row of {name!r} for {architecture!r}, only for {list(rows)}")


def launch_options(configuration: Mapping[str, int]) -> dict[str, int]:
    """The part of a configuration that goes to the compiler."""
    return {name: configuration[name] for name in _OPTIONS if name in configuration}


def fastest(operator: str, architecture: str) -> tuple[str, ...]:
    """The backends of an operator on an NVIDIA or AMD GPU, the fastest first."""
    backends = table().backends
    rows = backends[operator] if operator in backends else backends["other"]
    return _row_of(rows, architecture, operator)[0]


@contextlib.contextmanager
def trial(kernel: str, variant: str, configuration: Mapping[str, int]) -> Iterator[None]:
    """Inside the ``with`` statement, in this context, the variant has this configuration everywhere."""
    mine = ((kernel, variant), dict(configuration))
    _trials.set((*_trials.get(), mine))
    try:
        yield
    finally:
        _trials.set(tuple([tried for tried in _trials.get() if tried is not mine]))


# --------------------------------------------------------------------------- writing the table


def as_toml(rows: Table) -> str:
    """The text of tuning.toml with these rows."""
    text = FILE.read_text(encoding="utf-8")
    head = text[: text.index("[kernels.")].rstrip()  # what it says of itself stays
    lines = [head]
    for kernel, variants in rows.configurations.items():
        lines += ["", f"[kernels.{_key(kernel)}]"]
        lines += [
            _row(f"{_key(variant)}.{_key(target)}", numbers, why)
            for variant, targets in variants.items()
            for target, (numbers, why) in targets.items()
        ]
    lines += ["", "[backends]"]
    lines += [
        _row(f"{_key(operator)}.{_key(target)}", {"order": list(order)}, why)
        for operator, targets in rows.backends.items()
        for target, (order, why) in targets.items()
    ]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _row(key: str, values: Mapping[str, object], why: str) -> str:
    """One line: TOML writes numbers, strings and lists of strings as JSON does."""
    pairs = (
        f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in {**values, "why": why}.items()
    )
    return f"{key} = {{ {', '.join(pairs)} }}"
