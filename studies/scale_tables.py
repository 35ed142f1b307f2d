"""The scale study as a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from flexkern.runs.drawing import GREY, STYLES, curves, plain
from flexkern.runs.metaplasticity import pictures, tables
from flexkern.runs.metaplasticity.panels import CHANCE, line, name_panel, reach, sheet
from flexkern.runs.metaplasticity.tables import Rows, percent
from studies.scale_study import ScaleStudy

__all__ = ["figure", "register", "rows"]

# Beside those of the paper's networks.
MORE_STYLES: list[dict[str, Any]] = [
    {"color": "#B5588F", "linestyle": (0, (3, 1, 1, 1)), "marker": "D"},
    {"color": "#C98500", "linestyle": (0, (1.5, 1.2)), "marker": "v"},
    {"color": "#007F5F", "linestyle": (0, (7, 2)), "marker": "P"},
    {"color": "#222222", "linestyle": (0, (1, 2.5)), "marker": "X"},
]


def register() -> None:
    """Lets the tables and pictures of the runs know this study."""
    tables.ROWS[ScaleStudy.name] = rows
    pictures.FIGURES[ScaleStudy.name] = figure


def rows(summary: dict[str, Any]) -> Rows:
    """Column heads and cells: a line for each setting."""
    heads = ["setting", "best scale", "its accuracy", "'auto' chose", "its accuracy", "of the best"]
    return heads, [
        [
            name, f"{m['best_scale']:g}", f"{100 * m['best']:.1f}", f"{m['auto_scale']:g}",
            percent(m["auto"]), f"{m['auto']['mean'] / m['best']:.0%}",
        ]
        for name, m in summary["measures"].items()
    ]  # fmt: skip


def figure(results: dict[str, Any]) -> Figure:
    """Accuracy against the scale: a panel for each stream length, a line for each other setting."""
    summary = results["summary"]
    measures, one = summary["measures"], summary["one_scale"]
    lengths = list(dict.fromkeys(m["items"] for m in measures.values()))
    settings = list(dict.fromkeys(_setting(m) for m in measures.values()))
    looks = [STYLES["hybrid"], STYLES["conventional"], *MORE_STYLES]
    styles = {name: looks[k % len(looks)] for k, name in enumerate(settings)}
    auto = np.mean([m["auto"]["mean"] / m["best"] for m in measures.values()])
    drawing, panels = sheet(
        results, [1] * len(lengths),
        headline="Share of the best scale's accuracy, mean over settings: "
        f"'auto' {auto:.0%}, one scale for all ({one['scale']:g}) {one['mean_share_of_best']:.0%}.",
        drawn=("Lines and stars", "bands and error bars"), gap=0.16,
        seeds=next(iter(measures.values()))["curve"]["n"],
        legend=[
            *(line(name, styles[name]) for name in settings),
            line("'auto'", {"linestyle": "", "marker": "*", "markersize": 14, "color": GREY}),
            line("chance", CHANCE),
        ],
        command=ScaleStudy.command(), size=(max(12.8, 4.8 * len(lengths)), 3.5),
    )  # fmt: skip
    for panel, items in zip(panels, lengths, strict=True):
        of = {_setting(m): m for m in measures.values() if m["items"] == items}
        curves(panel, np.array(summary["scales"]), {name: m["curve"] for name, m in of.items()}, 1.0, styles)
        for name, m in of.items():
            color, y = styles[name]["color"], m["auto"]
            if y["n"] > 1:
                panel.errorbar(m["auto_scale"], y["mean"], yerr=reach(y, 0, 1), color=color, zorder=4)
            panel.plot(
                m["auto_scale"], y["mean"], "*", label=f"{name}, 'auto'", markersize=16, color=color, zorder=5,
                markeredgecolor="black", markeredgewidth=0.9, clip_on=False,
            )  # fmt: skip
        panel.set_xscale("log")
        panel.set_ylim(-0.035, 1.035)
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        plain(panel, "y")
        panel.axhline(1 / items, **CHANCE)
        y_label = "accuracy, mean over items" if panel is panels[0] else ""
        name_panel(panel, f"{items} items", "scale of the flexible update", y_label)
    return drawing


def _setting(measure: Mapping[str, Any]) -> str:
    return f"width {measure['width']}, lr {measure['lr']:g}"
