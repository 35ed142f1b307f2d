"""``flexkern info``: what is installed, what works here, and why the rest does not."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flexkern.cli.terminal import console
from flexkern.environment import environment

__all__ = ["info"]


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Plain data, for a bug report or a script.")] = False,
) -> None:
    """Says what is installed, what works here and why the rest does not, and what serves each operator."""
    here = environment()
    if as_json:
        typer.echo(json.dumps(here, indent=1))
        return
    versions = here["versions"]
    console.print(
        f"flexkern {versions['flexkern']}, torch {versions['torch']}, triton {versions['triton'] or 'none'}, "
        f"Python {versions['python']}",
        highlight=False,
    )
    build = here["build"]
    if build is None:
        console.print("no compiled extension: every operator runs in plain PyTorch", markup=False)
    else:
        made = build["cuda_architectures"].replace(";", ", sm_")
        compiler = build["cuda_compiler"].removeprefix("none: ")
        cuda = f"nvcc {compiler} for sm_{made}" if made else f"no CUDA kernels: {compiler}"
        console.print(
            f"built with {build['compiler']} (this processor: {build['instruction_set']}), {cuda}",
            markup=False,
            highlight=False,
        )
        if build["direct_calls"] != "yes":
            console.print(
                f"calls on the CPU go through torch's dispatcher, which takes longer: {build['direct_calls']}",
                markup=False,
                highlight=False,
            )
    if here["driver"] is not None:
        console.print(f"NVIDIA driver for CUDA {here['driver']}", highlight=False)
    for gpu in here["gpus"]:
        kind = f"sm_{gpu['capability'].replace('.', '')}"
        console.print(f"GPU: {gpu['name']}, {kind}, {gpu['memory_gib']} GiB", markup=False)
    backends = Table(title=f"Backends (asked for: {here['requested']})", title_justify="left")
    for column in ("backend", "works", "why"):
        backends.add_column(column, overflow="fold")
    for name, status in here["backends"].items():
        backends.add_row(name, "yes" if status["available"] else "no", escape(status["reason"]))
    console.print(backends)
    operators = Table(title="What serves each operator", title_justify="left")
    devices = next(iter(here["operators"].values()))
    for column in ("operator", *(f"on {device}" for device in devices), "what it lacks"):
        operators.add_column(column, overflow="fold")
    for name, serves in here["operators"].items():
        operators.add_row(name, *map(escape, serves.values()), "; ".join(here["lacking"][name].values()))
    console.print(operators)
