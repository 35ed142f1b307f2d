"""A folder of photographs, learned in three tasks from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import invoke
from helpers.photographs import TASKS, write_folder

pytest.importorskip("typer")
pytest.importorskip("PIL")
pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("pictures") / "my photographs")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it: of the bundled network."""
    from flexkern.backbones import load_backbone

    folder = tmp_path_factory.mktemp("networks") / "a vit"
    load_backbone("small").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "tasks.txt"
    file.write_text("# two at a time\n" + "".join(", ".join(f'"{name}"' for name in t) + "\n" for t in TASKS))
    return file


@pytest.fixture(scope="session")
def fitted(photographs: Path, backbone: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the command said, the model, and the results."""
    folder = tmp_path_factory.mktemp("fitted")
    said = invoke(
        "fit", photographs, "--backbone", backbone, "--tasks", tasks, "--broken", "skip", "--epochs", "2",
        "--method", "ease",
        "--out", folder / "model.safetensors", "--json", folder / "results.json",
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    return said, folder / "model.safetensors", json.loads((folder / "results.json").read_text())
