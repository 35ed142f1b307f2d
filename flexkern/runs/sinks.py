"""TensorBoard and Weights & Biases: told what a run notes in ``events.jsonl`` and ``results.csv``.

flexkern needs neither. What is asked for and not installed is refused before a run begins.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flexkern.plain import choice
from flexkern.runs.events import TENSORBOARD, Learned, Place, Sink

__all__ = ["sinks_named"]

_WHICH = ("seed", "method", "part", "task")  # columns that name a row, and are not measured


def sinks_named(names: Iterable[str]) -> list[Sink]:
    """What ``--log`` names, ready to be told.

    Args:
        names: "tensorboard" or "wandb"; each counts once.

    Raises:
        ValueError: if one is neither.
        ImportError: with the command that installs it, if its package is not there.
    """
    return [_MADE[choice(name, "log", tuple(_MADE))]() for name in dict.fromkeys(names)]


def _measured(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a row, by name; of each of several tasks on its own."""
    part = f"{row['part']}/" if "part" in row else ""
    for name, value in row.items():
        if name in _WHICH:
            continue
        if isinstance(value, (list, tuple)):
            yield from ((f"{part}{name}/task {i + 1}", float(v)) for i, v in enumerate(value) if v is not None)
        elif isinstance(value, (int, float)):
            yield f"{part}{name}", float(value)


def _lacking(package: str, error: Exception) -> ImportError:
    """What to do where a package is not there, or lacks one that it needs."""
    other = (getattr(error, "name", None) or "").partition(".")[0]
    why = "is not installed" if other in (package, "torch", "") else f"cannot be imported ({error})"
    return ImportError(f"log: {package} {why}: pip install {package}")


def _short(method: str) -> str:
    return hashlib.sha256(method.encode(errors="replace")).hexdigest()[:8]


class _TensorBoard:
    """Files in the folder ``tensorboard`` of a run; each method and seed is a run there, a task is a step."""

    name = "tensorboard"

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _lacking("tensorboard", error) from error
        self._make: Callable[..., Any] = SummaryWriter
        self._writers: dict[str, Any] = {}

    def open(self, place: Place, known: Sequence[Learned], late: Sequence[Learned]) -> None:
        self._folder = place.folder / f"{place.prefix}{TENSORBOARD}"
        for unit in late if self._folder.exists() else known:
            self.learned(unit)

    def began(self, event: Mapping[str, Any]) -> None:
        pass

    def learned(self, unit: Learned) -> None:
        method, seed = unit.event["method"], unit.event["seed"]
        # What a folder's name cannot have is replaced; two methods that differ in that alone are kept apart.
        plain = re.sub(r"[^\w ,.+()=-]", "_", method)
        name = f"{plain if plain == method else f'{plain} {_short(method)}'}, seed {seed}"
        if name not in self._writers:
            self._writers[name] = self._make(log_dir=os.fspath(self._folder / name))
        for row in unit.rows:
            for tag, value in _measured(row):
                self._writers[name].add_scalar(tag, value, row["task"] + 1)
        self._writers[name].flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class _WandB:
    """A run of Weights & Biases for each method and seed, in one group."""

    name = "wandb"

    def __init__(self) -> None:
        try:
            import wandb

            self._init: Callable[..., Any] = wandb.init
        except (ImportError, AttributeError) as error:  # a folder of that name can be imported, and is empty
            raise _lacking("wandb", error) from error
        self._run: Any = None
        self._of: tuple[str, int] | None = None
        self._configuration: dict[str, Any] = {}

    def open(self, place: Place, known: Sequence[Learned], late: Sequence[Learned]) -> None:
        self._place = place
        for unit in late if (place.folder / "wandb").exists() else known:
            self.learned(unit)

    def began(self, event: Mapping[str, Any]) -> None:
        self._configuration = {k: event[k] for k in ("configuration", "environment") if k in event}

    def learned(self, unit: Learned) -> None:
        of = unit.event["method"], unit.event["seed"]
        if of != self._of:
            self.close()
            self._run, self._of = self._begin(*of), of
        for i, row in enumerate(unit.rows):
            # Parts of an experiment each begin with task 0, and steps only go up.
            step = (row["task"] if len(unit.rows) == 1 else i) + 1
            self._run.log(dict(_measured(row)), step=step)

    def _begin(self, method: str, seed: int) -> Any:
        place = self._place
        return self._init(
            project=os.environ.get("WANDB_PROJECT", "flexkern"),
            group=f"{(place.prefix or place.folder.resolve().name).rstrip('.')}-{place.id}",
            name=f"{method}, seed {seed}",
            id=f"{place.id}-{_short(method)}-{seed}",  # so that a run that was stopped goes on as the same
            resume="allow",
            dir=os.fspath(place.folder),
            config=self._configuration | {"method": method, "seed": seed},
        )

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
        self._run = self._of = None


_MADE: dict[str, Callable[[], Sink]] = {"tensorboard": _TensorBoard, "wandb": _WandB}
