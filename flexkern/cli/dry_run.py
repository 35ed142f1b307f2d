"""``--dry-run``: what a run would do, as tables, and nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flexkern.cli.terminal import console, errors
from flexkern.runs.seeds import said_seeds

__all__ = ["show_experiment", "show_fit", "show_plan"]

_TASKS = 12  # that are shown one by one


def show_plan(config: Any, *, restart: bool, accept_other_environment: bool) -> None:
    """Prints the plan of a class-incremental run, with an estimate of its time and memory."""
    from flexkern.runs.incremental.plan import plan

    found = plan(config, restart=restart, accept_other_environment=accept_other_environment, observe=_tell)
    whole, tasks = found.config, found.tasks
    _lines(
        f"{whole.title}: {len(tasks)} tasks, {len(whole.methods)} methods, seeds {said_seeds(whole.seeds)}, on "
        f"{whole.device}, into {whole.folder}",
        *([f"added to what the folder has: {', '.join(found.added)}"] if found.added else []),
        f"images: {sum(t.train for t in tasks)} to learn, {sum(t.test for t in tasks)} to test; "
        + (f"{found.images_mib:.1f} MiB of them in memory" if found.images_mib else "decoded when needed"),
    )
    console.print(_tasks(tasks))
    console.print(_methods(found.methods))
    if found.features:
        _lines(
            f"features of the backbone, taken once for all methods on them: of {found.features} images, "
            f"{said_time(found.features_seconds)}"
        )
    _lines(*(f"{method.name}: {method.memory}" for method in found.methods if method.memory))
    _ends(found.seconds, {m.name: m.why for m in found.methods})


def show_experiment(
    experiment: Any,
    protocol: Any,
    *,
    out: Path,
    cache: Path | None,
    jobs: int | None,
    restart: bool,
    accept_other_environment: bool,
) -> None:
    """Prints the plan of a metaplasticity experiment, with an estimate of its time and memory."""
    from flexkern.runs.metaplasticity.plan import plan

    found = plan(
        experiment,
        protocol,
        out=out,
        cache=cache,
        jobs=jobs,
        restart=restart,
        accept_other_environment=accept_other_environment,
        observe=_tell,
    )
    p, times = found.protocol, sum(n.times for n in found.networks) + found.later
    where = out.parent / "features" if cache is None else cache
    _lines(
        f"{experiment.title}: seeds {said_seeds(p.seeds)}, on {p.device}, into {out}",
        *([f"added to what the folder has: seeds {said_seeds(found.added)}"] if found.added else []),
        f"{times} networks to train, {found.jobs} at a time; {p.epochs} epochs of each presentation",
    )
    if not found.networks:
        _lines("nothing is left to do; nothing was written")
        return
    of = f"features: of {found.inputs} images, {found.width} numbers each, "
    mib = f"{found.inputs * found.width * 4 / 2**20:.0f} MiB in {where}; "
    known = "those of the first seed are there already" if not found.features_seconds else ""
    _lines(of + mib + (known or said_time(found.features_seconds)))
    table = _table(
        "what is left; time: on one thread, measured on features of some images, the rest in proportion; "
        "network: its weights, counted, without gradients and activations",
        "network", "times", "presentations", "network, MiB", "time",
    )  # fmt: skip
    for n in found.networks:
        table.add_row(escape(n.name), str(n.times), str(n.presentations), f"{n.mib:.1f}", said_time(n.seconds))
    if found.later:
        table.add_row("those that are chosen by then", str(found.later), "", "", said_time(found.later_seconds))
    console.print(table)
    _ends(found.seconds, {n.name: n.why for n in found.networks})


def show_fit(config: Any, begins: Callable[[dict[str, Any]], list[str]], *, restart: bool) -> None:
    """Prints the plan of a fit, with an estimate of its time and memory.

    ``begins``: what is said of a record.
    """
    from flexkern.runs.fitting.plan import plan

    found = plan(config, restart=restart, observe=_tell)
    _lines(
        *begins(found.record),
        f"{found.method} on {found.device}, {found.epochs} epochs a task, into {config.out}",
        f"{found.memory}; images decoded, {found.images_mib:.1f} MiB at most",
    )
    console.print(_tasks(found.tasks, first=len(found.record["tasks"])))
    _lines(
        f"to decode images: {said_time(found.images_seconds)}; to learn and test: {said_time(found.seconds)}, "
        "measured on some images of the first task, the rest in proportion: without what grows with the tasks"
    )
    _ends(found.images_seconds + (found.seconds or 0.0), {"this fit": found.why})


def _tell(what: str) -> None:
    errors.print(what, markup=False, highlight=False, style="dim")


def _lines(*lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _ends(seconds: float, why: dict[str, str]) -> None:
    """The last lines; ``why``: what each could not be measured for, if it could not."""
    unknown = {name: reason for name, reason in why.items() if reason}
    _lines(*(f"{name}: not measured: {reason}" for name, reason in unknown.items()))
    more = " and what was not measured" if unknown else ""
    _lines(f"an estimate: {said_time(seconds)} in all{more}; nothing was written")


def _table(title: str, *heads: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    return table


def _tasks(tasks: list[Any], first: int = 0) -> Table:
    table = _table("tasks", "task", "classes", "to learn", "to test")
    shown = tasks if len(tasks) <= _TASKS else tasks[: _TASKS - 2]
    for i, task in enumerate(shown, first + 1):
        table.add_row(str(i), *map(str, task))
    if len(shown) < len(tasks):
        table.add_row("...", "", "", "")
        table.add_row(str(first + len(tasks)), *map(str, tasks[-1]))
    return table


def _methods(methods: list[Any]) -> Table:
    table = _table(
        "what is left; epochs: where a method trains; time: measured on some images of the first task, the "
        "rest in proportion to its images, so without what grows with the tasks; network: its weights, "
        "counted, without gradients and activations",
        "method", "epochs", "tasks left", "network, MiB", "time",
    )  # fmt: skip
    for m in methods:
        table.add_row(
            escape(m.name), str(m.epochs), str(m.tasks), f"{m.parameters_mib:.1f}", said_time(m.seconds)
        )
    return table


def said_time(seconds: float | None) -> str:
    """Two digits of a time that is not known better; a question mark where it is not known at all."""
    if seconds is None:
        return "?"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"
