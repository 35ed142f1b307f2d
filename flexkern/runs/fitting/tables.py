"""A fit as a table."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

__all__ = ["some", "table"]


def some(names: list[str], most: int = 3) -> str:
    """Names with commas between; of many the first three."""
    shown = [f'"{name}"' if "," in name else name for name in (names if len(names) <= most else names[:3])]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > most else "")


def table(record: dict[str, Any]) -> Table:
    """A row for each task: how well all so far were told apart after it, and how well it is now."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    earlier = record["tasks"][-1]["earlier"] is not None
    for column in (
        "task",
        "classes",
        "images",
        *(["earlier"] if earlier else []),
        "right then",
        "right now",
        "all so far",
        "seconds",
    ):
        table.add_column(column, justify="right", no_wrap=column != "classes", overflow="fold")
    table.columns[1].justify = "left"
    last = record["tasks"][-1]["accuracies"]
    for i, task in enumerate(record["tasks"]):
        classes = escape(some(task["classes"], 10))
        table.add_row(
            str(i + 1), classes, str(task["images"]["train"]), *([f"{task['earlier']:.1%}"] if earlier else []),
            f"{task['accuracies'][-1]:.1%}",
            f"{last[i]:.1%}", f"{task['seen']:.1%}", f"{task['learn_seconds']:.1f}",
        )  # fmt: skip
    return table
