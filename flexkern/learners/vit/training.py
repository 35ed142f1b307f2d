"""Training by EASE's recipe: SGD with momentum, cosine to 0, augmented images, an epoch at a time."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flexkern.distributed import rows_from, sum_, world_size
from flexkern.learners.processes import Share, add_gradients, share_of
from flexkern.learners.progress import tell
from flexkern.learners.vit.token_cache import TokenCache
from flexkern.nn.adapters.adapted_model import Trunk
from flexkern.ops.choices import PRECISIONS
from flexkern.plain import choice, flag, number, whole_number
from flexkern.streams.augment import as_float, random_resized_crop, test_view
from flexkern.streams.image_source import ImageSource, batches

__all__ = ["GIB", "CosineHead", "Recipe", "Training", "autocast", "test_view", "undisturbed", "written"]

GIB = 1 << 30


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
        augment: False: no crop and no flip, but images as they are tested, the same in each epoch. What comes
            before the first adapter is then computed once in a task and kept, if there is room.
        token_cache: GiB that it may take; 0: nothing is kept.
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
    augment: bool = True
    token_cache: float = 1.0
    precision: str = "float32"

    def __post_init__(self) -> None:
        plain: dict[str, object] = {}
        for name in ("epochs", "batch_size"):
            plain[name] = whole_number(getattr(self, name), name)
        for name in ("lr", "momentum", "weight_decay", "token_cache"):
            plain[name] = number(getattr(self, name), name, 0)
        if isinstance(self.crop, (str, bytes)) or not isinstance(self.crop, Iterable):
            raise TypeError(f"crop must be a range within (0, 1], two numbers, got {self.crop!r}")
        crop = tuple(number(bound, f"crop[{i}]") for i, bound in enumerate(self.crop))  # JSON has lists
        if len(crop) != 2 or not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(f"crop must be a range within (0, 1], got {self.crop}")
        plain["crop"] = crop
        plain["flip"] = number(self.flip, "flip", 0, 1)
        plain["augment"] = flag(self.augment, "augment")
        plain["precision"] = choice(self.precision, "precision", PRECISIONS)
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def keeps(self, tokens: int) -> bool:
        """Whether what comes before the first adapter, so many bytes for all images of a task, is kept."""
        return not self.augment and tokens <= self.token_cache * GIB


_LATER = ("augment", "token_cache")  # fields that the first checkpoints lack


def written(recipe: Recipe) -> dict[str, Any]:
    """A recipe as checkpoints have it: plain JSON; what earlier versions did not know is there only where it
    says something, so that their files and ours are the same."""
    fields = {k: v for k, v in asdict(recipe).items() if k not in _LATER or v != getattr(Recipe, k)}
    return fields | {"crop": list(recipe.crop)}  # JSON has no tuples


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
        logits: from images as the recipe has them, float [b, 3, size, size], or from what ``trunk`` makes of
            them, to task-local logits.
        recipe: how.
        size: pixels of the images that the network takes.
        seed: a few integers that no other training has: they decide the order, the crops and the dropout of
            each epoch, so that there is no generator to save.
        device: where the network is.
        trunk: what comes before all that is trained; None: nothing does. Where the recipe does not augment,
            each epoch must be over the same images, in one order.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        logits: Callable[[Any], Tensor],
        recipe: Recipe,
        *,
        size: int,
        seed: Sequence[int],
        device: torch.device,
        trunk: Callable[[Tensor], Trunk] | None = None,
    ) -> None:
        self.recipe, self.size, self.seed, self.device = recipe, size, list(seed), device
        self.logits, self.trunk = logits, trunk
        self.cache: TokenCache | None = None
        if trunk is not None and not recipe.augment and recipe.token_cache:
            self.cache = TokenCache(
                trunk, size=size, device=device, at_once=recipe.batch_size, keeps=recipe.keeps
            )
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
            closing(self._inputs(images, shares, [len(rows) for rows in parts], generator)) as given,
        ):
            torch.manual_seed(seed)
            for share, rows, x in zip(shares, parts, given, strict=True):
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

    def _inputs(
        self,
        images: Tensor | ImageSource,
        shares: Sequence[Share],
        counts: Sequence[int],
        generator: torch.Generator,
    ) -> Generator[Any, None, None]:
        """What the logits of each batch are made of; ``counts``: how many images it has on all processes."""
        recipe, device = self.recipe, self.device
        if self.cache is not None:
            with autocast(recipe, device):
                kept = self.cache.of(images)
            if kept is not None:
                yield from (Trunk(*(part[share.rows.to(device)] for part in kept)) for share in shares)
                return
        rows = [share.rows for share in shares]
        with closing(batches(images, rows, pin=device.type == "cuda")) as given:
            for share, count, of_batch in zip(shares, counts, given, strict=True):
                x = of_batch.to(device, non_blocking=True)
                if recipe.augment:
                    x = random_resized_crop(
                        as_float(x), self.size, scale=recipe.crop, flip=recipe.flip, generator=generator,
                        within=(share.first, count),
                    )  # fmt: skip
                else:
                    x = test_view(x, self.size)
                if self.trunk is None:
                    yield x
                    continue
                with autocast(recipe, device):
                    tokens = self.trunk(x)
                yield tokens
