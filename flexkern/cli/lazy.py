"""Commands that are imported when they are called: ``--help`` and completion need no torch."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

from flexkern.beginning import import_all

__all__ = ["Later", "LazyGroup", "add"]


class Later(NamedTuple):
    """Where a command is.

    module: of this package.
    function: that is called, and whose docstring says what the command does.
    group: the name of its :class:`typer.Typer`, where it has commands of its own.
    """

    module: str
    function: str
    group: str | None = None

    def help(self) -> str:
        """The first paragraph of the function's docstring, read without importing it."""
        path = Path(__file__).with_name(f"{self.module}.py")
        functions = ast.parse(path.read_text(encoding="utf-8")).body
        found = next(f for f in functions if isinstance(f, ast.FunctionDef) and f.name == self.function)
        return " ".join((ast.get_docstring(found) or "").partition("\n\n")[0].split())

    def command(self, name: str) -> Any:
        """The command itself; all of flexkern is imported."""
        import_all()
        module = importlib.import_module(f"flexkern.cli.{self.module}")
        if self.group is not None:
            return typer.main.get_command(getattr(module, self.group))
        alone = typer.Typer(add_completion=False)
        alone.command(name)(getattr(module, self.function))
        return typer.main.get_command(alone)


_LATER: dict[str, Later] = {}


class LazyGroup(TyperGroup):
    """Shows the commands that :func:`add` was told of, and imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        later = None if name is None else _LATER.get(name)
        return (name, command, rest) if later is None or name is None else (name, later.command(name), rest)


def add(app: typer.Typer, name: str, later: Later) -> None:
    """Shows a command in the help of ``app``, whose class is :class:`LazyGroup`."""
    _LATER[name] = later
    app.command(name, help=later.help())(_nothing)


def _nothing() -> None:
    """Stands for a command until that is called."""
