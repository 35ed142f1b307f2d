"""What the steps of scripts/gpu_check.py have found, from the files that they write as they go."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

__all__ = ["collect", "summary", "tests"]

FAILURES = 12  # that the summary tells of; gpu_check.json has all
TEXT = 400  # characters of each there


def collect(record: dict[str, Any], folder: Path, since: float) -> None:
    """Adds what was written since then, whole or in part, and writes gpu_check.json.

    Args:
        record: of the steps; gets "benchmarks", "tune", "load", "tests" and "memory" where there are any.
        folder: of the results.
        since: seconds as time.time() has them.
    """

    def fresh(name: str) -> Path | None:
        path = folder / name
        return path if path.exists() and path.stat().st_mtime >= since else None

    for name in ("load", "tune"):
        if path := fresh(f"{name}.json"):
            record[name] = json.loads(path.read_text())
    for name in ("tests", "memory"):
        if path := fresh(f"{name}.jsonl"):
            record[name] = tests(path.read_text(encoding="utf-8"))
    # A run that was cut has left its draft.
    files = [p for p in (*folder.glob("[0-9]*-cuda*.json"), folder / "unfinished-cuda.json") if fresh(p.name)]
    rows: list[Any] = []
    for path in sorted(files, key=lambda p: p.stat().st_mtime):
        run = json.loads(path.read_text())
        names = {(row.get("case"), row.get("backend")) for row in run["rows"]}
        rows = [row for row in rows if (row.get("case"), row.get("backend")) not in names] + run["rows"]
        record["benchmarks"] = {**run, "rows": rows}
    (folder / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")


def tests(lines: str) -> dict[str, Any]:
    """Counts by outcome, failures with their text, reasons of skips, and what ran when it was cut."""
    last: dict[str, dict[str, Any]] = {}
    for line in lines.splitlines():
        try:
            found = json.loads(line)
        except ValueError:  # the one that was being written when it was killed
            continue
        last[found["test"]] = found
    ended = {name: test for name, test in last.items() if "outcome" in test}
    slowest = sorted(ended, key=lambda name: -ended[name]["seconds"])[:10]
    return {
        "counts": dict(Counter(test["outcome"] for test in ended.values())),
        "failed": {name: test.get("text", "") for name, test in ended.items() if test["outcome"] == "failed"},
        "skipped": dict(Counter(t.get("why", "") for t in ended.values() if t["outcome"] == "skipped")),
        "not_ended": [name for name in last if name not in ended],
        "slowest": {name: ended[name]["seconds"] for name in slowest},
    }


def summary(record: dict[str, Any]) -> str:
    """For the end of the output."""
    lines = [f"\n{'step':<16}{'exit code':>10}{'seconds':>10}"]
    for step in record["steps"]:
        why = f"skipped: {step['skipped']}" if "skipped" in step else step.get("why", "")
        lines.append(f"{step['step']:<16}{step['exit_code']:>10}{step['seconds']:>10}  {why}".rstrip())
    for name in ("tests", "memory"):
        if name in record:
            lines += _of_tests(name, record[name])
    lines += [line for row in record.get("benchmarks", {}).get("rows", []) for line in _of_row(row)]
    if "tune" in record:
        lines.append(f"tune: {len(record['tune'].get('kernels', []))} kernels raced")
        lines += [f"  not reached: {name}" for name in record["tune"].get("not_reached", [])]
    return "\n".join(lines)


def _of_tests(name: str, found: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(found["counts"].items()))
    lines = [f"{name}: {counts or 'none'}"]
    lines += [f"  skipped {n}: {why}" for why, n in found["skipped"].items()]
    lines += [f"  did not end: {test}" for test in found["not_ended"]]
    for test, text in list(found["failed"].items())[:FAILURES]:
        said = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines()[-1:]
        lines.append(f"  failed: {test}\n    {' | '.join(said)[:TEXT]}")
    if len(found["failed"]) > FAILURES:
        lines.append(f"  and {len(found['failed']) - FAILURES} more failures")
    return lines


def _of_row(row: dict[str, Any]) -> list[str]:
    name = f"{row['case']} {row.get('backend') or ''}".strip()
    if "failed" in row:
        return [f"{name}: failed: {row['failed']}"[:TEXT]]
    if "late" in row or "skipped" in row:
        return [f"{name}: {'no time was left' if 'late' in row else row['skipped']}"]
    lines = []
    for peer in row.get("peers", []):
        verdict = "" if peer["met"] is None else "met" if peer["met"] else "NOT MET"
        goal = peer["goal"] or ""
        # In the sense of the goal: a time of 1.4 under "time at most 1.8", not a speed-up of 0.7.
        what, figure = (
            ("time", 1 / peer["speedup"]) if goal.startswith("time") else ("speed-up", peer["speedup"])
        )
        against = f"{row['title']:<56} {peer['name']:<42}"
        lines.append(f"{against} {what:>8} {figure:>7.2f} {goal:<24} {verdict}")
    return lines
