"""Writes the table of README.md from the committed results file: ``python benchmarks/readme_table.py``."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "metaplastic_cpu.json"
START, END = "<!-- benchmarks:", "<!-- /benchmarks -->"


def table() -> str:
    """The results as a Markdown table, with the machine below it."""
    results = json.loads(RESULTS.read_text())
    lines = ["| ours | against | time of ours / peer | speed-up | goal |", "| --- | --- | --- | --- | --- |"]
    for row in results["rows"]:
        at_most = row["figure"] == "ours / peer"
        ratio = row["ratio"] if at_most else 1 / row["ratio"]
        verdict = row["goal"] + (", met" if row["met"] else ", **not met**")
        kind = "time" if at_most else "speed-up"
        lines.append(f"| {row['name']} | {row['peer']} | {ratio:.2f} | {1 / ratio:.1f} | {kind} {verdict} |")
    machine = results["machine"]
    huge = "huge pages for all" if machine["huge_pages"] else "small pages"
    lines += [
        "",
        f"Medians of interleaved rounds; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['build']['instruction_set']}, torch {machine['versions']['torch']}, {huge}; "
        f"{machine['date']}, `{RESULTS.relative_to(ROOT)}`.",
    ]
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """``readme`` with what stands between the two marks replaced."""
    before, rest = readme.split(START, 1)
    mark, rest = rest.split("\n", 1)
    after = rest.split(END, 1)[1]
    return f"{before}{START}{mark}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_table(path.read_text()))
