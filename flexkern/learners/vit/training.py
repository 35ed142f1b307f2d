"""Training by EASE's recipe: SGD with momentum, cosine to 0, augmented images, an epoch at a time."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flexkern.distributed import rows_from, sum_, world_size
from flexkern.learners.processes import add_gradients, share_of
from flexkern.learners.progress import tell
from flexkern.ops.choices import PRECISIONS
from flexkern.plain import choice, number, whole_number
from flexkern.streams.augment import as_float, random_resized_crop, test_view
from flexkern.streams.image_source import ImageSource, batches

__all__ = ["CosineHead", "Recipe", "Training", "autocast", "test_view", "undisturbed"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on one task, as in EASE (arXiv 2403.12030; docs/design.md, Artsy).

    Args:
        epochs: passes over the task's images.
        lr: at first; it falls to 0 by a cosine, epoch by epoch.
        momentum, weight_decay: of SGD.
        batch_size: images per step.
        crop: range of a random crop's area, as a share of the image's.
        flip: probability of mirroring an image; 0 where left and right have a meaning.
        precision: "float32", or "bfloat16" for mixed precision (parameters and statistics stay float32).

    Raises:
        TypeError, ValueError: naming the field.
    """

    epochs: int = 20
    lr: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 48
    crop: tuple[float, float] = (0.05, 1.0)
    flip: float = 0.5
    precision: str = "float32"

    def __post_init__(self) -> None:
        plain: dict[str, object] = {}
        for name in ("epochs", "batch_size"):
            plain[name] = whole_number(getattr(self, name), name)
        for name in ("lr", "momentum", "weight_decay"):
            plain[name] = number(getattr(self, name), name, 0)
        if isinstance(self.crop, (str, bytes)) or not isinstance(self.crop, Iterable):
            raise TypeError(f"crop must be a range within (0, 1], two numbers, got {self.crop!r}")
        crop = tuple(number(bound, f"crop[{i}]") for i, bound in enumerate(self.crop))  # JSON has lists
        if len(crop) != 2 or not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(f"crop must be a range within (0, 1], got {self.crop}")
        plain["crop"] = crop
        plain["flip"] = number(self.flip, "flip", 0, 1)
        plain["precision"] = choice(self.precision, "precision", PRECISIONS)
        for name, value in plain.items():
            object.__setattr__(self, name, value)


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The context in which the network computes.

    It does not keep rounded weights. torch drops those that it keeps where the outermost context ends: inside
    of another one (a learner's own, or the caller's round the whole training) they would be those of the first
    step.
    """
    low = recipe.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False)


# Who trains has torch's generator for itself, for an epoch, so that learners in several threads have the bits
# of learners one after the other. Whoever watches an epoch may train another learner in it.
_one_at_a_time = threading.RLock()


def _begin_anew() -> None:
    """In a forked process: the thread that held the lock is not in it."""
    global _one_at_a_time
    _one_at_a_time = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What is drawn from torch's generator in this block is drawn by nobody else, and the caller's stays as it
    is. All threads have the same one."""
    with _one_at_a_time, torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


class CosineHead(nn.Module):
    """Logits ``sigma * cos(x, w_c)`` of task-local classes; thrown away when the task ends (EASE).

    Args:
        width: of the features.
        classes: of the task.
        generator: of the initial weights.
    """

    def __init__(self, width: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        draw = torch.rand((classes, width), generator=generator, dtype=torch.float32)
        self.weight = nn.Parameter((draw * 2 - 1) * bound)
        self.sigma = nn.Parameter(torch.ones((), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        cosines = functional.linear(functional.normalize(x.float()), functional.normalize(self.weight))
        return self.sigma * cosines


class Training:
    """One task's training: parameters, their optimizer, and where it stands.

    Args:
        parameters: what is trained.
        logits: from augmented images, float [b, 3, size, size], to task-local logits.
        recipe: how.
        size: pixels of the images that the network takes.
        seed: a few integers that no other training has: they decide the order, the crops and the dropout of
            each epoch, so that there is no generator to save.
        device: where the network is.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        logits: Callable[[Tensor], Tensor],
        recipe: Recipe,
        *,
        size: int,
        seed: Sequence[int],
        device: torch.device,
    ) -> None:
        self.recipe, self.size, self.seed, self.device = recipe, size, list(seed), device
        self.logits = logits
        self.epochs, self.epochs_done = recipe.epochs, 0
        self.optimizer = torch.optim.SGD(
            parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
        )

    def epoch(self, images: Tensor | ImageSource, labels: Tensor) -> float:
        """One pass over images, uint8 [n, 3, h, w], and task-local labels; returns the mean cross-entropy.

        Images of a source are decoded ahead, while the network computes.
        """
        recipe = self.recipe
        seed = int(np.random.SeedSequence([*self.seed, self.epochs_done]).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labels), generator=generator)
        rate = recipe.lr * 0.5 * (1 + math.cos(math.pi * self.epochs_done / self.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        devices = [self.device] if self.device.type == "cuda" else []
        done, parts, together = 0, order.split(recipe.batch_size), world_size() > 1
        shares = [share_of(rows) for rows in parts]  # of several processes each takes its share of a batch
        with (
            undisturbed(self.device),  # dropout draws from torch's generator
            closing(batches(images, [share.rows for share in shares], pin=bool(devices))) as given,
        ):
            torch.manual_seed(seed)
            for share, rows, of_batch in zip(shares, parts, given, strict=True):
                x = as_float(of_batch.to(self.device, non_blocking=True))
                x = random_resized_crop(
                    x, self.size, scale=recipe.crop, flip=recipe.flip, generator=generator,
                    within=(share.first, len(rows)),
                )  # fmt: skip
                with autocast(recipe, self.device), rows_from(share.first):
                    logits = self.logits(x)
                truth = labels[share.rows].to(self.device)
                if together:
                    loss = functional.cross_entropy(logits.float(), truth, reduction="sum") * share.weight
                else:
                    loss = functional.cross_entropy(logits.float(), truth)
                self.optimizer.zero_grad()
                loss.backward()
                add_gradients(p for group in self.optimizer.param_groups for p in group["params"])
                self.optimizer.step()
                total += loss.detach() * len(rows)
                done += len(rows)
                tell("training", done, len(order), devices)
        sum_([total])
        self.epochs_done += 1
        return total.item() / len(labels)
