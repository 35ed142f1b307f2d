"""Runs the kills and the long streams in full, and writes the counts of docs/reliability.md.

    python scripts/reliability.py             all: some twenty minutes on two cores
    python scripts/reliability.py --tables    only the tables of the page, from docs/results/reliability

`make reliability` runs the fuzzers before. tests/reliability/test_page.py fails where the page is not as this
writes it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "docs" / "results" / "reliability"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; all columns but the first are numbers."""
    rules = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (heads, rules, *rows))


def counted(found: dict[str, Any]) -> str:
    """Where and when."""
    return f"{found['machine']}; flexkern {found['flexkern']}, {found['date']}."


def fuzz_table(found: dict[str, Any]) -> str:
    """Cases, what came out, and faults of each fuzzer."""
    rows: list[Sequence[object]] = []
    for name, one in sorted(found["fuzzers"].items()):
        outcomes = ", ".join(
            f"{n:,} {what}" for what, n in sorted(one["outcomes"].items(), key=lambda o: -o[1])
        )
        rows.append((f"`{name}`: {outcomes}", f"{one['cases']:,}", len(one["faults"])))
    faults = sum(len(one["faults"]) for one in found["fuzzers"].values())
    rows.append(("**together**", f"**{found['cases']:,}**", f"**{faults}**"))
    return table(("fuzzer, and what came out", "cases", "faults"), rows) + f"\n\n{counted(found)}"


def kills_table(found: dict[str, Any]) -> str:
    """Kills and runs of each kind of subject, and the kinds of moments."""
    kills: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    for counts, of in ((kills, found["kills"]), (runs, found["runs"])):
        for name, n in of.items():
            counts[name.partition(":")[0]] += n
    named = {name: name if name[0].isupper() else f"`{name}`" for name in kills}
    rows: list[Sequence[object]] = [(named[name], kills[name], runs[name]) for name in sorted(kills)]
    rows.append(("**together**", f"**{sum(kills.values()):,}**", f"**{sum(runs.values())}**"))
    moments = ", ".join(f"{n} {what}" for what, n in found["moments"].items())
    wrong = len(found["faults"])
    said = f"Moments: {moments}. Runs that were lost, did not load, or ended otherwise: {wrong}."
    return f"{table(('what was killed', 'kills', 'runs'), rows)}\n\n{said} {counted(found)}"


def soak_table(found: dict[str, Any]) -> str:
    """What each long stream had in its second quarter and in its last."""
    rows = []
    for name, series in found["series"].items():
        quarter = len(series["items"]) // 4

        def both(key: str, form: Callable[[float], str], s: Any = series, n: int = quarter) -> str:
            return f"{form(median(s[key][n : 2 * n]))}, {form(median(s[key][-n:]))}"

        rows.append(
            (
                name, f"{series['items'][-1]:,.0f}", both("resident", lambda v: f"{v / 2**20:.1f}"),
                both("seconds", lambda v: f"{v * 1e3:.2f}"), both("files", lambda v: f"{v:.0f}"),
                both("threads", lambda v: f"{v:.0f}"), f"{found['per_item'][name]:,}",
            )
        )  # fmt: skip
    heads = ("learner", "items", "MiB resident", "ms per item", "open files", "threads", "bytes added per item")
    said = f"Two numbers: in the second quarter, in the last. Faults: {len(found['faults'])}."
    return f"{table(heads, rows)}\n\n{said} {counted(found)}"


TABLES = {"fuzz": fuzz_table, "kills": kills_table, "soak": soak_table}


def with_tables(page: str) -> str:
    """The page with the tables of the results that there are.

    Raises:
        ValueError: if it has no place for one.
    """
    for name, make in TABLES.items():
        path = RESULTS / f"{name}.json"
        text = make(json.loads(path.read_text())) if path.exists() else "Not counted yet."
        before, start, rest = page.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not (start and end):
            raise ValueError(f"{PAGE.name} has no {start or f'<!-- {name} -->'} ... <!-- /{name} -->")
        page = f"{before}{start}\n{text}\n{end}{after}"
    return page


def main() -> int:
    """Runs what was asked for; 1 if there were faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--kills", type=int, default=1400, metavar="N", help="some 1,000 of them by SIGKILL")
    arguments = parser.parse_args()
    worst = 0
    if not arguments.tables:
        for part in (["kills", f"--count={arguments.kills}"], ["soak"]):
            command = [sys.executable, "-m", "reliability", f"--json={RESULTS / part[0]}.json", *part]
            environment = {"OMP_NUM_THREADS": "1", **os.environ}
            worst |= subprocess.run(command, cwd=ROOT / "tests", env=environment).returncode
    PAGE.write_text(with_tables(PAGE.read_text()))
    return worst


if __name__ == "__main__":
    sys.exit(main())
