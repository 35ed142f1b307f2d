"""Against the field on split CIFAR-100: ten tasks of several classes, on a frozen transformer's features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from flexkern.backbones import image_size, load_backbone, normalisation
from flexkern.backbones.trial import tried_parts
from flexkern.features import extract_from
from flexkern.learners.vit.training import test_view
from flexkern.runs.metaplasticity.items import cached
from flexkern.runs.metaplasticity.protocol import DIGITS, Protocol
from flexkern.runs.metaplasticity.rivals import Rivals
from flexkern.streams import Experience, Images, Stream, class_incremental, image_pack

__all__ = ["SplitCIFAR100", "TokenFeatures"]


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

    def load(self, protocol: Protocol, seed: int, cache: Path, progress: Callable[[str], None]) -> _Tasks:
        tasks, count = self.items(protocol), self.classes(protocol)
        if protocol.data == DIGITS:
            raise ValueError("data must be the path of the archive of CIFAR-100 (.npz) for this experiment")
        if count % tasks:
            raise ValueError(f"items must divide the {count} classes of the stream, got {tasks}")
        stream = class_incremental(
            *_pack(protocol.data),
            increment=count // tasks,
            classes=range(self.first_class, 100),
            seed=seed,
            train_per_class=protocol.train_per_item,
            test_per_class=protocol.test_per_item,
        )
        what = f"seed {seed}: features of {tasks} tasks"
        return _Tasks(_features(stream, protocol, self.backbone, cache, lambda: progress(what)))


@lru_cache(maxsize=1)
def _pack(path: str) -> tuple[Images, Images]:
    """Decoded once for all units of a process: 60,000 images take longer than a network on their features."""
    return image_pack(path)


class TokenFeatures(nn.Module):
    """What a vision transformer pools and the mean of its patches' tokens, float32 [n, 2 width], centred.

    Args:
        backbone: as :func:`flexkern.backbones.load_backbone` takes it.
    """

    centre: Tensor
    size: Tensor

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = load_backbone(backbone)
        self.side = image_size(self.backbone)
        self._parts = tried_parts(self.backbone, self.side, normalise=normalisation(self.backbone))
        self.register_buffer("centre", torch.zeros((), dtype=torch.float32))
        self.register_buffer("size", torch.ones((), dtype=torch.float32))

    def calibrate(self, images: Tensor, device: torch.device | str) -> TokenFeatures:
        """Centres and scales features as those of these images, unlabelled: mean 0 each, mean square 1."""
        features = extract_from(self, images, device=device)
        self.centre = features.mean(0)
        self.size = (features - self.centre).square().mean().sqrt()
        return self

    def forward(self, images: Tensor) -> Tensor:
        features = self._parts.features(test_view(images, self.side), mean=True)
        return (features.float() - self.centre) / self.size


class _Tasks:
    """A stream of features as what an experiment is made of."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def experience(self, number: int) -> Experience:
        return self.stream[number]

    def test(self, number: int) -> Experience:
        e = self.stream[number]
        return dataclasses.replace(e, train_inputs=e.train_inputs[:0], train_labels=e.train_labels[:0])


def _features(
    stream: Stream, protocol: Protocol, backbone: str, cache: Path, progress: Callable[[], None]
) -> Stream:
    """The stream with features in place of images, centred by those of the first task's training images."""
    module = TokenFeatures(backbone).to(protocol.device)
    parts = {(part, e.number): getattr(e, f"{part}_inputs") for e in stream for part in ("train", "test")}

    def make() -> dict[str, Tensor]:
        progress()
        module.calibrate(stream[0].train_inputs, protocol.device)
        return {
            f"{part}.{number}": extract_from(module, images, device=protocol.device).cpu()
            for (part, number), images in parts.items()
        }

    stored = cached(cache, module, list(parts.values()), make)
    experiences = [
        dataclasses.replace(e, train_inputs=stored[f"train.{e.number}"], test_inputs=stored[f"test.{e.number}"])
        for e in stream
    ]
    return Stream(experiences, stream.classes)
