"""CUDA source as C++ for the emulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from native.cuda_on_host.launches import KERNELS
from native.cuda_on_host.translate import kernels, translate

CUDA = Path(__file__).parent.parent.parent / "csrc" / "cuda"
CALL = 'emulator::launch("{}", __PRETTY_FUNCTION__, '


def test_a_launch_becomes_a_call() -> None:
    text = translate("  step<W, G><<<size(a, b), kThreads, 0, stream>>>(table, f(x));\n")
    begin = CALL.format("step")
    assert text == f"  {begin}size(a, b), kThreads, false, [&] {{ step<W, G>(table, f(x)); }});\n"


def test_a_constant_that_stands_for_a_kernel_is_known_by_its_name() -> None:
    text = translate("constexpr auto kernel = step<W>;\nkernel<<<1, 32, 0, s>>>(x);\n")
    assert CALL.format("step") + "1, 32, false, [&] { kernel(x); });" in text


def test_threads_that_meet_are_told() -> None:
    for meeting in ("__ballot_sync(1, x)", "__syncthreads()"):
        text = translate(f"{meeting};\npack<<<1, 32, 0, static_cast<T>(stream)>>>(\n  a);\n")
        assert CALL.format("pack") + "1, 32, true, [&] { pack(" in text


def test_arguments_in_constant_memory_are_not_copied() -> None:
    text = translate("f(const __grid_constant__ Table<Rule, kCount> table, Step<Rule> step)")
    assert text == "f(const Table<Rule, kCount>& table, Step<Rule> step)"


def test_kernels_are_found() -> None:
    text = "__global__ void __launch_bounds__(kThreads, f<Rule>)\n    one(int x) {}\n__global__ void two() {}"
    assert kernels(text) == ["one", "two"]
    assert kernels("__global__ void __launch_bounds__(256) one(int x);") == ["one"]


@pytest.mark.skipif(not CUDA.exists(), reason="needs a checkout")
def test_each_kernel_is_launched_on_the_host() -> None:
    """A new one is to be listed in KERNELS, with a case that launches it and compares what it does."""
    found = {path.name: kernels(path.read_text()) for path in sorted(CUDA.glob("*.cu*"))}
    assert [name for name, names in found.items() if name.endswith(".cu") and not names] == []
    assert sorted(name for names in found.values() for name in names) == sorted(KERNELS)


@pytest.mark.parametrize(
    "launch", ["<<<1, 2, 3, s>>>(x);", "k<<<1, 2>>>(x);", "k<<<1, 2, 3, s>>>(x);", "k<<<1, 2, 0, s>>>(x"]
)
def test_other_launches_are_refused(launch: str) -> None:
    with pytest.raises(ValueError, match=r"<<<|bracket|launch"):
        translate(launch)
