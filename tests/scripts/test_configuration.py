"""docs/configuration.md is what the models of a configuration say."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from helpers.scripts import load_file

pytest.importorskip("pydantic")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def configuration() -> ModuleType:
    return load_file(ROOT / "scripts" / "configuration.py")


def test_the_page_is_up_to_date(configuration: ModuleType) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == configuration.page(), "run `python scripts/configuration.py`"


def test_every_key_has_a_type_and_a_meaning(configuration: ModuleType) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", configuration.page(), re.M)
    keys = [name for name, what, _, meaning in rows if what and meaning]
    assert not [name for name, what, _, meaning in rows if not (what and meaning)]
    assert {"increment", "order", "gate", "rank", "ridge", "theta", "source", "epochs"} <= set(keys)
    assert "a value" not in {what for _, what, _, _ in rows}


def test_the_example_is_a_configuration(configuration: ModuleType, tmp_path: Path) -> None:
    from flexkern.runs.incremental.config import read_config

    (tmp_path / "both.toml").write_text(f"{configuration.EXAMPLE}\n{configuration.PERCEPTRONS}")
    assert len(read_config(tmp_path / "both.toml").methods) == 4
    (tmp_path / "example.toml").write_text(configuration.EXAMPLE)
    assert [method.method for method in read_config(tmp_path / "example.toml").methods] == [
        "artsy",
        "simplecil",
    ]
