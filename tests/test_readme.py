"""The README's code runs as it stands, and its table is the one of the committed results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flexkern.benchmarks import record, tables

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["optimizer", "other optimizers", "silent", "learner", "artsy"])
def test_code(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len([line for line in block.splitlines() if line]) <= 18
    exec(compile(block, "README.md", "exec"), {})


def test_table_is_that_of_the_results_file() -> None:
    runs = record.newest(ROOT / "benchmarks" / "results")
    assert tables.with_table(README.read_text(), runs) == README.read_text()
    assert (ROOT / "docs" / "results" / "benchmarks" / "README.md").read_text() == tables.page(runs)


def test_pictures_and_pages_exist() -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README.read_text()):
        assert (ROOT / link).exists(), link
