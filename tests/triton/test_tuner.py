"""The tuner of the Triton kernels: what it races, what it refuses, and what comes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")


from flexkern.backends import Status, requested, tuning
from flexkern.benchmarks import workloads
from flexkern.triton_kernels.catalogue import CANDIDATES
from helpers.scripts import load_file

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE, BACKENDS = tuning.table()


@pytest.fixture(scope="module")
def tune() -> Any:
    return load_file(ROOT / "scripts" / "tune.py")


def stopwatch(tune: Any, cost: Callable[[dict[str, int]], float], kernel: str, variant: str) -> Any:
    """Says that a run took what ``cost`` says of the configuration. The check of results has made a call."""

    def prepare(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
        configuration = tuning.config(kernel, variant, "interpreter")

        def run() -> None:
            return None

        run.seconds = cost(configuration)  # type: ignore[attr-defined]
        return run

    return tune.Stopwatch(prepare, lambda run: run.seconds)  # type: ignore[attr-defined]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tune: Any, triton_backend: None) -> Callable[..., dict[str, Any]]:
    """``quick(kernel, variant, cost)``: a race on the small shape."""
    monkeypatch.setattr(tune, "ROUNDS", 3)

    def race(kernel: str, variant: str, cost: Callable[[dict[str, int]], float], **more: Any) -> dict[str, Any]:
        watch = stopwatch(tune, cost, kernel, variant)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return tune.measure(device, only=[f"{kernel} {variant}"], shapes="tiny", stopwatch=watch, **more)

    return race


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("kernel", "variant"),
    [
        ("sgd", "stored"), ("sgd", "held"), ("synapse", "stored"), ("gate", "stored"),
        ("adapter forward", "half-64"), ("adapter backward", "half-64"),
        *(
            pytest.param(kernel, variant, marks=pytest.mark.slow)
            for kernel, variant in (
                ("sgd", "mixed"), ("fill", "any"), ("synapse", "mixed"), ("linear", "half"), ("linear", "tf32"),
                ("linear", "half-procedural"),
                ("linear", "half-silent"), ("adapter bank", "half-64"),
            )
        ),
    ],
)  # fmt: skip
def test_every_candidate_gives_the_right_results(
    quick: Callable[..., dict[str, Any]], tune: Any, kernel: str, variant: str, tmp_path: Path
) -> None:
    """And the one that the stopwatch calls quickest goes into the table, with the reason."""
    wanted = CANDIDATES[kernel, variant][-1]
    measured = quick(kernel, variant, lambda c: 1e-6 if c == wanted else 2e-6)
    (race,) = measured["kernels"]
    assert [e["skipped"] for e in race["candidates"]] == [None] * len(race["candidates"])
    assert race["chosen"] == wanted
    rows, changes = tune.entered(measured)
    assert len(changes) == (wanted != tuning.config(kernel, variant, "sm_80"))  # the same family
    (value, reason) = rows.configurations[kernel][variant][measured["machine"]["architecture"]]
    assert value == wanted
    assert reason.startswith("measured: ")
    (tmp_path / "table.toml").write_text(tuning.as_toml(rows), encoding="utf-8")
    assert tuning.read(tmp_path / "table.toml") == rows
    assert rows.backends == BACKENDS
    assert f"{race['candidates'][0]['us'][0]:.1f} us" in tune.table(measured)


def test_a_little_faster_is_not_worth_a_change(quick: Callable[..., dict[str, Any]], tune: Any) -> None:
    present = tuning.config("sgd", "stored", "interpreter")
    measured = quick("sgd", "stored", lambda c: 1e-6 if c == present else 0.985e-6)
    assert measured["kernels"][0]["chosen"] == present
    assert tune.entered(measured)[1] == []


def test_what_does_not_run_or_is_wrong_is_dropped(
    quick: Callable[..., dict[str, Any]], tune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CANDIDATES, ("sgd", "stored"), [{"tile": 1000, "num_warps": 4}, {"num_warps": 4}])
    (race,) = quick("sgd", "stored", lambda c: 1e-6)["kernels"]
    present, odd, empty = race["candidates"]
    assert present["us"] == [1.0]
    assert odd["us"] is None
    assert odd["skipped"]
    assert "tile" in empty["skipped"]
    one = torch.ones(4)
    assert tune._difference([one], [one.clone()], 0.0, "the first") is None
    assert "bits than the first" in tune._difference([one], [one + 2**-20], 0.0, "the first")
    assert tune._difference([one], [one + 2**-20], 1e-3, "the first") is None
    assert "allowed" in tune._difference([one], [one + 0.1], 1e-3, "the first")
    assert "allowed" in tune._difference([one * float("nan")], [one], 1e-3, "the first")
    assert "bits" in tune._difference([one.int() + 1], [one.int()], 1e9, "the first")
    assert "float64" in tune._difference([one.double()], [one], 1e-3, "the first")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, Callable[[dict[str, int]], str]], None]:
    """``planted(kernel, variant, fate)``: the kernel's results by the configuration: right, wrong or none."""

    works = {(w.kernel, w.variant): w for w in workloads.of_kernels()}

    def plant(kernel: str, variant: str, fate: Callable[[dict[str, int]], str]) -> None:
        work = works[kernel, variant]

        def make(device: torch.device, shape: Any, seed: int) -> workloads.Made:
            call, results = work.make(device, shape, seed)
            if requested() == "reference":
                return call, results
            what = fate(tuning.config(kernel, variant, "interpreter"))

            def called() -> None:
                if what == "none":
                    raise RuntimeError("out of resource: shared memory")
                call()

            # Nothing was done at all: no step, an empty output.
            return called, (lambda: [torch.zeros_like(t) for t in results()]) if what == "wrong" else results

        monkeypatch.setitem(workloads._registered, (kernel, variant), replace(work, make=make))

    return plant


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("kernel", "variant"),
    [("sgd", "held"), ("gate", "stored"), ("adapter forward", "half-64")],
)
def test_a_wrong_candidate_is_never_chosen(
    quick: Callable[..., dict[str, Any]], planted: Callable[..., None], kernel: str, variant: str
) -> None:
    """Not where the present configuration does not run, nor where it is the wrong one itself."""
    present = tuning.config(kernel, variant, "interpreter")
    wrong, right = CANDIDATES[kernel, variant][:2]

    def cost(configuration: dict[str, int]) -> float:
        return 1e-6 if configuration == wrong else 5e-6

    for of_present in ("none", "wrong", "right"):
        fates = {str(wrong): "wrong", str(right): "right", str(present): of_present}
        planted(kernel, variant, lambda c, fates=fates: fates.get(str(c), "none"))
        (race,) = quick(kernel, variant, cost)["kernels"]
        skipped = {str(e["config"]): e["skipped"] for e in race["candidates"]}
        assert "the reference" in skipped[str(wrong)], of_present
        assert race["chosen"] == (present if of_present == "right" else right)
        if of_present == "wrong":
            assert "the reference" in skipped[str(present)]


def test_nothing_is_chosen_where_nothing_is_right(
    quick: Callable[..., dict[str, Any]], planted: Callable[..., None], tune: Any
) -> None:
    planted("sgd", "held", lambda c: "wrong")
    measured = quick("sgd", "held", lambda c: 1e-6)
    assert measured["kernels"][0]["chosen"] is None
    assert tune.entered(measured) == (tuning.table(), [])


def test_a_backend_that_is_wrong_is_not_chosen(
    tune: Any, triton_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "ROUNDS", 3)
    work = next(w for w in workloads.of_backends() if w.kernel == "metaplastic_gate")

    def make(device: torch.device, shape: Any, seed: int) -> workloads.Made:
        call, results = work.make(device, shape, seed)
        return (call, results) if requested() == "reference" else (call, lambda: [t + 1 for t in results()])

    monkeypatch.setattr(tune, "backends", lambda: {"cuda": Status(False, "none"), "triton": Status(True, "")})
    watch = tune.Stopwatch(lambda calls: lambda: None, lambda run: 1e-6)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    racer = tune.Racer(device, "tiny", watch, time.monotonic() + 100)
    race = racer.backends(replace(work, make=make))
    assert race["chosen"] is None
    assert "the reference" in race["candidates"][1]["skipped"]
    assert racer.backends(work)["chosen"] == "triton"


@pytest.mark.parametrize("architecture", ["sm_86", "sm_89", "sm_103", "sm_120", "gfx90a", "gfx1100"])
def test_candidates_are_compiled_for_any_gpu(
    tune: Any, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tuner's own processes compile; here what they are asked for is asked of the one in between."""
    from flexkern.triton_kernels import aot

    compiled_for = []

    def resources(name: str, target: str, configuration: Mapping[str, int]) -> Any:
        compiled_for.append(target)
        return aot.Resources(name, target, 32, 0, 0, 0, 0, 0, 0, 0, 0)

    class Here:
        def submit(self, call: Callable[..., Any], *arguments: Any) -> Future:
            done: Future = Future()
            try:
                done.set_result(call(*arguments))
            except Exception as error:
                done.set_exception(error)
            return done

        def shutdown(self, **options: Any) -> None:
            pass

    monkeypatch.setattr(aot, "resources", resources)
    monkeypatch.setattr(tuning, "architecture", lambda device: architecture)
    racer = tune.Racer(torch.device("cpu"), "tiny", None, time.monotonic() + 100)
    racer._pool = Here()
    work = next(w for w in workloads.of_kernels() if (w.kernel, w.variant) == ("sgd", "held"))
    racer.compile([work])
    found = [racer._wait_compiled(work, i) for i in range(len(racer._candidates(work)))]
    assert found == [None] * len(found)
    family = "cuda" if architecture.startswith("sm") else "hip"
    assert set(compiled_for) == {f"{family}:{architecture.removeprefix('sm_')}"}


def test_it_keeps_to_its_budget(quick: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert quick("sgd", "stored", lambda c: 1e-6, budget=-1.0)["not_reached"] == ["sgd stored"]
    now = [0.0]

    def cost(_: object) -> float:
        now[0] += 10.0
        return 1e-6

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    (race,) = quick("sgd", "stored", cost, budget=15.0)["kernels"]
    assert [e["skipped"] for e in race["candidates"]][:3] == [None, None, "not reached"]


def test_measurements_of_a_file_are_entered(tune: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    present, wins = tuning.config("sgd", "held", "sm_90"), {"tile": 2048, "num_warps": 8}
    measured = {
        "machine": {"device": "a GPU", "architecture": "sm_90", "torch": "2", "triton": "3", "date": "today"},
        "kernels": [
            {
                "kernel": "sgd", "variant": "held", "what": "work", "chosen": wins,
                "candidates": [
                    {"config": present, "us": [20.0], "skipped": None},
                    {"config": wins, "us": [10.0], "skipped": None},
                    {"config": {"tile": 512, "num_warps": 4}, "us": None, "skipped": "spills 8 bytes"},
                ],
            }
        ],
        "backends": [
            {
                "operator": "gated_sgd_", "what": "work", "chosen": "triton",
                "candidates": [
                    {"config": "cuda", "us": [12.0], "skipped": None},
                    {"config": "triton", "us": [10.0], "skipped": None},
                ],
            }
        ],
        "not_reached": ["fill any"],
    }  # fmt: skip
    (tmp_path / "in.json").write_text(json.dumps(measured))
    assert tune.main(["--from", str(tmp_path / "in.json"), "--table", str(tmp_path / "table.toml")]) == 0
    said = capsys.readouterr().out
    assert "spills 8 bytes" in said
    assert "not reached: fill any" in said
    rows = tuning.read(tmp_path / "table.toml")
    value, reason = rows.configurations["sgd"]["held"]["sm_90"]
    assert value == wins
    assert reason == "measured: 10.0 us for work; tile 1024, num_warps 4 20.0 (a GPU, torch 2, Triton 3, today)"
    order, reason = rows.backends["gated_sgd_"]["sm_90"]
    assert order == ("triton", "cuda")
    assert "cuda 12.0" in reason
    assert rows.configurations["sgd"]["held"]["any"] == TABLE["sgd"]["held"]["any"]
