"""Breaks the code on purpose, one way at a time, and says which of them no test notices.

``python scripts/mutate.py`` (or ``make mutate``) takes the mutations of scripts/mutations.toml: a text in a
file, what stands there instead, and the tests that should fail then. It works in a temporary copy of the tree.
Those of C++ are compiled there, for the CPU only: that needs cmake, ninja and a compiler.

    python scripts/mutate.py                 # all: an hour or two
    python scripts/mutate.py fields optim    # those with one of these in their name or file
    python scripts/mutate.py --list

The status is 1 if a mutation survives, 2 if the list does not fit the tree: then nothing is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "scripts" / "mutations.toml"
SECONDS = 900  # a test that hangs has noticed, too
# Beside flexkern/ in the tree, inside it where it is installed (see setup.py)
BESIDE = ("triton_kernels", "benchmarks")
# An editable installation may have a finder that knows flexkern's packages: Python's own come before it.
SITE = "import sys\nsys.meta_path.sort(key=lambda f: not f.__module__.startswith('_frozen_importlib'))\n"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """``tests`` are pytest's arguments: files, folders, test ids, or options such as ``-k=...``."""

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]

    @property
    def compiled(self) -> bool:
        return self.file.startswith("csrc/")

    def problem(self, root: Path) -> str | None:
        """Why it does not fit the tree at ``root``, or None."""
        path = root / self.file
        if not path.is_file():
            return f"{self.file} does not exist"
        if self.text == self.replacement:
            return "the replacement is the text"
        found = path.read_text().count(self.text)
        if found != 1:
            return f"{self.file} holds its text {found} times, not once: {self.text!r}"
        places = [test.split("::")[0] for test in self.tests if not test.startswith("-")]
        missing = [place for place in places if not (root / place).exists()]
        return f"no such tests: {', '.join(missing)}" if missing or not places else None

    def apply(self, root: Path) -> None:
        path = root / self.file
        path.write_text(path.read_text().replace(self.text, self.replacement))

    def undo(self, root: Path, original: Path) -> None:
        (root / self.file).write_text((original / self.file).read_text())


def read_list(path: Path = LIST) -> list[Mutation]:
    try:
        import tomllib as reader
    except ModuleNotFoundError:  # Python 3.10
        import tomli as reader
    with path.open("rb") as file:
        entries: list[dict[str, Any]] = reader.load(file)["mutation"]
    return [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def chosen(mutations: Sequence[Mutation], words: Sequence[str]) -> list[Mutation]:
    """Those with one of the words in their name or file. Python before C++, which is compiled for each."""
    found = [m for m in mutations if not words or any(w in m.name or w in m.file for w in words)]
    return sorted(found, key=lambda m: m.compiled)


# --------------------------------------------------------------------------- the copy


def copy_tree(target: Path, *, libraries: bool) -> None:
    """What git knows of the tree, and what is new; ``libraries``: also what is compiled already."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [Path(name) for name in names if name]
    if libraries:
        paths += [p.relative_to(ROOT) for p in (ROOT / "flexkern").glob("**/*.so")]
    for path in paths:
        if (ROOT / path).is_file():  # one that is deleted may still be in git's index
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, target / path)
    for name in BESIDE:
        (target / "flexkern" / name).symlink_to(target / name, target_is_directory=True)
    (target / "sitecustomize.py").write_text(SITE)


def environment(tree: Path) -> dict[str, str]:
    """Python that imports from ``tree``, and never what it compiled before a change within the same second."""
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def check_imports(tree: Path) -> None:
    code = "import flexkern, flexkern.triton_kernels as t; print(flexkern.__file__, t.__file__)"
    command = [sys.executable, "-c", code]
    where = subprocess.run(command, env=environment(tree), cwd=tree, capture_output=True, text=True, check=True)
    for path in where.stdout.split():
        if not Path(path).is_relative_to(tree):
            raise SystemExit(f"the tests would import {path}, not the copy")


class Build:
    """The C++ of the copy, compiled again where it has changed."""

    def __init__(self, tree: Path, folder: Path) -> None:
        if missing := [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]:
            raise SystemExit(f"mutations of C++ need {' and '.join(missing)}")
        self.folder = folder
        torch = importlib.util.find_spec("torch")
        assert torch is not None
        assert torch.origin is not None
        configure = ["cmake", f"-S{tree}", f"-B{folder}", "-GNinja", "-DFLEXKERN_CUDA=OFF"]
        configure += [f"-DFLEXKERN_TORCH_DIR={Path(torch.origin).parent}"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_INSTALL_PREFIX={tree / 'flexkern'}"]
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)

    def run(self) -> bool:
        build = ["cmake", "--build", str(self.folder), "--target", "install"]
        done = subprocess.run(build, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout[-3000:])
        return done.returncode == 0


# --------------------------------------------------------------------------- verdicts


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[str, str]:
    """``passed``, ``failed`` or ``broken`` (no test, or none that could be collected), and the last line."""
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-p", "no:cacheprovider"]
    command += ["-m", "not gpu and not slow", *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment(tree), capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return "failed", f"no end within {SECONDS} s"
    lines = done.stdout.strip().splitlines() or [done.stderr[-200:]]
    verdict = {0: "passed", 1: "failed"}.get(done.returncode, "broken")
    failed = [line for line in lines if line.startswith("FAILED")]
    return verdict, (failed or lines)[-1]


def judge(mutation: Mutation, tree: Path, build: Build | None) -> tuple[str, str]:
    """``killed``, ``survived`` or ``broken``, and why."""
    mutation.apply(tree)
    try:
        if mutation.compiled and not (build is not None and build.run()):
            return "broken", "it does not compile"
        verdict, line = run_tests(tree, mutation.tests)
        return {"failed": "killed", "passed": "survived"}.get(verdict, verdict), line
    finally:
        mutation.undo(tree, ROOT)


def run(mutations: Sequence[Mutation]) -> int:
    verdicts: list[tuple[Mutation, str]] = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = Path(folder) / "tree"
        compiled = any(m.compiled for m in mutations)
        copy_tree(tree, libraries=not compiled)
        build = Build(tree, Path(folder) / "build") if compiled else None
        if build is not None and not build.run():
            raise SystemExit("the tree does not compile as it is")
        check_imports(tree)
        unbroken: set[tuple[str, ...]] = set()
        for number, mutation in enumerate(mutations, 1):
            began = time.monotonic()
            if mutation.tests not in unbroken:  # what fails anyway notices nothing
                if build is not None and not build.run():  # without the mutation before this one
                    raise SystemExit("the tree does not compile as it is")
                verdict, line = run_tests(tree, mutation.tests)
                if verdict != "passed":
                    raise SystemExit(f"without a mutation: {' '.join(mutation.tests)}: {line}")
                unbroken.add(mutation.tests)
            verdict, line = judge(mutation, tree, build)
            verdicts.append((mutation, verdict))
            seconds = time.monotonic() - began
            mark = verdict if verdict == "killed" else verdict.upper()
            print(f"[{number}/{len(mutations)}] {mark:8} {seconds:5.0f} s  {mutation.file}: {mutation.name}")
            print(f"      {line}", flush=True)
    left = [(m, verdict) for m, verdict in verdicts if verdict != "killed"]
    print(f"\n{len(verdicts) - len(left)} of {len(verdicts)} mutations were noticed")
    for mutation, verdict in left:
        print(f"{verdict}: {mutation.file}: {mutation.name}\n  {mutation.text!r} -> {mutation.replacement!r}")
    return 1 if left else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("words", nargs="*", help="only those with one of these in their name or file")
    parser.add_argument("--list", action="store_true", help="say what would be tried")
    given = parser.parse_args(arguments)
    every = read_list()
    wrong = [f"{m.name}: {why}" for m in every if (why := m.problem(ROOT)) is not None]
    if wrong:
        print("scripts/mutations.toml does not fit the tree:", *wrong, sep="\n  ")
        return 2
    mutations = chosen(every, given.words)
    if not mutations:
        print(f"no mutation has {' or '.join(given.words)} in its name or file")
        return 2
    if given.list:
        for m in mutations:
            print(f"{m.file}: {m.name} ({' '.join(m.tests)})")
        return 0
    return run(mutations)


if __name__ == "__main__":
    sys.exit(main())
