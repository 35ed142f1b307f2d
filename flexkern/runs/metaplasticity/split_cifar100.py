"""Against the field on split CIFAR-100: ten tasks of several classes, on a frozen transformer's features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from torch import nn

from flexkern.backbones import load_backbone
from flexkern.features import BackboneFeatures, extract
from flexkern.runs.metaplasticity.items import Raw
from flexkern.runs.metaplasticity.protocol import DIGITS, Protocol
from flexkern.runs.metaplasticity.rivals import Rivals
from flexkern.streams import Experience, Images, Stream, class_incremental, image_pack
from flexkern.streams.archives import Archive

__all__ = ["SplitCIFAR100"]


@dataclass(frozen=True)
class SplitCIFAR100(Rivals):
    """Classes of CIFAR-100, some at a time, by the same learners as ``flexkern run rivals``.

    The features are the class token and the mean of the others of the package's small transformer, frozen. It
    was pre-trained on the first 50 classes, so the stream has the other 50. Nobody is told the task of a test
    image. ``--data`` is the archive of CIFAR-100; ``--items`` is the number of tasks, ``--train-per-item`` and
    ``--test-per-item`` are images of a class.

    Args:
        first_class: the stream has the classes from this one on.
        backbone: "small", or the folder of another transformer.
        pilot, ewc, si, memory: as in ``flexkern run rivals``.
    """

    first_class: int = 50
    backbone: str = "small"

    name: ClassVar[str] = "split-cifar100"
    title: ClassVar[str] = "Other ways not to forget, on split CIFAR-100"

    def __post_init__(self) -> None:
        if not 0 <= self.first_class < 100:
            raise ValueError(f"first_class must be in [0, 100), got {self.first_class}")

    def classes(self, protocol: Protocol) -> int:
        return 100 - self.first_class

    def check(self, protocol: Protocol) -> None:
        if protocol.as_released:
            raise ValueError("as_released: the release has no such stream; leave --as-released out")
        self._sizes(protocol)
        with Archive(protocol.data, "archive of CIFAR-100") as archive:
            missing = [f"y_{part}" for part in ("train", "test") if f"y_{part}" not in archive]
            if missing:
                raise ValueError(f"data: {protocol.data!r} has no {missing[0]}; it holds {archive.names[:20]}")
        load_backbone(self.backbone)

    def _sizes(self, protocol: Protocol) -> tuple[int, int]:
        """How many tasks and classes there are."""
        tasks, count = self.items(protocol), self.classes(protocol)
        if protocol.data == DIGITS:
            raise ValueError(
                "data must be the path of the archive of CIFAR-100 (.npz) for this experiment: give it with "
                "--data PATH"
            )
        if count % tasks:
            raise ValueError(f"items must divide the {count} classes of the stream, got {tasks}")
        return tasks, count

    def load(self, protocol: Protocol, seed: int, cache: Path, progress: Callable[[str], None]) -> _Tasks:
        tasks, extractor, _ = self.raw(protocol, seed)
        what = f"seed {seed}: features of {len(tasks)} tasks"
        return _Tasks(_features(tasks.stream, extractor, protocol, cache, lambda: progress(what)))

    def raw(self, protocol: Protocol, seed: int) -> Raw:
        tasks, count = self._sizes(protocol)
        stream = class_incremental(
            *_pack(protocol.data),
            increment=count // tasks,
            classes=range(self.first_class, 100),
            seed=seed,
            train_per_class=protocol.train_per_item,
            test_per_class=protocol.test_per_item,
        )
        extractor = BackboneFeatures(self.backbone, mean=True).to(protocol.device)
        return Raw(_Tasks(stream), extractor, sum(len(e.train_labels) + len(e.test_labels) for e in stream))


@lru_cache(maxsize=1)
def _pack(path: str) -> tuple[Images, Images]:
    """Decoded once for all units of a process: 60,000 images take longer than a network on their features."""
    return image_pack(path)


class _Tasks:
    """A stream of features as what an experiment is made of."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def experience(self, number: int, turn: int = 0) -> Experience:
        return self.stream[number]

    def test(self, number: int) -> Experience:
        e = self.stream[number]
        return dataclasses.replace(e, train_inputs=e.train_inputs[:0], train_labels=e.train_labels[:0])


def _features(
    stream: Stream, module: nn.Module, protocol: Protocol, cache: Path, progress: Callable[[], None]
) -> Stream:
    """The stream with features in place of images: mean 0 each, and mean square 1 together, over the training
    images of the first task, without their labels."""
    raw = extract(stream, module, device=protocol.device, cache=cache, progress=lambda *_: progress())
    centre = raw[0].train_inputs.mean(0)
    size = (raw[0].train_inputs - centre).square().mean().sqrt()
    experiences = [
        dataclasses.replace(
            e, train_inputs=(e.train_inputs - centre) / size, test_inputs=(e.test_inputs - centre) / size
        )
        for e in raw
    ]
    return Stream(experiences, stream.classes)
