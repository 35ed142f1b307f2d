"""Kernels compiled for GPUs that are not here, each once for all tests and all of pytest's workers.

The compiler does not work under the interpreter, so it runs in a process of its own, which has one for each
processor. What it found stays in build/compiled for the next run, until a kernel or Triton changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import triton

import flexkern.fields
import flexkern.triton_kernels

__all__ = ["Wanted", "candidates", "everything", "reports", "to_the_end", "without_interpreter"]

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build" / "compiled"


class Wanted(NamedTuple):
    """A variant of the catalogue on a target of aot.py; without a configuration as it is launched there.

    ``shared``: only how much shared memory it takes, in a fifth of the time.
    """

    variant: str
    target: str
    configuration: Mapping[str, int] | None = None
    shared: bool = False


def without_interpreter() -> dict[str, str]:
    """The environment of a process in which Triton compiles."""
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, paths))
    return {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def reports(wanted: Sequence[Wanted]) -> list[dict[str, Any]]:
    """What :func:`flexkern.triton_kernels.aot.report` says of each; compiles what has not been compiled yet.

    Of one of which only the shared memory is wanted: ``{"shared": bytes}``.
    """
    folder = FOLDER / _state()
    whole = [_in_full(one) for one in wanted]
    if not all(_path(folder, one).exists() for one in whole):
        with _lock():  # another worker may be compiling them just now
            missing = [one for one in dict.fromkeys(map(_as_json, whole)) if not (folder / _name(one)).exists()]
            if missing:
                _forget_others(folder)
                _compile(missing, folder)
    return [json.loads(_path(folder, one).read_text()) for one in whole]


# Of the ranks and alignments of adapters those that are compiled to the end for each target: rank 64, the
# smallest, and for some targets what has most registers and shared memory. `python -m
# flexkern.triton_kernels.aot` compiles them all, in some hours.
ADAPTERS = re.compile(r"adapter-(inference-|backward-|parts-)?(bf16|fp16|tf32|ieee)(-.+)?")
SMALLEST = ("bf16-16", "ieee-16", "bf16-16-unaligned")
LARGE = {
    "cuda:90": ("adapter-bf16-256-unaligned", "adapter-backward-bf16-256-unaligned", "adapter-tf32-256",
                "adapter-backward-tf32-512", "adapter-parts-tf32-512"),
    "cuda:86": ("adapter-tf32-256", "adapter-backward-tf32-256", "adapter-parts-tf32-512"),
    "hip:gfx942": ("adapter-parts-tf32-512",),
}  # fmt: skip
# Of a form that is made for this target; of another target one variant is compiled
SM_90 = ("linear-tma-bf16-held", "linear-tma-fp16-stored", "linear-tma-tf32-stored")
# What the other targets compile to the end: their code differs little from that of one of the first four.
OTHERS = {
    "cuda:86": ("linear-bf16-stored-hebbian",),
    "cuda:89": ("adapter-bf16",),
    "cuda:103": ("linear-bf16-stored",),
    "cuda:120": ("linear-tf32-stored", "sgd-mixed-fp32-fp32"),
    "hip:gfx90a": ("linear-ieee-stored", "adapter-bf16"),
}
MAIN = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")


def to_the_end(target: str) -> list[str]:
    """The variants that tests compile for a target, of those that are launched there."""
    from flexkern.triton_kernels.aot import architecture_of
    from flexkern.triton_kernels.catalogue import variants_on

    def of_all_targets(name: str) -> bool:
        if name in SM_90:
            return target == "cuda:90"
        adapter = ADAPTERS.fullmatch(name)
        if adapter is None or adapter[3] is None:
            return True
        return f"{adapter[2]}{adapter[3]}" in SMALLEST and adapter[1] != "inference-"

    more = (*LARGE.get(target, ()), *OTHERS.get(target, ()))
    known = variants_on(architecture_of(target))
    return [name for name in known if (target in MAIN and of_all_targets(name)) or name in more]


def everything() -> list[Wanted]:
    """What tests compile on all targets, and the candidates of the tuner on sm_90."""
    from flexkern.triton_kernels.aot import TARGETS

    return [Wanted(name, target) for target in TARGETS for name in to_the_end(target)] + candidates()


def candidates(*only: str) -> list[Wanted]:
    """What the tuner races on sm_90, or that of some kernels and variants, "sgd held"."""
    from flexkern.backends import tuning
    from flexkern.benchmarks import workloads
    from flexkern.triton_kernels import catalogue

    return [
        Wanted(name, "cuda:90", configuration)
        for work in workloads.of_kernels()
        if not only or f"{work.kernel} {work.variant}" in only
        for configuration in catalogue.candidates(
            work.kernel, work.variant, tuning.config(work.kernel, work.variant, "sm_90")
        )
        for name in work.compiles
    ]


@functools.cache
def _state() -> str:
    """Changes when what is compiled, or the compiler, does."""
    kernels = sorted(Path(flexkern.triton_kernels.__path__[0]).glob("*.py"))
    files = [*kernels, Path(flexkern.fields.__file__), Path(__file__)]
    state = hashlib.sha256(triton.__version__.encode())
    for file in files:
        state.update(file.read_bytes())
    return state.hexdigest()[:16]


def _in_full(wanted: Wanted) -> Wanted:
    """With the configuration, so that the table's own is found again among a tuner's candidates."""
    from flexkern.triton_kernels.aot import architecture_of
    from flexkern.triton_kernels.catalogue import all_variants

    if wanted.configuration is not None:
        return wanted
    configuration = all_variants()[wanted.variant].configuration(architecture_of(wanted.target))
    return wanted._replace(configuration=configuration)


def _as_json(wanted: Wanted) -> str:
    return json.dumps(wanted, sort_keys=True)


def _name(as_json: str) -> str:
    return hashlib.sha256(as_json.encode()).hexdigest()[:24] + ".json"


def _path(folder: Path, wanted: Wanted) -> Path:
    return folder / _name(_as_json(wanted))


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the process ends, however it ends
        yield


def _forget_others(folder: Path) -> None:
    for old in FOLDER.iterdir():
        if old.is_dir() and old != folder:
            shutil.rmtree(old, ignore_errors=True)


def _compile(missing: Sequence[str], folder: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "helpers.compiled", str(folder)], input="\n".join(missing), text=True,
        capture_output=True, env=without_interpreter(), check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-4000:]


# --------------------------------------------------------------------------- in the process without interpreter


def _compile_one(as_json: str, folder: Path) -> None:
    from flexkern.triton_kernels import aot

    name, target, configuration, shared = json.loads(as_json)
    architecture = aot.architecture_of(target)
    if shared:
        found = {"shared": aot.shared_memory(name, architecture, configuration)}
    else:
        found = aot.report(name, architecture, configuration)
    path = folder / _name(as_json)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(found))
    draft.replace(path)


def main() -> None:
    from flexkern.triton_kernels import aot  # before processes are forked: imported once

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    assert aot.TARGETS
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("fork")) as pool:
        work = [pool.submit(_compile_one, line, folder) for line in sys.stdin.read().splitlines()]
        for one in as_completed(work):
            one.result()


if __name__ == "__main__":
    main()
