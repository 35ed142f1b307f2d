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
from flexkern.benchmarks.timing import Rounds

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
            comparison = entry.build(setting)
        except Skip as reason:
            pytest.skip(str(reason))
        verify(comparison)
        calls = [comparison.ours, *(peer.call for peer in comparison.peers)]
        rounds = Rounds(calls, setting.device, steady=comparison.steady, seconds=0.0 if quick else 12.0)

        def others() -> None:
            for i in range(1, len(calls)):
                rounds.before(i)
                rounds.take(i)
            rounds.before(0)

        benchmark.pedantic(rounds.take, args=(0,), setup=others, rounds=1 if quick else rounds.count)
        row = weigh(comparison, rounds.times, [None] * len(calls), None)
        comparison.close()
    benchmark.extra_info.update(row)
    if not quick:
        rows.append(row)
    forget()
