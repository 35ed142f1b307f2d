"""Class-incremental runs as tables, and as sentences on what differs from a paper."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from flexkern.runs.incremental.config import Config

__all__ = ["method_table", "notes", "task_table"]

_EPOCHS = 20  # the learners' default, EASE's
_MILLION = 1e6


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
    )
    # Short heads and no frame: it fits a terminal of 80 columns.
    columns = ["task", "cls", "acc", "avg", "forgot", *(["open"] if gated else [])]
    for column in (*columns, "learn s", "test s", "MiB", "+M"):
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
            f"{t['parameters_added'] / _MILLION:.2f}",
            " ".join(f"{100 * a:.0f}" for a in t["accuracies"]),
        )
    return table


def method_table(config: Config, results: dict[str, Any]) -> Table:
    """All methods after the last task, mean ± standard deviation over the seeds, and the papers' figures."""
    summary = results["summary"]
    table = Table(
        title=escape(config.title),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="accuracies in percent, over all test images of the classes seen so far; avg: their mean over "
        "the tasks; open: share of synapses, and passes: runs of the network for one image, after the "
        "last task; learn, test: seconds for a whole stream; MiB: peak memory; +M: million parameters "
        "added",
        caption_justify="left",
    )
    table.add_column("method", no_wrap=True)
    for column in ("avg", "last", "forgot", "open", "passes", "learn", "test", "MiB", "+M"):
        table.add_column(column, justify="right", no_wrap=True)
    for method in config.methods:
        if method.name in summary:
            s = summary[method.name]
            table.add_row(
                escape(method.name),
                *(_percent(s[key], s["seeds"]) for key in ("average", "last", "forgetting")),
                _last(s, "open_rate", ".2f"),
                _last(s, "passes", ".1f"),
                *(f"{s['cost'][key]['mean']:.1f}" for key in ("learn_seconds", "predict_seconds")),
                "-" if s["mib"] is None else f"{s['mib']:.0f}",
                f"{s['parameters_added'] / _MILLION:.2f}",
            )
        if method.paper is not None:
            figures = f"{method.paper.average:.2f}", f"{method.paper.last:.2f}"
            source = escape(f"  {method.name}, {method.paper.source}")
            table.add_row(source, *figures, *[""] * 7, style="italic")
    return table


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
