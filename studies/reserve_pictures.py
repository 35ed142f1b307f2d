"""The picture of the study of silent reserves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from flexkern.runs.drawing import GREY, LINE_STYLES, PANEL_TITLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

# Okabe and Ito's colours, as in the other pictures.
EARLY, LATE = "#D55E00", "#0072B2"


def draw(results: dict[str, Any], path: Path) -> None:
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
    for (method, options), style in zip(results["methods"].items(), LINE_STYLES, strict=True):
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
