"""What pictures of results are put together from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "FONT",
    "GREY",
    "LABELS",
    "LINE_STYLES",
    "PANEL_TITLE",
    "STYLES",
    "curves",
    "frame",
    "log_ticks",
    "name_ends",
    "plain",
    "whole_ticks",
]

FONT = 14.0
"""Of the text of a picture, in points: 7 where a page shows it at half its size."""

# Okabe and Ito's colours, which colour-blind readers can tell apart, and line styles for print without colour.
STYLES: dict[str, dict[str, Any]] = {
    "conventional": {"color": "#D55E00", "linestyle": (0, (5, 1.5)), "marker": "s"},
    "hybrid": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "stable": {"color": "#007F5F", "linestyle": (0, (1.5, 1.2)), "marker": "^"},
}
# The same three, for lines that are other things than these networks.
LINE_STYLES: list[dict[str, Any]] = [STYLES["conventional"], STYLES["hybrid"], STYLES["stable"]]
LABELS = {
    "conventional": "conventional\nplain SGD",
    "hybrid": "hybrid\nmixed flexibility",
    "stable": "stable\nall synapses stiff",
}
GREY = "#5A5A5A"
PANEL_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 12, "pad": 12}


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
    highest: float = math.inf,
    size: float = 10,
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
        highest: where a name may be; what would be pushed above it goes below it.
        size: of the names, in points.
    """
    for name, y in _apart({reference[0]: reference[1], **ends}, gap, reference[0], highest).items():
        drawn = name in ends
        axes.annotate(
            labels.get(name, name), (x, y), xytext=(5, 0), textcoords="offset points", va="center",
            color=styles[name]["color"] if drawn else GREY, fontsize=size,
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


def whole_ticks(values: Sequence[int], most: int = 10) -> list[int]:
    """Those of these whole numbers that have a tick: all, or every second and so on, the last one too."""
    every = sorted(set(values))
    step = -(-len(every) // most)
    return every[::-1][::step][::-1]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two positive ones that are ticks of a logarithmic axis: at least two of them.

    Args:
        low, high: the ends of the axis, at least 2 % apart.
        most: how many there may be, about.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    step = max(1, round(len(decades) / most))
    for within in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [m * 10.0**d for d in decades[::step] for m in within]
        inside = [tick for tick in found if low <= tick <= high]
        if len(inside) >= 3:
            return inside
    # Less than half a decade: as on a linear axis.
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(most - 1, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def plain(axes: Axes, grid: Any) -> None:
    """No frame, and a light grid along the axis ``grid``, "x" or "y"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def _apart(ends: dict[str, float], gap: float, short: str, highest: float = math.inf) -> dict[str, float]:
    """Heights for labels: those of the line ends, pushed apart to at least ``gap``, the order kept.

    The label ``short`` has one line instead of two, and needs only three quarters of the gap.
    """
    names = sorted(ends, key=lambda name: ends[name])
    heights = [ends[name] for name in names]
    needed = [gap * (0.75 if short in names[i : i + 2] else 1) for i in range(len(heights) - 1)]
    for _ in range(100):
        for i in range(len(heights) - 1):
            overlap = needed[i] - (heights[i + 1] - heights[i])
            if overlap > 0:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], heights[i + 1] - needed[i] if i + 1 < len(heights) else highest)
    return dict(zip(names, heights, strict=True))
