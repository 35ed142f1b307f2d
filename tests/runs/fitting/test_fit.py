"""A folder of photographs as people have them is learned, and named in another process."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexkern.learners import load_learner
from flexkern.learners.checkpoint import read, read_record
from flexkern.runs.fitting.fit_config import FitConfig
from flexkern.runs.fitting.run import Event, fit
from flexkern.runs.folder import claim_file
from helpers.commands import invoke
from helpers.photographs import KINDS, MOTIFS, TASKS, draw, save, write_folder
from helpers.timm_models import import_timm

CLASSES = [name for task in TASKS for name in task]


def in_words(text: str) -> str:
    """Without the line ends that a terminal's width makes."""
    return " ".join(text.split())


def named_rightly(model: Path, folder: Path, before: str = "pass") -> dict[str, bool]:
    """New photographs, one of each motif and kind, named by another process in another working directory.

    before: what that process runs first.
    """
    rng = np.random.default_rng(7)
    truth = {}
    for motif in MOTIFS:
        for kind in KINDS:
            truth[str(save(draw(motif, rng), kind, folder / f"{kind} {motif}"))] = motif
    start = f"{before}; from flexkern.__main__ import main; main()"
    lines = subprocess.run(
        [sys.executable, "-c", start, "predict", str(model), str(folder)],
        cwd=folder, check=True, capture_output=True, text=True, encoding="utf-8", timeout=240,
        env=os.environ | {"PYTHONUTF8": "1", "PYTHONPATH": os.pathsep.join(["", *sys.path])},
    ).stdout.splitlines()  # fmt: skip
    answers = dict(line.split("\t")[:2] for line in lines)
    assert sorted(answers) == sorted(truth)
    return {path: answers[path] == name for path, name in truth.items()}


def test_photographs_of_all_kinds_are_named_in_another_process(fitted: Any, tmp_path: Path) -> None:
    said, model, results = fitted
    assert "6 classes in 3 tasks" in said.output
    assert "broken.jpg" in said.output
    assert "drawing.svg" in said.output
    assert [task["classes"] for task in results["tasks"]] == [list(task) for task in TASKS]
    assert results["finished"]
    assert results["tasks"][-1]["seen"] > 0.8
    assert load_learner(model).class_names == CLASSES
    right = named_rightly(model, tmp_path)
    wrong = [Path(path).name for path, is_right in right.items() if not is_right]
    assert len(wrong) <= 7, wrong  # of 72
    assert max(Counter(name.split()[0] for name in wrong).values(), default=0) <= 2, (
        wrong
    )  # no kind is read wrongly


@pytest.mark.slow
def test_the_same_with_a_local_folder_of_timm(photographs: Path, tasks: Path, tmp_path: Path) -> None:
    """By the method that is taken where none is named."""
    timm = import_timm()  # skips where it is not installed
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=0)
    timm.models.save_for_hf(network, tmp_path / "timm", safe_serialization=True)
    (tmp_path / "new").mkdir()
    model = tmp_path / "model.safetensors"
    options = "--tasks", tasks, "--broken", "skip", "--epochs", "10"
    said = invoke("fit", photographs, "--backbone", tmp_path / "timm", *options, "--out", model)
    assert said.exit_code == 0, said.output
    assert read_record(model)["method"] == "artsy"
    first = "from helpers.timm_models import import_timm; import_timm()"
    right = named_rightly(model, tmp_path / "new", first)
    assert sum(right.values()) / len(right) > 0.8


# ----------------------------------------------------------------- stopped, again, and more


class StopError(Exception):
    """As Ctrl-C would."""


def config(photographs: Path, out: Path, **changes: Any) -> FitConfig:
    values: dict[str, Any] = {
        "folder": str(photographs), "out": str(out), "backbone": "small", "broken": "skip", "epochs": 2,
        "increment": 3, "workers": 0, "method": "ease",
    }  # fmt: skip
    return FitConfig(**(values | changes))


@pytest.fixture(scope="module")
def whole(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole") / "model.safetensors"
    return out, fit(config(photographs, out))


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(record))
    for task in plain["tasks"]:
        del task["learn_seconds"], task["test_seconds"]
    return plain


def same_tensors(a: Path, b: Path) -> bool:
    first, second = read(a)[0], read(b)[0]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "moment", ["epoch 1 of task 0", "images of task 1", "task 0 is tested", "task 1 is tested"]
)
def test_a_fit_that_is_stopped_goes_on_to_the_same_bits(
    moment: str, whole: tuple[Path, dict[str, Any]], photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.safetensors"

    def stop(event: Event) -> None:
        if event.kind == "epoch":
            here = f"epoch {event.epoch} of task {event.task}"
        else:
            here = (
                f"images of task {event.task}" if event.doing == "training" else f"task {event.task} is tested"
            )
        if (
            event.kind in ("epoch", "images", "task")
            and here == moment
            and (event.kind != "images" or "images" in here)
        ):
            raise StopError

    with pytest.raises(StopError):
        fit(config(photographs, out), observe=stop)
    went_on = fit(config(photographs, out, workers=1))
    path, record = whole
    assert timeless(went_on) == timeless(record)
    assert same_tensors(out, path)
    check_lines(went_on, tmp_path)


def check_lines(record: dict[str, Any], folder: Path) -> None:
    """What lies beside the model says each task once, as the record does."""
    rows = list(csv.DictReader((folder / "model.results.csv").read_text().splitlines()))
    assert [(r["seed"], r["method"], r["task"]) for r in rows] == [("0", "ease", "0"), ("0", "ease", "1")]
    events = [json.loads(line) for line in (folder / "model.events.jsonl").read_text().splitlines()]
    assert (events[0]["event"], events[-1]["event"]) == ("began", "ended")
    assert events[0]["configuration"]["tasks"] == record["planned"]
    of_tasks = [event for event in events if event["event"] == "task"]
    for row, event, task in zip(rows, of_tasks, record["tasks"], strict=True):
        assert float(row["seen"]) == event["seen"] == task["seen"]
        assert event["accuracies"] == task["accuracies"]
        assert event["classes"] == task["classes"]
        assert float(row["learn_seconds"]) == event["seconds"] == task["learn_seconds"]


def test_what_does_not_fit_into_memory_is_learned_to_the_same_bits(
    whole: tuple[Path, dict[str, Any]], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexkern.runs.fitting.run.MOST_TRAIN", 0)
    monkeypatch.setattr("flexkern.runs.fitting.run.MOST_TEST", 0)
    doing = []
    out = tmp_path / "model.safetensors"
    record = fit(config(photographs, out), observe=lambda event: doing.append(event.doing))
    assert "training" in doing
    assert "reading" not in doing
    path, expected = whole
    assert timeless(record) == timeless(expected)
    assert same_tensors(out, path)


def test_what_has_ended_is_left_as_it_is(whole: tuple[Path, dict[str, Any]], photographs: Path) -> None:
    out, record = whole
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    assert fit(config(photographs, out)) == record
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
    assert sorted(before) == ["model.events.jsonl", "model.results.csv", out.name]  # no lock, no temporary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, "is of another fit .*epochs was 2, is 3"),
        ({"increment": 2}, "is of a fit of other tasks"),
        ({"seed": 1}, "is of another fit .*seed was 0, is 1"),
        ({"backbone": "RANDOM"}, "not the one that this learner was made with"),
    ],
)
def test_another_fit_is_refused(
    changes: dict[str, Any], message: str, whole: tuple[Path, dict[str, Any]], photographs: Path, tmp_path: Path
) -> None:
    if "backbone" in changes:
        from flexkern.backbones import random_backbone

        random_backbone("small").save_pretrained(tmp_path / "random")
        changes = {"backbone": str(tmp_path / "random")}
    out, _ = whole
    before = out.read_bytes()
    with pytest.raises(ValueError, match=message):
        fit(config(photographs, out, **changes))
    assert out.read_bytes() == before


def test_other_images_are_refused_and_restart_discards(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    folder = write_folder(tmp_path / "photographs", ("zebra", "blinds"), seed=1)
    fit(config(folder, out, increment=1, method="simplecil"))
    next((folder / "zebra").glob("jpeg*")).unlink()
    with pytest.raises(ValueError, match="is of a fit of other images"):
        fit(config(folder, out, increment=1, method="simplecil"))
    assert len(fit(config(folder, out, increment=2, method="simplecil"), restart=True)["tasks"]) == 1
    assert len((tmp_path / "model.results.csv").read_text().splitlines()) == 2
    out.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is there, and no learner"):
        fit(config(folder, out))
    assert out.read_bytes() == b"something else"


def test_classes_are_learned_on_top_of_a_model(
    whole: tuple[Path, dict[str, Any]], photographs: Path, tmp_path: Path
) -> None:
    start, _ = whole
    folder = write_folder(tmp_path / "more", ("zebra",), seed=3)
    (folder / "zebra").rename(folder / "piano")
    (folder / "cushion").mkdir()
    for motif in range(6):
        save(draw("red ball", np.random.default_rng(motif)), "jpeg", folder / "cushion" / f"{motif}")
    out = tmp_path / "model.safetensors"
    options = "--epochs", "1", "--broken", "skip", "--json", tmp_path / "results.json"
    said = invoke("fit", folder, "--from", start, "--out", out, "--earlier", photographs, *options)
    assert said.exit_code == 0, said.output
    (task,) = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert 1 / 8 < task["earlier"] <= 1
    tested = task["images"]["test"], whole[1]["images"]["test"]
    assert task["seen"] == pytest.approx(np.average([task["accuracies"][0], task["earlier"]], weights=tested))
    assert "the model knows 6 classes already" in in_words(said.output)
    learner = load_learner(out)
    assert learner.class_names == [*sorted(MOTIFS), "cushion", "piano"]
    assert learner.items_learned == 3
    again = invoke(
        "fit", photographs, "--from", out, "--out", tmp_path / "twice.safetensors", "--broken", "skip"
    )
    assert again.exit_code == 1
    assert "the learner knows 'Grüne Wiese', 'blinds', 'chessboard' and 3 more already" in in_words(
        again.output
    )
    assert not (tmp_path / "twice.safetensors").exists()


def test_a_file_is_one_fits(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    with claim_file(out):
        said = invoke("fit", photographs, "--backbone", "small", "--out", out)
    assert said.exit_code == 75, said.output
    assert "is in use by another run" in in_words(said.output)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "backbone is needed"),
        (["--backbone", "small", "--earlier", "."], "earlier is for a learner that goes on"),
        (["--backbone", "smal"], "there is no folder at 'smal'"),
        (["--backbone", "small", "--increment", "9"], "increment is 9, and there are 6 classes"),
        (["--backbone", "small", "--increment", "0"], "increment must be at least 1"),
        (
            ["--backbone", "small", "--increment", "2", "--tasks", "tasks.txt"],
            "tasks and increment exclude each other",
        ),
        (["--backbone", "small", "--tasks", "none.txt"], "there is no file 'none.txt'"),
        (["--backbone", "small", "--tasks", "wrong.txt"], "there is no class 'zbra'; did you mean 'zebra'?"),
        (["--backbone", "small", "--method", "artsi"], "did you mean 'artsy'?"),
        (["--backbone", "small", "--test-share", "1"], "test_share must be in (0, 1)"),
        (["--backbone", "small", "--device", "gpu"], "device must be auto, cpu, cuda"),
        (["--backbone", "small", "--from", "m.safetensors"], "from: there is no file 'm.safetensors'"),
        (["--backbone", "small", "--json", "tasks.txt/results.json"], "is no folder"),
        (["--backbone", "small"], "with --broken skip"),  # without --broken skip
        (["--backbone", "small", "--background", "pink"], "must be white, black, grey or R,G,B"),
        (["--backbone", "small", "--order", "random"], "must be 'names', or the seed"),
        (["--backbone", "small", "--image-size", "7"], "image_size"),
    ],
)
def test_mistakes_are_found_before_anything_is_learned(
    arguments: list[str], message: str, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.txt").write_text("red ball, zbra\n")
    (tmp_path / "tasks.txt").write_text("red ball, zebra\n")
    monkeypatch.setattr("flexkern.learners.Learner.learn", lambda *_, **__: pytest.fail("it learns"))
    said = invoke("fit", photographs, "--out", "model.safetensors", *arguments)
    assert said.exit_code in (1, 2), said.output
    assert message in in_words(said.output.replace("│", " "))
    assert "Traceback" not in said.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tasks.txt", "wrong.txt"]


@pytest.mark.parametrize("options", [{"increment": 7}, {"increment": None, "tasks": "wrong.txt"}])
def test_names_are_looked_at_before_the_images(
    options: dict[str, Any], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.txt").write_text("red ball, zbra\n")
    monkeypatch.setattr("flexkern.runs.fitting.preparing.open_images", lambda *_, **__: pytest.fail("it looks"))
    with pytest.raises(ValueError, match=r"there are 6 classes|did you mean 'zebra'"):
        fit(config(photographs, tmp_path / "model.safetensors", **options))


@pytest.mark.parametrize(
    "kind", ["nothing", "file", "empty", "empty classes", "one image", "no folder for out"]
)
def test_folders_that_cannot_be_learned(kind: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "photographs", tmp_path / "model.safetensors"
    message = {
        "nothing": "there is nothing at", "file": "photographs", "empty": "must hold one folder a class",
        "empty classes": "holds no images", "one image": "needs at least 2 images to be split, it has 1",
        "no folder for out": "there is no folder",
    }[kind]  # fmt: skip
    if kind == "file":
        folder.write_text("no images")
    elif kind != "nothing":
        folder.mkdir()
    if kind in ("empty classes", "one image", "no folder for out"):
        (folder / "zebra").mkdir()
    if kind == "one image":
        save(draw("zebra", np.random.default_rng(0)), "jpeg", folder / "zebra" / "0")
    if kind == "no folder for out":
        out = tmp_path / "models" / "model.safetensors"
    said = invoke("fit", folder, "--backbone", "small", "--out", out)
    assert said.exit_code == 1, said.output
    assert message in in_words(said.output)
    assert not out.exists()


def test_too_few_images_for_the_gate_are_found_before_the_first_task(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for motif, count in (("blinds", 8), ("zebra", 2)):
        (tmp_path / "photographs" / motif).mkdir(parents=True)
        for i in range(count):
            save(draw(motif, rng), "jpeg", tmp_path / "photographs" / motif / str(i))
    out = tmp_path / "model.safetensors"
    said = invoke("fit", tmp_path / "photographs", "--backbone", "small", "--increment", "1", "--out", out)
    assert said.exit_code == 1, said.output
    assert "'zebra' cannot be learned" in in_words(said.output)
    assert not out.exists()
    ranpac = invoke(
        "fit", tmp_path / "photographs", "--backbone", "small", "--increment", "1", "--out", out,
        "--method", "simplecil",
    )  # fmt: skip
    assert ranpac.exit_code == 0, ranpac.output
