"""Pictures of silent synapses: the study of reserves, and a layer that comes alive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from flexkern.runs.drawing import GREY, PANEL_TITLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_awakening", "draw_study"]

# Okabe and Ito's colours, as in the other pictures.
EARLY, LATE = "#D55E00", "#0072B2"
METHOD_STYLES: list[dict[str, Any]] = [
    {"color": "#D55E00", "linestyle": (0, (5, 1.5)), "marker": "s"},
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#007F5F", "linestyle": (0, (1.5, 1.2)), "marker": "^"},
]
AWAKE = LinearSegmentedColormap.from_list("awake", ["#16213E", "#0072B2", "#F0E442"])


def draw_study(results: dict[str, Any], path: Path) -> None:
    """Left: paired differences to no reserve, with confidence intervals. Right: functional synapses over items.

    Args:
        results: of :func:`studies.silent_reserve.run`.
        path: of the PNG.
    """
    c, summary = results["configuration"], results["summary"]
    figure = Figure(figsize=(12.8, 6.2), dpi=150)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    figure.subplots_adjust(left=0.2, right=0.985, bottom=0.17, top=0.82, wspace=0.17)
    _differences(left, summary)
    items = np.arange(c["items"] + 1)
    for (method, options), style in zip(results["methods"].items(), METHOD_STYLES, strict=True):
        entry = summary[f"{c['pilot_share']:.0%}, {method}"]
        first, second = np.array(entry["functional"]).T
        target = results["chosen_targets"][method]
        label = f"{method}, target {target:g}" if options else method
        right.plot(items, first, linewidth=2, markersize=5, label=label, **style)
        right.plot(items, second, linewidth=1, markersize=3, **style)
    right.set_title(f"A reserve of {c['pilot_share']:.0%} comes alive", **PANEL_TITLE)
    right.set_xlabel("items learned so far")
    right.set_ylabel("functional synapses (thick: first hidden layer)")
    right.set_ylim(0, 1.02)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(frameon=False, fontsize=9, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.text(0.018, 0.93, "What a silent reserve does to early and late items", fontsize=17, weight="bold")
    figure.text(
        0.018, 0.022,
        f"{c['items']} two-digit items, hybrid network, {c['seeds']} seeds. Bars: 95 % confidence intervals of "
        "paired differences. \"Never converted\" is the control: sparse, with no reserve in use.\n"
        "Made by `python -m studies.silent_reserve`.",
        fontsize=8.5, color=GREY, linespacing=1.4,
    )  # fmt: skip
    figure.savefig(path, facecolor="white")


def _differences(axes: Axes, summary: dict[str, Any]) -> None:
    names = [name for name, entry in summary.items() if "to_none" in entry]
    for row, name in enumerate(reversed(names)):
        for measure, color, marker, shift in (("early", EARLY, "s", 0.16), ("late", LATE, "o", -0.16)):
            d = summary[name]["to_none"][measure]
            label = f"{measure} items" if row == 0 else None
            axes.plot([d["low"], d["high"]], [row + shift] * 2, color=color, linewidth=1.8)
            axes.plot(d["mean"], row + shift, marker, color=color, markersize=6, label=label)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(names)), list(reversed(names)), fontsize=9.5)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=None))
    axes.set_xlabel("percentage points")
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    axes.set_title("Accuracy after the stream, less that without a reserve", **PANEL_TITLE)
    axes.legend(frameon=False, fontsize=9.5, loc="best")


def draw_awakening(awakening: dict[str, Any], path: Path) -> None:
    """Left: share of functional synapses over items. Right: the first hidden layer's synapses at a few items.

    Args:
        awakening: of :func:`flexkern.runs.awakening.run`.
        path: of the PNG.
    """
    shares = np.array(awakening["functional"])
    maps = awakening["maps"]
    figure = Figure(figsize=(12.8, 4.3), dpi=150)
    grid = figure.add_gridspec(
        1, len(maps) + 1, width_ratios=[1.75] + [1] * len(maps), left=0.062, right=0.915, bottom=0.2, top=0.72,
        wspace=0.22,
    )  # fmt: skip
    axes = figure.add_subplot(grid[0])
    x = np.arange(len(shares))
    for layer, (style, name) in enumerate(zip(METHOD_STYLES[1:], ("first", "second"), strict=True)):
        axes.plot(x, shares[:, layer], linewidth=2.2, markersize=5, label=f"{name} hidden layer", **style)
    axes.set_title("Functional synapses", **PANEL_TITLE)
    axes.set_xlabel("items learned so far")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    image = None
    for number, shown in enumerate(maps):
        panel = figure.add_subplot(grid[number + 1])
        image = panel.imshow(
            np.array(shown["functional"]), cmap=AWAKE, vmin=0, vmax=1, interpolation="nearest", aspect="auto"
        )
        items = shown["items_learned"]
        title = "before learning" if items == 0 else f"after {items} item{'s' if items > 1 else ''}"
        panel.set_title(title, loc="left", fontsize=10.5)
        panel.set_xticks([])
        panel.set_yticks([])
        if number == 0:
            panel.set_ylabel("units")
            panel.set_xlabel("their inputs")
    assert image is not None
    bar = figure.colorbar(image, cax=figure.add_axes((0.927, 0.2, 0.011, 0.52)), format=PercentFormatter(1.0))
    bar.set_label("functional", fontsize=9)
    figure.text(0.018, 0.9, "A layer comes alive", fontsize=17, weight="bold")
    figure.text(
        0.018, 0.83,
        f"{awakening['silent_fraction']:.0%} of the hidden layers' synapses begin silent. What new items drive "
        f"hard enough becomes functional: {shares[-1, 0]:.0%} of the first layer at the end.",
        fontsize=11,
    )  # fmt: skip
    figure.text(
        0.018, 0.022,
        "Each cell of a map: the share of functional synapses of the first hidden layer in a block of units "
        "and inputs, both ordered by how many they have at the end. By the rate rule all units\nchoose the "
        f"same inputs, the most active ones. One run, seed {awakening['seed']}. Made by `flexkern demo`.",
        fontsize=8.5, color=GREY, linespacing=1.4,
    )  # fmt: skip
    figure.savefig(path, facecolor="white")
