"""Which configuration (tile, warps, stages) a kernel has on which GPU, and which backend an operator takes.

The table is tuning_table.py: one entry for each kernel, variant and architecture, with the reason for it.
``python scripts/tune.py`` races configurations on the GPU that is here and writes the entries it has measured.
Nothing here imports Triton before a kernel is about to be launched.
"""

from __future__ import annotations

import contextlib
import functools
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from flexkern.backends import tuning_table
from flexkern.backends.tuning_table import BACKENDS, CONFIGURATIONS, Backends, Configurations

__all__ = ["architecture", "as_source", "config", "fastest", "known_as", "launch_options", "trial"]

# What the compiler is told, as opposed to what the kernel is told.
_OPTIONS = ("num_warps", "num_stages", "maxnreg")
_trials: dict[tuple[str, str], dict[str, int]] = {}


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
    """The names under which the table may know an architecture: its own, its family's, and what all share."""
    return (architecture, "hip" if architecture.startswith("gfx") else "cuda", "any")


def config(kernel: str, variant: str, architecture: str, *, bounded: bool = True) -> dict[str, int]:
    """The configuration of a kernel's variant on an architecture.

    Args:
        kernel, variant: as in the table. In Triton's interpreter the variant "interpreter", where there is one:
            small, so that small tensors have several tiles.
        architecture: from :func:`architecture`.
        bounded: whether registers may be bounded: not where rows are not aligned, as addresses then take more.

    Raises:
        KeyError: if the table has no such kernel or variant.
    """
    found = _trials.get((kernel, variant))
    if found is None:
        entries = CONFIGURATIONS[kernel][variant]
        if architecture == "interpreter":
            entries = CONFIGURATIONS[kernel].get("interpreter", entries)
        name = next(name for name in known_as(architecture) if name in entries)
        found = entries[name][0]
    return found if bounded else {name: value for name, value in found.items() if name != "maxnreg"}


def launch_options(configuration: Mapping[str, int]) -> dict[str, int]:
    """The part of a configuration that goes to the compiler."""
    return {name: configuration[name] for name in _OPTIONS if name in configuration}


def fastest(operator: str, architecture: str) -> tuple[str, ...]:
    """The backends of an operator on an NVIDIA or AMD GPU, the fastest first."""
    entries = BACKENDS[operator] if operator in BACKENDS else BACKENDS["other"]
    name = next(name for name in known_as(architecture) if name in entries)
    return entries[name][0]


@contextlib.contextmanager
def trial(kernel: str, variant: str, configuration: Mapping[str, int]) -> Iterator[None]:
    """Inside the ``with`` statement the variant has this configuration, on all architectures."""
    before = _trials.get((kernel, variant))
    _trials[kernel, variant] = dict(configuration)
    try:
        yield
    finally:
        if before is None:
            del _trials[kernel, variant]
        else:
            _trials[kernel, variant] = before


# --------------------------------------------------------------------------- writing the table


def as_source(configurations: Configurations, backends: Backends) -> str:
    """The text of tuning_table.py with these entries."""
    start = "CONFIGURATIONS: Configurations = {"
    head = Path(tuning_table.__file__).read_text().partition(start)[0]  # its docstring and types stay
    lines = [head + start]
    for kernel, variants in configurations.items():
        lines.append(f'    "{kernel}": {{')
        for variant, entries in variants.items():
            lines.append(f'        "{variant}": {{')
            for name, (numbers, reason) in entries.items():
                body = ", ".join(f'"{key}": {value}' for key, value in numbers.items())
                lines += _entry(12, name, f"{{{body}}}", reason)
            lines.append("        },")
        lines.append("    },")
    lines += ["}", "", "BACKENDS: Backends = {"]
    for operator, of_operator in backends.items():
        lines.append(f'    "{operator}": {{')
        for name, (order, reason) in of_operator.items():
            body = "".join(f'"{backend}", ' for backend in order).rstrip()
            lines += _entry(8, name, f"({body})", reason)
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


def _entry(indent: int, name: str, body: str, reason: str) -> list[str]:
    pieces = textwrap.wrap(reason.replace('"', "'"), 92, drop_whitespace=False) or [""]
    before, inside = " " * indent, " " * (indent + 4)
    text = "\n".join(f'{inside}"{piece}"' for piece in pieces)
    first = f'{before}"{name}": ({body},'
    head = [first] if len(first) <= 112 else [f'{before}"{name}": (', f"{inside}{body},"]
    return [*head, f"{text}),"]
