"""Results as tables: for a terminal, and for the page of all figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from flexkern.runs.metaplasticity.protocol import DIGITS, RANDOM
from flexkern.runs.seeds import as_list, said_seeds
from flexkern.runs.statistics import holm
from flexkern.runs.tables import table_of

__all__ = ["ROWS", "Rows", "claims_table", "percent", "rows", "setting", "source", "table"]

Rows = tuple[list[str], list[list[str]]]
_COLUMNS = 80  # of a terminal, where nobody widens it


def rows(results: dict[str, Any]) -> Rows:
    """Column heads and cells: a line for each network."""
    return ROWS[results["experiment"]](results["summary"])


def table(results: dict[str, Any]) -> Table:
    """The same for a terminal; networks beside each other where that is what fits 80 columns."""
    heads, cells = rows(results)
    turned = [list(column) for column in zip(heads, *cells, strict=True)]
    if _width(heads, cells) > _COLUMNS and _width(turned[0], turned[1:]) <= _COLUMNS:
        heads, cells = turned[0], turned[1:]
    legend = f"accuracies in percent, mean ± standard deviation; {setting(results)}"
    shown = table_of(results["title"], legend)
    shown.add_column(heads[0], overflow="fold")
    for head in heads[1:]:
        shown.add_column(_broken(head), justify="right", no_wrap=True)
    for line in cells:
        shown.add_row(*line)
    return shown


def _broken(head: str) -> str:
    """A word on each line, as cells are narrower than heads."""
    return head.replace(" ", "\n")


def _width(heads: list[str], cells: list[list[str]]) -> int:
    """What a table needs so that no number is broken."""
    columns = list(zip(*cells, strict=True))
    words = [[head] if i == 0 else head.split() for i, head in enumerate(heads)]
    return sum(max(map(len, (*of, *column))) + 1 for of, column in zip(words, columns, strict=True)) + 1


def claims_table(results: dict[str, Any]) -> Table:
    """The paper's claims, each with its checks and its verdict."""
    shown = table_of(
        "Claims",
        "mean over seeds and its 95 % confidence interval (Student's t). A check is met where the "
        "interval lies above 0. p: of the paired t-test, and by Holm's correction for all these checks.",
    )
    shown.add_column("claim, and what it takes", overflow="fold")
    for head in ("mean", "95 %", "p", "Holm", "found"):
        shown.add_column(head, justify="right", no_wrap=True)
    claims = results["summary"]["claims"]
    adjusted = iter(holm([check["p_t"] for claim in claims for check in claim["checks"] if "p_t" in check]))
    for claim in claims:
        shown.add_row(claim["claim"], "", "", "", "", claim["verdict"], style="bold")
        for check in claim["checks"]:
            interval = f"{check['low']:+.3f} {check['high']:+.3f}" if "low" in check else "-"
            p = (f"{check['p_t']:.2g}", f"{next(adjusted):.2g}") if "p_t" in check else ("-", "-")
            shown.add_row(f"  {check['what']}", f"{check['mean']:+.3f}", interval, *p, check["found"])
    return shown


def source(results: dict[str, Any]) -> str:
    """What was learned, and by which features, in one phrase."""
    c = results["configuration"]
    if "first_class" in c["options"]:
        first, backbone = c["options"]["first_class"], c["options"]["backbone"]
        return f"classes {first} to 99 of {c['data']}, features: the frozen transformer '{backbone}'"
    data = "scikit-learn's handwritten digits" if c["data"] == DIGITS else c["data"]
    features = "frozen random convolutions" if c["features"] == RANDOM else c["features"]
    return f"two-digit items of {data}, features: {features}"


def setting(results: dict[str, Any]) -> str:
    """What was run, in one phrase."""
    c = results["configuration"]
    scale = c["scale"] if isinstance(c["scale"], str) else f"{c['scale']:g}"
    of = "per class" if "first_class" in c["options"] else "per item"
    seeds = _seeds(as_list(c)["seeds"])
    how = ", put together as the release does it" if c.get("as_released") else ""
    return (
        f"{seeds}, {source(results)}{how}, {c['items']} items, {c['train_per_item']} + {c['test_per_item']} "
        f"images {of}, {c['epochs']} epochs, batch {c['batch_size']}, lr {c['lr']:g}, scale {scale}, width "
        f"{c['width']}{_in(c.get('precision'))}; {results['seconds']:.0f} seconds of one core"
    )


def _in(precision: str | None) -> str:
    return f", in {precision}" if precision else ""


def _seeds(seeds: list[int]) -> str:
    count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    in_a_row = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{count} from {seeds[0]}" if in_a_row else f"{count}, {said_seeds(seeds)}"


# --------------------------------------------------------------------------- one for each experiment


def percent(value: dict[str, Any], at: int | None = None) -> str:
    """ "51.3 ± 2.0", of a mean and its standard deviation, or of one entry of lists of them."""
    mean, std = (value[k] if at is None else value[k][at] for k in ("mean", "std"))
    return f"{100 * mean:.1f} ± {100 * std:.1f}"


def _count(value: dict[str, Any], at: int = -1) -> str:
    return f"{value['mean'][at]:.1f} ± {value['std'][at]:.1f}"


def _shown_once(summary: dict[str, Any]) -> Rows:
    """Of all experiments that show a stream once."""
    heads = ["network", "average", "memorised", "gross memory", "first item", "last item"]
    longer = summary.get("longer", {})
    if longer:
        items = len(next(iter(longer.values()))["final"]["mean"])
        heads += [f"average of {items}", f"memorised of {items}"]
    cells = []
    for name, m in summary["measures"].items():
        line = [
            name, percent(m["average_memory"], -1), _count(m["memorised"]), _count(m["gross_memory"]),
            percent(m["final"], 0), percent(m["final"], -1),
        ]  # fmt: skip
        if longer:
            line += [percent(longer[name]["average_memory"], -1), _count(longer[name]["memorised"])]
        cells.append(line)
    return heads, cells


def _hebb(summary: dict[str, Any]) -> Rows:
    passes = len(next(iter(summary["measures"].values()))["mean"]["mean"])
    shown = [k for k in (1, 3, 6, 9) if k <= passes] or [passes]
    heads = ["network", *(f"{what}, pass {k}" for what in ("mean", "worst item") for k in shown)]
    return heads, [
        [name, *(percent(m[key], k - 1) for key in ("mean", "minimum") for k in shown)]
        for name, m in summary["measures"].items()
    ]


def _poisoning(summary: dict[str, Any]) -> Rows:
    attacks = list(next(iter(summary["measures"].values()))["after"])
    return ["network", "before", *attacks], [
        [name, percent(m["before"]), *(percent(m["after"][a]) for a in attacks)]
        for name, m in summary["measures"].items()
    ]


def _frequency(summary: dict[str, Any]) -> Rows:
    heads = ["network", "average", "shown once", "shown most", "rho with frequency", "rho with last seen"]
    second = {f"{name}, second profile": m for name, m in summary.get("second", {}).items()}
    return heads, [
        [
            name, percent(m["average"]), percent(m["by_frequency"], 0), percent(m["by_frequency"], -1),
            *(f"{m[key]['mean']:+.2f} ± {m[key]['std']:.2f}"
              for key in ("correlation with frequency", "correlation with last seen")),
        ]
        for name, m in (summary["measures"] | second).items()
    ]  # fmt: skip


# By the names of experiments. A study adds its own.
ROWS: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "serial-position": _shown_once,
    "flexibility-distribution": _shown_once,
    "rivals": _shown_once,
    "split-cifar100": _shown_once,
    "hebb-repetition": _hebb,
    "poisoning": _poisoning,
    "learning-frequency": _frequency,
}
