"""A plugin of pytest that writes down each test as it ends, for who may be stopped at any time.

    python -m pytest -p helpers.record_tests --record FILE ...    with tests/ on PYTHONPATH

A line of JSON for each test that begins (``{"test": ..., "began": true}``) and each that ends or fails, with
its outcome, seconds and the text of a failure, or why it was skipped; the last line of a test counts. With
``--record`` tests run so that a cut leaves something of everything: first one of each function and backend,
then another of each.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

__all__ = ["LONGEST"]

LONGEST = 6000  # characters of the text of a failure


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", help="file that each test is written to as it ends")


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("--record")
    if given is not None and not hasattr(config, "workerinput"):  # the process that hears of all tests
        Path(given).write_text("")
        config.pluginmanager.register(_Record(Path(given)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--record") is None:
        return
    seen: Counter[Any] = Counter()
    turns = []
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        group = (item.path, getattr(item, "originalname", item.name), parameters.get("gpu_backend"))
        turns.append(seen[group])
        seen[group] += 1
    items[:] = [item for _, item in sorted(zip(turns, items, strict=True), key=lambda pair: pair[0])]


class _Record:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts: dict[str, dict[str, Any]] = {}  # of tests that run

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write({"test": nodeid, "began": True})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        fresh: dict[str, Any] = {"test": report.nodeid, "outcome": "passed", "seconds": 0.0}
        part = self._parts.setdefault(report.nodeid, fresh)
        part["seconds"] = round(part["seconds"] + report.duration, 3)
        if report.failed:
            part["outcome"] = "failed"
            part["text"] = (part.get("text", "") + report.longreprtext)[-LONGEST:]
        elif report.skipped and part["outcome"] == "passed":
            part["outcome"] = "skipped"
            part["why"] = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        # A failure at once, and once more at the end. (The report of one that took its process with it is the
        # only one, of a phase with a name of its own.)
        if report.failed or report.when not in ("setup", "call"):
            self._write(part)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write({"test": report.nodeid, "outcome": "failed", "seconds": 0.0,
                         "text": report.longreprtext[-LONGEST:]})  # fmt: skip
