"""What is linked here loads on the Linux systems that a manylinux_2_28 wheel is for."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

# What `objdump -T` prints of libc.so.6 and libstdc++.so.6 on Debian 12.
LISTING = """
/lib/x86_64-linux-gnu/libc.so.6:     file format elf64-x86-64

DYNAMIC SYMBOL TABLE:
0000000000000000      DO *UND*  0000000000000000 (GLIBC_2.35) _rtld_global_ro
0000000000000000 g    DO *ABS*  0000000000000000  GLIBC_2.2.5 GLIBC_2.2.5
0000000000089380 g    DF .text  0000000000000eed (GLIBC_2.2.5) pthread_create
0000000000089380 g    DF .text  0000000000000eed  GLIBC_2.34  pthread_create
00000000000a2d70 g    DF .text  0000000000000028 (GLIBC_2.2.5) memcpy
000000000009be70 g   iD  .text  0000000000000109  GLIBC_2.14  memcpy
00000000001db5d8 g    DO .bss   0000000000000001  GLIBC_2.32  __libc_single_threaded
00000000001db320  w   DO .bss   0000000000000008  GLIBC_2.2.5 environ
0000000000000010 g    D  .tbss  0000000000000004  GLIBC_PRIVATE errno
00000000000ab0a0 g    DF .text  00000000000000b5  GLIBCXX_3.4.26 _ZNSt7__cxx1119basic_ostringstreamC1Ev
00000000000ab0a0 g    DF .text  00000000000000b5  CXXABI_1.3  __cxa_throw
"""

SOURCE = """
#include <cmath>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
static std::once_flag once;
extern "C" int check(double x) {
  std::ostringstream text;  // GLIBCXX_3.4.26
  auto shared = std::make_shared<double>(std::log(x));  // GLIBC_2.29, and 2.32 by __libc_single_threaded
  std::call_once(once, [&] { text << *shared; });  // GLIBC_2.34
  try {
    throw std::runtime_error(text.str());
  } catch (const std::exception& error) {
    return static_cast<int>(std::string(error.what()).size());
  }
}
"""


def test_the_newest_that_is_old_enough(tools: dict[str, ModuleType]) -> None:
    old = tools["old_libraries"]
    symbols, moved = old.old_ones(old.read(LISTING))
    assert {(s.name, s.version, s.kind) for s in symbols} == {
        ("pthread_create", "GLIBC_2.2.5", "function"), ("memcpy", "GLIBC_2.14", "function"),
        ("environ", "GLIBC_2.2.5", "object"), ("__cxa_throw", "CXXABI_1.3", "function"),
    }  # fmt: skip
    assert moved == {"pthread_create"}


@pytest.mark.parametrize(
    ("version", "is_old"),
    [("GLIBC_2.28", True), ("GLIBC_2.29", False), ("GLIBC_2.4", True), ("GLIBCXX_3.4.24", True),
     ("GLIBCXX_3.4.25", False), ("CXXABI_1.3.11", True), ("CXXABI_1.3.12", False), ("GLIBC_PRIVATE", False)],
)  # fmt: skip
def test_versions(tools: dict[str, ModuleType], version: str, is_old: bool) -> None:
    assert tools["old_libraries"].is_old(version) is is_old


def test_a_library_that_is_linked_so_asks_for_nothing_newer_and_works(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tools["old_libraries"]
    if platform.libc_ver()[0] != "glibc" or not (shutil.which("g++") and shutil.which("objdump")):
        pytest.skip("g++, objdump or glibc is not here")
    monkeypatch.setenv("CXX", "g++")
    link = old.make(tmp_path / "old libraries")
    (tmp_path / "check.cpp").write_text(SOURCE)
    library = tmp_path / "check.so"
    options = ["-std=c++17", "-shared", "-fPIC", "-Wl,--no-undefined,--as-needed,--exclude-libs,ALL"]
    subprocess.run(["g++", *options, link, "-o", library, tmp_path / "check.cpp"], check=True, timeout=60)
    said = subprocess.run(["objdump", "-Tx", library], check=True, capture_output=True, text=True).stdout
    versions = set(re.findall(r"\b(?:GLIBC|GLIBCXX|CXXABI)_[\w.]+", said))
    assert {"GLIBC_2.2.5", "GLIBCXX_3.4"} <= versions or platform.machine() != "x86_64"
    assert [v for v in versions if not old.is_old(v)] == []
    assert re.search(r"STACK off.*\n.*flags rw-\n", said), "its stack may be executed"
    check = ctypes.CDLL(str(library)).check
    check.argtypes = [ctypes.c_double]
    assert check(1.0) == 1


def test_without_binutils(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/none/g++")
    with pytest.raises(
        SystemExit, match=r"^wheels for older systems need /none/g\+\+: install binutils and g\+\+$"
    ):
        tools["old_libraries"].make(tmp_path)
