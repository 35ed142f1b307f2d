"""Bars in rows with names, in panels below each other; sizes are in inches, so that no text meets another."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from flexkern.runs.drawing import FONT, GREY, PANEL_TITLE, log_ticks, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "HEAD",
    "MARGIN",
    "MET",
    "NEUTRAL",
    "NOT_MET",
    "THEIRS",
    "WIDTH",
    "Bar",
    "Panel",
    "add_axes",
    "draw_bars",
    "times",
    "write_head",
]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
MET, NOT_MET, NEUTRAL, THEIRS = "#0072B2", "#D55E00", "#7FB2D9", "#B8B8B8"
WIDTH, MARGIN = 12.4, 0.3  # of a picture, and of what is free at its sides
HEAD = 1.2  # of a title and two lines under it
ROW = 0.27  # of a bar, or a line of a heading
NAMES = 5.7  # width that names have, left of the axes
ABOVE, BELOW = 0.55, 0.75
_NAME, _HEADING = 50, 92  # characters of a line


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
        """Lines of text, headings among them."""
        return sum(
            len(_wrapped(heading, _HEADING)) + sum(len(_wrapped(bar.name, _NAME)) for bar in bars)
            for heading, bars in self.groups
        )

    @property
    def height(self) -> float:
        """With its title, its ticks and its label."""
        return ABOVE + BELOW + ROW * (self.rows + 1)


def times(value: float) -> str:
    """2.35x, 0.87x, 24x."""
    return f"{value:.0f}×" if value >= 10 else f"{value:.2f}×"  # noqa: RUF001 - a multiplication sign


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, from the left and from the top of the figure."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def write_head(figure: Figure, title: str, about: str) -> None:
    """A title, and one or two lines under it; it takes ``HEAD`` inches."""
    width, height = figure.get_size_inches()
    figure.text(MARGIN / width, 1 - 0.42 / height, title, fontsize=FONT + 7, weight="bold")
    lines = textwrap.fill(about, int(8.8 * (width - 2 * MARGIN)))  # characters of 14 points in an inch
    figure.text(MARGIN / width, 1 - 0.55 / height, lines, fontsize=FONT, color=GREY, va="top", linespacing=1.15)


def draw_bars(figure: Figure, panel: Panel, left: float, top: float, width: float) -> Axes:
    """Draws a panel into a box that begins at ``left`` and ``top`` and has its own height."""
    axes = add_axes(figure, left + NAMES, top + ABOVE, width - NAMES, ROW * (panel.rows + 1))
    start = 1.0 if panel.log else 0.0
    if panel.log:
        axes.set_xscale("log")
    row = 0
    for heading, bars in panel.groups:
        for line in _wrapped(heading, _HEADING):
            # On a ground of its own: it is longer than the names' room, and lines of the axes end at it.
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            _name(axes, row, line, -72 * NAMES + 4, "left", weight="bold", bbox=ground, zorder=7)
            row += 1
        for bar in bars:
            lines = _wrapped(bar.name, _NAME)
            _draw(axes, row + (len(lines) - 1) / 2, bar, "\n".join(lines), start)
            row += len(lines)
    axes.set_ylim(panel.rows, -1)
    axes.set_yticks([])
    axes.axvline(start, color="#333333", linewidth=0.9, zorder=3)
    _scale(axes, panel, width - NAMES)
    axes.set_title(
        panel.title, **{**PANEL_TITLE, "fontsize": FONT + 3, "pad": 6, "x": -NAMES / (width - NAMES)}
    )
    axes.set_xlabel(panel.label, fontsize=FONT, color=GREY)
    axes.tick_params(labelsize=FONT)
    plain(axes, "x")
    axes.spines["left"].set_visible(False)
    return axes


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width)


def _draw(axes: Axes, row: float, bar: Bar, name: str, start: float) -> None:
    axes.barh(row, bar.value - start, left=start, height=0.66, color=bar.colour, zorder=2)
    axes.plot([bar.low, bar.high], [row, row], color="#222222", linewidth=1.0, zorder=4)
    reach = [start, bar.value, bar.high]
    if bar.goal is not None:
        axes.plot([bar.goal, bar.goal], [row - 0.46, row + 0.46], color="black", linewidth=1.8, zorder=5)
        reach.append(bar.goal)
    if bar.mark is not None:
        axes.plot([bar.mark], [row], "o", markersize=6, markerfacecolor="white", color=GREY, zorder=5)
        reach.append(bar.mark)
    axes.annotate(
        bar.text, (max(reach), row), xytext=(4, 0), textcoords="offset points", va="center_baseline",
        fontsize=FONT, zorder=6, annotation_clip=False,
    )  # fmt: skip
    _name(axes, row, name, -5, "right")


def _name(axes: Axes, row: float, text: str, offset: float, side: str, **look: Any) -> None:
    axes.annotate(
        text, (0, row), xycoords=("axes fraction", "data"), xytext=(offset, 0), textcoords="offset points",
        ha=side, va="center_baseline", fontsize=FONT, annotation_clip=False, linespacing=1.15, **look,
    )  # fmt: skip


def _scale(axes: Axes, panel: Panel, width: float) -> None:
    """Limits that leave room for the text behind the longest bar, and ticks that can be read."""
    bars = [bar for _, group in panel.groups for bar in group]
    ends = [v for b in bars for v in (b.value, b.low, b.high, b.goal, b.mark) if v is not None]
    room = 0.95 / width  # share of the axes
    if not panel.log:
        axes.set_xlim(0, max(ends) / (1 - room))
        return
    low, high = min(0.8, *ends) / 1.06, max(1.25, *ends)
    axes.set_xlim(low, low * (high / low) ** (1 / (1 - room)))
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_xlim())))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))  # noqa: RUF001
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
