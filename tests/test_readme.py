"""The README fits two screens, its table is that of the committed results, its commands are the Makefile's."""

from __future__ import annotations

import re
from pathlib import Path

from flexkern.benchmarks import record, tables
from helpers.pages import blocks

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def test_size() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 130  # two screens, and the table
    assert len(re.findall(r"^\| --- \|", text, re.MULTILINE)) == 2  # speed, and where to go next
    for block in blocks("README.md", "python"):
        assert len([line for line in block.splitlines() if line]) <= 18


def test_commands() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in ("demo", "test"):
        assert command in targets
        assert re.search(rf"^    make {command} +# .*\bminutes\b", README.read_text(), re.MULTILINE)


def test_no_number_is_inverted() -> None:
    """A figure that is met reads as more than 1, whatever was divided by what."""
    rows = re.findall(r"\*\*([\d.]+) times as (?:fast|long)\*\*", README.read_text())
    assert len(rows) >= 6
    assert all(float(figure) >= 1 for figure in rows)


def test_table_is_that_of_the_results_file() -> None:
    runs = record.newest(ROOT / "benchmarks" / "results")
    assert tables.with_table(README.read_text(), runs) == README.read_text()
    assert (ROOT / "docs" / "results" / "benchmarks" / "README.md").read_text() == tables.page(runs)
