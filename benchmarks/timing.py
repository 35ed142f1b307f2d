"""Ours and its peers round by round: on the CPU by the clock, on a GPU by device events or graph replay."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from flexkern.benchmarks.case import GPU, Point

__all__ = ["Rounds", "captured", "point", "quartiles", "race", "sample", "warm_up"]

Call = Callable[[], object]
SHORTEST = 1e-3  # seconds: a timed stretch lasts at least this long, by repeating short calls
FEWEST, MOST = 7, 60  # rounds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    tensor = torch.tensor(values, dtype=torch.float64)
    q1, q2, q3 = torch.quantile(tensor, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return q1, q2, q3


def sample(call: Call, device: str, repeats: int = 1) -> float:
    """Seconds of one call, the mean of ``repeats`` in a row."""
    if device == GPU:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    start_seconds = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start_seconds) / repeats


def captured(call: Call) -> Call:
    """``call`` as the replay of a CUDA graph: what is left is the device's time, without launches by Python."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as torch asks for: some libraries allocate at their first call
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def warm_up(call: Call, device: str) -> tuple[float, int]:
    """Calls it until it is compiled and its memory touched: seconds of a call, and how many make a stretch."""
    sample(call, device)
    once = sample(call, device)
    if once < 1:  # longer ones are warm by then
        once = min(sample(call, device) for _ in range(2))
    return once, max(1, math.ceil(SHORTEST / max(once, 1e-9)))


class Rounds:
    """Calls timed round by round: in each round each is timed once, so that all see the same noise.

    Args:
        calls: ours first.
        steady: each timed call follows an untimed one of its own.
        seconds: about how long all rounds together may take; there are at most 60 of them.
        fewest: and at least so many.

    Attributes:
        count: how many there are to be.
        times: for each call the seconds of each round.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        device: str,
        *,
        steady: bool = False,
        seconds: float = 12.0,
        fewest: int = FEWEST,
    ) -> None:
        self._calls, self._device, self._steady = calls, device, steady
        warm = [warm_up(call, device) for call in calls]
        self._repeats = [repeats for _, repeats in warm]
        once_round = sum(once * repeats for once, repeats in warm) * (2 if steady else 1)
        self.count = min(MOST, max(fewest, int(seconds / once_round)))
        self.times: list[list[float]] = [[] for _ in calls]

    def before(self, i: int) -> None:
        """What comes before the timed stretch of call ``i``."""
        if self._steady:
            self._calls[i]()

    def take(self, i: int) -> None:
        """The timed stretch of call ``i``."""
        self.times[i].append(sample(self._calls[i], self._device, self._repeats[i]))


def race(
    calls: Sequence[Call], device: str, *, steady: bool = False, seconds: float = 12.0
) -> list[list[float]]:
    """For each call the seconds of each round; see :class:`Rounds`."""
    rounds = Rounds(calls, device, steady=steady, seconds=seconds)
    for _ in range(rounds.count):
        for i in range(len(calls)):
            rounds.before(i)
            rounds.take(i)
    return rounds.times


def point(x: float, calls: Mapping[str, Call], device: str, *, seconds: float = 1.0, fewest: int = 5) -> Point:
    """A point of a series: quartiles of lines that take rounds.

    Args:
        x: its place.
        calls: what each line times.
        seconds, fewest: see :class:`Rounds`.
    """
    rounds = Rounds(list(calls.values()), device, seconds=seconds, fewest=fewest)
    for _ in range(rounds.count):
        for i in range(len(calls)):
            rounds.take(i)
    return Point(x, {line: quartiles(times) for line, times in zip(calls, rounds.times, strict=True)})
