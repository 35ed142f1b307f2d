"""The pictures of the demo: what is left of each item, and a layer that comes alive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from flexkern.files import save_figure
from flexkern.runs.drawing import GREY, LINE_STYLES, PANEL_TITLE, curves, frame, name_ends
from flexkern.runs.seeds import as_list

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_awakening", "draw_memory"]

AWAKE = LinearSegmentedColormap.from_list("awake", ["#16213E", "#0072B2", "#F0E442"])


def draw_memory(results: dict[str, Any], path: Path) -> None:
    """Left: accuracy on each item after the whole stream. Right: memorised against trained items.

    Lines are means over seeds, bands one standard deviation.

    Args:
        results: of :func:`flexkern.runs.demo.run`.
        path: of the PNG.
    """
    configuration, summary = results["configuration"], results["summary"]
    items, seeds = configuration["items"], len(as_list(configuration)["seeds"])
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
    save_figure(figure, path, facecolor="white")


def _curves(
    axes: Axes, x: np.ndarray, summary: dict[str, Any], key: str, upper: float, reference: tuple[str, float]
) -> None:
    """A line with its band for each network; they and the reference line are named at their right ends."""
    values = {name: of[key] for name, of in summary.items()}
    curves(axes, x, values, upper)
    ends = {name: value["mean"][-1] for name, value in values.items()}
    name_ends(axes, x[-1] + 0.4, ends, 0.125 * upper, reference)


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
    for layer, (style, name) in enumerate(zip(LINE_STYLES[1:], ("first", "second"), strict=True)):
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
        f"{awakening['silent_fraction']:.0%} of the hidden layers' synapses begin silent. Those that new items "
        f"activate enough become functional: {shares[-1, 0]:.0%} of the first layer at the end.",
        fontsize=11,
    )  # fmt: skip
    figure.text(
        0.018, 0.022,
        "Each cell of a map: the share of functional synapses of the first hidden layer in a block of units "
        "and inputs, both ordered by how many they have at the end. By the rate rule all units\nchoose the "
        f"same inputs, the most active ones. One run, seed {awakening['seed']}. Made by `flexkern demo`.",
        fontsize=8.5, color=GREY, linespacing=1.4,
    )  # fmt: skip
    save_figure(figure, path, facecolor="white")
