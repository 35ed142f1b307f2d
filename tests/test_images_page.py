"""docs/images.md: what it says to type works, in that order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from helpers.commands import invoke
from helpers.photographs import draw, save, write_folder

pytest.importorskip("typer")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "images.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHELL = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the page speaks of."""
    write_folder(tmp_path / "photos", ("red ball", "zebra", "blinds"))
    rng = np.random.default_rng(1)
    for name in ("more/night", "more/meadow", "flat"):
        (tmp_path / name).mkdir(parents=True)
    for i in range(10):
        save(draw("night, clear", rng), "jpeg", tmp_path / "more" / "night" / f"{i}")
        save(draw("Grüne Wiese", rng), "webp", tmp_path / "more" / "meadow" / f"{i}")
    save(draw("zebra", rng), "jpeg", tmp_path / "new")
    save(draw("red ball", rng), "transparent", tmp_path / "other")
    for i in range(2):
        save(draw("zebra", rng), "palette", tmp_path / "flat" / f"{i}")
    (file,) = re.findall(r"\n    (red ball, .*\n    .*)\n", PAGE)
    (tmp_path / "tasks.txt").write_text(file.replace("\n    ", "\n") + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_commands(here: Path) -> None:
    assert len(SHELL) >= 4
    for line in SHELL:
        command, *arguments = shlex.split(line)
        assert command == "flexkern"
        said = invoke(*arguments)
        assert said.exit_code == 0, f"{line}\n{said.output}"
    assert "zebra" in invoke("predict", "four.safetensors", "new.jpg").stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*left out")
def test_code(here: Path) -> None:
    for block in PYTHON:
        exec(compile(block, "docs/images.md", "exec"), {"__name__": "__main__"})


def test_links() -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
