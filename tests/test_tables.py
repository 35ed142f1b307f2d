"""docs/operators.md is what flexkern/spec says."""

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


def test_the_page_is_up_to_date(tables: ModuleType) -> None:
    assert (ROOT / "docs" / "operators.md").read_text() == tables.page(), "run `python scripts/tables.py`"


def test_every_public_function_has_one_line(tables: ModuleType) -> None:
    public = sorted(name for name in ops.__all__ if inspect.isfunction(getattr(ops, name)))
    assert sorted(line.name for line in tables.lines()) == public
    assert all(line.does for line in tables.lines())


def test_functions_that_call_an_operator_of_another_name_say_which(tables: ModuleType) -> None:
    assert set(tables.CALLS) <= set(ops.__all__)
    assert set(tables.CALLS.values()) <= set(SPECS)


def test_every_public_function_has_an_equation(tables: ModuleType) -> None:
    assert set(tables.EQUATIONS) == {line.name for line in tables.lines()}


@pytest.mark.parametrize(
    ("function", "call", "moved"),
    [  # those of docs/design.md, What bounds each kernel
        ("metaplastic_sgd_", "f and a stored", 20),
        ("metaplastic_sgd_", "f procedural", 16),
        ("metaplastic_sgd_", "f and a procedural", 12),
        ("gated_sgd_", "alpha stored", 16),
        ("metaplastic_adamw_", "f and a stored", 20 + 16),
        ("scale_displacement_", "f and a stored", 20),
        ("gated_displacement_", "alpha stored", 16),
        ("linear_step_", "f and a procedural", 8),
    ],
)
def test_bytes_are_counted_from_the_declarations(
    tables: ModuleType, function: str, call: str, moved: int
) -> None:
    line = next(line for line in tables.lines() if line.name == function)
    assert tables.moved(line.spec, tables.usual_calls(line)[call]) == moved


def test_every_argument_is_described_somewhere(tables: ModuleType) -> None:
    for line in tables.lines():
        section, function = tables.section(line), getattr(ops, line.name)
        described = section + (inspect.getdoc(function) or "")
        for name, parameter in inspect.signature(function).parameters.items():
            known = f"`{name}`" in section or name in described.partition("Args:")[2]
            refers = "The other arguments" in described or "all else as in" in described
            assert known or refers or parameter.kind is parameter.VAR_KEYWORD, (line.name, name)


def test_every_section_says_it_all(tables: ModuleType) -> None:
    for line in tables.lines():
        section = tables.section(line)
        for fact in ("**Backends**", "**Determinism**", "**Raises**", "| argument |", "```text"):
            assert fact in section, (line.name, fact)
        assert line.spec is None or "**Bytes moved**" in section, line.name
