"""Bars of how many times as fast as each peer ours is, a panel a family of operators."""

from __future__ import annotations

import re
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flexkern.benchmarks.plot_bars import (
    HEAD,
    MARGIN,
    MET,
    NEUTRAL,
    NOT_MET,
    WIDTH,
    Bar,
    Panel,
    draw_bars,
    times,
    write_head,
)
from flexkern.runs.drawing import FONT, GREY

__all__ = ["draw_speedups", "goal_as_speedup", "panels", "title_of"]

OVERHEAD = "overhead"  # the family whose figure is a time, not a ratio
TOP, BOTTOM = HEAD + 0.75, 0.25
GOAL = re.compile(r"(speed-up at least|time at most|at most) (\S+?)( us)?$")


def draw_speedups(run: dict[str, Any], about: str) -> Figure | None:
    """The picture, or None if nothing was compared.

    Args:
        run: as :func:`flexkern.benchmarks.record.read` gives it.
        about: the line under the title.
    """
    shown = panels(run)
    if not shown:
        return None
    height = TOP + BOTTOM + sum(panel.height for panel in shown)
    figure = Figure(figsize=(WIDTH, height), dpi=100)
    top = TOP
    for panel in shown:
        draw_bars(figure, panel, MARGIN, top, WIDTH - 2 * MARGIN)
        top += panel.height
    write_head(figure, "How many times as fast as its peers", about)
    keys = [
        Patch(color=MET, label="goal met"),
        Patch(color=NOT_MET, label="goal not met"),
        Patch(color=NEUTRAL, label="no goal"),
        Line2D([], [], color="black", linewidth=1.8, marker="|", linestyle="", markersize=14, label="goal"),
        Line2D([], [], color="#222222", linewidth=1.0, label="quartiles of rounds"),
    ]
    if any(not panel.log for panel in shown):
        ring: dict[str, Any] = {"marker": "o", "markersize": 6, "markerfacecolor": "white", "linestyle": ""}
        keys.append(Line2D([], [], color=GREY, label="a call of torch itself", **ring))
    figure.legend(
        handles=keys, loc="upper left", ncols=3, fontsize=FONT, frameon=False, borderaxespad=0, borderpad=0,
        bbox_to_anchor=(MARGIN / WIDTH, 1 - HEAD / height), handletextpad=0.5, columnspacing=1.6,
    )  # fmt: skip
    return figure


def panels(run: dict[str, Any]) -> list[Panel]:
    """A panel a family, a group a case, a bar a peer; of calls' overhead, a bar a case."""
    found: dict[str, Panel] = {}
    for row in run["rows"]:
        if "ours" not in row:
            continue
        family = row["case"].split("/")[0]
        if family == OVERHEAD:
            panel = found.setdefault(family, Panel("overhead of a call", False, "microseconds"))
            panel.groups.append(("", [_overhead(row)]))
        else:
            label = "the peer's time / ours (log)"
            panel = found.setdefault(family, Panel(family, True, label))
            panel.groups.append((title_of(row), [_against(row, peer) for peer in row["peers"]]))
    return list(found.values())


def title_of(row: dict[str, Any]) -> str:
    """What is measured, and with which pages where that is not the rule."""
    small = row.get("pages") == "small" and row.get("device") == "cpu"
    return row["title"] + (", small pages" if small else "")


def goal_as_speedup(peer: dict[str, Any]) -> float | None:
    """The speed-up at which the peer's goal is just met; None where it has none, or one in seconds."""
    found = GOAL.match(peer["goal"] or "")
    if found is None or found[3]:
        return None
    return float(found[2]) if found[1].startswith("speed-up") else 1 / float(found[2])


def _colour(met: bool | None) -> str:
    return NEUTRAL if met is None else MET if met else NOT_MET


def _against(row: dict[str, Any], peer: dict[str, Any]) -> Bar:
    return Bar(
        peer["name"], peer["speedup"], peer["speedup_q1"], peer["speedup_q3"], times(peer["speedup"]),
        _colour(peer["met"]), goal_as_speedup(peer),
    )  # fmt: skip


def _overhead(row: dict[str, Any]) -> Bar:
    ours, peer = row["ours"], row["peers"][0]
    found = GOAL.match(peer["goal"] or "")
    goal = float(found[2]) if found is not None and found[3] else None
    microseconds = 1e3 * ours["median_ms"]
    return Bar(
        title_of(row).removeprefix("a call of "), microseconds, 1e3 * ours["q1_ms"], 1e3 * ours["q3_ms"],
        f"{microseconds:.1f}", _colour(peer["met"]), goal, 1e3 * peer["median_ms"],
    )  # fmt: skip
