"""What a stream's images are in the frozen backbone and in every adapter: made once, for all methods.

Heads that learn in closed form read nothing else, so that all of them can be compared for the price of one
pass. The test of this study holds each of them to the learner that it stands for.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexkern.learners import LDA, ArtsyViT, checkpoint
from flexkern.streams import Stream
from studies.method_study.settings import Setting, key_for

__all__ = ["LAYERS", "Spaces", "Tokens", "adapter_spaces", "frozen_tokens"]

LAYERS = 6


class _Reader(LDA):
    """Reads tokens as LDA does, and learns nothing."""

    def read(self, images: Any) -> Tensor:
        nothing = torch.zeros(len(images))
        return torch.cat([self._tokens(x).cpu() for x, _ in self._test_batches(images, nothing)])


class _Trainer(ArtsyViT):
    """Trains adapters as Artsy does, whatever its gates, and keeps what a task's images are in them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.taken: list[Tensor] = []

    def _finish(self, images: Any, labels: Tensor) -> None:
        self.bank.freeze()
        spaces = self.every_space(images)
        self.taken.append(spaces)
        # There is no gate, but it counts the classes.
        self.gate.learn(spaces[:, 0].to(self.device), labels.to(self.device))

    @torch.no_grad()
    def every_space(self, images: Any) -> Tensor:
        """Of images, in E0 and in all adapters that there are: float32 [n, 1 + adapters, width]."""
        found = []
        for x, _ in self._test_batches(images, torch.zeros(len(images))):
            trunk = self._run_trunk(x)
            of_adapters = [self._run(self.adapted.features, trunk, t) for t in range(self.bank.tasks)]
            found.append(torch.stack([self._run(self.adapted.features, trunk), *of_adapters], 1).cpu())
        return torch.cat(found)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of a stream's images in the frozen backbone.

    Args:
        train, test: for each task float32 [n, layers * summaries * width]
            (:meth:`flexkern.backbones.parts.Parts.tokens`), the last block at the end.
        width: of a token.
        summaries: 2 where a block gives its class token and the mean of the others.
    """

    train: list[Tensor]
    test: list[Tensor]
    width: int
    summaries: int

    def of(self, layers: int) -> tuple[list[Tensor], list[Tensor]]:
        """Those of the last blocks, all if there are fewer."""
        columns = layers * self.summaries * self.width
        return [x[:, -columns:] for x in self.train], [x[:, -columns:] for x in self.test]

    def features(self) -> tuple[list[Tensor], list[Tensor]]:
        """What the backbone pools: [n, width]."""
        train, test = self.of(1)
        return [x[:, : self.width] for x in train], [x[:, : self.width] for x in test]

    def digest(self) -> str:
        """What was found on other tokens must not be taken for a result on these."""
        content = hashlib.sha256()
        for x in self.test:
            content.update(x.contiguous().numpy().tobytes())
        return content.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Spaces:
    """A stream's images in the frozen backbone and in all adapters.

    Args:
        train: for each task t float32 [n, 2 + t, width], as they are when it ends: E0, then the adapters.
        test: for each task float32 [n, 1 + T, width].
        seconds: of the training.
    """

    train: list[Tensor]
    test: list[Tensor]
    seconds: float


def frozen_tokens(
    stream: Stream, backbone: Any, setting: Setting, device: str, path: Path | None, key: dict[str, Any]
) -> Tokens:
    """Tokens of all images of a stream; from ``path`` where it has those of this ``key``."""
    layers = min(LAYERS, LDA(backbone).layers)
    reader = _Reader(backbone, recipe=setting.recipe, calibration_images=0, device=device, layers=layers)

    def make() -> dict[str, Tensor]:
        return {
            f"{part}{e.number}": reader.read(getattr(e, f"{part}_inputs"))
            for e in stream
            for part in ("train", "test")
        }

    tensors = _kept(path, key, make)
    train, test = ([tensors[f"{part}{t}"] for t in range(len(stream))] for part in ("train", "test"))
    return Tokens(train, test, reader.width, reader.head.width // (reader.layers * reader.width))


def adapter_spaces(
    stream: Stream,
    seed: int,
    backbone: Any,
    setting: Setting,
    device: str,
    path: Path | None,
    key: dict[str, Any],
    progress: Callable[[str], None] = lambda _: None,
) -> Spaces:
    """Trains an adapter for each task, and takes images through them; or reads ``path``."""

    def make() -> dict[str, Tensor]:
        trainer = _Trainer(
            backbone, recipe=setting.recipe, rank=setting.rank, adapter_scale=setting.adapter_scale,
            gate={"gate": "none"}, seed=seed, device=device, calibration_images=0,
        )  # fmt: skip
        began = time.perf_counter()
        for item in stream:
            trainer.learn(item)
            progress(f"adapter {item.number + 1} of {len(stream)}: {time.perf_counter() - began:.0f} s")
        tensors = {f"train{t}": x for t, x in enumerate(trainer.taken)}
        tensors["seconds"] = torch.tensor(time.perf_counter() - began)
        return tensors | {f"test{e.number}": trainer.every_space(e.test_inputs) for e in stream}

    tensors = _kept(path, key, make)
    train, test = ([tensors[f"{part}{t}"] for t in range(len(stream))] for part in ("train", "test"))
    return Spaces(train, test, float(tensors["seconds"]))


def _kept(path: Path | None, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    if path is not None and path.exists():
        tensors, record = checkpoint.read(path)
        if key_for(record["key"], False) == key_for(key, False):
            return tensors
    tensors = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write(path, tensors, {"key": key})
    return tensors
