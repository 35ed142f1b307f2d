"""Collects the rows of a benchmark run, prints the table of ratios and writes the results file."""

from __future__ import annotations

import os

# torch then asks for huge pages for large tensors, ours and the peers' alike: with 4 KB pages a quarter of the
# time of every streaming operator goes to address translation, which no kernel can change.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

import flexkern
from harness import RESULTS, Row, gpu_seconds, machine, seconds

ROWS: list[Row] = []


def _family(request: pytest.FixtureRequest) -> str:
    return request.module.__name__.rpartition("bench_")[2].removesuffix("_gpu")


@pytest.fixture
def race(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., Row]:
    """Measures ours against a peer on the CPU: each timed round of ours follows one of the peer.

    With ``steady``, each timed call follows an untimed one of its own kind, as a training step follows another:
    otherwise one would write back what the other left changed in the cache.
    """

    def run(
        row: Row,
        ours: Callable[[], Any],
        peer: Callable[[], Any],
        *,
        rounds: int,
        warm: int = 3,
        steady: bool = False,
    ) -> Row:
        row.family = _family(request)
        for _ in range(warm):
            peer(), ours()
        row.peer_seconds.clear()

        def set_up() -> None:
            """The peer runs in the untimed set-up of each round, so that both see the same noise."""
            if steady:
                peer()
            row.peer_seconds.append(seconds(peer))
            if steady:
                ours()

        benchmark.pedantic(ours, setup=set_up, rounds=rounds)
        row.ours_seconds.extend(benchmark.stats.stats.data)
        benchmark.extra_info.update({"peer": row.peer, "ratio": row.ratio, "goal": row.goal})
        ROWS.append(row)
        return row

    return run


@pytest.fixture
def gpu_race(request: pytest.FixtureRequest) -> Callable[..., Row]:
    """Measures ours against a peer on the GPU, by device events, in turns."""

    def run(row: Row, ours: Callable[[], Any], peer: Callable[[], Any], *, rounds: int = 20) -> Row:
        row.family = _family(request)
        for _ in range(3):
            peer(), ours()
        torch.cuda.synchronize()
        for _ in range(rounds):
            row.peer_seconds.append(gpu_seconds(peer))
            row.ours_seconds.append(gpu_seconds(ours))
        ROWS.append(row)
        return row

    return run


@pytest.fixture
def gpu_backend(backend: str) -> Iterator[None]:
    """Runs a GPU case on the backend that it names."""
    status = flexkern.backends()[backend]
    if not torch.cuda.is_available() or not status.available:
        pytest.skip(f"{backend}: {status.reason}")
    with flexkern.use_backend(backend):
        yield


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of text."""
    head = f"{'case':<44} {'peer':<34} {'ours ms':>8} {'peer ms':>8} {'ratio':>7}  goal"
    lines = [head, "-" * len(head)]
    for row in rows:
        d = row.as_dict()
        lines.append(
            f"{row.name:<44} {row.peer:<34} {d['ours']['median_ms']:8.3f} {d['peer_times']['median_ms']:8.3f} "
            f"{row.ratio:7.2f}  {d['goal']} {'met' if row.met else 'NOT MET'} ({d['figure']})"
        )
    return lines


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not ROWS:
        return
    terminalreporter.section("ratios, ours and peer in one run")
    for line in table(ROWS):
        terminalreporter.write_line(line)
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    # One file a family; FLEXKERN_RESULTS_NAME asks for a single one.
    single = os.environ.get("FLEXKERN_RESULTS_NAME")
    files: dict[str, list[Row]] = {}
    for row in ROWS:
        files.setdefault(single or f"{row.family}_{kind}.json", []).append(row)
    RESULTS.mkdir(exist_ok=True)
    here = machine()
    for name, rows in files.items():
        record = {"machine": here, "rows": [row.as_dict() for row in rows]}
        (RESULTS / name).write_text(json.dumps(record, indent=1) + "\n")
        terminalreporter.write_line(f"written: {RESULTS / name}")
