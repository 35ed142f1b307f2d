"""Features of a whole stream in E0 and in every adapter: trained once per seed, so that gates can be compared
on them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from flexkern.learners import checkpoint
from flexkern.learners.vit.artsy import ArtsyViT
from flexkern.learners.vit.training import Recipe
from flexkern.streams import Stream

__all__ = ["SpaceFeatures", "features_of_stream"]


@dataclass(frozen=True, eq=False)
class SpaceFeatures:
    """What a stream's images are in all subspaces, after the stream.

    Adapters do not change once their task is over, so what was known after task t is the first 1 + t subspaces.

    Args:
        train, test: float32 [n, 1 + T, width]: class tokens of E0, then of the adapters in order.
        train_mean, test_mean: float32 [n, width]: means of E0's other tokens.
        train_labels, test_labels: int64 [n], classes in the order of learning.
        classes: how many each task brought, T numbers.
        seconds: of training each task's adapter.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    train_mean: Tensor
    test_mean: Tensor
    classes: list[int]
    seconds: list[float]

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.classes)

    def read(self, mean: bool) -> tuple[Tensor, Tensor]:
        """What gates read of training and test images: E0's class token, with ``mean`` also the others'
        mean."""
        if not mean:
            return self.train[:, 0], self.test[:, 0]
        return torch.cat([self.train[:, 0], self.train_mean], 1), torch.cat(
            [self.test[:, 0], self.test_mean], 1
        )

    def digest(self) -> str:
        """Of the test features: what was found on other features must not be taken for a result on these."""
        return hashlib.sha256(self.test.contiguous().numpy().tobytes()).hexdigest()

    def task_of(self, labels: Tensor) -> Tensor:
        """The task that brought each class."""
        ends = torch.tensor(self.classes).cumsum(0)
        return torch.bucketize(labels, ends, right=True)


def features_of_stream(
    stream: Stream,
    seed: int,
    recipe: Recipe,
    *,
    backbone: str = "small",
    rank: int = 16,
    adapter_scale: float = 1.0,
    path: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> SpaceFeatures:
    """Trains an adapter for each task of a stream, and takes all images through all of them.

    Args:
        stream: of images.
        seed: of the training.
        recipe: of the training.
        backbone: as :func:`flexkern.backbones.load_backbone` takes it.
        rank, adapter_scale: of the adapters.
        path: where the features are kept; what is there, made by the same arguments, is not made again.
        progress: called after each task.
    """
    arguments = {
        "seed": seed,
        "recipe": asdict(recipe),
        "backbone": str(backbone),
        "rank": rank,
        "adapter_scale": adapter_scale,
        "names": stream.names,
        "images": [len(e.train_labels) for e in stream],
        "tested": [len(e.test_labels) for e in stream],
    }
    arguments = json.loads(json.dumps(arguments))  # as a file gives them back
    if path is not None and path.exists():
        tensors, record = checkpoint.read(path)
        if record["arguments"] == arguments:
            return SpaceFeatures(**tensors, classes=record["classes"], seconds=record["seconds"])
    learner = ArtsyViT(
        backbone, recipe=recipe, rank=rank, adapter_scale=adapter_scale, gate={"gate": "none"}, seed=seed,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )  # fmt: skip
    classes: list[int] = []
    seconds: list[float] = []
    for item in stream:
        start = time.perf_counter()
        learner.learn(item)
        seconds.append(round(time.perf_counter() - start, 2))
        classes.append(learner.classes_seen - sum(classes))
        progress(f"seed {seed}: task {item.number + 1} of {len(stream)}, {seconds[-1]:.0f} s")
    tensors = {}
    for part in ("train", "test"):
        images = [getattr(e, f"{part}_inputs") for e in stream]
        tensors[part] = torch.cat([learner.spaces(x).cpu() for x in images])
        tensors[f"{part}_mean"] = torch.cat([learner.means(x).cpu() for x in images])
        tensors[f"{part}_labels"] = torch.cat([getattr(e, f"{part}_labels") for e in stream])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write(path, tensors, {"arguments": arguments, "classes": classes, "seconds": seconds})
    return SpaceFeatures(**tensors, classes=classes, seconds=seconds)
