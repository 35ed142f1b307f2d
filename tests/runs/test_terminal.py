"""What commands print, in a terminal and in a file."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("typer")
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flexkern.cli.terminal import Console

NUMBERS = "82.32 ± 4.18"


def _shown(columns: int, **options: object) -> str:
    table = Table(box=SIMPLE_HEAD)
    for k in range(columns):
        table.add_column(f"column {k}", no_wrap=True)
    table.add_row(*[NUMBERS] * columns)
    console = Console(file=io.StringIO(), **options)  # type: ignore[arg-type]
    console.print("before", table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_in_a_file_a_table_is_as_wide_as_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert _shown(12).count(NUMBERS) == 12
    assert max(map(len, _shown(2).splitlines())) <= 80


def test_a_terminal_and_who_says_how_wide_it_is_have_that_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert "…" in _shown(12, force_terminal=True, width=80, color_system=None)
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, _shown(12).splitlines())) <= 80
