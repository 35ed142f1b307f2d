"""What the CUDA build holds: every architecture, no spills, and 16-byte accesses where memory is the bound."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexkern.backends import LIBRARY_DIR
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


@functools.cache  # the library is large
def _dump(*options: str) -> str:
    tool = _cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump: install the CUDA toolkit or triton")
    if not LIBRARY.exists():
        pytest.skip("flexkern was built without nvcc, so there are no CUDA kernels to look at")
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
    from flexkern import _core

    functions = list(_functions(_dump("-res-usage")))
    built = {f"sm_{a}" for a in _core.build_info()["cuda_architectures"].split(";")}
    assert {architecture for architecture, *_ in functions} == built
    # Of each rule the step (five dtype pairs, three table sizes) and synapses (five pairs); displacement (three
    # dtypes, three table sizes), gate, field, pack, unpack, template.
    count = len(RULES) * (5 * 3 + 5) + 3 * 3 + 5
    assert all(len({name for a, name, *_ in functions if a == one}) == count for one in built)
    spilling = [f for f in functions if f[3]]
    assert not spilling
    # 65,536 registers per multiprocessor: 64 per thread leave half of its 2,048 threads: enough in flight.
    # A layer's pass by AdamW reads up to seven operands, 112 bytes a thread at once: there the 768 threads that
    # 80 registers leave have 86 KB in flight, where 23 KB are enough (csrc/cuda/metaplastic.cu).
    for _, name, registers, _ in functions:
        assert registers <= (80 if "synapse_kernel" in name and "AdamW" in name else 64), (name, registers)


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
    assert len(re.findall(r"LDG\.E\.128", body)) == loads
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
