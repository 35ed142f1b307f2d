"""What the pictures of the metaplasticity paper's experiments are put together from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from flexkern.runs.drawing import GREY, LABELS, PANEL_TITLE, STYLES, curves, frame, plain
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
_ERRORS: dict[str, Any] = {"ecolor": "#222222", "elinewidth": 1.2, "capsize": 2, "fmt": "none"}


def sheet(
    results: dict[str, Any],
    ratios: Sequence[float],
    *,
    headline: str,
    drawn: tuple[str, str],
    seeds: int,
    legend: Sequence[Artist] = (),
    size: tuple[float, float] = (12.8, 5.9),
    margins: tuple[float, float] = (0.85, 0.3),
    gap: float = 0.2,
    command: str | None = None,
) -> tuple[Figure, list[Axes]]:
    """An empty picture: title, what was found, names of the lines, panels side by side, and the small print.

    Args:
        results: of :func:`flexkern.runs.metaplasticity.runner.run`.
        ratios: relative widths of the panels, one each.
        headline: a sentence under the title.
        drawn: for the small print, what shows means ("Lines") and what shows their spread ("bands").
        seeds: how many the means are over.
        legend: handles, named in a row over the panels.
        size: in inches.
        margins: left and right of the panels, in inches.
        gap: between panels, relative to their mean width.
        command: what makes the picture, for the small print. Default: ``flexkern run EXPERIMENT``.
    """
    width, height = size
    figure = Figure(figsize=size, dpi=150)
    panels = figure.subplots(1, len(ratios), width_ratios=list(ratios), squeeze=False)[0]
    top = 1.7 if legend else 1.35
    figure.subplots_adjust(
        left=margins[0] / width, right=1 - margins[1] / width, bottom=1.0 / height, top=1 - top / height,
        wspace=gap,
    )  # fmt: skip
    x = 0.25 / width
    figure.text(x, 1 - 0.42 / height, results["title"], fontsize=17, weight="bold")
    figure.text(x, 1 - 0.78 / height, headline, fontsize=12)
    if legend:
        figure.legend(
            handles=list(legend), loc="upper left", bbox_to_anchor=(x, 1 - 0.9 / height), ncols=len(legend),
            frameon=False, fontsize=10.5, borderaxespad=0, borderpad=0.2, handlelength=2.8, columnspacing=2,
        )  # fmt: skip
    said = source(results)
    means = f"mean of {seeds} seeds; {drawn[1]}: standard deviation" if seeds > 1 else "one seed"
    figure.text(
        x, 0.13 / height,
        f"{drawn[0]}: {means}. {said[0].upper()}{said[1:]}.\n"
        "Method: Cho, Lee, Baek and Paik, arXiv 2407.07133. "
        f"Made by `{command or 'flexkern run ' + results['experiment']}`.",
        fontsize=8.5, color=GREY, linespacing=1.4,
    )  # fmt: skip
    return figure, list(panels)


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
    axes.set_title(title, **PANEL_TITLE)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


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
                va=place, fontsize=8, color=GREY, annotation_clip=False,
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
            textcoords="offset points", va="center", fontsize=9, color=GREY, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(rows, list(values))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.set_xlim(0, upper)
    plain(axes, "x")
