"""Pictures of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_memory"]

# Okabe and Ito's colours, which colour-blind readers can tell apart, and line styles for print without colour.
STYLES: dict[str, dict[str, Any]] = {
    "conventional": {"color": "#D55E00", "linestyle": (0, (5, 1.5)), "marker": "s"},
    "hybrid": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "stable": {"color": "#007F5F", "linestyle": (0, (1.5, 1.2)), "marker": "^"},
}
LABELS = {
    "conventional": "conventional\nall synapses flexible",
    "hybrid": "hybrid\nmixed flexibility",
    "stable": "stable\nall synapses stiff",
}
GREY = "#5A5A5A"


def draw_memory(results: dict[str, Any], path: Path) -> None:
    """Left: accuracy on each item after the whole stream. Right: memorised against trained items.

    Lines are means over seeds, bands one standard deviation.

    Args:
        results: of :func:`flexkern.experiments.demo.run`.
        path: of the PNG.
    """
    configuration, summary = results["configuration"], results["summary"]
    items, seeds = configuration["items"], configuration["seeds"]
    x = np.arange(1, items + 1)
    figure = Figure(figsize=(12.5, 5.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))

    _curves(left, x, summary, "accuracy", upper=1.0)
    left.axhline(results["chance"], color=GREY, linewidth=1, linestyle=":")
    left.annotate(
        "chance", (1, results["chance"]), xytext=(-8, 4), textcoords="offset points", color=GREY, fontsize=9
    )
    left.set_title("What is left of each item after the last one", loc="left", fontsize=12.5, pad=10)
    left.set_xlabel("item, in the order of learning")
    left.set_ylabel("accuracy on its test images")
    left.set_ylim(-0.03, 1.03)
    left.yaxis.set_major_formatter(PercentFormatter(1.0))

    _curves(right, x, summary, "memorised", upper=items)
    right.plot(x, x, color=GREY, linewidth=1, linestyle=":")
    right.annotate(
        "all remembered", (items * 0.52, items * 0.52), xytext=(-6, 5), textcoords="offset points",
        color=GREY, fontsize=9, ha="right",
    )  # fmt: skip
    right.set_title("Items held in memory as the stream goes on", loc="left", fontsize=12.5, pad=10)
    right.set_xlabel("items learned so far")
    right.set_ylabel("memorised items (p < 0.05)")
    right.set_ylim(-0.03 * items, 1.03 * items)
    right.yaxis.set_major_locator(MaxNLocator(integer=True))

    for axes in (left, right):
        axes.set_xlim(0.7, items * 1.34)  # room for the labels at the ends of the lines
        axes.set_xticks(x if items <= 15 else x[::5])
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines["bottom"].set_bounds(0.7, items)
        axes.xaxis.set_label_coords(0.37, -0.1)
        axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
        axes.set_axisbelow(True)
    shown = ", ".join(f"{name} {summary[name]['last']['mean']:.0%}" for name in summary)
    figure.suptitle(
        f"{items} two-digit items, learned one after the other: {shown} on average",
        fontsize=14.5,
        x=0.012,
        ha="left",
    )
    figure.text(
        0.012, -0.035,
        f"Mean and standard deviation of {seeds} seed{'s' if seeds > 1 else ''}. scikit-learn's handwritten "
        "digits, frozen random convolutions. Method: Cho et al., arXiv 2407.07133. Drawn by flexkern.",
        fontsize=9, color=GREY,
    )  # fmt: skip
    figure.savefig(path, bbox_inches="tight", facecolor="white")


def _curves(axes: Axes, x: np.ndarray, summary: dict[str, Any], key: str, upper: float) -> None:
    """A line with its band for each network, named at its right end."""
    ends = {}
    for name, values in summary.items():
        mean, std = np.array(values[key]["mean"]), np.array(values[key]["std"])
        style = STYLES[name]
        low, high = (mean - std).clip(0, upper), (mean + std).clip(0, upper)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
        axes.plot(x, mean, linewidth=2.2, markersize=5.5, **style)
        ends[name] = mean[-1]
    for name, y in _apart(ends, 0.115 * upper).items():
        axes.annotate(
            LABELS[name], (x[-1], y), xytext=(11, 0), textcoords="offset points", va="center",
            color=STYLES[name]["color"], fontsize=10, linespacing=1.25,
        )  # fmt: skip


def _apart(ends: dict[str, float], gap: float) -> dict[str, float]:
    """Heights for labels: those of the line ends, pushed apart to at least ``gap``, the order kept."""
    names = sorted(ends, key=lambda name: ends[name])
    heights = [ends[name] for name in names]
    for _ in range(50):
        for i in range(len(heights) - 1):
            overlap = gap - (heights[i + 1] - heights[i])
            if overlap > 0:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
    return dict(zip(names, heights, strict=True))
