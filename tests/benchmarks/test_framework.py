"""What the benchmarks are made of: cases, turns, memory, agreement, ratios and goals."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flexkern.backends import backends, requested
from flexkern.benchmarks import case as registry
from flexkern.benchmarks import ceilings, timing
from flexkern.benchmarks.case import (
    CPU,
    GPU,
    ROTATION_BYTES,
    Case,
    Comparison,
    Peer,
    Point,
    Rotating,
    Series,
    Setting,
    Skip,
    Work,
    at_most,
    cases,
    faster,
    rotation,
    under,
)
from flexkern.benchmarks.ceilings import Ceilings, measure_ceilings, tf32
from flexkern.benchmarks.run import measure_case, measure_series, verify, weigh
from flexkern.benchmarks.timing import FEWEST, MOST, Rounds, quartiles, race
from flexkern.measure import peak_mb

ROOT = Path(__file__).resolve().parent.parent.parent

MIB = 2**20


def nothing() -> None:
    return None


def comparison(*peers: Peer, **rest: Any) -> Comparison:
    return Comparison("ours, 10 of 10", nothing, peers or [Peer("theirs", nothing, nothing)], **rest)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Callable[[], None]]:
    """The clock of the measurements moves only in calls: ``clock(seconds)`` makes one that takes so long."""
    now = [100.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def taking(seconds: float) -> Callable[[], None]:
        def call() -> None:
            now[0] += seconds

        return call

    return taking


# ---------------------------------------------------------------------- cases and their names


def test_only_takes_parts_of_names_and_patterns() -> None:
    every = [entry.name for entry in cases()]
    families = [entry.name for entry in cases(["linear/", "metaplastic/*"])]
    assert families == [name for name in every if name.startswith(("metaplastic/", "linear/"))]
    assert [entry.name for entry in cases(["aplastic/st"])] == ["metaplastic/step"]
    with pytest.raises(ValueError, match="no case is called 'nonsense'; there are metaplastic") as caught:
        cases(["metaplastic/step", "nonsense"])
    assert all(name in str(caught.value) for name in every)


def test_a_name_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CASES", {})

    @registry.case("made/up", devices=(GPU,), backends=("cuda", "triton"), budget=True)
    def build(at: Setting) -> Comparison:
        return comparison()

    (entry,) = cases()
    assert entry == Case("made/up", build, (GPU,), ("cuda", "triton"), False, True)
    with pytest.raises(ValueError, match="two cases are called 'made/up'"):
        registry.series("made/up", title="t", x="x", y="seconds")(lambda at: iter(()))


def test_settings() -> None:
    entry = Case("made/up", lambda at: comparison(), (CPU, GPU), ("cuda", "triton"))
    assert entry.settings(CPU, quick=True) == [Setting(CPU, "auto", True)]  # backends are a GPU's
    on_gpu = entry.settings(GPU, quick=False)
    assert [s.suffix() for s in on_gpu] == [" (cuda)", " (triton)"]
    assert Setting().suffix() == ""
    assert (Setting().size(100, 1), Setting(quick=True).size(100, 1)) == (100, 1)


def test_buffers_go_round() -> None:
    seen: list[str] = []
    rotating = Rotating([lambda: seen.append("a"), lambda: seen.append("b"), lambda: seen.append("c")])
    for _ in range(4):
        rotating()
    assert seen == ["a", "b", "c", "a"]
    for size in (1 << 24, 3 << 20, ROTATION_BYTES // 7):
        sets = rotation(size, most=1000)
        assert sets * size >= ROTATION_BYTES > (sets - 1) * size
    assert rotation(ROTATION_BYTES) == 2  # one set would be found in the cache
    assert rotation(1, most=5) == 5


# ---------------------------------------------------------------------- time


def test_quartiles_are_those_of_a_sorted_list() -> None:
    assert quartiles([4.0, 1.0, 5.0, 2.0, 3.0]) == (2.0, 3.0, 4.0)


def test_calls_take_turns(clock: Callable[[float], Callable[[], None]]) -> None:
    ours, theirs = race([clock(0.25), clock(0.5)], CPU, seconds=15.0)
    assert ours == [0.25] * 20  # 20 rounds of 0.75 s fill 15 s
    assert theirs == [0.5] * 20


def test_rounds_have_a_floor_and_a_ceiling(clock: Callable[[float], Callable[[], None]]) -> None:
    assert len(race([clock(10.0)], CPU, seconds=1.0)[0]) == FEWEST
    assert len(race([clock(0.01)], CPU, seconds=100.0)[0]) == MOST


def test_short_calls_are_repeated(clock: Callable[[float], Callable[[], None]]) -> None:
    taken, call = [0], clock(2.0**-17)  # 7.6 us: 132 of them last a millisecond

    def counted() -> None:
        taken[0] += 1
        call()

    rounds = Rounds([counted], CPU)
    before = taken[0]
    rounds.take(0)
    assert taken[0] - before == 132
    assert rounds.times == [[2.0**-17]]


def test_steady_calls_follow_their_own_kind() -> None:
    seen: list[str] = []
    rounds = Rounds([lambda: seen.append("a"), lambda: seen.append("b")], CPU, steady=True, seconds=0.0)
    rounds._repeats = [1, 1]
    seen.clear()
    for i in (0, 1, 0, 1):
        rounds.before(i)
        rounds.take(i)
    assert "".join(seen) == "aabbaabb"
    seen.clear()
    rounds = Rounds([lambda: seen.append("a")], CPU, seconds=0.0)
    seen.clear()
    rounds.before(0)
    assert not seen


def test_a_point_of_a_series(clock: Callable[[float], Callable[[], None]]) -> None:
    point = timing.point(3.0, {"ours": clock(0.5), "theirs": clock(2.0)}, CPU)
    assert point == Point(3.0, {"ours": (0.5, 0.5, 0.5), "theirs": (2.0, 2.0, 2.0)})


# ---------------------------------------------------------------------- memory


def test_peak_of_a_call_that_allocates() -> None:
    def once() -> None:
        torch.ones(64 * MIB, dtype=torch.uint8)

    def one_after_the_other() -> None:
        for size in (64, 16, 48):
            torch.ones(size * MIB, dtype=torch.uint8)  # given back before the next

    def together() -> None:
        kept = [torch.ones(32 * MIB, dtype=torch.uint8) for _ in range(3)]
        assert len(kept) == 3

    once()  # what torch takes at its first call
    for call, mib in ((once, 64), (one_after_the_other, 64), (together, 96)):
        peak = peak_mb(call, CPU)
        if peak is None:
            pytest.skip("this system does not tell how much memory a process has had")
        # The system counts pages by core and in batches; huge pages have 2 MB, and each tensor ends in one.
        assert mib - 2 <= peak <= mib + 6, call.__name__


def test_what_a_thread_keeps_counts_at_each_call() -> None:
    kept = threading.local()

    def with_scratch() -> None:
        if not hasattr(kept, "scratch"):
            kept.scratch = torch.ones(32 * MIB, dtype=torch.uint8)

    with_scratch()
    for _ in range(2):
        peak = peak_mb(with_scratch, CPU)
        assert peak is None or 30 <= peak <= 38


def test_a_call_that_fails_while_its_memory_is_measured() -> None:
    def fail() -> None:
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        peak_mb(fail, CPU)


def test_peak_of_a_call_that_allocates_nothing() -> None:
    x = torch.ones(8 * MIB)
    x.mul_(2.0)
    peak = peak_mb(lambda: x.mul_(2.0), CPU)
    assert peak is None or peak < 2


# ---------------------------------------------------------------------- agreement, ratios and goals


def test_what_does_not_agree_is_named() -> None:
    def disagree() -> None:
        raise AssertionError("off by 3")

    right = Peer("right", nothing, nothing)
    wrong = Peer("the wrong one", nothing, disagree)
    verify(comparison(right, Peer("yardstick", nothing, "it does something else")))
    with pytest.raises(AssertionError, match="10 of 10: the wrong one does not agree with ours; off by 3"):
        verify(comparison(right, wrong))


@pytest.mark.parametrize(
    ("goal", "text", "met"),
    [
        (faster(1.5), "speed-up at least 1.5", True),
        (faster(1.51), "speed-up at least 1.51", False),
        (at_most(0.67), "time at most 0.67", True),
        (at_most(0.66), "time at most 0.66", False),
        (under(2.0), "at most 2e+06 us", True),
        (under(1.99), "at most 1.99e+06 us", False),
    ],
)
def test_goals(goal: registry.Goal, text: str, met: bool) -> None:
    # Ratios in rounds 4, 1 and 1.5: their median is 1.5, and not the ratio 2 of the medians 4 and 2. What
    # slowed the second round slowed both.
    times = [[1.0, 10.0, 2.0], [4.0, 10.0, 3.0]]
    row = weigh(comparison(Peer("theirs", nothing, nothing, goal)), times, [1, 2], None)
    (peer,) = row["peers"]
    assert (peer["speedup_q1"], peer["speedup"], peer["speedup_q3"]) == (1.25, 1.5, 2.75)
    assert (peer["goal"], peer["met"]) == (text, met)
    assert (row["ours"]["median_ms"], peer["median_ms"]) == (2000.0, 4000.0)
    assert (row["ours"]["peak_mb"], peer["peak_mb"]) == (1, 2)


def test_shares_of_the_ceilings() -> None:
    ceilings = Ceilings(copy=1000.0, product={"float32": 50.0, "bfloat16": 400.0})
    work = Work(bytes=1000, operations=400, dtype="bfloat16")
    times = [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    rates = weigh(comparison(work=work), times, [None, None], ceilings)["work"]
    assert (rates["bytes_per_s"], rates["share_of_copy"]) == (500.0, 0.5)
    assert (rates["operations_per_s"], rates["share_of_product"]) == (200.0, 0.5)
    assert "share_of_copy" not in weigh(comparison(work=work), times, [None, None], None)["work"]


def test_without_a_goal_nothing_is_met_or_missed() -> None:
    row = weigh(comparison(Peer("yardstick", nothing, "it is no step")), [[1.0], [2.0]], [None, None], None)
    (peer,) = row["peers"]
    assert peer["goal"] is None
    assert peer["met"] is None
    assert peer["agreed"] == "not compared: it is no step"


def test_a_case_is_measured_and_closed() -> None:
    closed: list[int] = []
    kept = torch.ones(MIB)

    def build(at: Setting) -> Comparison:
        peers = [Peer("twice", lambda: (kept.mul_(1.0), kept.mul_(1.0)), nothing)]
        return Comparison("once", lambda: kept.mul_(1.0), peers, close=lambda: closed.append(1), memory=False)

    row = measure_case(Case("made/up", build), Setting(), None, seconds=0.5)
    assert closed == [1]
    assert row["ours"]["rounds"] == row["peers"][0]["rounds"] >= FEWEST
    assert 1.2 < row["peers"][0]["speedup"] < 3.3  # twice the work
    assert row["ours"]["peak_mb"] is None


def test_a_case_that_does_not_agree_is_not_timed_but_closed() -> None:
    closed: list[int] = []

    def disagree() -> None:
        raise AssertionError("off by 3")

    def not_to_be_called() -> None:
        pytest.fail("timed before its peers agreed")

    def build(at: Setting) -> Comparison:
        peers = [Peer("theirs", not_to_be_called, disagree)]
        return Comparison("ours", not_to_be_called, peers, close=lambda: closed.append(1))

    with pytest.raises(AssertionError, match="theirs does not agree with ours; off by 3"):
        measure_case(Case("made/up", build), Setting(), None)
    assert closed == [1]


def test_what_cannot_be_measured_here_says_why() -> None:
    def build(at: Setting) -> Comparison:
        raise Skip("peft is not installed")

    assert measure_case(Case("made/up", build), Setting(), None) == {"skipped": "peft is not installed"}
    cuda = backends()["cuda"]
    if not cuda.available:
        assert measure_case(Case("made/up", build), Setting(backend="cuda"), None) == {"skipped": cuda.reason}


def test_the_backend_is_that_of_the_setting() -> None:
    used: list[str] = []

    def build(at: Setting) -> Comparison:
        used.append(requested())
        return comparison(memory=False)

    before = requested()
    measure_case(Case("made/up", build), Setting(backend="reference"), None, seconds=0.0)
    assert used == ["reference"]
    assert requested() == before


def test_lines_of_a_series() -> None:
    def measure(at: Setting) -> Iterator[Point]:
        for x in (1.0, 2.0):
            yield Point(x, {"ours": (x, 2 * x, 3 * x), "theirs": (0.0, 0.5, 1.0)})

    entry = Series("growth/made-up", "Time", "items", "seconds", measure, flat=True)
    assert measure_series(entry, Setting()) == {
        "series": "growth/made-up", "device": "cpu", "title": "Time", "x": "items", "y": "seconds",
        "flat": True,
        "lines": {"ours": [[1.0, 1.0, 2.0, 3.0], [2.0, 2.0, 4.0, 6.0]],
                  "theirs": [[1.0, 0.0, 0.5, 1.0], [2.0, 0.0, 0.5, 1.0]]},
    }  # fmt: skip

    def skip(at: Setting) -> Iterator[Point]:
        raise Skip("not here")
        yield

    skipped = measure_series(Series("growth/made-up", "Time", "items", "seconds", skip), Setting())
    assert skipped["skipped"] == "not here"


# ---------------------------------------------------------------------- ceilings


def test_ceilings_are_measured() -> None:
    ceilings = measure_ceilings(Setting(quick=True))
    assert ceilings.copy > 1e8  # a machine with less than 100 MB/s would be from the last century
    assert set(ceilings.product) == {"float32", "bfloat16"}
    assert min(ceilings.product.values()) > 1e8
    assert json.loads(json.dumps(ceilings.as_dict())) == ceilings.as_dict()


@pytest.mark.parametrize("before", ["none", "ieee", "tf32", "allow_tf32", "high"])
def test_tf32_is_put_back(before: str) -> None:
    """Whichever of torch's settings was used before: the old one may not even be read after the new one."""
    products, on_cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    start = products.fp32_precision, on_cpu.fp32_precision

    def fail_inside(allowed: bool) -> None:
        with tf32(allowed):
            assert products.fp32_precision == ("tf32" if allowed else "ieee")
            raise RuntimeError("inside")

    try:
        if before == "allow_tf32":
            products.allow_tf32 = True
        elif before == "high":
            torch.set_float32_matmul_precision("high")
        else:
            products.fp32_precision = before
        found = products.fp32_precision
        for allowed in (False, True):
            with pytest.raises(RuntimeError, match="inside"):
                fail_inside(allowed)
            assert products.fp32_precision == found
        if before in ("allow_tf32", "high"):  # and the old setting is as it was for who uses that
            assert products.allow_tf32 is True
    finally:
        torch.set_float32_matmul_precision("highest")
        products.fp32_precision, on_cpu.fp32_precision = start


def test_nothing_uses_the_setting_that_torch_refuses_after_its_new_one() -> None:
    """``allow_tf32`` and ``set_float32_matmul_precision``; who asks for the latter must take a refusal."""
    old = re.compile(
        r"\.allow_tf32\b|\"allow_tf32\"|set_float32_matmul_precision\(|get_float32_matmul_precision\("
    )
    using = {
        path.name
        for folder in ("flexkern", "triton_kernels", "benchmarks", "tests", "scripts", "studies", "examples")
        for path in (ROOT / folder).rglob("*.py")
        if old.search(path.read_text(encoding="utf-8"))
    }
    assert using <= {"provenance.py", "test_provenance.py", Path(__file__).name}


def test_a_case_waits_until_the_machine_is_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def copy(call: object, device: str) -> float:
        """Seconds of a copy that reaches the next share of 10 GB/s; nine copies make one look."""
        return 8 * ceilings.ELEMENTS / (shares.pop(0) * 10e9)

    monkeypatch.setattr(ceilings, "sample", copy)
    monkeypatch.setattr(ceilings.time, "sleep", lambda seconds: None)
    machine = ceilings.Ceilings(copy=10e9, product={})
    shares[:] = [0.5] * 9 + [0.7] * 9 + [0.9] * 9 + [1.0] * 9
    assert ceilings.Calm(machine, patience=60).wait() == pytest.approx(0.9)
    assert len(shares) == 9
    shares[:] = [0.5] * 9
    assert ceilings.Calm(machine, patience=0).wait() == pytest.approx(0.5)
    calm = ceilings.Calm(machine, patience=0)
    shares[:] = [2.0] * 9 + [1.0] * 9  # faster than was thought: from now on that is the measure
    assert [calm.wait(), calm.wait()] == pytest.approx([1.0, 0.5])
