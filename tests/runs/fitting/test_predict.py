"""Answers about files: tables, CSV, JSON, pipes, and what cannot be read."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.commands import invoke
from helpers.photographs import draw, save


@pytest.fixture(scope="module")
def model(fitted: Any) -> Path:
    return fitted[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two photographs, one that is broken, and a hidden one; the working directory."""
    rng = np.random.default_rng(5)
    save(draw("zebra", rng), "jpeg", tmp_path / "a, b")
    save(draw("Grüne Wiese", rng), "transparent", tmp_path / "ü")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "plan.svg").write_text("<svg/>")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_in_a_pipe_a_line_for_each_file(model: Path, folder: Path) -> None:
    said = invoke("predict", model, "a, b.jpg", "ü.png")
    assert said.exit_code == 0, said.output
    lines = [line.split("\t") for line in said.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["a, b.jpg", "zebra"], ["ü.png", "Grüne Wiese"]]
    assert all(1 / 6 < float(line[2]) <= 1 for line in lines)


def test_broken_files_are_named_when_all_others_are_answered(model: Path, folder: Path) -> None:
    said = invoke("predict", model, "broken.png", "none.jpg", ".")
    assert said.exit_code == 1
    assert [Path(line.split("\t")[0]).name for line in said.stdout.splitlines()] == ["a, b.jpg", "ü.png"]
    assert said.stderr.count("broken.png") == 2
    assert "'none.jpg': there is no such file" in said.stderr
    assert "3 of 5 files could not be read" in said.stderr
    assert "a file is left out, as it cannot be read: ./plan.svg" in said.stderr
    assert ".hidden" not in said.output
    assert invoke("predict", model, "broken.png", "ü.png", "--skip-broken").exit_code == 0


def test_csv_and_json(model: Path, folder: Path) -> None:
    said = invoke("predict", model, ".", "--csv", "--top", "2", "--skip-broken")
    rows = list(csv.DictReader(io.StringIO(said.stdout)))
    first = next(row for row in rows if row["file"].endswith("a, b.jpg"))
    assert (first["rank"], first["name"]) == ("1", "zebra")
    assert [row["rank"] for row in rows] == ["1", "2"] * 2
    said = invoke("predict", model, "a, b.jpg", "broken.png", "--json", "--top", "99")
    assert said.exit_code == 1
    first, second = json.loads(said.stdout)
    assert first["file"] == "a, b.jpg"
    assert len(first["answers"]) == 6  # all there are
    assert sum(answer["probability"] for answer in first["answers"]) == pytest.approx(1, abs=1e-4)
    assert second["file"] == "broken.png"
    assert "error" in second
    assert json.loads(invoke("predict", model, "-", "--json", stdin="").stdout) == []


def test_patterns_and_standard_input(model: Path, folder: Path) -> None:
    assert invoke("predict", model, "*.jpg", "ü.*").stdout.count("\n") == 2
    assert invoke("predict", model, "-", stdin="a, b.jpg\r\n\nü.png").stdout.count("\n") == 2
    assert "there is no such file" in invoke("predict", model, "*.webp").stderr


def test_as_on_a_terminal(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flexkern.cli import predict

    monkeypatch.setattr(predict, "_is_terminal", lambda: True)
    first, second = invoke("predict", model, "ü.png", "--top", "2").stdout.splitlines()
    assert first.split("%")[1].split()[:2] == ["Grüne", "Wiese"]
    assert first.endswith("ü.png")
    assert "ü.png" not in second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.safetensors", "ü.png"], "no checkpoint at 'none.safetensors'"),
        (["ü.png", "ü.png"], "is not a checkpoint"),
        (["MODEL", "ü.png", "--json", "--csv"], "--json and --csv exclude each other"),
        (["MODEL", "ü.png", "--top", "0"], "top must be at least 1"),
        (["MODEL", "ü.png", "--device", "gpu"], "device must be auto, cpu, cuda"),
        (["MODEL"], "Missing argument"),
    ],
)
def test_mistakes(arguments: list[str], message: str, model: Path, folder: Path) -> None:
    said = invoke("predict", *(model if a == "MODEL" else a for a in arguments))
    assert said.exit_code in (1, 2)
    assert message in " ".join(said.output.replace("│", " ").split())
    assert said.stdout == ""


def test_a_backbone_that_has_moved_is_asked_for(folder: Path, photographs: Path, backbone: Path) -> None:
    here = folder / "vit"
    shutil.copytree(backbone, here)
    fit = ["fit", photographs, "--backbone", "vit", "--method", "simplecil", "--broken", "skip"]
    assert invoke(*fit, "--out", "m.safetensors").exit_code == 0
    here.rename(folder / "moved")
    said = invoke("predict", "m.safetensors", "ü.png")
    assert said.exit_code == 1
    assert "there is no folder at" in said.stderr
    assert "--backbone" in said.stderr
    assert invoke("predict", "m.safetensors", "ü.png", "--backbone", "moved").exit_code == 0
    from flexkern.backbones import random_backbone

    random_backbone("small").save_pretrained("vit")
    other = invoke("predict", "m.safetensors", "ü.png")
    assert other.exit_code == 1
    assert "not the one that this learner was made with" in " ".join(other.stderr.split())


def test_a_fit_that_has_not_ended_answers_and_says_so(model: Path, folder: Path) -> None:
    from flexkern.learners import load_learner
    from flexkern.learners.checkpoint import read_notes

    notes = read_notes(model)
    notes["fit"] |= {"finished": False, "tasks": notes["fit"]["tasks"][:2]}
    load_learner(model).save("partial.safetensors", notes=notes)
    said = invoke("predict", "partial.safetensors", "ü.png")
    assert said.exit_code == 0
    assert "has not ended: 2 of 3 tasks are learned" in said.stderr


def test_transparent_pixels_lie_on_what_they_lay_on_in_training(model: Path, folder: Path) -> None:
    from flexkern.learners import load_learner
    from flexkern.learners.checkpoint import read_notes

    notes = read_notes(model)
    notes["fit"]["configuration"]["background"] = [255, 0, 0]
    load_learner(model).save("red.safetensors", notes=notes)
    white, red = (invoke("predict", m, "ü.png", "--csv").stdout for m in (model, "red.safetensors"))
    assert white != red
    opaque = [invoke("predict", m, "a, b.jpg", "--csv").stdout for m in (model, "red.safetensors")]
    assert opaque[0] == opaque[1]


def test_what_takes_no_photographs(folder: Path) -> None:
    from flexkern.learners import MetaplasticMLP

    torch.manual_seed(0)
    MetaplasticMLP((4,), 2, widths=(8, 8)).save("mlp.safetensors")
    said = invoke("predict", "mlp.safetensors", "ü.png")
    assert said.exit_code == 1
    assert "holds a MetaplasticMLP, which takes no photographs" in " ".join(said.stderr.split())


def test_a_reader_that_goes_ends_it_without_a_word(model: Path, folder: Path) -> None:
    paths = "ü.png\n" * 3000
    command = f'"{sys.executable}" -m flexkern predict "{model}" - | head -n 1'
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], input=paths, capture_output=True, text=True, timeout=120,
        encoding="utf-8",
    )  # fmt: skip
    assert done.stdout.startswith("ü.png\tGrüne Wiese\t")
    assert done.stderr == ""
    assert done.returncode == 141
