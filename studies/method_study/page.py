"""The method study's tables, and the page that they stand in."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.method_study.methods import METHODS
from studies.method_study.streams import STREAMS
from studies.method_study.summary import CONTROL

__all__ = ["fill", "tables"]

START, END = "<!-- method study: written by studies.method_study -->", "<!-- /method study -->"


def fill(page: str, results: dict[str, Any]) -> str:
    """The page with its tables written anew; as it is, where it has no place for them."""
    if START not in page:
        return page
    before, rest = page.split(START, 1)
    return f"{before}{START}\n\n{tables(results)}\n\n{END}{rest.split(END, 1)[1]}"


def tables(results: dict[str, Any]) -> str:
    """A table for each stream and backbone, and one of all tests."""
    parts = []
    for stream in STREAMS:
        for backbone in results["backbones"]:
            rows = [
                r for r in results["summary"]["methods"] if (r["stream"], r["backbone"]) == (stream, backbone)
            ]
            if rows:
                kind = STREAMS[stream]
                parts.append(f"#### {kind.title}; backbone `{backbone}`\n\n{_methods(rows, kind.again)}")
    return "\n\n".join([*parts, f"#### Differences\n\n{_tests(results['summary']['tests'])}"])


def _methods(rows: list[dict[str, Any]], again: bool) -> str:
    lines = [
        "| method | last | average | told the task | names the task | open per sample | kept, MB | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    by = {row["method"]: row for row in rows}
    for name, method in METHODS.items():
        if name in by:
            row = by[name]
            average = "" if method.at_once else _percent(row["average"])
            told, named = _percent(row["told"]), f"{100 * row['task_right']['mean']:.0f}"
            cells = [
                method.title, _percent(row["last"]), average, "" if again else told, "" if again else named,
                f"{row['open_per_sample']['mean']:.2f}", f"{row['bytes'] / 1e6:.2f}", str(row["n"]),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    if "oracle" in by and "simplecil" in by and not again:
        told, seeds = _percent(by["simplecil"]["told"]), by["simplecil"]["n"]
        title = "the oracle's control: its head on E0 alone, told the task"
        lines.append(f"| {title} | {told} |  | {told} | 100 | 0.00 |  | {seeds} |")
    return "\n".join(lines)


def _percent(value: dict[str, float]) -> str:
    half = 50 * (value["high"] - value["low"])
    mean = f"{100 * value['mean']:.1f}"
    return f"{mean} ± {half:.1f}" if half else mean  # of one seed there is no interval


def _tests(tests: list[dict[str, Any]]) -> str:
    lines = [
        "| stream | backbone | difference | points | 95 % interval | p | p, Holm | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for t in tests:
        rival = "its control" if t["rival"] == CONTROL else METHODS[t["rival"]].title
        says = "better" if t["low"] > 0 else "worse" if t["high"] < 0 else "open"
        says = says if t["p_holm"] < 0.05 or says == "open" else f"{says}, but not after Holm"
        lines.append(
            f"| {t['stream']} | {t['backbone']} | {METHODS[t['ours']].title} less {rival} | "
            f"{100 * t['mean']:+.1f} | {100 * t['low']:+.1f} to {100 * t['high']:+.1f} | {_p(t['p'])} | "
            f"{_p(t['p_holm'])} | {says} |"
        )
    return "\n".join(lines)


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "< 1e-4"


def main(arguments: Sequence[str] | None = None) -> None:
    """Fills the page from ``PAGE_WITHOUT_SUFFIX/methods/results.json``."""
    parser = argparse.ArgumentParser(prog="python -m studies.method_study.page")
    parser.add_argument("page", type=Path)
    page = parser.parse_args(arguments).page
    results = json.loads((page.with_suffix("") / "methods" / "results.json").read_text())
    page.write_text(fill(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
