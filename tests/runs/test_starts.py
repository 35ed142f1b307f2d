"""A start that fails says why at once, claims no folder and leaves everything as it was."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("typer")

from typer.testing import CliRunner

from flexkern.cli.app import app
from flexkern.files import check_writable
from flexkern.runs.incremental import run as incremental
from flexkern.runs.incremental.config import Config, DataConfig, MethodConfig, StreamConfig
from flexkern.runs.metaplasticity import items, runner
from flexkern.runs.metaplasticity.protocol import protocol_for
from flexkern.runs.metaplasticity.serial_position import SerialPosition
from flexkern.runs.start import path_given, usable_device
from helpers.incremental import LEARNERS, configuration
from helpers.memory_tiny import TINY

EXPERIMENTS = ("serial-position", "hebb-repetition", "poisoning", "learning-frequency",
               "flexibility-distribution", "rivals", "split-cifar100")  # fmt: skip


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No start here comes as far as images of a run, features or training."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(incremental, "load_images", refuse)
    monkeypatch.setattr(items, "extract_from", refuse)
    monkeypatch.setattr(runner, "_all", refuse)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "mnist.npz").write_bytes((tmp_path / "other.npz").read_bytes())
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    yield tmp_path
    assert sorted(p.name for p in tmp_path.iterdir()) == before, "a failed start left something"


def said(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert "Traceback" not in result.output
    assert not isinstance(result.exception, AssertionError), result.exception
    return result.exit_code, " ".join(result.output.replace("│", "").split())


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--device gpu", "device must be cpu, cuda or another that torch knows, got 'gpu'"),
        ("--device meta", "torch cannot compute on 'meta' here"),
        ("--data nothing.npz", "there is no 'nothing.npz'"),
        ("--data text.npz", "is not a NumPy archive"),
        ("--data other.npz", "has no "),
        ("--scale -1", "scale must be a number > 0 or 'auto'"),
        ("--scale x", "scale must be a number or 'auto', got 'x'"),
        ("--lr nan", "lr must be a finite number > 0"),
        ("--items 2", "items must be in [3, 45]"),
        ("--out text.npz", "no folder"),
        ("--out text.npz/deeper", "no folder"),
    ],
)
def test_an_experiment(name: str, options: str, message: str, here: Path) -> None:
    out = [] if "--out" in options else ["--out", "m0"]
    code, text = said("run", name, *options.split(), *out)
    assert code == 1
    assert message in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("split-cifar100", "data must be the path of the archive of CIFAR-100 (.npz)"),
        ("split-cifar100", "give it with --data PATH"),
        ("split-cifar100 --items 7 --data other.npz", "items must divide the 50 classes of the stream, got 7"),
        ("rivals --seeds 0-1", "seeds must be at least 3 of them"),
        ("rivals --ewc -1", "EWC, strength -1: strength must be in [0, 1e+30], got -1"),
        ("rivals --si nan", "SI, strength nan: strength must be "),
        ("rivals --memory 0", "replay of 0: memory must be at least 1, got 0"),
        ("serial-position --features text.npz", "is not a NumPy archive"),
        ("serial-position --train-per-item 100000000", "give only"),
        ("serial-position --cache text.npz", "no folder"),
    ],
)  # fmt: skip
def test_an_experiments_own(command: str, message: str, here: Path) -> None:
    code, text = said("run", *command.split(), "--out", "m0")
    assert code == 1
    assert message in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("digits --device gpu", "device must be auto, cpu, cuda or another that torch knows, got 'gpu'"),
        ("cifar100_b0_inc10 --device cpu", "needs the archive of the images: give it with --data PATH"),
        ("imagenet_r_b0_inc20 --device cpu", "needs the folder of the images: give it with --data PATH"),
        ("cifar100_b0_inc10 --device cpu --data text.npz", "is not a NumPy archive"),
        ("cifar100_b0_inc10 --device cpu --data .", "no image archive at '.'"),
        ("imagenet_r_b0_inc20 --device cpu --data text.npz", "data.path: no folder at 'text.npz'"),
        ("imagenet_r_b0_inc20 --device cpu --data=", "data must be a path, got ''"),
        ("bad.toml", "bad.toml: methods, entry 1: epochs must be a whole number, got 1.5"),
    ],
)  # fmt: skip
def test_a_class_incremental_run(options: str, message: str, here: Path) -> None:
    if "bad.toml" in options:
        (here / "bad.toml").write_text(
            '[data]\nkind = "digits"\n[stream]\nincrement = 2\n[[methods]]\nname = "A"\nmethod = "ease"\n'
            "epochs = 1.5\n"
        )
    code, text = said("run", "class-incremental", *options.split(), "--out", "m0")
    (here / "bad.toml").unlink(missing_ok=True)
    assert code == 1
    assert message in text


@pytest.mark.parametrize(
    "command",
    ["demo", "bench", "run class-incremental digits", *(f"run {name}" for name in EXPERIMENTS)],
)
@pytest.mark.parametrize(("out", "message"), [("", "must be a path, got ''"), ("~no.such.user/x", "nobody")])
def test_no_path_is_no_folder(command: str, out: str, message: str, here: Path) -> None:
    code, text = said(*command.split(), f"--out={out}")
    assert code == 2
    assert message in text


def test_a_folder_of_a_failed_start_is_free_for_another_run(here: Path) -> None:
    """The issue's case: the first fails, and the second was refused as being another run."""
    assert said("run", "serial-position", "--device", "gpu", "--out", "m0")[0] == 1
    code, text = said("run", "split-cifar100", "--out", "m0")
    assert (code, "holds another run" in text) == (1, False)


def test_what_fails_before_anything_is_learned_leaves_the_folder_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no memory for features")

    monkeypatch.setattr(runner, "_all", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        runner.run(SerialPosition(longer=0), protocol_for(**TINY), out=tmp_path / "m0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "options", "precision"),
    [
        ("rank", {"rank": 0}, None),
        ("rank", {"rank": 1.5}, None),
        ("gate", {"gate": {"gate": "mpl"}}, None),
        ("alpha", {"alpha": "x"}, None),
        ("precision", {}, "float16"),
        ("precision", {"precision": "half"}, "float32"),
    ],
)
def test_options_of_all_methods_are_tried_before_images_are_read(
    key: str, options: dict[str, Any], precision: str | None, tmp_path: Path
) -> None:
    """By the models what they can tell, by the constructors the rest; of the last method as of the first."""
    pytest.importorskip("transformers")
    methods = (MethodConfig("good", "simplecil"), MethodConfig("x", "artsy", options))
    config = configuration(tmp_path / "out", methods=methods, precision=precision)
    with pytest.raises(ValueError, match=rf"methods: '\w+' \(\w+\): .*{key}"):
        incremental.run(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("restart", [False, True])
def test_a_refused_start_keeps_what_the_folder_holds(restart: bool, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    files = {"results.json": "old", "picture.png": "old", "checkpoints/0_a_seed0.safetensors": "old"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    methods = (MethodConfig("x", "local", {"lr": -1.0}),)
    with pytest.raises(ValueError, match=r"lr must be positive|was not written by this version"):
        incremental.run(configuration(tmp_path, methods=methods), learners=LEARNERS, restart=restart)
    assert {name: (tmp_path / name).read_text() for name in files} == files


# ----------------------------------------------------------------- increments


@pytest.mark.parametrize(
    ("data", "stream", "message"),
    [
        (DataConfig(kind="digits"), {"increment": 50}, "stream.increment is 50, but only 10 classes take part"),
        (DataConfig(kind="digits"), {"increment": 2, "base": 11}, "stream.base is 11, but only 10 classes"),
        (DataConfig(classes=("0-4",)), {"increment": 6}, "increment is 6, but only 5 classes"),  # type: ignore
        (DataConfig(), {"increment": 4, "order": (3, 2, 1)}, "increment is 4, but only 3 classes"),
    ],
)
def test_more_classes_than_there_are(data: Any, stream: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        configuration(tmp_path, data=data, stream=StreamConfig(**stream))
    DataConfig(), StreamConfig(increment=50)  # what is not known yet may be right


def test_more_classes_than_images_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flexkern.runs.incremental import data as images

    monkeypatch.setattr(incremental, "load_images", images.load_images)
    labels = np.arange(4).repeat(3)
    pixels = np.zeros((12, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    config: Config = configuration(tmp_path / "out", data=DataConfig(path=str(tmp_path / "a.npz")),
                                   stream=StreamConfig(increment=5))  # fmt: skip
    with pytest.raises(ValueError, match=r"stream\.increment is 5, but only 4 classes take part"):
        incremental.run(config, learners=LEARNERS)
    assert not (tmp_path / "out").exists()
    assert incremental.run(dataclasses.replace(config, stream=StreamConfig(increment=4)), learners=LEARNERS)


# ----------------------------------------------------------------- what starts look at


def test_paths_and_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_given("~/x", "out") == tmp_path / "x"
    assert configuration(Path("~/x")).folder == tmp_path / "x"
    for nothing in ("", "  ", "a\0b"):
        with pytest.raises(ValueError, match="out must be a path"):
            path_given(nothing, "out")
    assert usable_device("auto", auto=True).type in ("cpu", "cuda")
    assert usable_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device must be cpu, cuda or another that torch knows, got 'auto'"):
        usable_device("auto")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch finds no GPU"):
            usable_device("cuda:1")


def test_a_folder_that_only_making_it_shows_to_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.access("/proc", os.W_OK):
        pytest.skip("only root is told that it may write there")
    with pytest.raises(OSError, match="no folder can be made there"):
        check_writable("/proc/none/of/these", folders=True)


# ----------------------------------------------------------------- what is kept


TOML = """
[data]
kind = "digits"
train_per_class = 5
test_per_class = 2
[stream]
increment = 5
[[methods]]
name = "Means, plain"
method = "simplecil"
"""


def test_kept_models_are_named_and_load_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from flexkern.runs.incremental import data as images

    monkeypatch.setattr(incremental, "load_images", images.load_images)
    (tmp_path / "mine.toml").write_text(TOML)
    run = ["run", "class-incremental", str(tmp_path / "mine.toml"), "--device", "cpu", "--seeds", "0,1"]
    for extra in ([], ["--keep"]):
        code, text = said(*run, "--out", str(tmp_path / "out"), *extra)
        assert code == 0
    assert "not kept Means, plain, seed 0: its run ended before, without --keep; see --restart" in text
    result = CliRunner().invoke(app, [*run, "--out", str(tmp_path / "out"), "--keep", "--restart"])
    lines = [line for line in result.output.splitlines() if line.startswith("kept ")]
    assert len(lines) == 2
    assert json.loads((tmp_path / "out" / "results.json").read_text())["finished"]
    import flexkern.learners

    for line in lines:
        learner = eval(line.partition(": ")[2], {"flexkern": flexkern})
        assert learner.classes_seen == 10
