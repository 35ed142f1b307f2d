"""Bars in rows with names, in panels in two columns; sizes are in inches, so that no text meets another."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from flexkern.runs.drawing import GREY, PANEL_TITLE, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "MET",
    "NEUTRAL",
    "NOT_MET",
    "THEIRS",
    "Bar",
    "Panel",
    "add_axes",
    "columns",
    "draw_bars",
    "times",
    "write_head",
]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
MET, NOT_MET, NEUTRAL, THEIRS = "#0072B2", "#D55E00", "#7FB2D9", "#B8B8B8"
ROW = 0.19  # of a bar, or a heading
NAMES = 3.45  # width that names have, left of the axes
ABOVE, BELOW, FONT = 0.42, 0.5, 7.5


@dataclass(frozen=True)
class Bar:
    """A figure with its quartiles.

    Attributes:
        goal: the value that it is to reach, a stroke across the bar.
        mark: another value on the same row, a ring.
        text: what is written behind it.
    """

    name: str
    value: float
    low: float
    high: float
    text: str
    colour: str = NEUTRAL
    goal: float | None = None
    mark: float | None = None


@dataclass
class Panel:
    """Groups of bars, each under a heading ("": none), along one axis.

    Attributes:
        log: bars begin at 1 on a logarithmic axis, else at 0 on a linear one.
    """

    title: str
    log: bool
    label: str
    groups: list[tuple[str, list[Bar]]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(len(bars) + bool(heading) for heading, bars in self.groups)

    @property
    def height(self) -> float:
        """With its title, its ticks and its label."""
        return ABOVE + BELOW + ROW * (self.rows + 1)


def times(value: float) -> str:
    """2.35x, 0.87x, 24x."""
    return f"{value:.0f}×" if value >= 10 else f"{value:.2f}×"  # noqa: RUF001 - a multiplication sign


def columns(panels: Sequence[Panel]) -> tuple[Sequence[Panel], Sequence[Panel]]:
    """The panels in two columns, in their order, as equally high as that allows."""

    def tallest(split: int) -> float:
        return max(sum(p.height for p in panels[:split]), sum(p.height for p in panels[split:]))

    best = min(range(1, len(panels) + 1), key=tallest)
    return panels[:best], panels[best:]


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, from the left and from the top of the figure."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def write_head(figure: Figure, title: str, about: str) -> None:
    """A title, and one or two lines under it; it takes 0.8 inches."""
    width, height = figure.get_size_inches()
    figure.text(0.3 / width, 1 - 0.36 / height, title, fontsize=16, weight="bold")
    lines = textwrap.fill(about, int(13.5 * (width - 0.6)))  # characters of 9 points in an inch
    figure.text(0.3 / width, 1 - 0.47 / height, lines, fontsize=9, color=GREY, va="top", linespacing=1.15)


def draw_bars(figure: Figure, panel: Panel, left: float, top: float, width: float) -> Axes:
    """Draws a panel into a box that begins at ``left`` and ``top`` and has its own height."""
    axes = add_axes(figure, left + NAMES, top + ABOVE, width - NAMES, ROW * (panel.rows + 1))
    start = 1.0 if panel.log else 0.0
    if panel.log:
        axes.set_xscale("log")
    row = 0
    for heading, bars in panel.groups:
        if heading:
            _name(axes, row, heading, -72 * NAMES + 4, "left", weight="bold")
            row += 1
        for bar in bars:
            _draw(axes, row, bar, start)
            row += 1
    axes.set_ylim(panel.rows, -1)
    axes.set_yticks([])
    axes.axvline(start, color="#333333", linewidth=0.9, zorder=3)
    _scale(axes, panel, width - NAMES)
    axes.set_title(panel.title, **{**PANEL_TITLE, "pad": 5, "x": -NAMES / (width - NAMES)})
    axes.set_xlabel(panel.label, fontsize=FONT + 0.5, color=GREY)
    axes.tick_params(labelsize=FONT + 0.5)
    plain(axes, "x")
    axes.spines["left"].set_visible(False)
    return axes


def _draw(axes: Axes, row: int, bar: Bar, start: float) -> None:
    axes.barh(row, bar.value - start, left=start, height=0.66, color=bar.colour, zorder=2)
    axes.plot([bar.low, bar.high], [row, row], color="#222222", linewidth=1.0, zorder=4)
    reach = [start, bar.value, bar.high]
    if bar.goal is not None:
        axes.plot([bar.goal, bar.goal], [row - 0.46, row + 0.46], color="black", linewidth=1.8, zorder=5)
        reach.append(bar.goal)
    if bar.mark is not None:
        axes.plot([bar.mark], [row], "o", markersize=4, markerfacecolor="white", color=GREY, zorder=5)
        reach.append(bar.mark)
    axes.annotate(
        bar.text, (max(reach), row), xytext=(4, 0), textcoords="offset points", va="center_baseline",
        fontsize=FONT, zorder=6, annotation_clip=False,
    )  # fmt: skip
    _name(axes, row, bar.name, -5, "right")


def _name(axes: Axes, row: int, text: str, offset: float, side: str, **look: Any) -> None:
    axes.annotate(
        text, (0, row), xycoords=("axes fraction", "data"), xytext=(offset, 0), textcoords="offset points",
        ha=side, va="center_baseline", fontsize=FONT, annotation_clip=False, **look,
    )  # fmt: skip


def _scale(axes: Axes, panel: Panel, width: float) -> None:
    """Limits that leave room for the text behind the longest bar, and ticks that can be read."""
    bars = [bar for _, group in panel.groups for bar in group]
    ends = [v for b in bars for v in (b.value, b.low, b.high, b.goal, b.mark) if v is not None]
    room = 0.55 / width  # share of the axes
    if not panel.log:
        axes.set_xlim(0, max(ends) / (1 - room))
        return
    low, high = min(0.8, *ends) / 1.06, max(1.25, *ends)
    axes.set_xlim(low, low * (high / low) ** (1 / (1 - room)))
    wide = high / low > 60
    axes.xaxis.set_major_locator(LogLocator(10, (1, 3) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))  # noqa: RUF001
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
