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
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexkern.measure import Measure
from flexkern.runs.incremental.config import (
    DataConfig,
    MethodConfig,
    StreamConfig,
)
from flexkern.runs.incremental.data import load_images
from flexkern.runs.incremental.run import Event, run
from helpers import incremental
from helpers.incremental import EPOCHS, LEARNERS, configuration, load, make, numbers
from helpers.logged_runs import check_against


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
        assert got["memory_bytes"] == 4 * got["parameters_added"]
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
    assert not (tmp_path / "checkpoints").exists()


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
        "reading",
        "images",
        *(["epoch"] * EPOCHS + ["task"]) * 3,
        "run",
        *(["epoch"] * EPOCHS + ["task"]) * 3,
        "run",
    ]
    assert [(e.task, e.epoch, e.epochs) for e in events[2:7]] == [
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
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}  # it imports helpers
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
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
    check_against(again, folder)
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
    assert [e.kind for e in events] == ["reading", "images", "run", "run"]


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = run(configuration(tmp_path), learners=LEARNERS)
    changed = configuration(tmp_path, stream=StreamConfig(increment=2))
    with pytest.raises(ValueError, match=r"stream.base was 4, is 0; stream.increment was 3, is 2\).*--restart"):
        run(changed, learners=LEARNERS)
    methods = configuration(tmp_path).methods
    faster = (dataclasses.replace(methods[0], options={"lr": 0.4}), methods[1])
    with pytest.raises(ValueError, match=r"method 'Local rows': options.lr was 0.3, is 0.4"):
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
        left = 3
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


def kill_at_each_point(folder: Path) -> None:
    """Each run in a copy of this process, which saves importing everything anew; it has not started threads."""
    load_images(DataConfig(kind="digits"))  # imports scikit-learn, once for all
    for number, point in enumerate(POINTS):
        child = os.fork()
        if not child:
            incremental.POINT = point
            run(configuration(folder / str(number), seeds=(3, 4)), learners=LEARNERS)
            os._exit(0)  # it should not have come this far
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"the run that was to be killed at {point!r} ended with {status}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    kill_at_each_point(Path(sys.argv[1]))
