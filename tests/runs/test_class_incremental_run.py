"""``flexkern run class-incremental``: results, and that a run which was killed ends with the same numbers.

The learner is a small real one (softmax regression on pixels), so that no pre-trained network is needed. As a
program, ``python test_class_incremental_run.py FOLDER``, this file makes runs that kill themselves.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flexkern.learners import Progress, checkpoint
from flexkern.measure import Measure
from flexkern.metrics import Evaluation, confusion_matrix
from flexkern.runs.incremental.config import (
    Config,
    DataConfig,
    MethodConfig,
    Paper,
    StreamConfig,
)
from flexkern.runs.incremental.data import load_images
from flexkern.runs.incremental.run import Event, Learners, run
from flexkern.streams import Experience

EPOCHS = 3


class Softmax:
    """Softmax regression on the pixels; ``local`` trains only the rows of the task's classes."""

    def __init__(self, method: str, seed: int, lr: float, epochs: int) -> None:
        if lr <= 0:
            raise ValueError(f"lr must be positive, got {lr}")
        self.method, self.seed, self.lr, self.epochs = method, seed, lr, epochs
        self.weight = torch.zeros(0, 0)
        self.classes_seen = self.tasks_learned = self.epochs_done = 0
        self.report: dict[str, float] = {}

    @property
    def parameters_added(self) -> int:
        return self.weight.numel()

    def learn(self, experience: Experience, *, progress: Callable[[Progress], None] | None = None) -> None:
        x = experience.train_inputs.flatten(1).float() / 255
        classes = self.classes_seen + len(experience.class_names)
        if len(self.weight) < classes:
            rows = torch.zeros(classes - len(self.weight), x.shape[1])
            self.weight = torch.cat([self.weight.reshape(-1, x.shape[1]), rows])
        first = self.classes_seen if self.method == "local" else 0
        for epoch in range(self.epochs_done, self.epochs):
            generator = torch.Generator().manual_seed(self.seed * 1000 + self.tasks_learned * 10 + epoch)
            for rows in torch.randperm(len(x), generator=generator).split(16):
                p = (x[rows] @ self.weight[first:].T).softmax(1)
                p[torch.arange(len(rows)), experience.train_labels[rows] - first] -= 1
                self.weight[first:] -= self.lr * p.T @ x[rows] / len(rows)
            self.epochs_done = epoch + 1
            maybe_die(f"learning {self.tasks_learned} {epoch + 1}")
            if progress is not None:
                loss = float((x @ self.weight.T).logsumexp(1).mean())
                progress(Progress(self.tasks_learned, epoch + 1, self.epochs, loss))
        maybe_die(f"end of learning {self.tasks_learned}")
        self.classes_seen, self.epochs_done = classes, 0
        self.tasks_learned += 1

    def predict(self, images: Tensor) -> Tensor:
        return (images.flatten(1).float() / 255 @ self.weight.T).argmax(1)

    def evaluate(self, stream: Any) -> Evaluation:
        maybe_die(f"testing {self.tasks_learned}")
        accuracies, confusion = [], np.zeros((self.classes_seen, self.classes_seen), dtype=np.int64)
        for e in stream:
            answers = self.predict(e.test_inputs)
            accuracies.append(float((answers == e.test_labels).double().mean()))
            confusion += confusion_matrix(e.test_labels.numpy(), answers.numpy(), self.classes_seen)
        self.report = {
            "passes": 1.0 + self.tasks_learned,
            "gate_auroc": float("nan"),
            "seconds_per_image": 1e-3,
        }
        if self.method == "local":
            self.report["open_rate"] = 1 / self.tasks_learned
        return Evaluation(np.array(accuracies), confusion)

    def save(self, path: Path) -> None:
        maybe_die(f"saving {self.tasks_learned} {self.epochs_done}")
        keys = ("method", "seed", "lr", "epochs", "classes_seen", "tasks_learned", "epochs_done")
        checkpoint.write(path, {"weight": self.weight}, {k: getattr(self, k) for k in keys})
        maybe_die(f"saved {self.tasks_learned} {self.epochs_done}")


def make(method: str, backbone: str, *, seed: int, device: torch.device, **options: Any) -> Softmax:
    assert backbone == "small"
    assert device == torch.device("cpu")
    return Softmax(method, seed, **{"lr": 0.5, "epochs": EPOCHS, **options})


def load(path: Path, *, backbone: str, device: torch.device) -> Softmax:
    tensors, record = checkpoint.read(path)
    learner = Softmax(*(record[k] for k in ("method", "seed", "lr", "epochs")))
    learner.weight = tensors["weight"]
    for key in ("classes_seen", "tasks_learned", "epochs_done"):
        setattr(learner, key, record[key])
    return learner


LEARNERS = Learners(("global", "local"), make, load)
POINT = ""


def maybe_die(here: str) -> None:
    if here == POINT:
        os.kill(os.getpid(), signal.SIGKILL)


def configuration(out: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "data": DataConfig(kind="digits", train_per_class=20, test_per_class=10),
        "stream": StreamConfig(increment=3, base=4),
        "methods": (
            MethodConfig("Local rows", "local", {"lr": 0.3}, Paper(90.0, 80.0, "a paper", "vit", 20)),
            MethodConfig("All rows", "global"),
        ),
        "device": "cpu",
        "out": str(out),
    }
    return Config(**(values | changes))


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    """All that must be equal from run to run: everything but seconds, memory and paths."""
    plain = json.loads(json.dumps(results))
    del plain["environments"], plain["configuration"]["out"]
    for summary in plain["summary"].values():
        del summary["cost"], summary["mib"]
    for record in plain["runs"]:
        for task in record["tasks"]:
            del task["cost"]
    return plain


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(configuration(tmp_path_factory.mktemp("whole"), seeds=(3, 4)), learners=LEARNERS)


# ----------------------------------------------------------------- results


def test_the_results_say_what_the_learners_did(whole: dict[str, Any]) -> None:
    assert whole["finished"]
    ran = [(r["method"], r["seed"]) for r in whole["runs"]]
    assert ran == [("Local rows", 3), ("All rows", 3), ("Local rows", 4), ("All rows", 4)]
    record = whole["runs"][1]
    # The same by hand: the learner alone, on the stream of that configuration.
    from flexkern.runs.incremental.data import make_stream

    config = configuration(Path("unused"))
    stream = make_stream(config, *load_images(config.data), seed=0)
    learner = make("global", "small", seed=3, device=torch.device("cpu"))
    seen = []
    for task, experience in enumerate(stream):
        learner.learn(experience)
        test = torch.cat([e.test_inputs for e in stream[: task + 1]])
        labels = torch.cat([e.test_labels for e in stream[: task + 1]])
        answers = learner.predict(test)
        seen.append(float((answers == labels).double().mean()))
        got = record["tasks"][task]
        # Weighted means of a few shares of whole numbers: a rounding for each product, sum and quotient.
        assert got["seen"] == pytest.approx(seen[-1], abs=1e-15 * 8)
        assert got["average"] == pytest.approx(np.mean(seen), abs=1e-15 * 12)
        assert got["classes"] == 4 + 3 * task
        bounds = torch.tensor([4, 7])
        same = torch.bucketize(answers, bounds, right=True) == torch.bucketize(labels, bounds, right=True)
        assert got["task_named"] == pytest.approx(float(same.double().mean()), abs=1e-15)
        assert len(got["accuracies"]) == task + 1
        assert len(got["losses"]) == EPOCHS
        assert got["report"]["passes"] == 2.0 + task
        assert got["report"]["gate_auroc"] is None
        assert got["cost"]["seconds_per_image"] == 1e-3
        assert got["parameters_added"] == (4 + 3 * task) * 192
    first, last = (record["tasks"][i]["accuracies"] for i in (0, 2))
    middle = record["tasks"][1]["accuracies"]
    forgotten = [max(first[0], middle[0]) - last[0], middle[1] - last[1]]
    assert record["tasks"][2]["forgetting"] == pytest.approx(np.mean(forgotten), abs=1e-15)


def test_the_summary_is_over_seeds(whole: dict[str, Any]) -> None:
    runs = [r["tasks"] for r in whole["runs"] if r["method"] == "Local rows"]
    summary = whole["summary"]["Local rows"]
    curves = np.array([[t["seen"] for t in tasks] for tasks in runs])
    assert not np.array_equal(*curves)  # or there would be nothing to average
    np.testing.assert_array_equal(summary["seen"]["mean"], curves.mean(0))
    np.testing.assert_array_equal(summary["seen"]["std"], curves.std(0, ddof=1))
    assert summary["last"]["mean"] == curves[:, -1].mean()
    assert summary["average"]["mean"] == pytest.approx(curves.mean(), abs=1e-15)
    assert summary["report"]["open_rate"]["mean"] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert summary["report"]["gate_auroc"]["mean"] == [None] * 3
    assert summary["classes"] == [4, 7, 10]
    assert summary["seeds"] == 2
    assert "open_rate" not in whole["summary"]["All rows"]["report"]


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    results = run(configuration(tmp_path), learners=LEARNERS)
    assert results["summary"]["All rows"]["last"]["std"] == 0
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert not list((tmp_path / "checkpoints").iterdir())


def test_kept_learners_can_be_loaded(tmp_path: Path) -> None:
    run(configuration(tmp_path), learners=LEARNERS, keep=True)
    files = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert files == ["0_local_rows_seed0.safetensors", "1_all_rows_seed0.safetensors"]
    learner = load(tmp_path / "checkpoints" / files[1], backbone="small", device=torch.device("cpu"))
    assert learner.tasks_learned == 3


def test_every_run_may_have_its_own_class_order(tmp_path: Path) -> None:
    config = configuration(tmp_path, stream=StreamConfig(increment=5, seed="run"), seeds=(0, 1))
    orders = {r["seed"]: r["experiences"] for r in run(config, learners=LEARNERS)["runs"]}
    expected = {
        seed: [", ".join(map(str, half)) for half in np.random.RandomState(seed).permutation(10).reshape(2, 5)]
        for seed in (0, 1)
    }
    assert orders == expected


def test_what_happens_is_told(tmp_path: Path) -> None:
    events: list[Event] = []
    run(configuration(tmp_path), learners=LEARNERS, observe=events.append)
    kinds = [e.kind for e in events]
    assert kinds == [
        "images",
        *(["epoch"] * EPOCHS + ["task"]) * 3,
        "run",
        *(["epoch"] * EPOCHS + ["task"]) * 3,
        "run",
    ]
    assert [(e.task, e.epoch, e.epochs) for e in events[1:6]] == [
        (0, 1, EPOCHS), (0, 2, EPOCHS), (0, 3, EPOCHS), (0, 0, 0), (1, 1, EPOCHS)
    ]  # fmt: skip


# ----------------------------------------------------------------- resuming


POINTS = (
    "learning 0 1",  # before anything was saved
    "saved 0 1",  # after the first epoch
    "learning 1 2",  # in the middle of an epoch of a later task
    "saved 1 2",
    "saving 1 3",  # the record knows an epoch that the checkpoint does not
    "end of learning 1",
    "saved 2 0",  # after a task and before its test
    "testing 2",
    "learning 1 2",  # once more: for the test of a lost checkpoint
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder for each of POINTS, in which a run was killed there."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("number", range(len(POINTS) - 1), ids=POINTS[:-1])
def test_a_killed_run_ends_with_the_same_numbers(number: int, killed: Path, whole: dict[str, Any]) -> None:
    folder = killed / str(number)
    written = folder / "results.json"
    half = json.loads(written.read_text()) if written.exists() else {"finished": False, "runs": []}
    assert not half["finished"]
    assert len(half["runs"]) < 2  # it was killed in the first
    again = run(configuration(folder, seeds=(3, 4)), learners=LEARNERS)
    assert numbers(again) == numbers(whole)
    assert not list(folder.rglob("*.tmp"))


def test_an_exception_out_of_the_observer_is_a_way_to_stop(tmp_path: Path, whole: dict[str, Any]) -> None:
    config = configuration(tmp_path, seeds=(3, 4))
    epochs = []
    stops = iter([2, 6, 9, 13, 20])  # events after which one more call stops
    while (limit := next(stops, None)) is not None:
        left = limit

        def observe(event: Event) -> None:
            nonlocal left
            epochs.extend([event] if event.kind == "epoch" else [])
            left -= 1
            if not left:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            run(config, learners=LEARNERS, observe=observe)
    results = run(config, learners=LEARNERS, observe=lambda e: epochs.extend([e] if e.kind == "epoch" else []))
    assert numbers(results) == numbers(whole)
    assert len(epochs) == 4 * 3 * EPOCHS  # none was learned twice: 4 runs of 3 tasks
    assert sum(t["cost"]["resumed"] for r in results["runs"] for t in r["tasks"]) > 0


def test_losses_are_those_of_the_epochs_in_order(tmp_path: Path) -> None:
    events: list[Event] = []
    method = MethodConfig("x", "global", {"epochs": 11})
    results = run(configuration(tmp_path, methods=(method,)), learners=LEARNERS, observe=events.append)
    for task in range(3):
        told = [e.loss for e in events if e.kind == "epoch" and e.task == task]
        assert results["runs"][0]["tasks"][task]["losses"] == told
        assert len(set(told)) == 11


def test_a_finished_run_trains_nothing_more(tmp_path: Path) -> None:
    first = run(configuration(tmp_path), learners=LEARNERS)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a checkpoint was loaded")

    events: list[Event] = []
    again = run(configuration(tmp_path), learners=LEARNERS._replace(load=refuse), observe=events.append)
    assert again == first
    assert [e.kind for e in events] == ["images", "run", "run"]


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = run(configuration(tmp_path), learners=LEARNERS)
    changed = configuration(tmp_path, stream=StreamConfig(increment=2))
    with pytest.raises(ValueError, match=r"stream.base was 4, is 0; stream.increment was 3, is 2\).*--restart"):
        run(changed, learners=LEARNERS)
    methods = configuration(tmp_path).methods
    faster = (dataclasses.replace(methods[0], options={"lr": 0.4}), methods[1])
    with pytest.raises(ValueError, match=r"methods.0.options.lr was 0.3, is 0.4"):
        run(configuration(tmp_path, methods=faster), learners=LEARNERS)
    assert json.loads((tmp_path / "results.json").read_text()) == first
    results = run(changed, learners=LEARNERS, restart=True)
    assert [t["classes"] for t in results["runs"][0]["tasks"]] == [2, 4, 6, 8, 10]


def test_other_images_are_refused(tmp_path: Path) -> None:
    def pack(path: Path, shade: int) -> Path:
        y = np.repeat(np.arange(4), 5)
        x = np.full((20, 4, 4), shade, np.uint8) + y[:, None, None].astype(np.uint8)
        np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
        return path

    config = configuration(tmp_path / "out", data=DataConfig(path=str(pack(tmp_path / "a.npz", 10))),
                           stream=StreamConfig(increment=2))  # fmt: skip
    run(config, learners=LEARNERS)
    moved = pack(tmp_path / "b.npz", 10)  # the same images elsewhere are welcome
    run(config.override(data=str(moved)), learners=LEARNERS)
    pack(moved, 11)
    with pytest.raises(ValueError, match="the images are not those that"):
        run(config.override(data=str(moved)), learners=LEARNERS)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="was not written by this version"):
        run(configuration(tmp_path), learners=LEARNERS)
    assert (tmp_path / "results.json").read_text() == "[1, 2]"


def test_a_lost_checkpoint_is_named(killed: Path) -> None:
    folder = killed / str(len(POINTS) - 1)
    next((folder / "checkpoints").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"0_local_rows_seed3.safetensors is missing.*--restart"):
        run(configuration(folder, seeds=(3, 4)), learners=LEARNERS)


def test_a_record_ahead_of_its_checkpoint_is_refused(tmp_path: Path) -> None:
    """An older checkpoint would be tested as if it had learned what the record says."""
    config = configuration(tmp_path, methods=(MethodConfig("All rows", "global"),))

    def stop_after(task: int) -> Callable[[Event], None]:
        def observe(event: Event) -> None:
            if event.kind == "task" and event.task == task:
                raise InterruptedError

        return observe

    with pytest.raises(InterruptedError):
        run(config, learners=LEARNERS, observe=stop_after(0))
    (path,) = (tmp_path / "checkpoints").iterdir()
    older = path.read_bytes()
    with pytest.raises(InterruptedError):
        run(config, learners=LEARNERS, observe=stop_after(1))
    newer, record = path.read_bytes(), (tmp_path / "results.json").read_bytes()
    path.write_bytes(older)
    with pytest.raises(ValueError, match=r"has learned 1 tasks and .*results.json has 2 of them.*--restart"):
        run(config, learners=LEARNERS)
    assert (tmp_path / "results.json").read_bytes() == record
    path.write_bytes(newer)
    assert run(config, learners=LEARNERS)["finished"]


def test_all_shipped_methods_resume_to_the_same_numbers(tmp_path: Path) -> None:
    """The real learners on a tiny transformer with random weights, stopped again and again."""
    pytest.importorskip("transformers")
    from flexkern.backbones import random_backbone
    from flexkern.learners import METHODS

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = random_backbone(
            "small", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            image_size=16,
        )  # fmt: skip
    tiny.save_pretrained(tmp_path / "tiny")
    options: dict[str, dict[str, Any]] = {"artsy": {"rank": 4}, "ease": {"rank": 4}, "ranpac": {"features": 50}}
    changes: dict[str, Any] = {
        "methods": tuple(MethodConfig(m, m, {"epochs": 2, "flip": 0.0, **options.get(m, {})}) for m in METHODS),
        "backbone": str(tmp_path / "tiny"),
        "stream": StreamConfig(increment=5),
    }
    whole = run(configuration(tmp_path / "whole", **changes))
    left = 0

    def observe(event: Event) -> None:
        nonlocal left
        left -= event.kind in ("epoch", "task")
        if not left:
            raise InterruptedError

    stops = 0
    while True:
        left = 4
        try:
            stopped = run(configuration(tmp_path / "stopped", **changes), observe=observe)
            break
        except InterruptedError:
            stops += 1
    assert stops > len(METHODS)
    assert numbers(stopped) == numbers(whole)
    for name, summary in whole["summary"].items():
        assert summary["last"]["mean"] > 0.1 or name in ("finetune", "joint"), name  # better than chance


def test_measuring() -> None:
    with Measure("cpu") as before:
        pass
    with Measure("cpu") as spent:
        # Asked of the system itself: malloc may serve a tensor from memory that earlier tests have freed and
        # that is still resident, and then the peak rightly does not rise.
        with mmap.mmap(-1, 120 * 2**20) as block:
            block.write(bytes(120 * 2**20))
        time.sleep(0.02)
        assert spent.elapsed() >= 0.02
    assert spent.seconds >= 0.02
    if before.mib is None:
        assert spent.mib is None  # this system cannot count anew
    else:
        assert spent.mib is not None
        assert spent.mib >= before.mib + 100  # the peak, though it was given back; the rest may have shrunk
        with Measure("cpu") as after:
            pass
        assert after.mib is not None
        assert after.mib <= spent.mib - 100  # it began anew


# ----------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": (MethodConfig("x", "magic"),)}, "'x' has method 'magic'; allowed are global, local"),
        ({"methods": (MethodConfig("x", "local", {"speed": 1}),)}, r"methods: 'x' \(local\): .*speed"),
        (
            {"methods": (MethodConfig("x", "local", {"lr": -1.0}),)},
            r"methods: 'x' \(local\): lr must be positive",
        ),
        ({"device": "gpu"}, "device must be auto, cpu, cuda"),
        ({"data": DataConfig()}, "data.path: this configuration needs the archive .* --data PATH"),
        ({"data": DataConfig(kind="digits", train_per_class=500)}, "train_per_class is 500, but class"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(configuration(tmp_path / "out", **changes), learners=LEARNERS)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------- report, picture, command


def test_tables_and_notes(whole: dict[str, Any]) -> None:
    rich = pytest.importorskip("rich.console")
    from flexkern.runs.incremental import tables as report

    config = configuration(Path("unused"), seeds=(3, 4))
    console = rich.Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.task_table(whole["runs"][0]))
    console.print(report.method_table(config, whole))
    text = console.export_text()
    last = whole["runs"][0]["tasks"][-1]
    each = " ".join(f"{100 * a:.0f}" for a in last["accuracies"])
    row = next(line for line in text.splitlines() if each in line)
    cells = row.split()
    assert cells[:6] == ["3", "10", f"{100 * last['seen']:.1f}", f"{100 * last['average']:.1f}",
                         f"{100 * last['forgetting']:.1f}", "0.33"]  # fmt: skip
    summary = whole["summary"]["Local rows"]
    assert f"{100 * summary['average']['mean']:.2f} ± {100 * summary['average']['std']:.2f}" in text
    assert "Local rows, a paper" in text
    assert "90.00" in text
    (note,) = report.notes(config, whole)
    for part in ("backbone small (there vit)", "20 training images a class", "10 test images a class"):
        assert part in note
    assert "epochs" not in note  # the learner's default is what the paper had
    report_of = whole["summary"]["Local rows"]["report"] | {"keeps_data": {"mean": [0.0, 1.0, 1.0]}}
    keeps = whole | {"summary": {"Local rows": summary | {"report": report_of}}}
    assert "Local rows: keeps features of training images." in report.notes(config, keeps)
    twice = whole | {"environments": [{"torch": "1"}, {"torch": "2"}]}
    assert "other versions" in report.notes(config, twice)[-1]


def test_the_picture(whole: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from flexkern.runs.incremental.pictures import draw

    draw(whole, tmp_path / "picture.png")
    header = (tmp_path / "picture.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:])
    assert width > 1800  # two panels: one method has gates
    assert height > 700
    with pytest.raises(ValueError, match="no run has ended"):
        draw(whole | {"summary": {}}, tmp_path / "none.png")


def invoke(*arguments: str) -> Any:
    testing = pytest.importorskip("typer.testing")
    from flexkern.cli.app import app

    return testing.CliRunner().invoke(app, ["run", "class-incremental", *arguments])


TOML = """
[data]
kind = "digits"
train_per_class = 20
test_per_class = 10
[stream]
increment = 5
[[methods]]
name = "Mine"
method = "local"
lr = 0.3
"""


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flexkern.runs.incremental import run as class_incremental

    monkeypatch.setattr(class_incremental, "_shipped_learners", lambda: LEARNERS)
    (tmp_path / "mine.toml").write_text(TOML)
    options = [str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out"), "--device", "cpu", "--seeds", "1,2"]
    result = invoke(*options)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["configuration"]["seeds"] == [1, 2]
    assert f"{100 * results['summary']['Mine']['last']['mean']:.2f}" in result.output
    assert (tmp_path / "out" / "picture.png").stat().st_size > 10_000
    assert invoke(*options).exit_code == 0  # nothing left to do
    refused = invoke(*options[:-1], "3")
    assert refused.exit_code == 1
    assert "seeds was [1, 2], is [3]" in " ".join(refused.output.split())
    assert invoke(*options[:-1], "3", "--restart").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "name a TOML file"),
        (["digit"], 1, "no configuration at 'digit'; did you mean 'digits'?"),
        (["digits", "--seeds", "1;2"], 2, "must be numbers with commas"),
        (["digits", "--data", "x.npz"], 1, "the digits are bundled"),
    ],
)
def test_the_command_explains_mistakes(arguments: list[str], code: int, message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_shipped_configurations_are_listed() -> None:
    result = invoke("--list")
    assert result.exit_code == 0
    for name in ("cifar100_b0_inc10", "cifar100_b0_inc5", "digits", "tinyimagenet_5steps"):
        assert name in result.output


def kill_at_each_point(folder: Path) -> None:
    """Each run in a copy of this process, which saves importing everything anew; it has not started threads."""
    global POINT
    load_images(DataConfig(kind="digits"))  # imports scikit-learn, once for all
    for number, point in enumerate(POINTS):
        child = os.fork()
        if not child:
            POINT = point
            run(configuration(folder / str(number), seeds=(3, 4)), learners=LEARNERS)
            os._exit(0)  # it should not have come this far
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"the run that was to be killed at {point!r} ended with {status}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    kill_at_each_point(Path(sys.argv[1]))
