"""What a fit learns, and how."""

from __future__ import annotations

import os
from dataclasses import dataclass

from flexkern.learners import METHODS
from flexkern.plain import choice, number, whole_number

__all__ = ["BEST_METHOD", "FitConfig", "methods", "read_size"]

BEST_METHOD = "artsy-best"
"""ArtsyViT.best: what did best in docs/results/artsy.md."""


def read_size(image_size: int) -> int:
    """Pixels of each side that images are read at for a network of that size: learners crop them."""
    return round(image_size * 256 / 224)


def methods() -> tuple[str, ...]:
    """Names of methods, the default first."""
    return (BEST_METHOD, *(name for name in METHODS if name != BEST_METHOD))


@dataclass(frozen=True)
class FitConfig:
    """What is learned, and how.

    Args:
        folder: of the images, see :func:`flexkern.runs.fitting.data.open_images`.
        out: the file that the learner is saved to.
        backbone: as :func:`flexkern.backbones.load_backbone` takes it. None only with ``start``: its own.
        start: a learner that was saved, which goes on with the classes of the folder; None: a new one.
        earlier: a folder with images of classes that ``start`` knows: its test images are tested too. With
            test_share and seed as they were then, these are the same ones, which it was not trained with.
        increment: classes of a task; None: all classes of the folder are one task.
        tasks: a file that says which classes are a task, see :func:`flexkern.runs.fitting.tasks.read_tasks`.
        order: seed of a random order of the classes; None: that of their names.
        method: one of :func:`methods`; None: what ``start`` is, else :data:`BEST_METHOD`.
        epochs: of a task; None: the method's own.
        size: pixels of each side that images are read at; None: 256 / 224 of what the network takes.
        image_size, normalize: of the learner; None: the backbone's.
        test_share: of each class's images, for tests; None: a fifth, where the folder has no test images.
        seed: decides which ones, and the learner's is the same.
        broken: "raise", or "skip" what is no image.
        background: under transparent pixels: red, green and blue, 0 to 255.
        device: auto, cpu, cuda, ...
        workers: processes that decode; None: one for each processor, at most 8.
    """

    folder: str
    out: str
    backbone: str | None = None
    start: str | None = None
    earlier: str | None = None
    increment: int | None = None
    tasks: str | None = None
    order: int | None = None
    method: str | None = None
    epochs: int | None = None
    size: int | None = None
    image_size: int | None = None
    normalize: str | None = None
    test_share: float | None = None
    seed: int = 0
    broken: str = "raise"
    background: tuple[int, ...] = (255, 255, 255)
    device: str = "auto"
    workers: int | None = None

    def check(self) -> None:
        """Raises TypeError or ValueError, naming what is outside its range or does not go together."""
        for name in ("increment", "epochs", "size", "image_size"):
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), name)
        for name in ("seed", "order", "workers"):
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), name, least=0, most=2**32 - 1)
        if self.test_share is not None:
            number(self.test_share, "test_share", 0, 1, above=True, below=True)
        choice(self.broken, "broken", ("raise", "skip"))
        if len(self.background) != 3:
            raise ValueError(f"background must be red, green and blue, got {self.background}")
        for value in self.background:
            whole_number(value, "background", least=0, most=255)
        if self.method is not None:
            choice(self.method, "method", methods())
        if self.tasks is not None and (self.increment is not None or self.order is not None):
            other = "increment" if self.increment is not None else "order"
            raise ValueError(f"tasks and {other} exclude each other: the file says which classes come when")
        if self.start is None and self.backbone is None:
            raise ValueError(
                "backbone is needed: 'small' (of 32 x 32 pixels), a folder, or a name; see docs/backbones.md"
            )
        if self.earlier is not None and self.start is None:
            raise ValueError("earlier is for a learner that goes on: give it with --from")
        for name in ("method", "image_size", "normalize"):
            if self.start is not None and getattr(self, name) is not None:
                raise ValueError(f"{name} is that of the learner that goes on; leave it out")
        if self.start is not None and os.path.realpath(self.start) == os.path.realpath(self.out):
            raise ValueError(
                f"out: {self.out!r} is the learner that goes on; give another file, so that a fit that was "
                "stopped can begin from it again"
            )
