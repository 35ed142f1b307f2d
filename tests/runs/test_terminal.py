"""What commands print, in a terminal and in a file."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

pytest.importorskip("typer")
from rich.box import SIMPLE_HEAD
from rich.progress import TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from flexkern.cli import terminal
from flexkern.cli.terminal import Console, progress_bar, say
from flexkern.runs.incremental.tables import task_table
from flexkern.runs.metaplasticity import tables

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


def test_a_bar_cuts_what_it_says_and_not_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(
        terminal, "console", Console(file=file, force_terminal=True, width=80, color_system=None)
    )
    with progress_bar(TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        bar.add_task("a method with a long name, [seed] 0, task 3 of 5: 95.2%, average 97.0%", total=3)
    line = next(line for line in file.getvalue().splitlines() if "a method" in line)
    assert "0:00:00 -:--:--" in line
    assert "a method with a long name, [seed] 0" in line
    assert "…" in line
    assert "average" not in line


def test_long_work_says_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    file, now = io.StringIO(), 1000.0
    monkeypatch.setattr(terminal, "console", Console(file=file))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    say("begun")
    for step in range(100):
        now += 1.5
        say(f"step {step}", seldom=True)
    assert file.getvalue().split() == ["begun", "step", "39", "step", "79"]


MEASURES = {
    key: {"mean": [0.123] * 10, "std": [0.045] * 10}
    for key in ("average_memory", "memorised", "gross_memory", "final")
}
NETWORKS = ("conventional", "hybrid", "stable")
RESULTS = {
    "experiment": "serial-position", "title": "A title", "seconds": 3.0,
    "configuration": {
        "options": {}, "data": "digits", "features": "random", "items": 10, "train_per_item": 5, "scale": 1.0,
        "test_per_item": 5, "epochs": 1, "batch_size": 2, "lr": 0.1, "width": 8, "seeds": [0, 1, 4],
    },
    "summary": {"measures": dict.fromkeys(NETWORKS, MEASURES), "longer": dict.fromkeys(NETWORKS, MEASURES)},
}  # fmt: skip


def test_tables_fit_80_columns_and_say_first_what_they_show() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    console.print(tables.table(RESULTS))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("12.3 ± 4.5") == 4 * len(NETWORKS)  # no number is broken
    assert "…" not in text
    assert text.index("accuracies in percent") < text.index("conventional")
    assert "3 seeds, 0,1,4," in " ".join(text.split())
    tasks = [
        {
            "task": i, "classes": 2 * i + 2, "seen": 1.0, "average": 1.0, "forgetting": 0.1,
            "accuracies": [0.98] * (i + 1),
            "report": {"open_rate": 0.5}, "memory_bytes": 2**24,
            "cost": {"learn_seconds": 123.4, "predict_seconds": 12.3, "learn_mib": 1234.0,
                     "predict_mib": 5.0, "resumed": 0},
        }
        for i in range(10)
    ]  # fmt: skip
    console.print(task_table({"method": "Artsy", "seed": 0, "tasks": tasks}))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any(line.endswith("98 .. 98 98 98") for line in map(str.rstrip, lines))


def test_no_encoding_and_no_backend_of_matplotlib_ends_a_command() -> None:
    program = (
        "import os, sys; sys.argv[1:] = ['--version']\n"
        "from flexkern import __main__ as command\n"
        "try: command.main()\n"
        "except SystemExit: pass\n"
        "import matplotlib.figure; print('± … ─ 1')"
    )
    given = {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "nothing"}
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=os.environ | given
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == "+- ... ? 1"
