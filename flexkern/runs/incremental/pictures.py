"""Pictures of class-incremental runs."""

from __future__ import annotations

import itertools
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from flexkern.files import save_figure
from flexkern.runs.drawing import FONT, GREY, PANEL_TITLE, plain, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "figure"]

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

_WIDTH, _LEFT, _KEY = 12.8, 1.05, 5.0  # of the picture; left of the panels, and right of them, in inches
_PANEL, _GATES, _ABOVE, _BELOW, _FOOT = 4.4, 2.8, 0.55, 0.85, 0.45  # heights
_ENTRY = 40  # characters of a line of the key


def draw(results: dict[str, Any], path: Path) -> None:
    """The picture of a run, as a PNG.

    Args:
        results: of :func:`flexkern.runs.incremental.run.run`, with at least one run that has ended.
        path: of the PNG.

    Raises:
        ValueError: if no run has ended.
    """
    save_figure(figure(results), path, facecolor="white")


def figure(results: dict[str, Any]) -> Figure:
    """Accuracy over the classes seen so far, and, of methods with gates, the share of synapses that were open.

    Where not each task brings new classes, it is over the tasks.

    Lines are means over seeds, bands one standard deviation; a star is a paper's last accuracy.

    Args:
        results: as of :func:`draw`.

    Raises:
        ValueError: if no run has ended.
    """
    summary, configuration = results["summary"], results["configuration"]
    if not summary:
        raise ValueError("results: no run has ended, so there is nothing to draw")
    gated = {name: s for name, s in summary.items() if "open_rate" in s["report"]}
    styles = {m["name"]: STYLES[i % len(STYLES)] for i, m in enumerate(configuration["methods"])}
    labels = {
        name: f"{name}: average {s['average']['mean']:.1%}, last {s['last']['mean']:.1%}"
        for name, s in summary.items()
    }
    papers = {
        m["name"]: m["paper"]
        for m in configuration["methods"]
        if m["paper"] is not None and m["name"] in summary
    }
    stars = {
        name: f"{name}, {paper['source']}: last {paper['last'] / 100:.1%}" for name, paper in papers.items()
    }
    entries = sum(len(textwrap.wrap(text, _ENTRY)) for text in (*labels.values(), *stars.values()))
    title = textwrap.wrap(configuration["title"], 62)
    heights = [max(_PANEL, 0.33 * entries), *([max(_GATES, 0.33 * len(gated))] if gated else [])]
    head = 0.35 + 0.4 * len(title)
    height = head + sum(heights) + len(heights) * (_ABOVE + _BELOW) + _FOOT
    drawing = Figure(figsize=(_WIDTH, height), dpi=150)
    panels, top = [], head
    for of in heights:
        top += _ABOVE
        place = (_LEFT / _WIDTH, 1 - (top + of) / height, 1 - (_LEFT + _KEY) / _WIDTH, of / height)
        panels.append(drawing.add_axes(place))
        top += of + _BELOW

    grows = all(a < b for s in summary.values() for a, b in itertools.pairwise(s["classes"]))
    for name, s in summary.items():
        _curve(panels[0], _along(s, grows), s["seen"], styles[name], labels[name])
    along = sorted({x for s in summary.values() for x in _along(s, grows)})
    for name, paper in papers.items():
        panels[0].plot(
            [along[-1]], [paper["last"] / 100], "*", color=styles[name]["color"], markersize=16,
            markerfacecolor="none", label=textwrap.fill(stars[name], _ENTRY), clip_on=False, zorder=4,
        )  # fmt: skip
    seen, of_x = ("classes seen", "classes seen") if grows else ("tasks", "tasks learned")
    _named(panels[0], f"Accuracy on all {seen} so far", of_x)
    if gated:
        for name, s in gated.items():
            _curve(panels[1], _along(s, grows), s["report"]["open_rate"], styles[name], name)
        _named(panels[1], "Open synapses, of those there are", of_x)
    edge = 0.03 * (along[-1] - along[0]) or 0.5
    for axes in panels:
        axes.set_ylim(0, 1.02)
        axes.set_xlim(along[0] - edge, along[-1] + edge)
        axes.set_xticks(whole_ticks(along))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.tick_params(labelsize=FONT)
        plain(axes, "y")
        axes.legend(
            frameon=False, fontsize=FONT, loc="upper left", bbox_to_anchor=(1.03, 1.0), borderaxespad=0,
            borderpad=0, handlelength=2.2, handletextpad=0.5, labelspacing=0.45,
        )  # fmt: skip
    drawing.text(0.25 / _WIDTH, 1 - 0.2 / height, "\n".join(title), fontsize=FONT + 7, weight="bold", va="top")
    seeds = max(s["seeds"] for s in summary.values())
    backbone = configuration["backbone"]
    if os.path.isabs(backbone):  # of a folder, the name is enough
        backbone = os.path.basename(backbone)
    lines = f"Lines: mean of {seeds} seeds; bands: standard deviation." if seeds > 1 else "One seed."
    text = f"Backbone: {backbone}. {lines} Made by `flexkern run class-incremental`."
    drawing.text(0.25 / _WIDTH, 0.15 / height, text, fontsize=FONT, color=GREY)
    return drawing


def _named(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title, **{**PANEL_TITLE, "fontsize": FONT + 1, "pad": 8})
    axes.set_xlabel(x, fontsize=FONT)


def _along(summary: dict[str, Any], grows: bool) -> list[int]:
    """Classes seen, where each task brings some; else tasks."""
    classes: list[int] = summary["classes"]
    return classes if grows else list(range(1, len(classes) + 1))


def _curve(axes: Axes, x: list[int], values: dict[str, Any], style: dict[str, Any], label: str) -> None:
    mean, std = (np.array(values[key], dtype=float) for key in ("mean", "std"))
    axes.fill_between(
        x, (mean - std).clip(0, 1), (mean + std).clip(0, 1), color=style["color"], alpha=0.12, linewidth=0
    )
    axes.plot(
        x,
        mean,
        linewidth=2.4,
        markersize=7,
        label=textwrap.fill(label, _ENTRY),
        clip_on=False,
        zorder=3,
        **style,
    )
