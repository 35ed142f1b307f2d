"""A short run of each fuzzer; the full one is ``make fuzz``, and its counts are in docs/results/reliability."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fuzz.harness import Fuzzer, find, run_cases


@pytest.mark.slow
@pytest.mark.parametrize("fuzz", find().values(), ids=lambda fuzz: fuzz.name)
def test_fuzz(
    fuzz: Fuzzer, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_cases(fuzz, 0, fuzz.quick)
    record_property("outcomes", found["outcomes"])
    with capsys.disabled():
        print(f"\n{fuzz.name}: {fuzz.quick} cases: {found['outcomes']}")
    assert not found["faults"], "\n".join(f"case {f['case']}:\n{f['error']}" for f in found["faults"][:3])
    # A fuzzer whose cases are all refused, or all the same, would look at nothing.
    assert len(found["outcomes"]) > 1, found["outcomes"]
