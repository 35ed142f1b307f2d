"""``flexkern fit`` under torchrun: one process writes and speaks, a dead one ends the job, and others go on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexkern.learners.checkpoint import read, read_notes
from helpers.commands import invoke
from helpers.groups import needs_gloo

pytest.importorskip("typer")
pytest.importorskip("transformers")
image = pytest.importorskip("PIL.Image")

pytestmark = [needs_gloo, pytest.mark.slow]

# The last process dies in its second epoch of the second task.
_COMMAND = """
import os, sys
from flexkern.learners.vit.training import Training
from flexkern.__main__ import main
epoch, taken = Training.epoch, []
def dying(self, images, labels):
    taken.append(len(labels))
    if os.environ.get("RANK") == os.environ.get("DIES") and len(taken) == 4:
        os._exit(9)
    return epoch(self, images, labels)
Training.epoch = dying
sys.argv[0] = "flexkern"
main()
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of noise around a colour, in a folder each."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number, name in enumerate(("ant", "bee", "cat", "dog")):
        (folder / name).mkdir()
        for i in range(12):
            pixels = rng.normal((60 * number, 200 - 50 * number, 90), 30, (32, 32, 3)).clip(0, 255)
            image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def arguments(photographs: Path, out: Path) -> list[str]:
    return [
        "fit", str(photographs), "--increment", "2", "--epochs", "2", "--method", "ease", "--device", "cpu",
        "--workers", "0", "--backbone", "small", "--out", str(out),
    ]  # fmt: skip


def by_torchrun(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    script = folder / "command.py"
    script.write_text(_COMMAND)
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, *command],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environment,
        cwd=folder, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


@pytest.fixture(scope="module")
def died(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("died")
    begun = time.monotonic()
    said = by_torchrun(arguments(photographs, folder / "model.safetensors"), folder, DIES="1")
    return {"said": said, "folder": folder, "seconds": time.monotonic() - begun}


def test_one_speaks_and_a_dead_process_ends_the_job(died: dict[str, Any]) -> None:
    said = died["said"]
    assert said.returncode != 0
    assert said.stdout.count("4 classes in 2 tasks") == 1  # one process speaks
    assert said.stdout.count("task 1 of 2") == 1
    assert re.search(r"rank *: *1 ", said.stderr)  # torchrun names the one that died
    assert re.search(r"exitcode *: *9", said.stderr)
    assert "the same command goes on from the last epoch" in said.stderr  # the other one does
    assert died["seconds"] < 240  # on a busy machine; it is a few seconds beside the start of the processes


def test_one_process_goes_on_from_it(died: dict[str, Any], photographs: Path, tmp_path: Path) -> None:
    model = died["folder"] / "model.safetensors"
    assert not [path for path in died["folder"].iterdir() if "tmp" in path.name or "lock" in path.name]
    note = read_notes(model)["fit"]
    assert len(note["tasks"]) == 1
    assert len(note["learning"]["losses"]) == 1  # an epoch of the second task
    whole = tmp_path / "whole.safetensors"
    for out in (model, whole):
        said = invoke(*arguments(photographs, out))
        assert said.exit_code == 0, said.output
    of_two, of_one = (read_notes(path)["fit"] for path in (model, whole))
    for task, alone in zip(of_two["tasks"], of_one["tasks"], strict=True):
        assert task["losses"] == pytest.approx(alone["losses"], rel=1e-3)
        assert task["accuracies"] == pytest.approx(alone["accuracies"])
    tensors, expected = read(model)[0], read(whole)[0]
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name], value, rtol=1e-3, atol=1e-3)


def test_a_lost_connection_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Where nobody ends the others, as torchrun does, they hear of it by their connections."""
    import typer

    from flexkern.cli.terminal import explained

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(typer.Exit), explained("flexkern fit"):
        raise RuntimeError("[pair.cc:552] Connection closed by peer [127.0.0.1]:1234")
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(
        "flexkern fit, process 0 of 2: another process has ended; given again, the same command"
    )


def test_commands_that_share_nothing_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    for command in (("demo",), ("run", "serial-position")):
        said = invoke(*command, "--out", str(tmp_path / "out"))
        assert said.exit_code == 1
        assert "does not share its work: each of the 2 processes" in " ".join(said.output.split())
    assert not (tmp_path / "out").exists()
