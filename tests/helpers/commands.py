"""The command line, in this process: starting one takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["invoke"]


def invoke(*arguments: str | Path, stdin: str | None = None) -> Any:
    """The command in this process."""
    from typer.testing import CliRunner

    from flexkern.cli.app import app

    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, catch_exceptions=False)
