"""Results as text: lines for a terminal, the table of README.md, and the page of all cases."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from flexkern.benchmarks.factors import CAUSES, split

__all__ = ["goals", "heading", "headlines", "page", "row_lines", "table", "with_table"]

_NUMBER = re.compile(r"[\d.]+")
START, END = "<!-- benchmarks:", "<!-- /benchmarks -->"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
# The cases of README.md's table, each against the first peer that it has a goal for: what a user would do else.
HEADLINES = (
    "metaplastic/step", "metaplastic/gated-step", "synapse/step", "linear/step-256-4096-4096",
    "adapter/vit-b-10-tasks-train", "learner/item", "artsy/inference-10", "artsy/inference-50",
)  # fmt: skip


def heading() -> str:
    """Over the lines of :func:`row_lines`."""
    head = f"{'case':<56} {'against':<44} {'ours ms':>9} {'peer ms':>9} {'measured (quartiles)':>29}  goal"
    return f"{head}\n{'-' * len(head)}"


def row_lines(part: dict[str, Any]) -> list[str]:
    """A row, or a series, as lines for a terminal; nothing for the machine."""
    for what in ("skipped", "failed"):
        if what in part:
            return [f"{part.get('case') or part.get('series')}: {what}: {part[what]}"]
    if "lines" in part:
        return [
            f"{part['title']}: {line}, {part['y']} {_ends(points)}" for line, points in part["lines"].items()
        ]
    if "ours" not in part:
        return []
    return [
        f"{_name(part):<56} {peer['name']:<44} {part['ours']['median_ms']:9.4f} {peer['median_ms']:9.4f} "
        f"{_measured(part, peer):>29}  {_verdict(peer)}"
        for peer in part["peers"]
    ]


def _name(row: dict[str, Any]) -> str:
    return row["title"] + (
        ", small pages" if row.get("pages") == "small" and row.get("device") == "cpu" else ""
    )


def _measured(row: dict[str, Any], peer: dict[str, Any], mark: str = "") -> str:
    """The figure that the goal is about, with its quartiles; without a goal the speed-up.

    Args:
        mark: put before and after the median.
    """
    goal = peer["goal"] or ""
    if goal.startswith("at most"):  # microseconds of ours alone
        figures = tuple(1e3 * row["ours"][key] for key in ("median_ms", "q1_ms", "q3_ms"))
        return _figure("ours", figures, mark, " us")
    if goal.startswith("time"):
        figures = tuple(1 / peer[key] for key in ("speedup", "speedup_q3", "speedup_q1"))
        return _figure("time", figures, mark)
    return _figure("speed-up", tuple(peer[key] for key in ("speedup", "speedup_q1", "speedup_q3")), mark)


def _figure(name: str, figures: tuple[float, ...], mark: str, unit: str = "") -> str:
    median, q1, q3 = (f"{figure:.2f}" for figure in figures)
    return f"{name} {mark}{median}{mark}{unit} ({q1} to {q3})"


def _verdict(peer: dict[str, Any]) -> str:
    if peer["goal"] is None:
        return ""
    return f"{peer['goal']}, {'met' if peer['met'] else 'NOT MET'}"


def _ends(points: list[list[float]]) -> str:
    (x0, _, y0, _), (x1, _, y1, _) = points[0], points[-1]
    return f"{y0:.3g} at {x0:g}, {y1:.3g} at {x1:g}"


def table(run: dict[str, Any]) -> str:
    """The rows of a run as a Markdown table."""
    lines = [
        "| ours | against | measured (quartiles) | goal | of the copy | of the product | memory, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in run["rows"]:
        if "ours" not in row:
            continue
        for peer in row["peers"]:
            verdict = _verdict(peer).replace("NOT MET", "**not met**")
            cells = [
                _name(row), peer["name"], _measured(row, peer, "**"), verdict,
                _share(row, "share_of_copy", "bytes"), _share(row, "share_of_product", "operations"),
                _memory(row, peer),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(row: dict[str, Any], share: str, what: str) -> str:
    return f"{row['work'][share]:.0%}" if row["work"].get(what) and share in row["work"] else ""


def _memory(row: dict[str, Any], peer: dict[str, Any]) -> str:
    ours, theirs = row["ours"]["peak_mb"], peer["peak_mb"]
    return "" if ours is None or theirs is None else f"{ours:.0f} / {theirs:.0f}"


def _machine(run: dict[str, Any]) -> str:
    """The machine, the date and the files of a run."""
    machine = run["machine"]
    processor = machine["gpus"][0]["name"] if run["device"] == "cuda" else machine["cpu"]
    build = machine["build"]["instruction_set"] if machine["build"] else "no extension"
    files = ", ".join(f"`benchmarks/results/{name}`" for name in run["files"])
    pages = "" if run["device"] == "cuda" else "huge pages for all where nothing else is said, "
    return (
        f"{processor}, {machine['cores']} cores, {build}, torch {machine['versions']['torch']}, {pages}"
        f"{machine['date'][:10]}, commit {machine['commit'][:7]}: {files}"
    )


def _where(run: dict[str, Any]) -> str:
    ceilings = run["ceilings"].get("huge") or run["ceilings"]["small"]
    products = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in ceilings["product"].items())
    copy = f"{ceilings['copy'] / 1e9:.1f} GB/s"
    return f"{_machine(run)}. Ceilings measured in the last of these: copy {copy}, product {products}."


HOW = (
    "A speed-up is the peer's time over ours, a time is ours over the peer's, whichever the goal is about: "
    "medians (and quartiles) over rounds in which each is timed once, after their outputs were compared. "
    "`of the copy` is the share of the bytes per second that a copy reaches, `of the product` the share of the "
    "operations per second of the library's matrix product. Memory is what a call needs beside its operands, "
    "ours / the peer's."
)


_MOST_NAMED = 3  # goals that are not met, each with its numbers


def headlines(run: dict[str, Any], cases: Collection[str]) -> str:
    """The rows of these cases in plain words, as a Markdown table: how many times as fast, or as long."""
    lines = ["| what | against | ours | goal |", "| --- | --- | --- | --- |"]
    for row in run["rows"]:
        if "ours" in row and row["case"] in cases and row.get("pages") != "small":
            peer = next(peer for peer in row["peers"] if peer["goal"] is not None)
            verdict = "met" if peer["met"] else "**not met**"
            lines.append(f"| {row['title']} | {peer['name']} | {_in_words(peer)} | {verdict} |")
    return "\n".join(lines)


def _in_words(peer: dict[str, Any]) -> str:
    """Above 1 either way, so that nobody has to ask which of the two was divided by which."""
    median, low, high = peer["speedup"], peer["speedup_q1"], peer["speedup_q3"]
    if median >= 1:
        return f"**{median:.2f} times as fast** ({low:.2f} to {high:.2f})"
    return f"takes **{1 / median:.2f} times as long** ({1 / high:.2f} to {1 / low:.2f})"


def goals(run: dict[str, Any]) -> str:
    """How many goals are met, and each that is not; where these are many, the page that says why."""
    peers = [
        (row, p) for row in run["rows"] if row.get("budget") and "ours" in row
        for p in row["peers"] if p["goal"] is not None
    ]  # fmt: skip
    missed = [
        f"{_name(row)} against {p['name']}: {_in_words(p).replace('**', '')}, where "
        f"{_NUMBER.findall(p['goal'])[0]} was the goal"
        for row, p in peers if not p["met"]
    ]  # fmt: skip
    said = f"{len(peers) - len(missed)} of {len(peers)} goals are met"
    if len(missed) > _MOST_NAMED:
        return f"{said}; [the others, and why not](docs/tuning.md#goals-that-are-not-met)."
    return f"{said}. Not: {'; '.join(missed)}." if missed else f"{said}."


def with_table(readme: str, runs: Mapping[str, dict[str, Any]], cases: Collection[str] = HEADLINES) -> str:
    """``readme`` with what stands between the two marks replaced by the rows of these cases."""
    before, rest = readme.split(START, 1)
    mark, rest = rest.split("\n", 1)
    after = rest.split(END, 1)[1]
    tables = [f"{headlines(run, cases)}\n\n{goals(run)} {_machine(run)}." for run in runs.values()]
    joined = "\n\n".join(tables)
    return f"{before}{START}{mark}\n{joined}\n{END}{after}"


def page(runs: Mapping[str, dict[str, Any]]) -> str:
    """All cases and series, of each device what :func:`flexkern.benchmarks.record.newest` has, as Markdown."""
    parts = ["# Benchmarks", "Written by `python -m flexkern.benchmarks.publish`.", HOW]
    for device, run in runs.items():
        parts += [f"## {DEVICES[device]}", _where(run), table(run)]
        parts += [f"![{what}]({device}/{what}.png)" for what in ("speedups", "roofline", "growth")]
        missing = [
            f"- {line}" for part in run["rows"] + run["series"] if _missing(part) for line in row_lines(part)
        ]
        if missing:
            parts.append("Not measured:\n\n" + "\n".join(missing))
        by_causes = [row for row in run["rows"] if row["case"] in CAUSES and "ours" in row]
        if by_causes:
            parts += ["### Where the speed-up comes from", BY_CAUSES, *map(_by_causes, by_causes)]
    return "\n\n".join(parts) + "\n"


BY_CAUSES = (
    "From the usual way to ours one thing changes at a time, in one run; the factors multiply to the whole. "
    "Then where a call of either spends its time, by torch's profiler, which costs many small operators more "
    "than a few large ones."
)


def _by_causes(row: dict[str, Any]) -> str:
    """Causes and their factors, then milliseconds by category."""
    lines = [f"{row['title']}: **{row['peers'][0]['speedup']:.2f}** times as fast.", ""]
    lines += ["| what changes | factor |", "| --- | --- |"]
    lines += [f"| {cause} | {factor:.2f} |" for cause, factor in split(row)]
    first, ours = row["profile"][row["peers"][0]["name"]], row["profile"]["ours"]
    lines += ["", f"| ms | {row['peers'][0]['name']} | ours |", "| --- | --- | --- |"]
    spent = [(what, 1e3 * first[what], 1e3 * ours[what]) for what in first]
    lines += [f"| {what} | {before:.1f} | {after:.1f} |" for what, before, after in spent if before or after]
    return "\n".join(lines)


def _missing(part: dict[str, Any]) -> bool:
    return "skipped" in part or "failed" in part
