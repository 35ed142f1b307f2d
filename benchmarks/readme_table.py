"""Writes the table of README.md from the committed results file: ``python benchmarks/readme_table.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("metaplastic", "synapse", "linear", "learner", "adapter", "artsy", "seeds")
RESULTS = [ROOT / "benchmarks" / "results" / f"{family}_cpu.json" for family in FAMILIES]
START, END = "<!-- benchmarks:", "<!-- /benchmarks -->"


def table() -> str:
    """The results as a Markdown table, with the machines below it."""
    results = [json.loads(path.read_text()) for path in RESULTS]
    lines = ["| ours | against | time of ours / peer | speed-up | goal |", "| --- | --- | --- | --- | --- |"]
    for row in (row for result in results for row in result["rows"]):
        at_most = row["figure"] == "ours / peer"
        ratio = row["ratio"] if at_most else 1 / row["ratio"]
        verdict = row["goal"] + (", met" if row["met"] else ", **not met**")
        kind = "time" if at_most else "speed-up"
        name = row["name"]
        if "peak_mb" in row:
            name += f" (memory: {row['peak_mb']:.0f} MB against {row['peer_peak_mb']:.0f})"
        lines.append(f"| {name} | {row['peer']} | {ratio:.2f} | {1 / ratio:.1f} | {kind} {verdict} |")
    machines: dict[str, list[str]] = {}
    for path, result in zip(RESULTS, results, strict=True):
        machines.setdefault(_describe(result["machine"]), []).append(f"`{path.relative_to(ROOT)}`")
    where = [f"{machine}: {', '.join(files)}." for machine, files in machines.items()]
    return "\n".join([*lines, "", "Medians of interleaved rounds.", *where])


def _describe(machine: dict[str, Any]) -> str:
    huge = "huge pages for all" if machine["huge_pages"] else "small pages"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['build']['instruction_set']}, "
        f"torch {machine['versions']['torch']}, {huge}, {machine['date']}"
    )


def with_table(readme: str) -> str:
    """``readme`` with what stands between the two marks replaced."""
    before, rest = readme.split(START, 1)
    mark, rest = rest.split("\n", 1)
    after = rest.split(END, 1)[1]
    return f"{before}{START}{mark}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_table(path.read_text()))
