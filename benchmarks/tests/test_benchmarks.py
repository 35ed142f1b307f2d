"""Every case of the registry as a benchmark of pytest: ``pytest benchmarks/``, ``-k metaplastic``.

With ``--benchmark-disable`` the sizes are small and nothing is timed: all is built, compared and run once.

The figures are those of ``flexkern bench``, which also writes results files; pytest-benchmark keeps its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import flexkern
from flexkern.benchmarks.case import CPU, GPU, Case, Setting, Skip, cases
from flexkern.benchmarks.run import forget, verify, weigh
from flexkern.benchmarks.timing import Turns

DEVICE = GPU if torch.cuda.is_available() else CPU
SETTINGS = [
    pytest.param(
        entry, setting, id=f"{entry.name}-{setting.backend}", marks=[pytest.mark.gpu] * (DEVICE == GPU)
    )
    for entry in cases()
    if isinstance(entry, Case)
    for setting in entry.settings(DEVICE, quick=False)
]


@pytest.mark.parametrize(("entry", "setting"), SETTINGS)
def test_case(
    entry: Case, setting: Setting, benchmark: Any, rows: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    quick = request.config.getoption("benchmark_disable")
    setting = Setting(setting.device, setting.backend, quick)
    status = flexkern.backends().get(setting.backend)
    if status is not None and not status.available:
        pytest.skip(status.reason)
    with flexkern.use_backend(setting.backend):
        try:
            contest = entry.build(setting)
        except Skip as reason:
            pytest.skip(str(reason))
        verify(contest)
        calls = [contest.ours, *(peer.call for peer in contest.peers)]
        turns = Turns(calls, setting.device, steady=contest.steady, seconds=0.0 if quick else 12.0)

        def others_turns() -> None:
            for i in range(1, len(calls)):
                turns.before(i)
                turns.take(i)
            turns.before(0)

        benchmark.pedantic(turns.take, args=(0,), setup=others_turns, rounds=1 if quick else turns.rounds)
        row = weigh(contest, turns.times, [None] * len(calls), None)
        contest.close()
    benchmark.extra_info.update(row)
    if not quick:
        rows.append(row)
    forget()
