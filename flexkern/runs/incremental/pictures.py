"""Pictures of class-incremental runs."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from flexkern.files import save_figure
from flexkern.runs.drawing import GREY, PANEL_TITLE, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

# Okabe and Ito's colours, which colour-blind readers can tell apart, and line styles for print without colour.
STYLES: list[dict[str, Any]] = [
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": (0, (5, 1.5)), "marker": "s"},
    {"color": "#007F5F", "linestyle": (0, (1.5, 1.2)), "marker": "^"},
    {"color": "#CC79A7", "linestyle": (0, (5, 1.2, 1.2, 1.2)), "marker": "D"},
    {"color": "#56B4E9", "linestyle": (0, (8, 2)), "marker": "v"},
    {"color": "#E69F00", "linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "P"},
    {"color": "#3B3B3B", "linestyle": (0, (1, 3)), "marker": "X"},
]


def draw(results: dict[str, Any], path: Path) -> None:
    """Accuracy over the classes seen so far, and, of methods with gates, the share of synapses that were open.

    Where not each task brings new classes, it is over the tasks.

    Lines are means over seeds, bands one standard deviation; a star is a paper's last accuracy.

    Args:
        results: of :func:`flexkern.runs.incremental.run.run`, with at least one run that has ended.
        path: of the PNG.

    Raises:
        ValueError: if no run has ended.
    """
    summary, configuration = results["summary"], results["configuration"]
    if not summary:
        raise ValueError("results: no run has ended, so there is nothing to draw")
    gated = {name: s for name, s in summary.items() if "open_rate" in s["report"]}
    figure = Figure(figsize=(12.8 if gated else 8.4, 5.6), dpi=150)
    panels = figure.subplots(1, 2 if gated else 1, squeeze=False, width_ratios=(1.5, 1) if gated else None)[0]
    figure.subplots_adjust(
        left=0.062 if gated else 0.095, right=0.98, bottom=0.14, top=0.82, wspace=0.17
    )  # fmt: skip
    styles = {m["name"]: STYLES[i % len(STYLES)] for i, m in enumerate(configuration["methods"])}

    grows = all(a < b for s in summary.values() for a, b in itertools.pairwise(s["classes"]))
    for name, s in summary.items():
        label = f"{name}: average {s['average']['mean']:.1%}, last {s['last']['mean']:.1%}"
        _curve(panels[0], _along(s, grows), s["seen"], styles[name], label)
    end = max(_along(s, grows)[-1] for s in summary.values())
    for method in configuration["methods"]:
        if method["paper"] is not None and method["name"] in summary:
            last, colour = method["paper"]["last"] / 100, styles[method["name"]]["color"]
            label = f"{method['name']}, {method['paper']['source']}: last {last:.1%}"
            panels[0].plot(
                [end], [last], "*", color=colour, markersize=13, markerfacecolor="none", label=label,
                clip_on=False, zorder=4,
            )  # fmt: skip
    seen, along = ("classes seen", "classes seen") if grows else ("tasks", "tasks learned")
    panels[0].set_title(f"Accuracy on all {seen} so far", **PANEL_TITLE)
    panels[0].set_xlabel(along)
    if gated:
        for name, s in gated.items():
            _curve(panels[1], _along(s, grows), s["report"]["open_rate"], styles[name], name)
        panels[1].set_title("Open synapses, of those there are", **PANEL_TITLE)
        panels[1].set_xlabel(along)
    for axes in panels:
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, end * 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axes, "y")
        axes.legend(frameon=False, fontsize=8.5)
    figure.text(0.018, 0.925, configuration["title"], fontsize=16, weight="bold")
    seeds = max(s["seeds"] for s in summary.values())
    backbone = configuration["backbone"]
    if os.path.isabs(backbone):  # of a folder, the name is enough
        backbone = os.path.basename(backbone)
    lines = f"Lines: mean of {seeds} seeds; bands: standard deviation." if seeds > 1 else "One seed."
    text = f"Backbone: {backbone}. {lines} Made by `flexkern run class-incremental`."
    figure.text(0.018, 0.018, text, fontsize=8.5, color=GREY)
    save_figure(figure, path, facecolor="white")


def _along(summary: dict[str, Any], grows: bool) -> list[int]:
    """Classes seen, where each task brings some; else tasks."""
    classes: list[int] = summary["classes"]
    return classes if grows else list(range(1, len(classes) + 1))


def _curve(axes: Axes, x: list[int], values: dict[str, Any], style: dict[str, Any], label: str) -> None:
    mean, std = (np.array(values[key], dtype=float) for key in ("mean", "std"))
    axes.fill_between(
        x, (mean - std).clip(0, 1), (mean + std).clip(0, 1), color=style["color"], alpha=0.12, linewidth=0
    )
    axes.plot(x, mean, linewidth=2, markersize=5, label=label, clip_on=False, zorder=3, **style)
