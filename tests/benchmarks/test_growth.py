"""The series over growing work, at quick size on the CPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch

from flexkern import ops
from flexkern.benchmarks import growth_items, growth_optimizer, growth_tasks
from flexkern.benchmarks.case import CPU, GPU, Point, Series, Setting, Skip, cases
from flexkern.benchmarks.run import forget, measure_series
from flexkern.optim import MetaplasticSGD

SERIES = {entry.name: entry for entry in cases() if isinstance(entry, Series)}
QUICK = Setting(CPU, quick=True)
PLACES = {
    "growth/parameters": [1e3, 3e3, 1e4, 3e4, 1e5],
    "growth/tensor-count": [1, 4, 16, 64],
    "growth/item-number": [2, 5, 8, 11],  # the middles of four stretches of three items
    "growth/item-memory": [2, 5, 8, 11],
    "growth/tasks-time": [1, 2, 5],
    "growth/tasks-memory": [1, 2, 5],
    "growth/pictures-memory": [20, 40, 80],
}


@pytest.fixture(autouse=True, scope="module")
def _captured_only() -> Iterator[None]:
    """torch.compile captures what it is given and generates no code, which would take most of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        yield
    forget()


@cache
def measured(name: str) -> list[Point]:
    try:
        return list(SERIES[name].measure(QUICK))
    except Skip as reason:
        pytest.skip(str(reason))


def test_all_series_are_known() -> None:
    assert set(SERIES) == set(PLACES)
    for entry in SERIES.values():
        assert entry.devices == ((CPU,) if entry.name == "growth/pictures-memory" else (CPU, GPU))
        assert entry.y in ("seconds", "MB")
        assert entry.flat == entry.name.startswith(("growth/item", "growth/pictures"))


@pytest.mark.parametrize("name", PLACES)
def test_points(name: str) -> None:
    points = measured(name)
    assert [point.x for point in points] == PLACES[name]
    lines = list(points[0].values)
    assert any(line.startswith("flexkern") for line in lines)
    assert any(not line.startswith("flexkern") for line in lines)
    for point in points:
        assert list(point.values) == lines
        for q1, median, q3 in point.values.values():
            assert q1 <= median <= q3
            assert math.isfinite(q3)
            # Memory that is held may be less than before by what the C library gave back meanwhile.
            assert median > 0 or name in ("growth/item-memory", "growth/pictures-memory")


def test_full_sizes_cover_what_is_claimed() -> None:
    on_cpu, on_gpu = (growth_optimizer.parameter_counts(Setting(device)) for device in (CPU, GPU))
    assert (on_cpu[0], on_cpu[-1], on_gpu[-1]) == (10**3, 3 * 10**8, 10**9)
    assert all(2 < b / a < 4 for a, b in itertools.pairwise(on_gpu))
    assert growth_tasks.task_counts(Setting(CPU))[::7] == (1, 50)
    assert growth_items.Size(Setting(CPU)).items == 1000


def test_sets_are_more_than_a_cache_holds_and_never_too_many() -> None:
    assert len(growth_optimizer.make_sets(1000, CPU)) == 64
    sets = growth_optimizer.make_sets(1 << 20, CPU)
    assert sum(t.numel() * t.element_size() for buffers in sets for t in buffers) == 1 << 30
    assert len({t.data_ptr() for buffers in sets for t in buffers}) == 4 * len(sets)


def test_alpha_of_a_set_stays_between_its_ends_for_hundreds_of_steps() -> None:
    w, g, a, f = growth_optimizer.one_set((1 << 20) + 5, CPU)
    assert torch.equal(g[-5:], g[:5])  # the drawn part goes round
    assert g.abs().min() > 0 or (g == 0).sum() < 10
    gate = partial(ops.metaplastic_gate, anchor=a, flexibility=f, scale=growth_optimizer.SCALE)
    before = gate(w)
    for _ in range(300):
        w.sub_(growth_optimizer.LR * g)  # as plain SGD moves it: further than ours
    after = gate(w)
    for alpha in (before, after):
        middle = ((alpha > 0.05) & (alpha < 0.95)).float().mean()
        assert middle > 0.2
    # Subnormal alpha, where some processors take their time: hardly any.
    assert ((after > 0) & (after < 2**-126)).float().mean() < 1e-2


@pytest.mark.parametrize("name", ["update_foreach", "update"])
def test_formula_that_computes_something_else_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth_optimizer.formula, name, lambda *_: None)
    series = {"update_foreach": "growth/tensor-count", "update": "growth/parameters"}[name]
    with pytest.raises(AssertionError):
        next(SERIES[series].measure(QUICK))


def test_learners_take_the_same_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {torch.optim.SGD: 0, MetaplasticSGD: 0}
    for cls in steps:

        def counting(self: Any, *args: Any, original: Any = cls.step, cls: Any = cls) -> Any:
            steps[cls] += 1
            return original(self, *args)

        monkeypatch.setattr(cls, "step", counting)
    size = growth_items.Size(QUICK)
    items = growth_items.make_items(size)
    taken = {}
    for line, build in growth_items.LEARNERS.items():
        before = sum(steps.values())
        learn = build(size)
        for item in items[:2]:
            learn(item)
        taken[line] = sum(steps.values()) - before
    assert set(taken.values()) == {2 * math.ceil(size.inputs / size.batch)}
    assert steps[MetaplasticSGD] == 2 * steps[torch.optim.SGD] > 0


def test_held_memory_is_seen_and_what_was_given_back_is_not() -> None:
    before = growth_items.in_use(CPU)
    held = torch.ones(64 << 18)  # 64 MiB
    # Pages are counted whole, and the interpreter takes some of its own.
    assert growth_items.in_use(CPU) - before == pytest.approx(64, abs=4)
    del held
    assert growth_items.in_use(CPU) - before == pytest.approx(0, abs=4)


def test_memory_that_a_learner_hoards_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    hoard: list[np.ndarray] = []

    def hoarding(_size: growth_items.Size) -> growth_items.Learn:
        return lambda item: hoard.append(np.ones(1 << 17))  # 1 MiB an item

    monkeypatch.setitem(growth_items.LEARNERS, growth_items.OURS, hoarding)
    points = list(SERIES["growth/item-memory"].measure(QUICK))
    first, last = (point.values[growth_items.OURS][1] for point in (points[0], points[-1]))
    assert last - first == pytest.approx(9, abs=2)  # the middles are nine items apart


def test_parameters_of_tasks_are_counted() -> None:
    try:
        inference, _, _ = growth_tasks.make(1, QUICK)
    except Skip as reason:
        pytest.skip(str(reason))
    per_task = 4 * inference.bank.parameters_per_task / 2**20
    network = growth_tasks.megabytes(inference.adapted.model)
    for point in measured("growth/tasks-memory"):
        ours, ease = (
            point.values[line + growth_tasks.ALONE][1] for line in (growth_tasks.OURS, growth_tasks.EASE)
        )
        assert ease == pytest.approx(network + point.x * per_task)
        # A bank has room for 4 tasks, then for twice as many as before.
        assert ours == pytest.approx(network + (4 if point.x <= 4 else 8) * per_task)
        for line in (growth_tasks.OURS, growth_tasks.EASE):
            assert point.values[line][1] >= point.values[line + growth_tasks.ALONE][1]


def test_networks_that_disagree_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = growth_tasks.Inference.passes
    monkeypatch.setattr(growth_tasks.Inference, "passes", lambda self, ease: real(self, ease) + 0.1)
    with pytest.raises((AssertionError, Skip)) as caught:
        growth_tasks.make(2, QUICK)
    if caught.type is Skip:
        pytest.skip(str(caught.value))


def test_unknown_memory_is_a_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth_items, "used_mb", _cannot_tell)
    result = measure_series(SERIES["growth/item-memory"], QUICK)
    assert result["skipped"] == "no such file"
    assert "lines" not in result


def _cannot_tell(_device: str) -> float:
    raise Skip("no such file")
