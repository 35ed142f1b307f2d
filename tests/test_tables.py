"""The tables of the operators in README.md and docs/operators.md are those of flexkern/spec."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import pytest

from flexkern import ops
from flexkern.spec import SPECS
from helpers.scripts import load_file

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load_file(ROOT / "scripts" / "tables.py")


def test_files_are_up_to_date(tables: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()
    assert tables.with_table(readme) == readme, "run `python scripts/tables.py`"
    assert (ROOT / "docs" / "operators.md").read_text() == tables.page(), "run `python scripts/tables.py`"


def test_every_public_function_has_one_line(tables: ModuleType) -> None:
    public = sorted(name for name in ops.__all__ if inspect.isfunction(getattr(ops, name)))
    assert sorted(line.name for line in tables.lines()) == public
    assert all(line.does for line in tables.lines())


def test_functions_that_call_an_operator_of_another_name_say_which(tables: ModuleType) -> None:
    assert set(tables.CALLS) <= set(ops.__all__)
    assert set(tables.CALLS.values()) <= set(SPECS)


def test_a_readme_without_a_place_for_the_table_is_refused(tables: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"README\.md has no <!-- operators -->"):
        tables.with_table("# flexkern\n")
