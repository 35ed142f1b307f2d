"""``--dry-run``: what a run would do, as tables, and nothing of it."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flexkern.cli.terminal import console, errors
from flexkern.runs.seeds import said_seeds

__all__ = ["show_plan"]

_TASKS = 12  # that are shown one by one


def show_plan(config: Any, *, restart: bool, accept_other_environment: bool) -> None:
    """Prints the plan of a class-incremental run, with an estimate of its time and memory."""
    from flexkern.runs.incremental.plan import plan

    def tell(what: str) -> None:
        errors.print(what, markup=False, highlight=False, style="dim")

    found = plan(config, restart=restart, accept_other_environment=accept_other_environment, observe=tell)
    whole, tasks = found.config, found.tasks
    for line in (
        f"{whole.title}: {len(tasks)} tasks, {len(whole.methods)} methods, seeds {said_seeds(whole.seeds)}, on "
        f"{whole.device}, into {whole.folder}",
        *([f"added to what the folder has: {', '.join(found.added)}"] if found.added else []),
        f"images: {sum(t.train for t in tasks)} to learn, {sum(t.test for t in tasks)} to test; "
        + (f"{found.images_mib:.1f} MiB of them in memory" if found.images_mib else "decoded when needed"),
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_tasks(tasks))
    console.print(_methods(found.methods))
    for method in found.methods:
        if method.why:
            console.print(f"{method.name}: not measured: {method.why}", markup=False, highlight=False)
    for method in found.methods:
        if method.memory:
            console.print(f"{method.name}: {method.memory}", markup=False, highlight=False, soft_wrap=True)
    total = [method.seconds for method in found.methods if method.seconds is not None]
    more = "" if len(total) == len(found.methods) else " and what was not measured"
    console.print(f"about {said_time(sum(total))} in all{more}; nothing was written", highlight=False)


def _table(title: str, *heads: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    return table


def _tasks(tasks: list[Any]) -> Table:
    table = _table("tasks", "task", "classes", "to learn", "to test")
    shown = tasks if len(tasks) <= _TASKS else tasks[: _TASKS - 2]
    for i, task in enumerate(shown):
        table.add_row(str(i + 1), *map(str, task))
    if len(shown) < len(tasks):
        table.add_row("...", "", "", "")
        table.add_row(str(len(tasks)), *map(str, tasks[-1]))
    return table


def _methods(methods: list[Any]) -> Table:
    table = _table(
        "what is left; epochs: where a method trains; time: measured on some images of the first task, the "
        "rest in proportion to its images, so without what grows with the tasks; network: its weights, "
        "counted, without gradients and activations",
        "method", "epochs", "tasks left", "network, MiB", "time",
    )  # fmt: skip
    for m in methods:
        time = "?" if m.seconds is None else said_time(m.seconds)
        table.add_row(escape(m.name), str(m.epochs), str(m.tasks), f"{m.parameters_mib:.1f}", time)
    return table


def said_time(seconds: float) -> str:
    """Two digits of a time that is not known better."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"
