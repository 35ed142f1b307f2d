"""CUDA source as C++ for the emulator."""

from __future__ import annotations

import pytest

from native.cuda_on_host.translate import translate


def test_a_launch_becomes_a_call() -> None:
    text = translate("  step<W, G><<<size(a, b), kThreads, 0, stream>>>(table, f(x));\n")
    assert text == "  emulator::launch(size(a, b), kThreads, false, [&] { step<W, G>(table, f(x)); });\n"


def test_threads_that_meet_are_told() -> None:
    text = translate("__ballot_sync(1, x);\npack<<<1, 32, 0, static_cast<T>(stream)>>>(\n  a);\n")
    assert "emulator::launch(1, 32, true, [&] { pack(" in text


def test_arguments_in_constant_memory_are_not_copied() -> None:
    text = translate("f(const __grid_constant__ Table<Rule, kCount> table, Step<Rule> step)")
    assert text == "f(const Table<Rule, kCount>& table, Step<Rule> step)"


@pytest.mark.parametrize(
    "launch", ["<<<1, 2, 3, s>>>(x);", "k<<<1, 2>>>(x);", "k<<<1, 2, 3, s>>>(x);", "k<<<1, 2, 0, s>>>(x"]
)
def test_other_launches_are_refused(launch: str) -> None:
    with pytest.raises(ValueError, match=r"<<<|bracket|launch"):
        translate(launch)
