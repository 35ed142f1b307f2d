"""Pictures of the metaplasticity paper's experiments, one for each."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from flexkern.files import save_figure
from flexkern.runs.drawing import FONT, GREY, STYLES, name_ends, whole_ticks
from flexkern.runs.metaplasticity.panels import (
    CHANCE,
    Value,
    bars,
    by_item,
    grouped_bars,
    line,
    listed,
    name_panel,
    networks,
    sheet,
)
from flexkern.runs.metaplasticity.poisoning import CLEAN, DERANGED

__all__ = ["FIGURES", "draw", "figure"]

ORDER, ACCURACY = "item, in the order of learning", "accuracy on its test images"
# From light to dark, so that later passes are darker with and without colour.
PASS_STYLES: list[dict[str, Any]] = [
    {"color": color, "linestyle": "-", "marker": marker}
    for color, marker in zip(("#56A3CF", "#2E7FB5", "#12609A", "#0A3D66", "#000000"), "vs^oD", strict=True)
]
WORST: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.4, "markerfacecolor": "white"}
END: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": (0, (6, 3)), "zorder": 1.5}

Measures = Mapping[str, Mapping[str, Any]]


def draw(results: dict[str, Any], path: Path) -> None:
    """The picture of an experiment, as a PNG.

    Args:
        results: of :func:`flexkern.runs.metaplasticity.runner.run`, finished.
        path: of the PNG; its folder exists.

    Raises:
        ValueError: if the experiment is none of those that have a picture.
    """
    save_figure(figure(results), path, facecolor="white")


def figure(results: dict[str, Any]) -> Figure:
    """What :func:`draw` saves.

    Raises:
        ValueError: as :func:`draw`.
    """
    name = results["experiment"]
    if name not in FIGURES:
        raise ValueError(f"results: there is no picture of {name!r}, only of {', '.join(FIGURES)}")
    return FIGURES[name](results)


def _of(measures: Measures, key: str) -> dict[str, Any]:
    """One measure, by network."""
    return {name: m[key] for name, m in measures.items()}


def _last(measures: Measures, key: str) -> dict[str, Value]:
    """The last entry of one measure, by network."""
    ends = _of(measures, key).items()
    return {name: {"mean": v["mean"][-1], "std": v["std"][-1], "n": v["n"]} for name, v in ends}


def _seeds(measures: Measures, key: str) -> int:
    return next(iter(measures.values()))[key]["n"]


def _length(measures: Measures, key: str) -> int:
    return len(next(iter(measures.values()))[key]["mean"])


# --------------------------------------------------------------------------- Fig. 2 and 3


def _serial_position(results: dict[str, Any]) -> Figure:
    measures, longer = results["summary"]["measures"], results["summary"].get("longer")
    streams = [measures] if longer is None else [measures, longer]
    lengths = [_length(of, "final") for of in streams]
    memorised = _of(measures, "memorised")
    legend = networks(measures)
    # As released the longer stream is that of new networks, and else goes on where the first one ended.
    new = bool(results["configuration"].get("as_released"))
    if longer is not None and new:
        memorised = _of(longer, "memorised")
    elif longer is not None:
        legend.append(line("end of the stream that was expected", END))
        # Counted during the presentations of this part alone, which follow those of the first.
        memorised = {
            name: {key: value[key] + longer[name]["memorised"][key] for key in ("mean", "std")}
            for name, value in memorised.items()
        }
    found = "; ".join(
        f"after item {n}: {listed(_last(of, 'average_memory'))}" for n, of in zip(lengths, streams, strict=True)
    )
    drawing, panels = sheet(
        results, [1] * (len(streams) + 1), headline=f"Accuracy on average {found}.", drawn=("Lines", "bands"),
        seeds=_seeds(measures, "final"), legend=legend, size=(12.8 if longer is None else 15.0, 3.5), gap=0.26,
    )  # fmt: skip
    for panel, n, of in zip(panels, lengths, streams, strict=False):
        by_item(panel, _of(of, "final"))
        panel.axhline(1 / n, **CHANCE)
        title = "Each item" if of is measures else "New networks" if new else "The same networks"
        name_panel(panel, f"{title} after the last of {n}", ORDER, ACCURACY if of is measures else "")
    for panel in panels[1:] if longer is not None and not new else ():
        panel.axvline(lengths[0] + 0.5, **END)
    panel, n = panels[-1], lengths[-1]
    panel.plot([1, n], [1, n], **CHANCE)
    by_item(panel, memorised, upper=n)
    panel.annotate(
        "all remembered", (0.6 * n, 0.6 * n), xytext=(-6, 2), textcoords="offset points", ha="right",
        va="bottom",
        fontsize=FONT, color=GREY,
    )  # fmt: skip
    name_panel(panel, "Items in memory on the way", "items learned so far", "memorised items (p < 0.05)")
    return drawing


# --------------------------------------------------------------------------- Fig. 4


def _hebb_repetition(results: dict[str, Any]) -> Figure:
    measures = results["summary"]["measures"]
    mean, worst, of_items = (_of(measures, key) for key in ("mean", "minimum", "items"))
    passes = _length(measures, "mean")
    gains = ", ".join(f"{name} {v['mean'][0]:.0%} and {v['mean'][-1]:.0%}" for name, v in mean.items())
    kinds = [
        line("all items", {"color": GREY, "marker": "o"}),
        line("worst item", {"color": GREY, "marker": "o"} | WORST),
    ]
    drawing, (left, right) = sheet(
        results, (1, 1), headline=f"Accuracy on average after the first pass and after pass {passes}: {gains}.",
        drawn=("Lines", "bands, only of means over all items"), seeds=_seeds(measures, "mean"),
        legend=[*networks(measures), *kinds], margins=(1.05, 1.0),
    )  # fmt: skip
    by_item(left, worst, styles={name: STYLES[name] | WORST for name in measures}, bands=False)
    by_item(left, mean, styles={name: STYLES[name] | {"linestyle": "-"} for name in measures})
    name_panel(left, "All items, and the one that is remembered worst", "passes", "accuracy")

    hybrid = of_items["hybrid"]
    numbers = sorted({k for k in (1, 3, 6, 9) if k <= passes} | {passes})
    shown = {f"pass {k}": {key: hybrid[key][k - 1] for key in ("mean", "std")} for k in numbers}
    looks = [PASS_STYLES[round(k)] for k in np.linspace(0, len(PASS_STYLES) - 1, len(numbers))]
    styles = dict(zip(shown, looks, strict=True))
    by_item(right, shown, styles=styles, bands=False)
    items = len(hybrid["mean"][0])
    ends = {name: value["mean"][-1] for name, value in shown.items()}
    name_ends(right, items + 0.4, ends, 0.09, ("chance", 1 / items), styles, size=FONT)
    for panel in (left, right):
        panel.axhline(1 / items, **CHANCE)
    name_panel(right, "Hybrid network: each item", ORDER, ACCURACY)
    return drawing


def _poisoning(results: dict[str, Any]) -> Figure:
    measures, passes = results["summary"]["measures"], results["configuration"]["options"]["passes"]
    before, after = _of(measures, "before"), _of(measures, "after")
    change = ", ".join(
        f"{name} {before[name]['mean']:.0%} to {after[name][DERANGED]['mean']:.0%}" for name in measures
    )
    drawing, (axes,) = sheet(
        results, (1,), headline=f"Accuracy before and after a pass with wrong labels only: {change}.",
        drawn=("Bars", "error bars"), seeds=_seeds(measures, "before"), legend=networks(measures),
    )  # fmt: skip
    groups = {f"before: after\n{passes} pass{'es' if passes > 1 else ''}": before}
    for attack in next(iter(after.values())):
        shown = "a clean pass" if attack == CLEAN else attack
        groups[textwrap.fill(f"after {shown}", 16)] = {name: of[attack] for name, of in after.items()}
    grouped_bars(axes, groups, "{:.0%}", 0, 1)
    axes.axhline(1 / results["configuration"]["items"], **CHANCE | {"zorder": 3})
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    name_panel(axes, "Accuracy on true labels, before and after one more pass", y="accuracy, mean over items")
    return drawing


# --------------------------------------------------------------------------- Fig. 5


def _learning_frequency(results: dict[str, Any]) -> Figure:
    measures = results["summary"]["measures"]  # of the first profile, if there are two
    items = _length(measures, "by_frequency")
    drawing, (left, middle, right) = sheet(
        results, (1, 1, 1.35),
        headline=f"Accuracy on average after all presentations: {listed(_of(measures, 'average'))}.",
        drawn=("Lines and bars", "bands and error bars"), seeds=_seeds(measures, "average"),
        legend=networks(measures), size=(16.0, 3.5), gap=0.28,
    )  # fmt: skip
    for panel, key in ((left, "by_frequency"), (middle, "by_last_seen")):
        by_item(panel, _of(measures, key))
        panel.axhline(1 / items, **CHANCE)
    name_panel(left, "Does it matter how often ...", "how often the item was shown", ACCURACY)
    name_panel(middle, "... or how lately?", f"seen last: 1 longest ago, {items} at the end")
    groups = {
        "with how often\nit was shown": _of(measures, "correlation with frequency"),
        "with when it\nwas seen last": _of(measures, "correlation with last seen"),
    }
    grouped_bars(right, groups, "{:+.2f}", -1, 1)
    right.axhline(0, color=GREY, linewidth=1)
    name_panel(right, "How accuracy goes with both", y="rank correlation over items")
    return drawing


# --------------------------------------------------------------------------- supplement


def _flexibility_distribution(results: dict[str, Any]) -> Figure:
    measures, items = results["summary"]["measures"], _length(results["summary"]["measures"], "final")
    average = _last(measures, "average_memory")
    alike, mixed = STYLES["conventional"]["color"], STYLES["hybrid"]["color"]
    colors = [alike if name.startswith("fixed") else mixed for name in measures]
    best = [
        max((n for n, c in zip(measures, colors, strict=True) if c == color), key=lambda n: average[n]["mean"])
        for color in (mixed, alike)
    ]
    found = [f"({name}) {average[name]['mean']:.0%}" for name in best]
    drawing, (left, right) = sheet(
        results, (1, 1),
        headline=f"Accuracy on average after item {items}: best mixture {found[0]}, "
        f"best single kind {found[1]}.",
        drawn=("Bars", "error bars"), seeds=_seeds(measures, "final"), size=(12.8, 4.4), margins=(2.5, 0.85),
        gap=0.2, legend=[
            Patch(color=alike, label="all synapses alike"),
            Patch(color=mixed, label="synapses of mixed flexibility"),
            line("chance", CHANCE),
        ],
    )  # fmt: skip
    bars(left, average, colors, "{:.0%}", upper=1)
    left.axvline(1 / items, **CHANCE | {"zorder": 3})
    left.xaxis.set_major_formatter(PercentFormatter(1.0))
    name_panel(left, "Accuracy after the stream", "accuracy, mean over items")
    bars(right, _last(measures, "memorised"), colors, "{:.1f}", upper=items)
    right.set_yticklabels([])
    right.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    name_panel(right, "Items in memory after the stream", f"memorised items of {items} (p < 0.05)")
    return drawing


# --------------------------------------------------------------------------- not in the paper


def _rivals(results: dict[str, Any]) -> Figure:
    """A small panel for each, the best first: a dozen lines in one cannot be told apart."""
    measures, items = results["summary"]["measures"], _length(results["summary"]["measures"], "final")
    final, average = _of(measures, "final"), _last(measures, "average_memory")
    # Titles of panels say which strength or scale was chosen, and have those that are not named here.
    untuned = {re.sub(", (scale|strength) .*", "", name): value for name, value in average.items()}
    best = sorted(untuned, key=lambda name: -untuned[name]["mean"])[:3]
    known = [name for name in ("hybrid", "hybrid, tuned", "plain SGD") if name in untuned and name not in best]
    found = "; ".join(listed({name: untuned[name] for name in names}) for names in (best, known) if names)
    options = results["configuration"]["options"]
    chance = 1 / (100 - options["first_class"]) if "first_class" in options else 1 / items
    order = sorted(measures, key=lambda name: -average[name]["mean"])
    rows, ours, theirs = -(-len(order) // 3), STYLES["hybrid"], STYLES["conventional"] | {"linestyle": "-"}
    several = _seeds(measures, "final") > 1
    drawing, panels = sheet(
        results, (1, 1, 1),
        headline=f"Accuracy on average after item {items}: {found}. Strengths were chosen on "
        f"{_seeds_said(options)}.",
        drawn=("Lines", "bands, and after the means"), seeds=_seeds(measures, "final"), rows=rows,
        size=(12.8, 3.2 * rows - 1.2), gap=0.22, legend=[
            line("the method", theirs), line("the hybrid network, at the protocol's scale", ours),
            line("chance", CHANCE),
        ],
    )  # fmt: skip
    for at, (panel, name) in enumerate(itertools.zip_longest(panels, order)):
        if name is None:
            panel.remove()
            continue
        if name != "hybrid":
            by_item(panel, {name: final[name]}, styles={name: theirs}, markersize=5)
        panel.axhline(chance, **CHANCE)
        by_item(
            panel, {"hybrid": final["hybrid"]}, styles={"hybrid": ours}, markersize=5, bands=name == "hybrid",
            linewidth=2.6 if name == "hybrid" else 1.6,
        )  # fmt: skip
        panel.set_xticks(whole_ticks(range(1, items + 1), 5))
        panel.set_yticks([0, 0.5, 1])
        spread = f" ± {100 * average[name]['std']:.0f}" if several else ""
        below, first = at >= len(order) - 3, at % 3 == 0
        name_panel(
            panel, f"{name}: {average[name]['mean']:.0%}{spread}", "item, as learned" if below else "",
            "accuracy" if first else "",
        )  # fmt: skip
    return drawing


def _seeds_said(options: Mapping[str, Any]) -> str:
    pilot = options["pilot"]
    return f"{pilot} other seed{'s' if pilot > 1 else ''}"


# By the names of experiments. A study adds its own.
FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "serial-position": _serial_position,
    "hebb-repetition": _hebb_repetition,
    "poisoning": _poisoning,
    "learning-frequency": _learning_frequency,
    "flexibility-distribution": _flexibility_distribution,
    "rivals": _rivals,
    "split-cifar100": _rivals,
}
