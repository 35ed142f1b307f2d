"""The form that tables of results have in a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

__all__ = ["table_of"]


def table_of(title: str, legend: str) -> Table:
    """An empty table whose legend stands before the numbers, which it says how to read."""
    words = Text.assemble(title, "\n", (legend, "dim"))
    return Table(title=words, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
