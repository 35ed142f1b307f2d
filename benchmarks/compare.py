"""Two runs side by side: two results files, or two git revisions, built and measured alternately."""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexkern.benchmarks import record, worker
from flexkern.benchmarks.case import CPU
from flexkern.benchmarks.worker import Options

__all__ = ["Difference", "compare", "measure_revisions", "runs_of"]

Key = tuple[str, str, str]  # case, backend, pages


@dataclass(frozen=True)
class Difference:
    """One case in two runs.

    Attributes:
        before, after: median milliseconds of ours.
        factor: before / after, over 1 where ours got faster.
        yardstick: the same for the peers, median over them: what the machine itself did between the runs.
        clear: whether the quartiles of ours, set off by the yardstick, do not overlap.
    """

    name: str
    before: float
    after: float
    factor: float
    yardstick: float
    clear: bool


def compare(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[Difference]:
    """The cases that are in both; each side is one run, or several whose median counts."""
    a, b = _by_key(before), _by_key(after)
    return [_difference(key, a[key], b[key]) for key in a if key in b]


def _by_key(runs: Sequence[dict[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    rows: dict[Key, list[dict[str, Any]]] = {}
    for row in (row for run in runs for row in run["rows"] if "ours" in row):
        rows.setdefault((row["case"], row["backend"], row["pages"]), []).append(row)
    return rows


def _difference(key: Key, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Difference:
    def middle(rows: list[dict[str, Any]], figure: str) -> float:
        return statistics.median(row["ours"][figure] for row in rows)

    def of_peer(rows: list[dict[str, Any]], name: str) -> float | None:
        found = [p["median_ms"] for row in rows for p in row["peers"] if p["name"] == name]
        return statistics.median(found) if found else None

    names = [peer["name"] for peer in before[0]["peers"]]
    pairs = [(of_peer(before, name), of_peer(after, name)) for name in names]
    ratios = [p / q for p, q in pairs if p is not None and q is not None]
    yardstick = statistics.median(ratios) if ratios else 1.0
    low, high = middle(after, "q1_ms") * yardstick, middle(after, "q3_ms") * yardstick
    clear = high < middle(before, "q1_ms") or low > middle(before, "q3_ms")
    old, new = middle(before, "median_ms"), middle(after, "median_ms")
    case, backend, pages = key
    name = case + (f" ({backend})" if backend != "auto" else "") + (", small pages" if pages == "small" else "")
    return Difference(name, old, new, old / new, yardstick, clear)


def runs_of(
    names: tuple[str, str], options: Options, say: Callable[[str], object], repeats: int = 2
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The runs that two names stand for: files are read, git revisions measured, alternately if both are.

    Args:
        names: paths of results files, or revisions of the repository of this folder.
        options: of the measurement.
        say: told what goes on.
        repeats: how often each revision is measured.

    Raises:
        ValueError: if a name is neither, or a revision has no such benchmarks or does not build.
    """
    revisions = list(dict.fromkeys(name for name in names if not Path(name).is_file()))
    measured = measure_revisions(revisions, options, say, repeats) if revisions else {}
    first, second = (measured[name] if name in measured else [record.read(Path(name))] for name in names)
    return first, second


def measure_revisions(
    revisions: Sequence[str], options: Options, say: Callable[[str], object], repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Builds each revision in a folder of its own and measures alternately, so that noise meets all alike."""
    commits = {name: _commit(name) for name in revisions}
    with tempfile.TemporaryDirectory(prefix="flexkern-compare-") as scratch:
        sites: dict[str, Path] = {}
        for commit in dict.fromkeys(commits.values()):
            say(f"building {commit[:7]}")
            sites[commit] = _build(commit, Path(scratch), options.device)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in revisions}
        for repeat in range(repeats):
            for name, commit in commits.items():
                say(f"measuring {name}, {repeat + 1} of {repeats}")
                environment = {"PYTHONPATH": str(sites[commit]), "FLEXKERN_COMMIT": commit}
                parts = worker.stream(options, environment=environment, folder=str(sites[commit]))
                runs[name].append(worker.collect(parts, options))
    return runs


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(("git", *arguments), capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        raise ValueError("git is needed to compare revisions, and it is not installed") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(error.stderr.strip()) from error


def _commit(name: str) -> str:
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except ValueError as error:
        raise ValueError(
            f"{name!r} is neither a results file nor a git revision of this folder's repository {error}"
        ) from error


@contextmanager
def _checkout(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a revision, for as long as the block lasts."""
    tree = folder / f"tree-{commit}"
    _git("worktree", "add", "--detach", "--force", str(tree), commit)
    try:
        yield tree
    finally:
        _git("worktree", "remove", "--force", str(tree))


def _build(commit: str, folder: Path, device: str) -> Path:
    """Installs a revision into a folder that PYTHONPATH can name."""
    site = folder / f"site-{commit}"
    with _checkout(commit, folder) as tree:
        if not (tree / "benchmarks" / "__main__.py").exists():
            raise ValueError(
                f"revision {commit[:7]} has no `flexkern bench` yet: there is nothing to compare with"
            )
        environment = dict(os.environ)
        if device == CPU:
            environment["FLEXKERN_CUDA"] = "0"  # minutes of nvcc, for kernels that are not measured
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
        modules = all(
            importlib.util.find_spec(name) for name in ("pybind11", "setuptools")
        )  # older ones need both
        if modules and all(shutil.which(tool) for tool in ("cmake", "ninja")):
            command.append("--no-build-isolation")  # all it needs is here: no network
        command.append(str(tree))
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(site, ignore_errors=True)
        raise ValueError(f"revision {commit[:7]} does not build here:\n{done.stderr[-2000:]}")
    return site
