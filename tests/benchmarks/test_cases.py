"""Every case of the registry at quick size on the CPU: it builds, its peers agree with ours, all of it runs."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flexkern import backends
from flexkern.benchmarks import bench_adapter, bench_metaplastic, bench_seeds, bench_synapse, record
from flexkern.benchmarks.__main__ import main
from flexkern.benchmarks.case import CPU, GPU, Case, Comparison, Series, Setting, Skip, cases, modules
from flexkern.benchmarks.peers import adapters, formula
from flexkern.benchmarks.run import verify

ENTRIES = cases()
RESULTS = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "results"
ON_CPU = [entry for entry in ENTRIES if isinstance(entry, Case) and CPU in entry.devices]
# Their processes import torch, each, before anything is measured.
STARTS_PROCESSES = ("seeds/",)


def params(entries: list[Case]) -> list[Any]:
    return [
        pytest.param(entry, id=entry.name, marks=[pytest.mark.slow] * entry.name.startswith(STARTS_PROCESSES))
        for entry in entries
    ]


@pytest.fixture(autouse=True)
def _captured_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile captures what it is given and does not generate code, which takes a minute in all; a slow
    test at the end of this file does."""
    compiles: list[Any] = []
    really = torch.compile

    def capture(*arguments: Any, **options: Any) -> Any:
        compiles.append(arguments)
        return really(*arguments, **{"backend": "eager", **options})

    monkeypatch.setattr(torch, "compile", capture)
    yield
    if compiles:
        torch.compiler.reset()


def build(name: str) -> Comparison:
    (entry,) = (entry for entry in ON_CPU if entry.name == name)
    try:
        return entry.build(Setting(CPU, quick=True))
    except Skip as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("entry", params(ON_CPU))
def test_builds_agrees_and_runs(entry: Case) -> None:
    comparison = build(entry.name)
    try:
        check_description(comparison)
        verify(comparison)
        comparison.ours()
        for peer in comparison.peers:
            peer.call()
    finally:
        comparison.close()


@pytest.mark.parametrize("pattern", ["metaplastic/procedural-uniform", "linear/step-*", "adapter/*-bf16-*"])
def test_what_is_measured_on_a_gpu_only_agrees_on_the_cpu(pattern: str) -> None:
    """At quick size, before it costs a GPU's time."""
    only_gpu = [entry for entry in cases([pattern]) if isinstance(entry, Case) and entry.devices == (GPU,)]
    assert only_gpu
    for entry in only_gpu:
        comparison = entry.build(Setting(CPU, quick=True))
        try:
            check_description(comparison)
            verify(comparison)
            comparison.ours()
        finally:
            comparison.close()


@pytest.mark.parametrize("training", [False, True], ids=["forward", "train"])
@pytest.mark.parametrize("tasks", [1, 7])
def test_the_grouped_product_is_the_adapters(tasks: int, training: bool) -> None:
    size = bench_adapter.QUICK
    made = bench_adapter.Adapters(size, tasks, torch.bfloat16, CPU, training=training)
    bench_adapter.check_agreement(made, made.grouped)
    made.call(made.grouped)()
    made.index = made.index.flip(0)  # other tasks for all but the ones in the middle
    if tasks > 1:
        with pytest.raises(AssertionError, match="the result"):
            bench_adapter.check_agreement(made, made.grouped)


def check_description(comparison: Comparison) -> None:
    assert comparison.title
    assert comparison.title == comparison.title.strip()
    assert "|" not in comparison.title, "it would break the row of a table"
    assert comparison.peers, "a case needs something to be compared with"
    names = [peer.name for peer in comparison.peers]
    assert len(set(names)) == len(names), names
    assert min(comparison.work.bytes, comparison.work.operations) >= 0
    assert comparison.work.dtype in ("float32", "bfloat16", "tf32")  # measure_ceilings has these
    for peer in comparison.peers:
        assert peer.name
        assert peer.check if isinstance(peer.check, str) else callable(peer.check)
        if peer.goal is not None:
            assert peer.goal.figure in ("speed-up", "time", "seconds")
            # A bound beyond these would be a slip of units.
            low, high = (1e-7, 60.0) if peer.goal.figure == "seconds" else (0.05, 100.0)
            assert low <= peer.goal.bound <= high, str(peer.goal)


def test_titles_tell_cases_apart() -> None:
    """In the tables that are published: two rows that read alike could not be told apart."""
    for run in record.newest(RESULTS).values():
        measured = [row for row in run["rows"] if "ours" in row]
        names = [(row["title"], row["pages"], peer["name"]) for row in measured for peer in row["peers"]]
        assert len(measured) > 40
        assert [name for name, count in Counter(names).items() if count > 1] == []


def test_names_are_unique_and_say_their_family() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[a-z0-9-]+/[a-z0-9_-]+", name), name


@pytest.mark.parametrize("module", modules())
def test_each_module_registers(module: str) -> None:
    importlib.import_module(f"flexkern.benchmarks.{module}")
    makers = [entry.measure if isinstance(entry, Series) else entry.build for entry in ENTRIES]
    homes = {getattr(maker, "func", maker).__module__ for maker in makers}  # func: of a partial
    assert f"flexkern.benchmarks.{module}" in homes, f"{module} has no case and no series"


def test_devices_and_backends_exist() -> None:
    for entry in ENTRIES:
        assert entry.devices, entry.name
        assert set(entry.devices) <= {CPU, GPU}, entry.name
        if isinstance(entry, Case):
            assert set(entry.backends) <= {"auto", *backends()}, entry.name
            assert entry.settings("another device", quick=True) == []


def twice_the_step(*arguments: Any) -> None:
    w, g, a, f, lr, scale = arguments
    w.sub_(2 * lr * formula.gate(w, a, f, scale) * g)


def half_the_stiffness(w: torch.Tensor, a: torch.Tensor, f: torch.Tensor, scale: float) -> torch.Tensor:
    return 1 - torch.tanh(0.5 * scale * (1 - f) / f * (w - a).abs()) ** 2


def without_relu(self: adapters.EaseAdapter, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    return residual + self.scale * self.up(self.dropout(self.down(x)))


def tasks_swapped(modules: Any, counts: Any, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    parts = zip([*modules[1:], modules[0]], x.split(counts), residual.split(counts), strict=True)
    return torch.cat([module(part, rest) for module, part, rest in parts])


# Case, what of the peers is replaced, by what, and the first peer that then differs from ours.
WRONG = [
    ("metaplastic/step", formula, "update", twice_the_step, "torch.compile of the formula"),
    ("metaplastic/gate", formula, "gate", half_the_stiffness, "torch.compile of the formula"),
    ("synapse/step", formula, "gate", half_the_stiffness, "torch.compile of the formula"),
    ("synapse/step", bench_synapse, "written", lambda layer: layer.mask.sum(), "torch.compile of the formula"),
    ("linear/step-256-4096-4096", formula, "update", twice_the_step, "product, torch.compile of the update"),
    ("adapter/vit-b-1-task-forward", adapters.EaseAdapter, "forward", without_relu, "modules"),
    ("adapter/vit-b-bf16-1-task-forward", adapters.EaseAdapter, "forward", without_relu, "modules"),
    ("adapter/vit-b-10-tasks-train", None, "loop_over_tasks", tasks_swapped, "loop over tasks"),
]


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "wrong", "peer"), WRONG, ids=[f"{w[0]}-{w[2]}" for w in WRONG]
)
def test_a_wrong_peer_is_found(
    name: str, owner: Any, attribute: str, wrong: Any, peer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = owner or importlib.import_module("flexkern.benchmarks.bench_adapter")
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError, match=re.escape(peer)):
        verify(build(name))


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right results with a wrong backward pass: a peer that holds its down-projection back."""

    def right_forward(self: adapters.EaseAdapter, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(self.relu(self.down(x)))
        return residual + self.scale * self.up(0.5 * hidden + 0.5 * hidden.detach())

    comparison = build("adapter/small-1-task-train")
    verify(comparison)
    monkeypatch.setattr(adapters.EaseAdapter, "forward", right_forward)
    with pytest.raises(AssertionError, match="modules does not agree with ours; the gradient of x"):
        verify(comparison)


def test_ours_wrong_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = build("metaplastic/step")
    right = bench_metaplastic.ours
    monkeypatch.setattr(bench_metaplastic, "ours", lambda w, g, a, f: right(w, g, a.clone().add_(1e-6), f))
    with pytest.raises(AssertionError, match="does not agree with ours"):
        verify(comparison)


def test_networks_trained_as_one_are_those_trained_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the cases that start processes, without processes."""
    task = bench_seeds.Task(64, Setting(CPU, quick=True))
    bench_seeds.check_agreement(task)

    def without_relu(self: bench_seeds.Batched, x: torch.Tensor) -> torch.Tensor:
        for w, b in zip(self.weights, self.biases, strict=True):
            x = torch.baddbmm(b, x, w.mT)
        return x

    monkeypatch.setattr(bench_seeds.Batched, "forward", without_relu)
    with pytest.raises(AssertionError, match="network 0"):
        bench_seeds.check_agreement(task)


@pytest.mark.slow
def test_a_run_in_which_torch_compile_generates_code(tmp_path: Path) -> None:
    """A case of operators and one of modules, in a process of its own."""
    only = ["metaplastic/step", "adapter/small-1-task-train"]
    chosen = [word for name in only for word in ("--only", name)]
    arguments = ["--quick", "--device", CPU, "--seconds", "0", "--results", str(tmp_path)]
    assert main([*chosen, *arguments]) == 0
    (path,) = tmp_path.iterdir()
    rows = json.loads(path.read_text())["rows"]
    assert [row["case"] for row in rows] == [*only, "metaplastic/step"]  # the last one with small pages
    assert all(any("torch.compile" in peer["name"] for peer in row["peers"]) for row in rows)
