"""What is killed: learners that are saved after every epoch, a loop of saves, and commands."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flexkern.cli.app import app
from flexkern.learners import MLP_METHODS, ArtsyViT, Learner, checkpoint, load_learner, load_mlp
from flexkern.streams import Stream
from helpers import mlp_blobs, tiny_vit
from reliability.forks import Moment, run_child

__all__ = ["SIGNALLED", "Subject", "subjects", "warm"]

Saved = Callable[[], None]


class Subject(Protocol):
    """name: for the counts.
    work: does all that is left to do in the folder.
    whole: raises unless what a killed child left is whole, and as new as what it had saved.
    result: of a finished folder; equal for equal results.
    """

    name: str

    def work(self, folder: Path, saved: Saved) -> None: ...

    def whole(self, folder: Path, before: int, saves: int) -> int:
        """``before``: what this said after the last child; ``saves``: how often this one said it had saved.
        Returns how far the work is."""

    def result(self, folder: Path) -> Any: ...


# ------------------------------------------------------------------ learners


class Learning:
    """A stream, saved after each epoch and each item."""

    def __init__(
        self,
        name: str,
        stream: Stream,
        epochs: int,
        make: Callable[[], Learner],
        load: Callable[[Path], Learner],
    ) -> None:
        self.name, self.stream, self.epochs, self.make, self.load = name, stream, epochs, make, load

    def work(self, folder: Path, saved: Saved) -> None:
        path = folder / "learner.safetensors"
        learner = self.load(path) if path.exists() else self.make()

        def save(*_: object) -> None:
            learner.save(path)
            saved()

        for item in self.stream[learner.items_learned :]:
            learner.learn(item, epochs=self.epochs, progress=save)
            save()

    def whole(self, folder: Path, before: int, saves: int) -> int:
        path = folder / "learner.safetensors"
        if not path.exists():
            assert not before + saves, "the file is gone"
            return 0
        learner = self.load(path)
        now = learner.items_learned * (self.epochs + 1) + learner._epochs_done
        # One more may have been in place before the child could say so.
        assert before + saves <= now <= before + saves + 1, f"{now} epochs of {before} + {saves}"
        return now

    def result(self, folder: Path) -> Any:
        return _content(folder / "learner.safetensors")


def _content(path: Path) -> Any:
    """All bits of a checkpoint; the file itself may have the entries of its JSON in another order."""
    tensors, record = checkpoint.read(path)
    bits = {name: (value.dtype, value.shape, value.numpy().tobytes()) for name, value in tensors.items()}
    return bits, json.dumps(record, sort_keys=True)


def _multilayer() -> list[Subject]:
    stream = mlp_blobs.blobs(3)
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "item": ("metaplastic", {}),
        "step": ("metaplastic", {"gate": "step", "momentum": 0.9, "scale": 50.0}),
        "reserve": ("metaplastic", {"silent_fraction": 0.5, "threshold": 0.1, "rule": "rate"}),
        "fused": ("metaplastic", {"fused_step": True, "scale": 50.0}),
        "ewc": ("ewc", {}),
        "si": ("si", {}),
        "replay": ("replay", {}),
    }

    def one(name: str, method: str, options: dict[str, Any]) -> Subject:
        def make() -> Learner:
            return MLP_METHODS[method](
                (mlp_blobs.SIZE,), mlp_blobs.CLASSES, widths=(64, 32), lr=0.05, batch_size=16, seed=3, **options
            )

        return Learning(f"MetaplasticMLP family: {name}", stream, 4, make, load_mlp)

    return [one(name, *kind) for name, kind in kinds.items()]


def _transformers() -> list[Subject]:
    stream, backbone = tiny_vit.stream(), tiny_vit.backbone()
    kinds: dict[str, dict[str, Any]] = {
        "mlp": {},
        "ease": {"gate": {"gate": "none"}},
        "best": {
            "head": "experts", "evidence": "class+mean",
            "gate": {"gate": "ridge", "gating": "topk", "k": 2, "fill": True, "features": 32},
        },
        "knn": {"combine": "sum", "gate": {"gate": "knn"}},
    }  # fmt: skip

    def one(name: str, options: dict[str, Any]) -> Subject:
        return Learning(
            f"ArtsyViT: {name}",
            stream,
            3,
            lambda: ArtsyViT.make(backbone, rank=4, seed=1, lr=0.05, batch_size=16, **options),
            lambda path: load_learner(path, backbone=backbone),
        )

    return [one(name, options) for name, options in kinds.items()]


class Saving:
    """Two learners, saved to one path in turns."""

    name = "save"
    times = 60

    def __init__(self, scratch: Path) -> None:
        self.learners = [
            MLP_METHODS["metaplastic"]((20,), 6, widths=(128, 64), seed=seed, gate="step") for seed in (0, 1)
        ]
        self.files = []
        for number, learner in enumerate(self.learners):
            learner.save(scratch / f"{number}.safetensors")
            self.files.append((scratch / f"{number}.safetensors").read_bytes())

    def work(self, folder: Path, saved: Saved) -> None:
        for number in range(self.times):
            self.learners[number % 2].save(folder / "learner.safetensors")
            saved()

    def whole(self, folder: Path, before: int, saves: int) -> int:
        path = folder / "learner.safetensors"
        if not path.exists():
            assert not before + saves, "the file is gone"
            return 0
        load_mlp(path)
        which = self.files.index(path.read_bytes())
        assert not saves or which in ((saves - 1) % 2, saves % 2)
        return max(before, 1)

    def result(self, folder: Path) -> bytes:
        return (folder / "learner.safetensors").read_bytes()


# ------------------------------------------------------------------ commands

# Differs from one run to the next, and is no result.
_PASSING = {"cost", "mib", "environment", "environments", "out", "seconds"}


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items() if k not in _PASSING}
    return [_numbers(v) for v in value] if isinstance(value, list) else value


class Command:
    """A command, as the command line runs it."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name, self.arguments = f"flexkern run {name}", ["flexkern", "run", name, *arguments]

    def work(self, folder: Path, saved: Saved) -> None:
        sys.argv = [*self.arguments, f"--out={folder}"]
        app()

    def whole(self, folder: Path, before: int, saves: int) -> int:
        for path in folder.rglob("*.safetensors"):
            checkpoint.read(path)
        for path in folder.rglob("*.json"):
            json.loads(path.read_text())
        if (folder / "picture.png").exists():
            assert (folder / "picture.png").read_bytes().endswith(b"IEND\xaeB`\x82")
        done = _done(folder)
        assert done >= before, f"{done} of {before} are left"
        return done

    def result(self, folder: Path) -> Any:
        results = json.loads((folder / "results.json").read_text())
        assert results["finished"]
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        kept = {p.name: _content(p) for p in folder.rglob("*.safetensors")}
        return _numbers(results), names, kept


def _done(folder: Path) -> int:
    """Tasks that have been learned and tested, and networks that have ended, as the files have them."""
    done = set()
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        for record in content.get("runs", [content]):
            done |= {(record["method"], record["seed"], task["task"]) for task in record.get("tasks", ())}
            if "parts" in record and record["finished"]:
                done.add((record["network"], record["seed"], 0))
    return len(done)


CONFIGURATION = """
title = "kills"
device = "cpu"
[backbone]
name = "{backbone}"
[data]
kind = "pack"
path = "{data}"
[stream]
increment = 2
[learner]
epochs = 2
batch_size = 12
[[methods]]
name = "Artsy"
method = "artsy"
rank = 4
gate = {{ gate = "ridge", gating = "topk", features = 32 }}
[[methods]]
name = "RanPAC"
method = "ranpac"
features = 16
"""
METAPLASTICITY = (
    "--items=3", "--longer=4", "--seeds=0", "--width=16", "--train-per-item=40", "--test-per-item=20",
    "--epochs=2", "--batch-size=20", "--jobs=1",
)  # fmt: skip


def _commands(scratch: Path) -> list[Subject]:
    tiny_vit.backbone().save_pretrained(scratch / "backbone")
    stream = tiny_vit.stream(4)
    parts = {
        "x_train": np.concatenate([e.train_inputs.numpy() for e in stream]),
        "y_train": np.concatenate([e.train_labels.numpy() for e in stream]),
        "x_test": np.concatenate([e.test_inputs.numpy() for e in stream]),
        "y_test": np.concatenate([e.test_labels.numpy() for e in stream]),
    }
    np.savez(
        scratch / "images.npz", **{k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in parts.items()}
    )
    configuration = scratch / "kills.toml"
    configuration.write_text(CONFIGURATION.format(backbone=scratch / "backbone", data=scratch / "images.npz"))
    return [
        Command("class-incremental", [str(configuration), "--keep"]),
        Command("serial-position", [*METAPLASTICITY, f"--cache={scratch / 'features'}"]),
    ]


def warm(scratch: Path, groups: Sequence[tuple[float, Sequence[Subject]]]) -> None:
    """Imports what commands import while they run, so that a child has it, and makes them quicker."""
    import matplotlib
    import torch

    from flexkern.runs.metaplasticity import unit

    torch.set_num_threads(1)
    unit._SAVE_EVERY = 0.0  # after every item
    matplotlib.rcParams["savefig.dpi"] = 20
    for subject in (s for _, group in groups for s in group if isinstance(s, Command)):
        folder, names = scratch / "imports", scratch / "imports.json"

        def work(folder: Path, saved: Saved, subject: Subject = subject, names: Path = names) -> None:
            try:
                subject.work(folder, saved)
            finally:
                names.write_text(json.dumps([name for name in sys.modules if name != "__main__"]))

        ended = run_child(work, folder, Moment())
        assert ended.code == 0, f"{subject.name} ended with {ended.code}:\n{ended.said}"
        for name in json.loads(names.read_text()):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        shutil.rmtree(folder)


def subjects(scratch: Path) -> list[tuple[float, list[Subject]]]:
    """Groups of subjects, each with its share of the kills; ``scratch``: for what they begin from."""
    incremental, metaplasticity = _commands(scratch)
    return [
        (0.3, _multilayer()), (0.25, _transformers()), (0.15, [Saving(scratch)]), (0.15, [incremental]),
        (0.15, [metaplasticity]),
    ]  # fmt: skip


SIGNALLED = "flexkern run"  # how the names of those begin that SIGTERM and SIGINT are for
