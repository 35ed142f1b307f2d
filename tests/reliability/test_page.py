"""docs/reliability.md says what was counted, and names tests that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from fuzz.harness import find
from helpers.scripts import load_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_file(ROOT / "scripts" / "reliability.py")


def test_the_tables_are_those_of_the_results(script: ModuleType) -> None:
    page = script.PAGE.read_text()
    assert page == script.with_tables(page), "run `python scripts/reliability.py --tables`"


def test_the_counts_are_full_and_without_faults(script: ModuleType) -> None:
    kills = json.loads((script.RESULTS / "kills.json").read_text())
    assert sum(kills["kills"].values()) >= 1000
    assert not kills["faults"]


def test_the_streams_are_full_and_without_faults(script: ModuleType) -> None:
    soak = json.loads((script.RESULTS / "soak.json").read_text())
    assert {series["items"][-1] for series in soak["series"].values()} == {10_000, 500}
    assert not soak["faults"]


def test_the_random_cases_are_a_million_and_without_faults(script: ModuleType) -> None:
    fuzz = json.loads((script.RESULTS / "fuzz.json").read_text())
    assert fuzz["cases"] == sum(one["cases"] for one in fuzz["fuzzers"].values()) >= 1_000_000
    assert set(fuzz["fuzzers"]) == set(find()) - {"planted"}
    assert not any(one["faults"] for one in fuzz["fuzzers"].values())


def test_a_page_without_a_place_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"reliability\.md has no <!-- fuzz -->"):
        script.with_tables("# Reliability\n")


def test_every_test_that_it_names_is_there(script: ModuleType) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", script.PAGE.read_text())
    assert len(named) > 10
    for path, function in named:
        assert (ROOT / path).exists(), path
        assert not function or f"def {function}(" in (ROOT / path).read_text(), f"{path}::{function}"
