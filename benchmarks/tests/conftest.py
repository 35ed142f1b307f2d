"""``pytest benchmarks/``: the cases of the registry under pytest-benchmark."""

from __future__ import annotations

import os

from flexkern.benchmarks.machine import HUGE_PAGES

os.environ.setdefault(HUGE_PAGES, "1")  # before torch allocates

from typing import Any

import pytest

from flexkern.benchmarks.tables import heading, row_lines

ROWS: list[dict[str, Any]] = []


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Where a test puts its row, for the summary."""
    return ROWS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if ROWS:
        terminalreporter.section("ours and peers in one run")
        for line in [heading(), *(line for row in ROWS for line in row_lines(row))]:
            terminalreporter.write_line(line)
