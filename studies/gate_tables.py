"""The gate study as tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexkern.files import write_json

__all__ = ["table", "tables", "write"]

START, END = "<!-- gate study: written by studies.gate_study -->", "<!-- /gate study -->"


def tables(results: dict[str, Any]) -> str:
    """One Markdown table for each question."""
    groups = dict.fromkeys(v["group"] for v in results["variants"])
    return "\n\n".join(f"#### {group[0].upper()}{group[1:]}\n\n{table(results, group)}" for group in groups)


def table(results: dict[str, Any], group: str) -> str:
    """The variants of one question: mean ± standard deviation over the seeds."""
    lines = [
        "| variant | last | average | open per sample | own gate open | others open | AUROC | "
        "best gate right | to EASE | to RanPAC | keeps data |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant in results["variants"]:
        if variant["group"] == group:
            lines.append(_line(variant["name"], results["summary"][variant["key"]]))
    return "\n".join(lines)


def _line(name: str, s: dict[str, Any]) -> str:
    def share(key: str) -> str:
        return f"{s[key]:.2f}" if s.get(key) is not None else ""

    def percent(key: str) -> str:
        return f"{100 * s[key]['mean']:.1f} ± {100 * s[key]['std']:.1f}"

    def difference(key: str) -> str:
        values = s[key]["all"]
        same = "" if min(values) * max(values) > 0 else " (mixed)"  # not of one sign over the seeds
        return f"{100 * s[key]['mean']:+.1f}{same}"

    cells = [
        name, percent("last"), percent("average"), f"{s['open_per_sample']['mean']:.2f}",
        share("open_rate_own"), share("open_rate_other"), share("auroc_mean"), share("best_right"),
        difference("to_ease"), difference("to_ranpac"), "yes" if s["keeps_data"] else "no",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def write(results: dict[str, Any], out: Path) -> list[Path]:
    """Writes ``gates.json`` and pictures into ``out``, and the tables into the page beside it, between marks.

    Returns:
        The paths.
    """
    paths = [out / "gates.json", out / "open_synapses.png", out / "thresholds.png", out / "curves.png"]
    write_json(paths[0], results)
    _draw_open(results, paths[1])
    _draw_thresholds(results, paths[2])
    _draw_curves(results, paths[3])
    page = out.with_suffix(".md")
    text = page.read_text() if page.exists() else f"{START}\n{END}\n"
    before, rest = text.split(START, 1)
    page.write_text(f"{before}{START}\n\n{tables(results)}\n\n{END}{rest.split(END, 1)[1]}")
    return [*paths, page]


# --------------------------------------------------------------------------- pictures

COLOURS = {"baseline": "black", "detector": "tab:blue", "threshold": "tab:grey", "gating": "tab:green",
           "refresh and negatives": "tab:orange", "beyond the paper": "tab:red"}  # fmt: skip


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _draw_open(results: dict[str, Any], path: Path) -> None:
    """Accuracy against open synapses per sample: what each variant buys."""
    figure, axes = _figure(8, 5)
    summary = results["summary"]
    # What is told the task is far above all others, which would lie on one another: only labels, at the top.
    told = [v["name"] for v in results["variants"] if "oracle" in v["name"]]
    top = 2 + max(100 * s["last"]["mean"] for key, s in summary.items() if "oracle" not in key)
    for group, colour in COLOURS.items():
        of = [v for v in results["variants"] if v["group"] == group]
        names = [v["name"] for v in of]
        x = [summary[v["key"]]["open_per_sample"]["mean"] for v in of]
        y = [100 * summary[v["key"]]["last"]["mean"] for v in of]
        axes.scatter(x, y, s=28, color=colour, label=group, zorder=3)
        shown = names if group == "baseline" else names[-1:] if group == "beyond the paper" else []
        for name, a, b in zip(names, x, y, strict=True):
            if name in shown:
                right = a > 8  # its label would leave the picture
                below = 1.1 * told.index(name) if name in told else 0.0
                said = f"{name}: {b:.0f} %" if name in told else name
                axes.annotate(
                    said, (a, min(b, top) - below), fontsize=7,
                    xytext=(-4 if right else 4, 4), textcoords="offset points", ha="right" if right else "left",
                )  # fmt: skip
    axes.set_ylim(top=top + 1)
    axes.set_xlabel("open synapses per sample")
    axes.set_ylabel("last accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_thresholds(results: dict[str, Any], path: Path) -> None:
    """Accuracy and open rate as the threshold moves."""
    figure, (left, right) = _figure(9, 3.6, 2)
    summary = results["summary"]
    for name, colour in (("mlp", "tab:blue"), ("ridge", "tab:red")):
        for rule, style in (("fixed", "o-"), ("quantile", "s--"), ("adaptive", "^:")):
            prefix = f"threshold: {name}, {rule} "
            of = [v["key"] for v in results["variants"] if v["key"].startswith(prefix)]
            points = sorted(
                (summary[k]["open_per_sample"]["mean"], 100 * summary[k]["last"]["mean"]) for k in of
            )
            label = prefix.removeprefix("threshold: ").strip()
            left.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=4)
        of = [v["key"] for v in results["variants"] if v["key"].startswith(f"threshold: {name}, fixed ")]
        theta = [float(k.split()[-1]) for k in of]
        right.plot(theta, [summary[k]["open_per_sample"]["mean"] for k in of], "o-", color=colour, label=name)
    left.set_xlabel("open synapses per sample")
    left.set_ylabel("last accuracy, %")
    right.set_xlabel("fixed threshold")
    right.set_ylabel("open synapses per sample")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_curves(results: dict[str, Any], path: Path) -> None:
    """Accuracy over the classes seen so far, task after task, mean over seeds."""
    figure, axes = _figure(7, 4.2)
    for variant in (v for v in results["variants"] if v["group"] in ("baseline", "beyond the paper")):
        curves = [_seen(r["matrix"]) for r in results["runs"] if r["variant"] == variant["key"]]
        mean = [sum(c) / len(c) for c in zip(*curves, strict=True)]
        axes.plot(range(1, len(mean) + 1), [100 * m for m in mean], "o-", markersize=3, label=variant["name"])
    axes.set_xlabel("tasks learned")
    axes.set_ylabel("accuracy on all classes seen, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _seen(matrix: Sequence[Sequence[float]]) -> list[float]:
    """Mean over the tasks learned so far (all have as many test images)."""
    return [sum(row) / len(row) for row in matrix]
