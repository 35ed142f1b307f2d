"""Runs on a small file system that fills up, and on one that is read-only: ``python disks.py FOLDER``.

It is started in a namespace of its own, where an ordinary user may mount: see test_disks.py. Prints what
happened, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from flexkern.cli.app import app
from flexkern.learners import MetaplasticMLP, load_mlp
from flexkern.runs.incremental import run as incremental
from flexkern.runs.metaplasticity import unit
from helpers.incremental import LEARNERS

TOML = """
[data]
kind = "digits"
[stream]
increment = 2
[[methods]]
name = "Mine"
method = "global"
lr = 0.3
"""
SERIAL = [
    "run", "serial-position", "--items=3", "--longer=0", "--seeds=0", "--width=8", "--train-per-item=40",
    "--test-per-item=20", "--epochs=1", "--jobs=1",
]  # fmt: skip


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def call(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, list(arguments))
    return {"code": result.exit_code, "said": " ".join(result.output.split())}


def numbers(folder: Path) -> Any:
    passing = {"cost", "mib", "environment", "environments", "out", "seconds"}

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in passing}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return strip(json.loads((folder / "results.json").read_text()))


def full(folder: Path, name: str, command: list[str]) -> dict[str, Any]:
    """A disk with less and less room taken by something else: the run ends, goes on, ends, goes on."""
    disk, whole = folder / name, folder / f"{name}_whole"
    disk.mkdir()
    assert call(*command, f"--out={whole}")["code"] == 0
    mount("-t", "tmpfs", "-o", "size=1m", "none", str(disk))
    ends = []
    ballast = disk / "ballast"
    for room in (0, 4, 12, 40, 72):  # KiB
        ballast.unlink(missing_ok=True)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        ballast.write_bytes(bytes(max(0, free - room * 1024)))
        ends.append(call(*command, f"--out={disk}"))
        for path in disk.rglob("*.json"):
            json.loads(path.read_text())
        ends[-1]["temporaries"] = [p.name for p in disk.rglob("*.tmp")]
    ballast.unlink()
    last = call(*command, f"--out={disk}")
    return {"ends": ends, "last": last, "same": numbers(disk) == numbers(whole)}


def saved(folder: Path) -> dict[str, Any]:
    """A learner saved over itself where there is no room for a second one."""
    disk = folder / "saved"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=160k", "none", str(disk))
    old, new = (MetaplasticMLP((64,), 8, widths=(128, 128), seed=seed) for seed in (0, 1))
    path = disk / "learner.safetensors"
    old.save(path)
    try:
        new.save(path)
    except OSError as error:
        said = str(error)
    return {"said": said, "seed": load_mlp(path).seed, "left": sorted(p.name for p in disk.iterdir())}


def read_only(folder: Path, command: list[str]) -> dict[str, Any]:
    disk = folder / "read_only"
    disk.mkdir(exist_ok=True)
    mount("--bind", str(disk), str(disk))
    mount("-o", "remount,ro,bind", str(disk))
    return call(*command, f"--out={disk}") | {"left": [p.name for p in disk.iterdir()]}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    incremental._shipped_learners = lambda: LEARNERS  # type: ignore[assignment]
    unit._SAVE_EVERY = 0.0
    (folder / "mine.toml").write_text(TOML)
    mine = ["run", "class-incremental", str(folder / "mine.toml"), "--device=cpu"]
    serial = [*SERIAL, f"--cache={folder / 'features'}"]
    found = {
        "class-incremental": full(folder, "incremental", mine),
        "serial-position": full(folder, "serial", serial),
        "save": saved(folder),
    }
    for name, command in (("class-incremental", mine), ("serial-position", serial), ("demo", ["demo"])):
        found[f"read-only {name}"] = read_only(folder, command)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
