"""Links for older Linux systems than this one: stand-ins of the C and C++ libraries, as of manylinux_2_28.

    python build_tools/old_libraries.py FOLDER      # then link with -LFOLDER

CMake runs it when it configures, where FLEXKERN_OLD_LIBRARIES is on, as in `make wheel`.

A symbol of glibc or libstdc++ has a version, and a linker takes the newest that this machine has: what is
linked on Debian 12 asks for pthread_create as of glibc 2.34, and loads on nothing older. The libraries still
have the older versions, for programs of their time. The stand-ins have only those; what had none yet in
libstdc++ is linked in, from libstdc++.a. They are for linking alone, and contain nothing. On a manylinux_2_28
image, as in the workflow of the wheels, nothing of this is needed.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

# The newest versions that a manylinux_2_28 wheel may use (PEP 600, auditwheel's table).
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}
# glibc 2.34 took these into libc.so.6. An older one has them in libraries of their own.
MOVED = {
    "libpthread.so.0": r"_*(pthread|sem|cnd|mtx|thrd|tss|call_once)",
    "libdl.so.2": r"dl",
    "librt.so.1": r"(shm|mq|aio|lio|timer|clock)_",
}
TAKEN_IN = "GLIBC_2.34"
# What the headers of newer compilers ask for, and its own answer where there is none: "there may be threads".
# Hidden, so that it stays within the library that it is linked into.
ADDED = """
.globl __libc_single_threaded
.hidden __libc_single_threaded
.type __libc_single_threaded, @object
.bss
__libc_single_threaded: .zero 1
.section .note.GNU-stack, "", @progbits
"""


class Symbol(NamedTuple):
    """One that a library exports; kind: function, object, tls_object."""

    name: str
    version: str
    kind: str


def is_old(version: str) -> bool:
    """Whether a manylinux_2_28 wheel may use it."""
    name, _, number = version.partition("_")
    if not re.fullmatch(r"[\d.]+", number):
        return False
    return name in NEWEST and _number(version) <= NEWEST[name]


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def read(listing: str) -> list[Symbol]:
    """The symbols of a library, in all their versions, by what ``objdump -T`` prints."""
    found = []
    for line in listing.splitlines():
        match = re.match(
            r"[0-9a-f]+ .{7}\s(\S+)\s+[0-9a-f]+\s+\(?([A-Za-z]+_[\w.]+)\)?\s+(?:\.\w+ )?(\S+)$", line
        )
        if match is None or match[1] in ("*UND*", "*ABS*"):
            continue
        section = match[1]
        kind = (
            "tls_object" if section in (".tbss", ".tdata") else "function" if section == ".text" else "object"
        )
        found.append(Symbol(match[3], match[2], kind))
    return found


def old_ones(symbols: Iterable[Symbol]) -> tuple[list[Symbol], set[str]]:
    """Each in its newest version that is old enough, and the names of what glibc has taken in since."""
    newest: dict[str, Symbol] = {}
    moved = set()
    for symbol in symbols:
        if symbol.version == TAKEN_IN:
            moved.add(symbol.name)
        if not is_old(symbol.version):
            continue
        known = newest.get(symbol.name)
        if known is None or _number(known.version) < _number(symbol.version):
            newest[symbol.name] = symbol
    return sorted(newest.values()), moved & set(newest)


def assembly(symbols: Sequence[Symbol]) -> str:
    """Source of a library that exports them."""
    lines = []
    for i, (name, version, kind) in enumerate(symbols):
        section = {"function": ".text", "object": ".data", "tls_object": '.section .tbss,"awT",@nobits'}[kind]
        lines += [
            section, f".globl stand_in_{i}", f".type stand_in_{i}, @{kind}", f"stand_in_{i}: .zero 8",
            f".symver stand_in_{i}, {name}@@{version}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


class Linker:
    """Makes the files of a folder with the compiler of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiler = shlex.split(os.environ.get("CXX", "c++"))
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, library: str) -> Path:
        """Where the compiler finds a library.

        Raises:
            SystemExit: if it does not.
        """
        found = self._run([*self.compiler, f"-print-file-name={library}"]).strip()
        if not os.path.isabs(found):
            raise SystemExit(f"{self.compiler[0]} finds no {library}: it is part of the compiler's package")
        return Path(found).resolve()

    def symbols(self, library: str) -> tuple[list[Symbol], set[str]]:
        return old_ones(read(self._run(["objdump", "-T", str(self.find(library))])))

    def stand_in(self, soname: str, symbols: Sequence[Symbol]) -> Path:
        source, versions = self.folder / f"{soname}.s", self.folder / f"{soname}.map"
        source.write_text(assembly(symbols))
        names = sorted({symbol.version for symbol in symbols}, key=_number)
        nodes = [f"{name} {{ {'local: stand_in_*;' if i == 0 else ''} }};" for i, name in enumerate(names)]
        versions.write_text("\n".join(nodes) + "\n")
        made = self.folder / soname
        options = ["-shared", "-nostdlib", f"-Wl,-soname={soname}", f"-Wl,--version-script={versions}"]
        self._run([*self.compiler, *options, "-o", str(made), str(source)])
        return made

    def object(self, name: str, source: str) -> Path:
        path, made = self.folder / f"{name}.s", self.folder / f"{name}.a"
        path.write_text(source)
        self._run([*self.compiler, "-c", "-o", str(made.with_suffix(".o")), str(path)])
        made.unlink(missing_ok=True)
        self._run(["ar", "cr", str(made), str(made.with_suffix(".o"))])
        return made

    def script(self, name: str, text: str) -> None:
        """What the linker reads as library ``name``."""
        (self.folder / f"lib{name}.so").write_text(f"{text}\n")

    @staticmethod
    def _run(command: list[str]) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise SystemExit(f"wheels for older systems need {command[0]}: install binutils and g++") from None
        if done.returncode:
            raise SystemExit(f"{shlex.join(command[:4])} fails: {done.stderr.strip()[:500]}")
        return done.stdout


def named(*paths: Path) -> str:
    """As a script of the linker names them."""
    return " ".join(f'"{path}"' for path in paths)


def make(folder: Path) -> str:
    """Writes the stand-ins into a folder; returns the options for the linker.

    Raises:
        SystemExit: saying what of the compiler is missing.
    """
    linker = Linker(folder.resolve())
    symbols, moved = linker.symbols("libc.so.6")
    beside = []
    for soname, pattern in MOVED.items():
        own = [s for s in symbols if s.name in moved and re.match(pattern, s.name)]
        if own:  # a glibc before 2.34 has them there still
            symbols = [s for s in symbols if s not in own]
            beside.append(linker.stand_in(soname, own))
            linker.script(soname.split(".")[0].removeprefix("lib"), f"INPUT({named(beside[-1])})")
    c = [linker.stand_in("libc.so.6", symbols), linker.object("added", ADDED), linker.find("libc_nonshared.a")]
    loader = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}[platform.machine()]
    linker.script("c", f"GROUP({named(*c)} AS_NEEDED({named(*beside, linker.find(loader))}))")
    for name in ("libm.so.6", "libstdc++.so.6"):
        made = [linker.stand_in(name, linker.symbols(name)[0])]
        if name == "libstdc++.so.6":
            made.append(linker.find("libstdc++.a"))
        linker.script(name.split(".")[0].removeprefix("lib"), f"INPUT({named(*made)})")
    return f"-L{linker.folder}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(make(parser.parse_args(arguments).folder))


if __name__ == "__main__":
    main()
