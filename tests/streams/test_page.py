"""docs/streams.md: its code runs, its configurations are taken, and it says who learns what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("sklearn")

from flexkern.learners import METHODS, MLP_METHODS
from flexkern.runs.incremental.config import read_config
from flexkern.streams.base import SCENARIOS
from flexkern.streams.looks import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "streams.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_code() -> None:
    pytest.importorskip("transformers")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), "docs/streams.md", "exec"), {"__name__": "__main__"})


def test_configurations(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        path = tmp_path / "c.toml"
        path.write_text(block + '[[methods]]\nname = "A"\nmethod = "simplecil"\n')
        assert read_config(path).stream.kind in SCENARIOS


def test_every_scenario_and_look_is_named() -> None:
    for scenario in SCENARIOS:
        assert f"| `{scenario}` |" in PAGE
    for kind in KINDS:
        assert re.search(rf"\b{kind}\b", PAGE)


@pytest.mark.parametrize(("family", "methods"), [("a transformer", METHODS), ("a perceptron", MLP_METHODS)])
def test_it_says_who_learns_what(family: str, methods: dict[str, Any]) -> None:
    rows = re.findall(rf"^\| on {family}: (.*)\| (yes|no) \| yes \|$", PAGE, re.MULTILINE)
    told = {name: online for names, online in rows for name in re.findall(r"`([\w-]+)`", names)}
    assert set(told) <= set(methods)
    for name, online in told.items():
        assert ("online" in methods[name].takes) == (online == "yes"), name
        assert {"domain-incremental", "blurry", "class-repetition"} <= set(methods[name].takes)
    if methods is METHODS:
        assert set(told) == set(methods)


def test_links() -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
