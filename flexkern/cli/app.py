"""The command line: ``flexkern demo``, ``fit``, ``run``, ``bench`` and so on."""

from __future__ import annotations

from typing import Annotated

import typer

from flexkern.cli.lazy import Later, LazyGroup, add
from flexkern.version import __version__

app = typer.Typer(
    help="Networks that learn one thing after the other and do not forget.",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
for _name, _later in {
    "demo": Later("demo_command", "demo"),
    "info": Later("info", "info"),
    "fit": Later("fit", "fit"),
    "predict": Later("predict", "predict"),
    "run": Later("run", "_run", "app"),
    "report": Later("report", "report"),
    "compare": Later("compare", "compare"),
    "bench": Later("bench", "bench", "app"),
    "check": Later("check", "_check", "app"),
}.items():
    add(app, _name, _later)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flexkern {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version, and end.")
    ] = False,
) -> None:
    """Fused kernels for brain-inspired continual learning in PyTorch."""
