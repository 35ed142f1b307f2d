"""What is the same to the bit across what: the rows of docs/determinism.md that are about learners and runs."""

from __future__ import annotations

import copy
import json
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern.learners import MetaplasticMLP, load_mlp
from flexkern.runs.incremental.run import Event, run
from flexkern.runs.metaplasticity import runner
from flexkern.runs.metaplasticity.hebb_repetition import HebbRepetition
from flexkern.runs.metaplasticity.protocol import protocol_for
from flexkern.runs.provenance import decides_bits, refuse_another
from helpers.incremental import LEARNERS, configuration, numbers
from helpers.memory_tiny import TINY
from helpers.mlp_blobs import bits, blobs, make

ALONE = 1e-5  # of the largest logit: how far an image alone may be from the same one in a batch


@pytest.fixture(autouse=True)
def threads(one_thread: None) -> None:
    """One."""


@pytest.fixture(scope="module")
def learner() -> MetaplasticMLP:
    torch.set_num_threads(1)
    learner = make(MetaplasticMLP, scale=5.0)
    learner.learn(blobs(2)[0])
    return learner


def some_inputs() -> Tensor:
    return blobs(2)[0].test_inputs


# --------------------------------------------------------------------------- learners


def test_an_image_alone_and_in_a_batch(learner: MetaplasticMLP) -> None:
    """The library's products of one row and of many differ: near, and not the same bits."""
    inputs = some_inputs()
    whole, alone = learner.logits(inputs), torch.cat([learner.logits(x[None]) for x in inputs])
    assert ((whole - alone).abs() <= ALONE * whole.abs().max()).all()


def test_learning_again_saving_and_copies(learner: MetaplasticMLP, tmp_path: Path) -> None:
    again = make(MetaplasticMLP, scale=5.0)
    again.learn(blobs(2)[0])
    assert bits(again) == bits(learner)
    again.save(tmp_path / "learner.safetensors")
    loaded, copied = load_mlp(tmp_path / "learner.safetensors"), copy.deepcopy(again)
    for other in (loaded, copied):
        assert torch.equal(other.logits(some_inputs()), learner.logits(some_inputs()))
    for other in (again, loaded, copied):
        other.learn(blobs(2)[1])
    assert bits(again) == bits(loaded) == bits(copied)


def test_answers_in_several_python_threads(learner: MetaplasticMLP) -> None:
    expected, found = learner.logits(some_inputs()), []

    def answer() -> None:
        torch.set_num_threads(1)
        found.append(learner.logits(some_inputs()))

    workers = [threading.Thread(target=answer) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert all(torch.equal(f, expected) for f in found)


# --------------------------------------------------------------------------- runs


class _StoppedError(Exception):
    pass


def stop_after_a_task(event: Event) -> None:
    if event.kind == "task":
        raise _StoppedError


def begun(folder: Path) -> None:
    """A run that has learned and tested one task of three."""
    with pytest.raises(_StoppedError):
        run(configuration(folder), learners=LEARNERS, observe=stop_after_a_task)


def test_a_run_goes_on_only_as_it_was_begun(tmp_path: Path) -> None:
    begun(tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    torch.set_num_threads(3)
    message = r"threads was 1, is 3.*OMP_NUM_THREADS=1.*--accept-other-environment"
    with pytest.raises(ValueError, match=message):
        run(configuration(tmp_path), learners=LEARNERS)
    assert (tmp_path / "results.json").read_bytes() == before
    with pytest.warns(UserWarning, match=r"goes on in another environment \(threads was 1, is 3"):
        results = run(configuration(tmp_path), learners=LEARNERS, accept_other_environment=True)
    assert [e["threads"] for e in results["environments"]] == [1, 3]
    assert [r["environments"] for r in results["runs"]] == [[0, 1], [1]]
    torch.set_num_threads(2)  # nothing is going on any more: new methods and seeds may begin elsewhere
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        more = run(configuration(tmp_path), learners=LEARNERS)
    assert more["runs"] == results["runs"]


def test_a_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    begun(tmp_path / "stopped")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped = run(configuration(tmp_path / "stopped"), learners=LEARNERS)
    assert len(stopped["environments"]) == 1
    whole = run(configuration(tmp_path / "whole"), learners=LEARNERS)
    assert numbers(stopped) == numbers(whole)


def test_an_old_run_goes_on_with_a_note(tmp_path: Path) -> None:
    begun(tmp_path)
    path = tmp_path / "results.json"
    old = json.loads(path.read_text())
    old["environments"] = [{"flexkern": "0.1", "torch": "2.11", "threads": 9}]
    for record in old["runs"]:
        del record["environments"]
    path.write_text(json.dumps(old))
    with pytest.warns(UserWarning, match=r"did not note all that its bits depend on"):
        assert run(configuration(tmp_path), learners=LEARNERS)["finished"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torch", "2.0"), ("flexkern", "0.0"), ("instruction_set", "avx1"), ("capability", "VSX"),
        ("processor", "another"), ("requested_backend", "triton"), ("variables", {"MKL_CBWR": "AVX2"}),
    ],
)  # fmt: skip
def test_what_decides_bits_is_compared(name: str, value: Any, tmp_path: Path) -> None:
    now = decides_bits(torch.device("cpu"))
    assert name in now
    refuse_another(now, now, tmp_path, accept=False)
    with pytest.raises(ValueError, match=f"{name} was .*--accept-other-environment"):
        refuse_another(now | {name: value}, now, tmp_path, accept=False)


def test_what_decides_nothing_is_not_compared(tmp_path: Path) -> None:
    now = decides_bits(torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuse_another(now | {"python": "3.1", "backends": ["cpu"]}, now, tmp_path, accept=False)


def test_a_network_goes_on_only_as_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiments run each network on one thread; the processor and versions are what can change."""
    monkeypatch.setattr("flexkern.runs.metaplasticity.unit._SAVE_EVERY", 0.0)

    def go(observe: Callable[[float, str], None] = lambda *_: None, **options: Any) -> dict[str, Any]:
        protocol = protocol_for(**TINY)
        return runner.run(
            HebbRepetition(passes=2), protocol, out=tmp_path / "out", cache=tmp_path / "features", jobs=1,
            observe=observe, **options,
        )  # fmt: skip

    def stop(share: float, what: str) -> None:
        if " 2/" in what:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        go(stop)
    with pytest.MonkeyPatch.context() as patch:
        elsewhere = decides_bits(torch.device("cpu"), threads=1) | {"processor": "another"}
        for module in ("runner", "unit"):
            patch.setattr(f"flexkern.runs.metaplasticity.{module}.decides_bits", lambda *_, **__: elsewhere)
        with pytest.raises(ValueError, match=r"seed 0, a network .*processor was .*--accept-other-environment"):
            go()
        with pytest.raises(_StoppedError), pytest.warns(UserWarning, match="goes on in another environment"):
            go(lambda share, what: (_ for _ in ()).throw(_StoppedError()), accept_other_environment=True)
    with pytest.warns(UserWarning, match="goes on in another environment"):
        results = go(accept_other_environment=True)
    first = results["runs"][0]
    assert [e["processor"] == "another" for e in first["environments"]][:2] == [False, True]
    assert all(len(r["environments"]) == 1 for r in results["runs"][1:])


def test_both_commands_have_the_option() -> None:
    testing = pytest.importorskip("typer.testing")
    from flexkern.cli.app import app

    for command in ("class-incremental", "serial-position"):
        said = testing.CliRunner().invoke(
            app, ["run", command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}
        )
        assert "--accept-other-environment" in said.stdout
