"""Cost as work grows: a panel a series, its lines with bands from quartile to quartile."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator

from flexkern.benchmarks.plot_bars import HEAD, add_axes, write_head
from flexkern.runs.drawing import FONT, PANEL_TITLE, log_ticks, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_growth", "spread"]

OURS = ("#0072B2", "#56B4E9", "#003F66")
THEIRS = ("#D55E00", "#007F5F", "#CC79A7", "#6E6E6E")
WIDTH, HEIGHT, LABELS, LEFT = 7.2, 3.4, 4.0, 1.15
ABOVE, BELOW = 0.55, 0.85
UNITS = {"seconds": "s", "MB": "MB"}


def draw_growth(run: dict[str, Any], about: str) -> Figure | None:
    """The picture, or None if no series was measured.

    Args:
        run: as :func:`flexkern.benchmarks.record.read` gives it.
        about: the line under the title.
    """
    shown = [series for series in run["series"] if series.get("lines")]
    if not shown:
        return None
    box = ABOVE + HEIGHT + BELOW
    figure = Figure(figsize=(LEFT + WIDTH + LABELS, HEAD + len(shown) * box), dpi=100)
    for number, series in enumerate(shown):
        _draw(add_axes(figure, LEFT, HEAD + number * box + ABOVE, WIDTH, HEIGHT), series)
    write_head(figure, "Cost as work grows", f"{about} Bands: quartiles.")
    return figure


def _draw(axes: Axes, series: dict[str, Any]) -> None:
    lines, flat = series["lines"], series["flat"]
    looks = styles(list(lines))
    for line, points in lines.items():
        x, low, middle, high = zip(*points, strict=True)
        axes.fill_between(x, low, high, color=looks[line]["color"], alpha=0.16, linewidth=0)
        axes.plot(x, middle, linewidth=2.4, markersize=5.5, label=line, zorder=3, clip_on=False, **looks[line])
    every = [point for points in lines.values() for point in points]
    xs, ys = [point[0] for point in every], [value for point in every for value in point[1:]]
    _scale(axes, "x", xs, flat)
    _scale(axes, "y", ys, flat)
    if series["y"] == "seconds":
        axes.yaxis.set_major_formatter(EngFormatter("s"))
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _name_ends(axes, lines, looks)
    axes.set_title(series["title"], **{**PANEL_TITLE, "fontsize": FONT + 2, "pad": 8})
    axes.set_xlabel(series["x"], fontsize=FONT)
    axes.set_ylabel("time" if series["y"] == "seconds" else series["y"], fontsize=FONT)
    axes.tick_params(labelsize=FONT)
    plain(axes, "both")


def styles(lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Blues for ours and other colours for others. A line called as another and more ("EASE, parameters alone")
    has the colour of that, and is dashed."""
    counts = {True: 0, False: 0}
    chosen: dict[str, dict[str, Any]] = {}
    for line in lines:
        parent = next((other for other in chosen if line.startswith(f"{other}, ")), None)
        if parent is not None:
            chosen[line] = {**chosen[parent], "linestyle": (0, (3, 1.5)), "marker": "s"}
            continue
        own = line.startswith("flexkern")
        palette = OURS if own else THEIRS
        chosen[line] = {"color": palette[counts[own] % len(palette)], "linestyle": "-", "marker": "o"}
        counts[own] += 1
    return chosen


def _scale(axes: Axes, which: str, values: Sequence[float], flat: bool) -> None:
    """From 0 where the claim is that nothing grows, else logarithmic; with ticks that can be read."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if flat:
        axis.set_major_locator(MaxNLocator(6))
        axes.set(**{f"{which}lim": (0, max(values) * (1.02 if which == "x" else 1.15))})
        return
    axes.set(**{f"{which}scale": "log"})
    low, high = min(v for v in values if v > 0), max(values)
    room = (high / low) ** 0.04 if high > low else 1.5
    axes.set(**{f"{which}lim": (low / room, high * (1.0 if which == "x" and high > low else room))})
    axis.set_major_locator(FixedLocator(log_ticks(*(axes.get_xlim() if which == "x" else axes.get_ylim()))))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    if which == "x":
        axis.set_major_formatter(lambda value, _: counted(value))


def counted(value: float) -> str:
    """50, and 2·10^5 as mathematics."""
    if value < 1e4:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    first = f"{value / 10**exponent:g}"
    return f"$10^{{{exponent}}}$" if first == "1" else rf"${first}\cdot 10^{{{exponent}}}$"


def _name_ends(axes: Axes, lines: dict[str, Any], looks: dict[str, dict[str, Any]]) -> None:
    """Each line's name, right of its end, none over another."""
    ends = {line: points[-1][2] for line, points in lines.items()}
    names = {line: textwrap.fill(line, 32) for line in lines}
    to_axes = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]
    row = FONT * 1.25 / 72 / HEIGHT  # of a line of text, as a share of the axes' height
    order = sorted(ends, key=lambda line: ends[line])
    heights = [float(to_axes.transform((x, ends[line]))[1]) for line in order]
    sizes = [row * (1.2 + names[line].count("\n")) for line in order]
    for line, height in zip(order, spread(heights, sizes, 0.0), strict=True):
        axes.annotate(
            names[line], (1, height), xycoords="axes fraction", xytext=(8, 0), textcoords="offset points",
            va="center", color=looks[line]["color"], fontsize=FONT, linespacing=1.15, annotation_clip=False,
        )  # fmt: skip


def spread(places: Sequence[float], sizes: Sequence[float], bottom: float = -math.inf) -> list[float]:
    """Places of labels in ascending order, pushed apart until none overlaps its neighbour.

    Args:
        places: where they want to be, ascending.
        sizes: how much room each takes, centred on its place.
        bottom: none reaches below it.
    """
    # Labels that touch move as one block, whose centre stays where its labels want it on average.
    blocks: list[list[int]] = []

    def layout(block: list[int]) -> list[float]:
        offsets, at = [], 0.0
        for i in block:
            offsets.append(at + sizes[i] / 2)
            at += sizes[i]
        shift = sum(places[i] - o for i, o in zip(block, offsets, strict=True)) / len(block)
        shift = max(shift, bottom)  # a block's offsets begin at its own lower edge
        return [shift + o for o in offsets]

    for i in range(len(places)):
        blocks.append([i])
        while len(blocks) > 1:
            before, last = layout(blocks[-2]), layout(blocks[-1])
            gap = (last[0] - sizes[blocks[-1][0]] / 2) - (before[-1] + sizes[blocks[-2][-1]] / 2)
            if gap >= 0:
                break
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [place for block in blocks for place in layout(block)]
