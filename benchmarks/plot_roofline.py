"""How near operators come to what the machine can do: to a copy's bytes per second, or to the roofline."""

from __future__ import annotations

import math
import string
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator, PercentFormatter
from matplotlib.transforms import Affine2D, Transform

from flexkern.benchmarks.plot_bars import (
    HEAD,
    MARGIN,
    MET,
    THEIRS,
    WIDTH,
    Bar,
    Panel,
    add_axes,
    draw_bars,
    write_head,
)
from flexkern.benchmarks.plot_growth import spread
from flexkern.benchmarks.plot_speedups import OVERHEAD, title_of
from flexkern.runs.drawing import FONT, GREY, PANEL_TITLE, log_ticks, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Dot", "dots", "draw_roofline", "shares"]

COLOURS = {"float32": "#0072B2", "bfloat16": "#007F5F", "tf32": "#CC79A7"}
ABOVE, ROOF, BELOW, BOTTOM = 0.55, 6.0, 1.05, 0.3  # the roofline's axes, and what is over and under them
LEFT, NAMES = 1.0, 2.7  # of them: their labels, and the names of roofs
LINE, WRAP = 0.27, 96  # height of a line of the key, and its characters


@dataclass(frozen=True)
class Dot:
    """One way to do a case's work: ``key`` "3" is ours, with its number in the picture, "3a" its first peer."""

    key: str
    name: str
    intensity: float  # operations per byte
    rate: float  # operations per second
    share: float | None  # of the roof over it
    dtype: str


def draw_roofline(run: dict[str, Any], about: str) -> Figure | None:
    """The picture, or None if no case says how many bytes or operations it has.

    Args:
        run: as :func:`flexkern.benchmarks.record.read` gives it.
        about: the line under the title.
    """
    panel, points, ceilings = shares(run), dots(run), ceilings_of(run)
    boxes = [panel.height if panel.groups else 0, ABOVE + ROOF + BELOW if points else 0]
    if not any(boxes):
        return None
    key = [(dot, _keyed(dot, points)) for dot in points if dot.key.isdigit()]
    height = HEAD + sum(boxes) + LINE * sum(len(lines) for _, lines in key) + BOTTOM
    figure = Figure(figsize=(WIDTH, height), dpi=100)
    if boxes[0]:
        axes = draw_bars(figure, panel, MARGIN, HEAD, WIDTH - 2 * MARGIN)
        axes.axvline(1, color="#333333", linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if boxes[1]:
        top, width = HEAD + boxes[0] + ABOVE, WIDTH - MARGIN - LEFT - NAMES
        _roofs(add_axes(figure, LEFT, top, width, ROOF), points, ceilings)
        _key(figure, key, top + ROOF + BELOW)
        about += " Filled: flexkern; rings: peers that do the same work."
    write_head(figure, "How much of the machine is used", about)
    return figure


def ceilings_of(run: dict[str, Any]) -> dict[str, Any]:
    """Those with huge pages, where both were measured."""
    return run["ceilings"].get("huge") or run["ceilings"]["small"]


def _same(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The peers whose result is ours: they have done the same work."""
    return [peer for peer in row["peers"] if peer["agreed"] == "yes"]


def shares(run: dict[str, Any]) -> Panel:
    """Cases without a product: bytes that must be moved per second, as a share of what a copy moves."""
    panel = Panel(
        "operators without a product: bytes per second", False,
        "of a copy's bytes per second (each operand once)",
    )  # fmt: skip
    for row in run["rows"]:
        work = row.get("work", {})
        if not work.get("bytes") or work["operations"] or row["case"].startswith(OVERHEAD):
            continue
        if "share_of_copy" not in work:
            continue
        copy = work["bytes_per_s"] / work["share_of_copy"]

        def bar(name: str, of: dict[str, Any], colour: str, work: Any = work, copy: float = copy) -> Bar:
            share, low, high = (
                work["bytes"] / (of[key] / 1e3) / copy for key in ("median_ms", "q3_ms", "q1_ms")
            )
            return Bar(name, share, low, high, f"{share:.0%}", colour)

        bars = [bar("flexkern", row["ours"], MET), *(bar(p["name"], p, THEIRS) for p in _same(row))]
        panel.groups.append((title_of(row), bars))
    return panel


def dots(run: dict[str, Any]) -> list[Dot]:
    """Cases with a product: ours, and the peers whose work is the same."""
    found: list[Dot] = []
    count = 0
    ceilings = ceilings_of(run)
    for row in run["rows"]:
        work = row.get("work", {})
        if not work.get("operations") or not work.get("bytes") or row.get("pages") == _other_pages(run):
            continue
        count += 1
        intensity = work["operations"] / work["bytes"]
        product = ceilings["product"].get(work["dtype"])
        roof = None if product is None else min(product, ceilings["copy"] * intensity)
        ways = [(str(count), title_of(row), row["ours"]["median_ms"])]
        ways += [
            (f"{count}{letter}", peer["name"], peer["median_ms"])
            for letter, peer in zip(string.ascii_lowercase, _same(row), strict=False)
        ]
        for key, name, milliseconds in ways:
            rate = work["operations"] / (milliseconds / 1e3)
            found.append(Dot(key, name, intensity, rate, None if roof is None else rate / roof, work["dtype"]))
    return found


def _other_pages(run: dict[str, Any]) -> str | None:
    """Rows with these are not drawn, because the roofs are those of the others."""
    return "small" if run["ceilings"].get("huge") and run["ceilings"].get("small") else None


def _roofs(axes: Axes, points: list[Dot], ceilings: dict[str, Any]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    copy, products = ceilings["copy"], ceilings["product"]
    x = [dot.intensity for dot in points]
    ridges = [rate / copy for rate in products.values()]
    low, high = min(*x, *ridges) / 4, max(*x, *ridges) * 3
    rates = [dot.rate for dot in points]
    axes.set_xlim(low, high)
    axes.set_ylim(min(*rates, copy * low) / 1.5, max(*rates, *products.values()) * 2)
    for dtype, rate in products.items():
        axes.plot([rate / copy, high], [rate, rate], color=COLOURS.get(dtype, GREY), linewidth=1.8, zorder=2)
    _name_roofs(axes, products)
    ridge = max(ridges)
    axes.plot([low, ridge], [copy * low, copy * ridge], color="#333333", linewidth=1.8, zorder=2)
    axes.annotate(
        f"copy: {copy / 1e9:,.1f} GB/s", (low, copy * low), xytext=(16, 2), textcoords="offset points",
        ha="left", va="top", fontsize=FONT, color="#333333",
    )  # fmt: skip
    for dot in points:
        ours = dot.key.isdigit()
        colour = COLOURS.get(dot.dtype, GREY)
        if ours:
            same = [other.rate for other in points if other.key.rstrip(string.ascii_lowercase) == dot.key]
            axes.vlines(dot.intensity, min(same), max(same), color=colour, linewidth=1.0, zorder=3)
        axes.plot(
            [dot.intensity], [dot.rate], "o", markersize=9 if ours else 7, color=colour,
            markerfacecolor=colour if ours else "white", zorder=5 if ours else 4, label=dot.key,
        )  # fmt: skip
    _number(axes, points, list(products.values()))
    axes.set_title("operators with a product: the roofline", **{**PANEL_TITLE, "fontsize": FONT + 3, "pad": 6})
    axes.set_xlabel("operations per byte (each operand counted once)", fontsize=FONT)
    axes.set_ylabel("operations per second", fontsize=FONT)
    for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_major_locator(FixedLocator(log_ticks(*ends)))
        axis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.tick_params(labelsize=FONT)
    plain(axes, "both")


def _name_roofs(axes: Axes, products: dict[str, float]) -> None:
    """Names right of the flat roofs, none over another."""
    to_axes = axes.transData + axes.transAxes.inverted()
    x, order = axes.get_xlim()[1], sorted(products, key=lambda dtype: products[dtype])
    heights = [float(to_axes.transform((x, products[dtype]))[1]) for dtype in order]
    row = 3.3 * FONT * 1.2 / 72 / ROOF  # of three lines of text, as a share of the axes' height
    for dtype, height in zip(order, spread(heights, [row] * len(order)), strict=True):
        axes.annotate(
            f"library's product,\n{dtype}:\n{products[dtype] / 1e9:,.0f} GFLOP/s", (1, height),
            xycoords="axes fraction", xytext=(8, 0), textcoords="offset points", va="center", fontsize=FONT,
            color=COLOURS.get(dtype, GREY), linespacing=1.15, annotation_clip=False,
        )  # fmt: skip


def _number(axes: Axes, points: list[Dot], roofs: Sequence[float]) -> None:
    """Numbers of ours beside their dots, as near as nothing else is, with thin lines where that is not near."""
    scale = axes.figure.dpi / 72  # pixels of a point
    at = {dot.key: np.asarray(axes.transData.transform((dot.intensity, dot.rate))) / scale for dot in points}
    taken = [_Box(float(place[0]), float(place[1]), 5, 5) for place in at.values()]
    left, right = (axes.transAxes.transform((x, 0))[0] / scale for x in (0, 1))
    taken += [
        _Box((left + right) / 2, axes.transData.transform((1, roof))[1] / scale, (right - left) / 2, 1)
        for roof in roofs
    ]
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for key in (key for key in at if key.isdigit()):
        x, y = at[key]
        half = (0.34 * FONT * len(key) + 1, 0.5 * FONT)
        turns = [0, 1, -1, 8, 7, -7, 4, -4, 2, -2, 3, -3, 6, -6, 5, -5]  # to the right first; of sixteen
        box = next(
            (
                found
                for away in range(int(half[0]) + 7, 200, 6)
                for turn in turns
                if not any(
                    _overlap(
                        found := _Box(
                            x + away * math.cos(turn * math.pi / 8),
                            y + away * math.sin(turn * math.pi / 8),
                            *half,
                        ),
                        other,
                    )
                    for other in taken
                )
            ),
            _Box(x + 200, y, *half),
        )
        taken.append(box)
        line = {"arrowstyle": "-", "color": "#8A8A8A", "lw": 0.8, "shrinkA": 0, "shrinkB": 5}
        axes.annotate(
            key, (x, y), xycoords=_points(axes), xytext=(box.x, box.y), textcoords=_points(axes), ha="center",
            va="center", fontsize=FONT, zorder=6, bbox=ground,
            arrowprops=line if math.dist((x, y), (box.x, box.y)) > half[0] + 14 else None,
        )  # fmt: skip


class _Box(NamedTuple):
    """The middle of a box, and half of its width and height, in points."""

    x: float
    y: float
    width: float
    height: float


def _overlap(one: _Box, other: _Box) -> bool:
    apart_x = abs(one.x - other.x) >= one.width + other.width
    return not (apart_x or abs(one.y - other.y) >= one.height + other.height)


def _points(axes: Axes) -> Transform:
    """Places in points, from the figure's lower left corner."""
    return Affine2D().scale(axes.figure.dpi / 72)


def _keyed(ours: Dot, points: list[Dot]) -> list[str]:
    """What a number stands for, in lines of the key."""
    peers = [p for p in points if p.key != ours.key and p.key.rstrip(string.ascii_lowercase) == ours.key]
    text = ours.name
    if ours.share is not None:
        text += f": {_said(ours.share)} of its roof"
        if peers:
            text += f"; peers {', '.join(_said(p.share or 0.0) for p in peers)}"
    return textwrap.wrap(text, WRAP)


def _said(share: float) -> str:
    return f"{share:.{0 if share >= 0.1 else 1}%}"


def _key(figure: Figure, key: list[tuple[Dot, list[str]]], top: float) -> None:
    width, height = np.asarray(figure.get_size_inches())
    left, line = MARGIN + 0.45, 0
    for dot, lines in key:
        y = 1 - (top + LINE * line) / height
        colour = COLOURS.get(dot.dtype, GREY)
        figure.text(
            (left - 0.12) / width,
            y,
            dot.key,
            fontsize=FONT,
            ha="right",
            va="baseline",
            weight="bold",
            color=colour,
        )
        for number, text in enumerate(lines):
            figure.text(left / width, y - LINE * number / height, text, fontsize=FONT, va="baseline")
        line += len(lines)
