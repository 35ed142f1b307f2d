"""What scripts/sanitize.py runs code under does find faults, and a fault ends the process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from helpers.scripts import load_file

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
EMULATOR = HERE / "cuda_on_host"
FAULTS = {
    "read_past_the_end": "heap-buffer-overflow",
    "overflow": "signed integer overflow",
    "shift_of_a_negative_number": "left shift of negative value",
    "use_after_free": "heap-use-after-free",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(not (ROOT / "scripts" / "sanitize.py").exists(), reason="needs a checkout"),
]


@pytest.fixture(scope="module")
def sanitize() -> ModuleType:
    return load_file(ROOT / "scripts" / "sanitize.py")


def compile_with(sanitize: ModuleType, target: Path, *arguments: str | Path) -> None:
    subprocess.run(["g++", "-std=c++17", *sanitize.FLAGS, "-o", target, *arguments], check=True)


# ------------------------------------------------------------------ libraries that Python loads


@pytest.fixture(scope="module")
def library(sanitize: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("faults") / "faults.so"
    compile_with(sanitize, target, "-shared", "-fPIC", HERE / "faults.cpp")
    return target


def call(sanitize: ModuleType, library: Path, function: str) -> subprocess.CompletedProcess[str]:
    code = f"import ctypes; print(ctypes.CDLL({str(library)!r}).{function}(1))"
    environment = sanitize.environment()
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_sound_code_runs(sanitize: ModuleType, library: Path) -> None:
    ended = call(sanitize, library, "sound")
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr


@pytest.mark.parametrize("function", FAULTS)
def test_a_fault_is_found(sanitize: ModuleType, library: Path, function: str) -> None:
    ended = call(sanitize, library, function)
    assert ended.returncode != 0
    assert FAULTS[function] in ended.stderr


# ------------------------------------------------------------------ CUDA kernels on the host

MAIN = """
#include "cuda_runtime.h"
#include <vector>
namespace flexkern::cuda {
const char* null(const float* x, float factor, float* out, int64_t numel, int device, void* stream);
const char* pack_mask(const uint8_t*, int32_t*, int64_t rows, int64_t columns, int device, void* stream);
}  // namespace flexkern::cuda
int main() {
  const int64_t count = 1037;
  const std::vector<float> x(count, 2.0f);
  std::vector<float> out(count);
  if (flexkern::cuda::null(x.data(), 3.0f, out.data(), count, 0, nullptr) != nullptr) return 3;
  for (const float value : out) if (value != 6.0f) return 4;
  const std::vector<uint8_t> mask(3 * 37, 1);
  std::vector<int32_t> words(6);
  if (flexkern::cuda::pack_mask(mask.data(), words.data(), 3, 37, 0, nullptr) != nullptr) return 5;
  for (int i = 0; i < 6; ++i) if (words[i] != (i % 2 == 0 ? -1 : 31)) return 6;
}
"""
PLANTED = {
    "nothing": ("null", "", "", ""),
    "a store past the end": (
        "null",
        "store4(out + begin, whole, count",
        "store4(out + begin, true, count",
        "heap-buffer",
    ),
    "a read past the end": ("mask", "&& past <= bytes", "", "heap-buffer-overflow"),
    "a warp that is not all there": (
        "null",
        "    const int count",
        "    __ballot_sync(0xffffffffu, true);\n    const int count",
        "has ended where its warp",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_of_a_cuda_kernel_is_found(sanitize: ModuleType, tmp_path: Path, fault: str) -> None:
    from native.cuda_on_host.translate import translate

    family, old, new, message = PLANTED[fault]
    subprocess.run([sys.executable, ROOT / "build_tools" / "bindings.py", tmp_path], check=True)
    (tmp_path / "main.cpp").write_text(MAIN)
    for name in ("null", "mask"):
        text = (ROOT / "csrc" / "cuda" / f"{name}.cu").read_text()
        if name == family and old:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / f"{name}.cpp").write_text(translate(text))
    folders = (EMULATOR / "include", ROOT / "csrc", ROOT / "csrc" / "include", ROOT / "csrc" / "cuda", tmp_path)
    sources = [tmp_path / f"{name}.cpp" for name in ("main", "null", "mask")]
    compile_with(
        sanitize, tmp_path / "main", *(f"-I{folder}" for folder in folders), "-D__CUDACC__",
        "-D__CUDA_ARCH__=900", "-include", "cuda_runtime.h", "-ffp-contract=off", "-w", *sources,
        EMULATOR / "emulator.cpp",
    )  # fmt: skip
    ended = subprocess.run([tmp_path / "main"], capture_output=True, text=True)
    assert (ended.returncode == 0) == (fault == "nothing"), ended.stderr
    assert message in ended.stderr
