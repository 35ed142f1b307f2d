"""What lies beside results.json, read and compared with it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from flexkern.runs.events import EVENTS, ROWS

__all__ = ["check_against", "events", "rows", "tasks"]


def events(folder: Path, prefix: str = "") -> list[dict[str, Any]]:
    text = (folder / f"{prefix}{EVENTS}").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def rows(folder: Path, prefix: str = "") -> list[dict[str, str]]:
    text = (folder / f"{prefix}{ROWS}").read_text()
    assert text.endswith("\n")
    return list(csv.DictReader(text.splitlines()))


def tasks(folder: Path) -> list[tuple[str, int, int]]:
    return [(e["method"], e["seed"], e["task"]) for e in events(folder) if e["event"] == "task"]


def check_against(results: dict[str, Any], folder: Path) -> None:
    """Each task of the results has one row and one event, which say the same."""
    expected = {(r["method"], r["seed"], t["task"]): t for r in results["runs"] for t in r["tasks"]}
    found = {(r["method"], int(r["seed"]), int(r["task"])): r for r in rows(folder)}
    assert len(found) == len(rows(folder)) == len(expected)
    assert sorted(tasks(folder)) == sorted(expected)
    for key, task in expected.items():
        assert float(found[key]["seen"]) == task["seen"]
        assert [float(a) for a in found[key]["accuracies"].split()] == task["accuracies"]
        assert float(found[key]["learn_seconds"]) == task["cost"]["learn_seconds"]
    for event in events(folder):
        if event["event"] == "task":
            task = expected[event["method"], event["seed"], event["task"]]
            assert (event["accuracies"], event["seconds"]) == (
                task["accuracies"],
                task["cost"]["learn_seconds"],
            )
