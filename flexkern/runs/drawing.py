"""Pictures of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["GREY", "LABELS", "PANEL_TITLE", "STYLES", "curves", "draw_memory", "frame", "name_ends", "plain"]

# Okabe and Ito's colours, which colour-blind readers can tell apart, and line styles for print without colour.
STYLES: dict[str, dict[str, Any]] = {
    "conventional": {"color": "#D55E00", "linestyle": (0, (5, 1.5)), "marker": "s"},
    "hybrid": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "stable": {"color": "#007F5F", "linestyle": (0, (1.5, 1.2)), "marker": "^"},
}
LABELS = {
    "conventional": "conventional\nplain SGD",
    "hybrid": "hybrid\nmixed flexibility",
    "stable": "stable\nall synapses stiff",
}
GREY = "#5A5A5A"
PANEL_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 12, "pad": 12}


def draw_memory(results: dict[str, Any], path: Path) -> None:
    """Left: accuracy on each item after the whole stream. Right: memorised against trained items.

    Lines are means over seeds, bands one standard deviation.

    Args:
        results: of :func:`flexkern.runs.demo.run`.
        path: of the PNG.
    """
    configuration, summary = results["configuration"], results["summary"]
    items, seeds = configuration["items"], configuration["seeds"]
    x = np.arange(1, items + 1)
    figure = Figure(figsize=(12.8, 5.9), dpi=150)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.062, right=0.865, bottom=0.155, top=0.765, wspace=0.52)

    left.axhline(results["chance"], color=GREY, linewidth=1, linestyle=":")
    _curves(left, x, summary, "accuracy", upper=1.0, reference=("chance", results["chance"]))
    left.set_title("What is left of each item after the last one", **PANEL_TITLE)
    left.set_xlabel("item, in the order of learning")
    left.set_ylabel("accuracy on its test images")
    left.yaxis.set_major_formatter(PercentFormatter(1.0))

    right.plot(x, x, color=GREY, linewidth=1, linestyle=":")
    _curves(right, x, summary, "memorised", upper=items, reference=("all remembered", items))
    right.set_title("How many items are in memory as the stream goes on", **PANEL_TITLE)
    right.set_xlabel("items learned so far")
    right.set_ylabel("memorised items (p < 0.05)")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))

    frame(left, items, 1.0)
    frame(right, items, items)
    figure.text(
        0.018, 0.935, f"{items} two-digit items, learned one after the other", fontsize=17, weight="bold"
    )
    ranking = sorted(summary, key=lambda name: -summary[name]["last"]["mean"])
    shown = ", ".join(f"{name} network {summary[name]['last']['mean']:.0%}" for name in ranking)
    headline = f"Test images recognised after the last item: {shown}. Chance: {results['chance']:.0%}."
    figure.text(0.018, 0.878, headline, fontsize=12)
    figure.text(
        0.018, 0.022,
        f"Lines: mean of {seeds} seed{'s' if seeds > 1 else ''}; bands: standard deviation. scikit-learn's "
        "handwritten digits, frozen random convolutions.\nMethod: Cho, Lee, Baek and Paik, arXiv 2407.07133. "
        "Made by `flexkern demo`.",
        fontsize=8.5, color=GREY, linespacing=1.4,
    )  # fmt: skip
    figure.savefig(path, facecolor="white")


def _curves(
    axes: Axes, x: np.ndarray, summary: dict[str, Any], key: str, upper: float, reference: tuple[str, float]
) -> None:
    """A line with its band for each network; they and the reference line are named at their right ends."""
    values = {name: of[key] for name, of in summary.items()}
    curves(axes, x, values, upper)
    ends = {name: value["mean"][-1] for name, value in values.items()}
    name_ends(axes, x[-1] + 0.4, ends, 0.125 * upper, reference)


def curves(
    axes: Axes,
    x: np.ndarray,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    upper: float,
    styles: Mapping[str, Mapping[str, Any]] = STYLES,
    *,
    bands: bool = True,
    **changes: Any,
) -> None:
    """A line for each name, with a band of one standard deviation around it.

    Args:
        axes: to draw on.
        x: [points].
        values: under each name "mean" and "std", [points].
        upper: the largest value there can be; bands are cut at 0 and there.
        styles: of each name's line; its colour is the band's too.
        bands: whether to draw them.
        changes: to what the lines look like, for all of them.
    """
    for name, value in sorted(values.items(), key=lambda item: item[0] == "hybrid"):  # it goes on top
        mean, std = np.array(value["mean"]), np.array(value["std"])
        look = {"linewidth": 2.2, "markersize": 5.5, **styles[name], **changes}
        if bands:
            low, high = (mean - std).clip(0, upper), (mean + std).clip(0, upper)
            axes.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
        axes.plot(x, mean, clip_on=False, zorder=3, label=name, **look)


def name_ends(
    axes: Axes,
    x: float,
    ends: Mapping[str, float],
    gap: float,
    reference: tuple[str, float],
    styles: Mapping[str, Mapping[str, Any]] = STYLES,
    labels: Mapping[str, str] = LABELS,
) -> None:
    """Names lines at their right ends, and one reference line in grey.

    Args:
        axes: with the lines.
        x: where they end.
        ends: the heights of their ends, by name.
        gap: that two names need between them.
        reference: name and height.
        styles: of the lines.
        labels: to write instead of names.
    """
    for name, y in _apart({reference[0]: reference[1], **ends}, gap, reference[0]).items():
        drawn = name in ends
        axes.annotate(
            labels.get(name, name), (x, y), xytext=(5, 0), textcoords="offset points", va="center",
            color=styles[name]["color"] if drawn else GREY, fontsize=10 if drawn else 9,
            linespacing=1.3, annotation_clip=False,
        )  # fmt: skip


def frame(axes: Axes, items: int, upper: float) -> None:
    """Limits, ticks and grid of axes along which items are counted.

    Args:
        axes: to change.
        items: how many.
        upper: the largest value there can be.
    """
    axes.set_xlim(0.6, items + 0.4)
    axes.set_ylim(-0.035 * upper, 1.035 * upper)
    axes.set_xticks(np.arange(1, items + 1) if items <= 15 else np.arange(5, items + 1, 5))
    plain(axes, "y")


def plain(axes: Axes, grid: Any) -> None:
    """No frame, and a light grid along the axis ``grid``, "x" or "y"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def _apart(ends: dict[str, float], gap: float, short: str) -> dict[str, float]:
    """Heights for labels: those of the line ends, pushed apart to at least ``gap``, the order kept.

    The label ``short`` has one line instead of two, and needs only three quarters of the gap.
    """
    names = sorted(ends, key=lambda name: ends[name])
    heights = [ends[name] for name in names]
    for _ in range(100):
        for i in range(len(heights) - 1):
            needed = gap * (0.75 if short in names[i : i + 2] else 1)
            overlap = needed - (heights[i + 1] - heights[i])
            if overlap > 0:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
    return dict(zip(names, heights, strict=True))
