"""The examples run as they stand, and the snippets of docs/integrations.md do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from helpers.scripts import load_file

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "integrations.md").read_text(), re.DOTALL)
FRAMEWORKS = ("accelerate", "lightning", "avalanche.training")


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return load_file(ROOT / "examples" / f"{name}.py")


def has(framework: str) -> None:
    pytest.importorskip(framework, reason=f"{framework} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "framework"),
    list(zip(("trainer_vit", "lightning_digits", "avalanche_digits"), FRAMEWORKS, strict=True)),
)
def test_example(
    name: str, framework: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(framework)
    rows = example(name, monkeypatch).main()
    if name != "trainer_vit":  # which says why not
        means = {optimizer: sum(values) / len(values) for optimizer, values in rows.items()}
        assert means["MetaplasticSGD"] > means["SGD"]
    assert re.search(r"^MetaplasticSGD( +[01]\.\d\d){6}$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("block", "framework"), list(zip(BLOCKS, FRAMEWORKS, strict=True)), ids=FRAMEWORKS)
def test_snippet(block: str, framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(framework)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(block, "integrations.md", "exec"), scope)
    if framework != "avalanche.training":  # there nothing is trained
        assert scope["optimizer" if framework == "accelerate" else "learner"] is not None
        optimizer = scope["optimizer"] if framework == "accelerate" else scope["learner"].optimizer
        assert all(scale > 0 for scale in optimizer.scales())  # "auto" is measured by the first consolidate()
