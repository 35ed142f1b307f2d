"""What the pictures of the metaplasticity paper's experiments are put together from."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from flexkern.runs.drawing import FONT, GREY, LABELS, PANEL_TITLE, STYLES, curves, frame, plain
from flexkern.runs.metaplasticity.tables import source

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = [
    "CHANCE", "Value", "bars", "by_item", "grouped_bars", "line", "listed", "name_panel", "networks", "reach",
    "sheet",
]  # fmt: skip

Value = Mapping[str, Any]  # of `describe`: mean, std, n
HATCHES = {"conventional": "///", "hybrid": "", "stable": "..."}  # for print without colour
CHANCE: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": ":", "zorder": 1.5}
_TITLE = FONT + 7
_LINE, _TITLE_LINE, _LEGEND_LINE = 0.27, 0.4, 0.3  # heights of lines of text, in inches
_LETTER, _BOLD_LETTER = 0.117, 0.205  # widths of letters of FONT and of the title, on average or more
_HANDLE = 0.85  # of a legend's entry, beside its name
_ERRORS: dict[str, Any] = {"ecolor": "#222222", "elinewidth": 1.2, "capsize": 2, "fmt": "none"}


def sheet(
    results: dict[str, Any],
    ratios: Sequence[float],
    *,
    headline: str,
    drawn: tuple[str, str],
    seeds: int,
    legend: Sequence[Artist] = (),
    size: tuple[float, float] = (12.8, 3.5),
    margins: tuple[float, float] = (1.05, 0.3),
    gap: float = 0.2,
    rows: int = 1,
    command: str | None = None,
) -> tuple[Figure, list[Axes]]:
    """An empty picture: title, what was found, names of the lines, panels side by side, and the small print.

    Args:
        results: of :func:`flexkern.runs.metaplasticity.runner.run`.
        ratios: relative widths of the panels, one each.
        headline: a sentence under the title.
        drawn: for the small print, what shows means ("Lines") and what shows their spread ("bands").
        seeds: how many the means are over.
        legend: handles, named in rows over the panels.
        size: width of the picture, and height of the panels, in inches.
        margins: left and right of the panels, in inches.
        gap: between panels, relative to their mean width.
        rows: of such panels, below each other; returned row by row.
        command: what makes the picture, for the small print. Default: ``flexkern run EXPERIMENT``.
    """
    said = source(results)
    means = f"mean of {seeds} seeds; {drawn[1]}: standard deviation" if seeds > 1 else "one seed"
    small = (
        f"{drawn[0]}: {means}. {said[0].upper()}{said[1:]}. Method: Cho, Lee, Baek and Paik, arXiv 2407.07133. "
        f"Made by `{command or 'flexkern run ' + results['experiment']}`."
    )
    width = size[0]
    room = width - 0.5
    title, headline, small = (
        textwrap.fill(text, int(room / letter), break_on_hyphens=False)
        for text, letter in ((results["title"], _BOLD_LETTER), (headline, _LETTER), (small, _LETTER))
    )
    across = _across([str(one.get_label()) for one in legend], room)
    # From the top down; a panel's title may have two lines.
    heights = (
        0.2,
        _TITLE_LINE * (title.count("\n") + 1),
        _LINE * (headline.count("\n") + 1) + 0.1,
        _LEGEND_LINE * -(-len(legend) // across) if legend else 0,
    )
    top, bottom = sum(heights) + 0.7, _LINE * (small.count("\n") + 1) + 1.0
    height = top + size[1] + bottom
    figure = Figure(figsize=(width, height), dpi=150)
    panels = figure.subplots(rows, len(ratios), width_ratios=list(ratios), squeeze=False).ravel()
    figure.subplots_adjust(
        left=margins[0] / width, right=1 - margins[1] / width, bottom=bottom / height, top=1 - top / height,
        wspace=gap, hspace=0.62,
    )  # fmt: skip
    for panel in panels:
        panel.tick_params(labelsize=FONT)
    x = 0.25 / width

    def place(above: int) -> float:
        return 1 - sum(heights[: above + 1]) / height

    figure.text(x, place(0), title, fontsize=_TITLE, weight="bold", va="top", linespacing=1.1)
    figure.text(x, place(1), headline, fontsize=FONT, va="top")
    if legend:
        figure.legend(
            handles=list(legend), loc="upper left", bbox_to_anchor=(x, place(2)), ncols=across,
            frameon=False, fontsize=FONT, borderaxespad=0, borderpad=0, handlelength=2.4, columnspacing=1.5,
            handletextpad=0.5, labelspacing=0.3,
        )  # fmt: skip
    figure.text(x, 0.15 / height, small, fontsize=FONT, color=GREY, linespacing=1.2)
    return figure, list(panels)


def _across(labels: Sequence[str], room: float) -> int:
    """How many entries of a legend go beside each other: columns are as wide as their widest."""
    for across in range(len(labels), 1, -1):
        widths = [
            max(map(len, column)) for column in np.array_split(np.array(labels), across)
        ]  # as matplotlib does
        if sum(_LETTER * width + _HANDLE for width in widths) <= room:
            return across
    return 1


def line(label: str, style: Mapping[str, Any]) -> Line2D:
    """A handle for a legend."""
    return Line2D([], [], **{"label": label, "linewidth": 2.2, "markersize": 6, **style})


def networks(names: Iterable[str]) -> list[Line2D]:
    """Handles for the paper's networks, which say what they are, and for chance."""
    return [
        *(line(LABELS[name].replace("\n", ": "), STYLES[name]) for name in names), line("chance", CHANCE)
    ]  # fmt: skip


def listed(values: Mapping[str, Value]) -> str:
    """ "hybrid 51%, conventional 34%": names and means, the largest first."""
    ranking = sorted(values, key=lambda name: -values[name]["mean"])
    return ", ".join(f"{name} {values[name]['mean']:.0%}" for name in ranking)


def name_panel(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Title and labels of axes."""
    width = axes.bbox.width / axes.figure.dpi  # inches
    lines = textwrap.fill(title, max(int((width + 0.3) / _LETTER), 12), break_on_hyphens=False)
    axes.set_title(lines, **{**PANEL_TITLE, "fontsize": FONT, "pad": 8})
    axes.set_xlabel(x, fontsize=FONT)
    axes.set_ylabel(y, fontsize=FONT)


def by_item(
    axes: Axes,
    values: Mapping[str, Value],
    upper: float = 1.0,
    styles: Mapping[str, Mapping[str, Any]] = STYLES,
    **look: Any,
) -> None:
    """A line for each name over 1, 2, ...: shares in percent, or counts where ``upper`` is not 1."""
    count = len(next(iter(values.values()))["mean"])
    size = {} if count <= 15 else {"markersize": 3.5}
    curves(axes, np.arange(1, count + 1), values, upper, styles, **{**size, **look})
    frame(axes, count, upper)
    if upper == 1:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def reach(value: Value, low: float, high: float) -> list[list[float]]:
    """How far an error bar goes down and up: one standard deviation, cut where no value can be.

    Returns:
        What matplotlib's ``yerr`` takes for one point.
    """
    mean, std = value["mean"], value["std"]
    return [[max(0.0, min(std, mean - low))], [max(0.0, min(std, high - mean))]]


def grouped_bars(
    axes: Axes, values: Mapping[str, Mapping[str, Value]], form: str, low: float, high: float
) -> None:
    """For each group (first key) a bar for each network, with error bars and numbers.

    Args:
        axes: to draw on.
        values: by group and network.
        form: of the numbers, such as ``"{:.0%}"``.
        low, high: the least and the largest value there can be.
    """
    for at, of in enumerate(values.values()):
        width = 0.8 / len(of)
        for k, (name, value) in enumerate(of.items()):
            x, mean = at + (k - (len(of) - 1) / 2) * width, value["mean"]
            axes.bar(
                x, mean, 0.9 * width, color=STYLES[name]["color"], hatch=HATCHES[name], edgecolor="white",
                linewidth=0, label=name,
            )  # fmt: skip
            (down,), (up,) = reach(value, low, high)
            if value["n"] > 1:
                axes.errorbar(x, mean, yerr=[[down], [up]], **_ERRORS)
            end, side, place = (mean + up, 1, "bottom") if mean >= 0 else (mean - down, -1, "top")
            axes.annotate(
                form.format(mean), (x, end), xytext=(0, 3 * side), textcoords="offset points", ha="center",
                va=place, fontsize=FONT, color=GREY, annotation_clip=False,
            )  # fmt: skip
    axes.set_xticks(range(len(values)), list(values))
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.55, len(values) - 0.45)
    axes.set_ylim(low, high + 0.035 * (high - low))
    plain(axes, "y")


def bars(axes: Axes, values: Mapping[str, Value], colors: Sequence[str], form: str, upper: float) -> None:
    """A horizontal bar for each name, the first on top, with error bars and, at the right, the numbers.

    Args:
        axes: to draw on.
        values: by name.
        colors: of the bars.
        form: of the numbers, such as ``"{:.0%}"``.
        upper: the largest value there can be; the least is 0.
    """
    rows = range(len(values) - 1, -1, -1)
    for row, (name, value), color in zip(rows, values.items(), colors, strict=True):
        axes.barh(row, value["mean"], 0.68, color=color, label=name)
        if value["n"] > 1:
            axes.errorbar(value["mean"], row, xerr=reach(value, 0, upper), **_ERRORS)
        axes.annotate(
            form.format(value["mean"]), (1, row), xycoords=axes.get_yaxis_transform(), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=FONT, color=GREY, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(rows, list(values))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.set_xlim(0, upper)
    plain(axes, "x")
