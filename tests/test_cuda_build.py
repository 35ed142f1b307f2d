"""What the CUDA build holds: every architecture, no spills, and 16-byte accesses where memory is the bound."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexkern.backends.built import LIBRARY_DIR, build_info
from flexkern.spec import RULES

LIBRARY = LIBRARY_DIR / "libflexkern_cuda.so"


def _cuobjdump() -> str | None:
    """CUDA's own, or the one that Triton's package carries."""
    if found := shutil.which("cuobjdump"):
        return found
    try:
        import triton
    except ImportError:
        return None
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return str(bundled) if bundled.exists() else None


def _why_none() -> str:
    info = build_info()
    return "flexkern was installed without its compiled extension" if info is None else info["cuda_compiler"]


@pytest.mark.skipif(os.environ.get("FLEXKERN_CUDA") != "1", reason="FLEXKERN_CUDA=1 did not ask for them")
def test_they_are_there_where_they_were_asked_for() -> None:
    """Else all other tests here would be skipped, and nobody would notice."""
    assert LIBRARY.exists(), _why_none()


@functools.cache  # the library is large
def _dump(*options: str) -> str:
    tool = _cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump: install the CUDA toolkit or triton")
    if not LIBRARY.exists():
        pytest.skip(f"there are no CUDA kernels to look at: {_why_none()}")
    return subprocess.run([tool, *options, str(LIBRARY)], capture_output=True, text=True, check=True).stdout


def _functions(report: str) -> Iterator[tuple[str, str, int, int]]:
    """(architecture, function, registers, stack bytes) of a resource report."""
    architecture = ""
    name = ""
    for line in report.splitlines():
        if match := re.match(r"arch = (\S+)", line):
            architecture = match.group(1)
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match.group(1)
        elif match := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            yield architecture, name, int(match.group(1)), int(match.group(2)) + int(match.group(3))


def test_no_kernel_spills() -> None:
    functions = list(_functions(_dump("-res-usage")))
    built = {f"sm_{a}" for a in build_info()["cuda_architectures"].split(";")}
    assert {architecture for architecture, *_ in functions} == built
    # Of each rule the step (five dtype pairs, three table sizes) and synapses (five pairs); displacement (three
    # dtypes, three table sizes), gate, field, pack, unpack, template.
    count = len(RULES) * (5 * 3 + 5) + 3 * 3 + 5
    assert all(len({name for a, name, *_ in functions if a == one}) == count for one in built)
    spilling = [f for f in functions if f[3]]
    assert not spilling
    # 65,536 registers per multiprocessor: 64 per thread leave half of its 2,048 threads: enough in flight.
    # A layer's pass holds the operands of functional synapses while it decides on silent ones: 64 bytes a
    # thread, 112 by AdamW. The 768 threads that 80 registers leave have 48 KB in flight, the 512 of 128
    # registers 57 KB, where 26 KB are enough (csrc/cuda/synapse.cu).
    for _, name, registers, _ in functions:
        layer = 128 if "AdamW" in name else 80
        assert registers <= (layer if "synapse_kernel" in name else 64), (name, registers)


def test_the_report_reader_sees_a_spill() -> None:
    report = "arch = sm_90\n Function f:\n  REG:255 STACK:112 SHARED:0 LOCAL:0 CONSTANT[0]:417\n"
    assert list(_functions(report)) == [("sm_90", "f", 255, 112)]


@pytest.mark.parametrize(
    ("kernel", "loads", "stores"),
    [
        # loads of w, g, m, a, f and alpha; stores of w and m
        ("step_kernelIffNS_3SgdELi16E", 6, 2),
        # also pre, coincidence, and the anchor that is inserted or written
        ("synapse_kernelIffNS_3SgdEE", 9, 3),
    ],
)
def test_float32_step_reads_and_writes_16_bytes_at_a_time(kernel: str, loads: int, stores: int) -> None:
    body = _body(kernel)
    # Rows of the table of normal values are read as constants.
    assert len(re.findall(r"LDG\.E\.128(?!\.CONSTANT)", body)) == loads
    assert len(re.findall(r"STG\.E\.128", body)) == stores


def _body(kernel: str) -> str:
    """The sm_90 instructions of the kernel whose name this pattern finds."""
    sass = _dump("-sass", "-arch", "sm_90")
    if "Function" not in sass:
        pytest.skip("the CUDA kernels were not built for sm_90")
    bodies = [body for body in sass.split("Function : ")[1:] if re.match(rf"\S*{kernel}", body)]
    assert len(bodies) == 1
    return bodies[0]


@pytest.mark.parametrize(
    ("kernel", "access", "count"),
    [("11pack_kernel", r"LDG\.E\.128", 3), ("13unpack_kernel", r"STG\.E\.128", 2)],
)
def test_masks_move_16_bytes_at_a_time(kernel: str, access: str, count: int) -> None:
    body = _body(kernel)
    found = [match.start() for match in re.finditer(access, body)]
    assert len(found) == count
    # Where a thread begins is divided once, before the loop: a division costs as much as 32 synapses.
    assert body.rindex("CALL") < found[0]


def test_functional_synapses_are_loaded_before_silent_ones_are_waited_for() -> None:
    """In the order of the instructions: the next word and four operands, then activities, and no load after."""
    body = _body("synapse_kernelIffNS_3SgdEE")
    wide = [m.start() for m in re.finditer(r"LDG\.E\.128(?!\.CONSTANT)", body)]
    gates = [m.start() for m in re.finditer(r"MUFU\.EX2", body)]  # of alpha, which functional synapses need
    shuffles = body.index("SHFL.BFLY")
    assert len(gates) == 4
    # Of nine: w, g, m, alpha, a, f; then pre, coincidence, and the anchor that is inserted.
    assert max(wide) < min(gates) < shuffles
    assert body.rindex("LDG", 0, shuffles) < min(gates)
