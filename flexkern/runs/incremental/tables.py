"""Class-incremental runs as tables, and as sentences on what differs from a paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flexkern.runs.incremental.config import Config
from flexkern.runs.tables import table_of

__all__ = ["measures_table", "method_table", "notes", "task_table"]

_EPOCHS = 20  # the learners' default, EASE's


def task_table(run: dict[str, Any]) -> Table:
    """One method on one seed: a row for each task that has been learned.

    Args:
        run: an entry of ``runs`` in the results.
    """
    tasks = run["tasks"]
    gated = any("open_rate" in t["report"] for t in tasks)
    table = Table(
        title=escape(f"{run['method']}, seed {run['seed']}"),  # a name's brackets are no markup
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    # Short heads and no frame: it fits a terminal of 80 columns.
    columns = ["task", "cls", "acc", "avg", "forgot", *(["open"] if gated else [])]
    for column in (*columns, "learn", "test", "MiB", "keeps"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("each task", overflow="fold")
    for t in tasks:
        cost = t["cost"]
        peaks = [p for p in (cost["learn_mib"], cost["predict_mib"]) if p is not None]
        rate = t["report"].get("open_rate")
        table.add_row(
            str(t["task"] + 1),
            str(t["classes"]),
            f"{100 * t['seen']:.1f}",
            f"{100 * t['average']:.1f}",
            f"{100 * t['forgetting']:.1f}",
            *(["-" if rate is None else f"{rate:.2f}"] if gated else []),
            f"{cost['learn_seconds']:.1f}" + ("*" if cost["resumed"] else ""),
            f"{cost['predict_seconds']:.1f}",
            f"{max(peaks):.0f}" if peaks else "-",
            _mebibytes(t.get("memory_bytes")),
            _each(t["accuracies"]),
        )
    return table


def _each(accuracies: Sequence[float | None]) -> str:
    """Of each task, the first and the last ones where they are many: all are in results.json."""
    shown = ["-" if a is None else f"{100 * a:.0f}" for a in accuracies]
    return " ".join(shown if len(shown) <= 5 else [shown[0], "..", *shown[-3:]])


class _Column(NamedTuple):
    """Of a table of methods.

    head: of the column.
    cell: of a method's summary.
    """

    head: str
    cell: Callable[[dict[str, Any]], str]


_COLUMNS = (
    _Column("avg", lambda s: _percent(s["average"], s["seeds"])),
    _Column("last", lambda s: _percent(s["last"], s["seeds"])),
    _Column("forgot", lambda s: _percent(s["forgetting"], s["seeds"])),
    _Column("open", lambda s: _last(s, "open_rate", ".2f")),
    _Column("passes", lambda s: _last(s, "passes", ".1f")),
    _Column("learn", lambda s: f"{s['cost']['learn_seconds']['mean']:.1f}"),
    _Column("test", lambda s: f"{s['cost']['predict_seconds']['mean']:.1f}"),
    _Column("MiB", lambda s: "-" if s["mib"] is None else f"{s['mib']:.0f}"),
    _Column("keeps", lambda s: _mebibytes(s["memory_bytes"])),
)
_MEASURES = (
    _Column("learned", lambda s: _mean(s, "learning_accuracy")),
    _Column("BWT", lambda s: _mean(s, "backward_transfer")),
    _Column("FWT", lambda s: _mean(s, "forward_transfer")),
    _Column("told", lambda s: _mean(s, "masked")),
    _Column("named", lambda s: _mean({"named": _of_last(s["task_named"])}, "named")),
    _Column("top 5", lambda s: _mean(s, "top5")),
    _Column("macro", lambda s: _mean(s, "macro")),
    _Column("anytime", lambda s: _mean(s, "anytime")),
)


def method_table(config: Config, results: dict[str, Any]) -> Table:
    """All methods after the last task, mean ± standard deviation over the seeds, and the papers' figures."""
    several = any(s["seeds"] > 1 for s in results["summary"].values())
    table = _table(
        config.title,
        _COLUMNS,
        f"accuracies in percent{', mean ± standard deviation over the seeds' if several else ''}, "
        "over all test images of the classes seen so far; avg: their mean over "
        "the tasks; open: share of synapses, and passes: runs of the network for one image, after the "
        "last task; learn, test: seconds for a whole stream; MiB: peak memory; keeps: MiB of all "
        "that is kept to answer and to learn on, beside the backbone",
    )
    for method in config.methods:
        if method.name in results["summary"]:
            s = results["summary"][method.name]
            table.add_row(escape(method.name), *(column.cell(s) for column in _COLUMNS))
        if method.paper is not None:
            figures = f"{method.paper.average:.2f}", f"{method.paper.last:.2f}"
            source = escape(f"  {method.name}, {method.paper.source}")
            table.add_row(source, *figures, *[""] * (len(_COLUMNS) - 2), style="italic")
    return table


def measures_table(config: Config, results: dict[str, Any]) -> Table:
    """What else was measured of all methods after the last task: means over the seeds."""
    table = _table(
        "after the last task",
        _MEASURES,
        "in percent; learned: accuracy on each task right after it was learned (plasticity), BWT: what it "
        "gained since, FWT: accuracy on a domain before it was learned, over chance (in other streams what "
        "was not learned is never answered); told: accuracy among the task's own classes only, named: answers "
        "with a class of the right task; top 5: right class among the five likeliest; macro: mean over "
        "classes; anytime: area under the curve of an online stream; -: not measured, or without a meaning "
        "here. Spreads, and each class, are in results.json",
    )
    for method in config.methods:
        if method.name in results["summary"]:
            s = results["summary"][method.name]
            table.add_row(escape(method.name), *(column.cell(s) for column in _MEASURES))
    return table


def _table(title: str, columns: Sequence[_Column], legend: str) -> Table:
    table = table_of(title, legend)
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(column.head, justify="right", no_wrap=True)
    return table


def _mean(summary: dict[str, Any], key: str) -> str:
    value = summary.get(key, {"mean": None})["mean"]
    return "-" if value is None else f"{100 * value:.1f}"


def _of_last(values: dict[str, Any]) -> dict[str, Any]:
    """Of values for each task that of the last one."""
    return {"mean": values["mean"][-1]}


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.1f}"


def _percent(value: dict[str, Any], seeds: int) -> str:
    spread = f" ± {100 * value['std']:.2f}" if seeds > 1 else ""
    return f"{100 * value['mean']:.2f}{spread}"


def _last(summary: dict[str, Any], key: str, form: str) -> str:
    """What the method reports after the last task."""
    value = summary["report"].get(key, {"mean": [None]})["mean"][-1]
    return "-" if value is None else f"{value:{form}}"


def notes(config: Config, results: dict[str, Any]) -> list[str]:
    """What a reader must know to compare with the papers' figures; one sentence per entry."""
    said = []
    for method in config.methods:
        paper = method.paper
        if paper is None:
            continue
        differs = []
        if paper.backbone is not None and paper.backbone != config.backbone:
            differs.append(f"backbone {config.backbone} (there {paper.backbone})")
        epochs = method.options.get("epochs", _EPOCHS)
        if paper.epochs is not None and paper.epochs != epochs:
            differs.append(f"{epochs} epochs (there {paper.epochs})")
        for part, count in (("training", config.data.train_per_class), ("test", config.data.test_per_class)):
            if count is not None:
                differs.append(f"{count} {part} images a class (there all)")
        if config.data.classes is not None or (config.stream.order is not None and paper.shuffled):
            differs.append("a choice of classes, or another order")
        if config.stream.seed != 1993 and config.stream.order is None:
            differs.append("another class order (there that of seed 1993)")
        what = ", ".join(differs) or "neither backbone, epochs nor images, as far as this configuration knows"
        said.append(f"{method.name}: what differs from {paper.source}: {what}.")
    for name, summary in results["summary"].items():
        kept = summary["report"].get("keeps_data")
        if kept is not None and kept["mean"][-1]:
            said.append(f"{name}: keeps features of training images.")
    if any(t["cost"]["resumed"] for r in results["runs"] for t in r["tasks"]):
        said.append("*: the task was interrupted; its seconds are those of the parts that were noted.")
    left_out = results.get("left_out", 0)
    if left_out:
        files = "file of the images was" if left_out == 1 else "files of the images were"
        said.append(f"{left_out} {files} left out, damaged or of a kind that is not read.")
    if len(results["environments"]) > 1:
        said.append(
            "The run went on under other versions, threads or devices than it was begun with (environments in "
            "results.json): numbers may differ in their last bits from those of an uninterrupted run."
        )
    return said
