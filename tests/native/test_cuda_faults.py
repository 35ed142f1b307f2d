"""The emulator of CUDA finds what a GPU would hide, or hang at: threads that do not meet, stray accesses."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.scripts import load_file
from native.cuda_on_host.translate import kernels, translate

ROOT = Path(__file__).parent.parent.parent
EMULATOR = Path(__file__).parent / "cuda_on_host"
SOURCE = EMULATOR / "faults.cu"
APART = "threads of a warp do different things together"
LEFT = "a thread has ended where its warp does something together"
FOUND = {
    "a_lane_leaves": LEFT,
    "a_lane_stays_away": LEFT,
    "lanes_do_different_things": APART,
    "lanes_shuffle_differently": "the threads of a warp shuffle differently",
    "a_shuffle_from_beyond": "a shuffle from beyond the warp",
    "a_part_of_a_warp": "whole warps only",
    "loops_of_different_length": LEFT,
    "a_warp_does_not_reach_the_barrier": "a thread has ended where its block waits for it",
    "a_lane_does_not_reach_the_barrier": APART,
    "a_store_past_the_end": "heap-buffer-overflow",
    "a_read_before_the_start": "heap-buffer-overflow",
    "an_overflow": "signed integer overflow",
    "an_index_that_is_not_aligned": "misaligned address",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(not (ROOT / "scripts" / "sanitize.py").exists(), reason="needs a checkout"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "faults.cpp").write_text(translate(SOURCE.read_text()))
    flags = load_file(ROOT / "scripts" / "sanitize.py").FLAGS
    subprocess.run(
        ["g++", "-std=c++17", *flags, "-g0", "-w", f"-I{EMULATOR / 'include'}", "-o", folder / "faults",
         folder / "faults.cpp", EMULATOR / "emulator.cpp"],
        check=True,
    )  # fmt: skip
    return folder / "faults"


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:symbolize=0"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment)


def test_threads_that_meet_get_what_the_others_gave(program: Path) -> None:
    ended = run(program, "sound")
    assert ended.returncode == 0, ended.stderr
    assert list(map(int, ended.stdout.split())) == [3200 + 63 - i % 64 for i in range(128)]


@pytest.mark.parametrize("fault", FOUND)
def test_a_fault_is_found(program: Path, fault: str) -> None:
    ended = run(program, fault)
    assert ended.returncode not in (0, 3)
    assert FOUND[fault] in ended.stderr


def test_each_fault_is_looked_for() -> None:
    assert kernels(SOURCE.read_text()) == ["sound", *FOUND]


@pytest.mark.parametrize("threads", ["0", "48", "1056"])
def test_grids_that_no_gpu_takes_are_refused(program: Path, threads: str) -> None:
    assert run(program, "sound", threads).returncode == 3
