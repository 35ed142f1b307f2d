"""How much memory a learner on a vision transformer takes, known before it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn

from flexkern.learners.live_bytes import Cost, cost_of
from flexkern.learners.vit.training import GIB
from flexkern.nn.adapters.adapted_model import AdaptedModel, Trunk, pieces_of
from flexkern.nn.feature_statistics import FeatureStatistics
from flexkern.nn.gates.detectors import NearestNeighbours
from flexkern.nn.gates.negatives import Recall
from flexkern.nn.gates.synapse_gate import SynapseGate
from flexkern.nn.growing import GrowingState
from flexkern.nn.heads.experts import ExpertHead
from flexkern.nn.heads.prototype import PrototypeClassifier

__all__ = ["MemoryPlan", "PairsCost", "bytes_of_heads", "bytes_of_modules", "pairs_cost", "said_bytes"]


@dataclass(frozen=True)
class MemoryPlan:
    """What a learner takes of its device's memory at its fullest moment, in bytes.

    Attributes:
        during: "training", or "answering": images are answered, or taken in at the end of a task.
        parameters: of the backbone, and of a network that is trained.
        adapters: the bank of all tasks, with room that is spare; offloaded, what is on the device.
        activations: what the network makes of a batch, beside the gradients.
        optimizer: momentum and gradients of what is trained.
        statistics: heads and gates; at the end of a task also what undoes it, and features of its images.
        images: a batch of them, as they are given and as the network takes them.
        tokens: of all images of a task, where the recipe keeps what comes before the first adapter.
    """

    during: str
    parameters: int
    adapters: int
    activations: int
    optimizer: int
    statistics: int
    images: int
    tokens: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, f.name) for f in fields(self) if f.name != "during")

    def __str__(self) -> str:
        parts = [
            f"{f.name} {said_bytes(getattr(self, f.name))}"
            for f in fields(self)
            if f.name != "during" and getattr(self, f.name)
        ]
        return f"{said_bytes(self.total)} of memory while {self.during} ({', '.join(parts)})"


def said_bytes(size: int) -> str:
    """With three digits, in MiB or GiB."""
    return f"{size / 2**20:.3g} MiB" if size < 1000 * 2**20 else f"{size / GIB:.3g} GiB"


def bytes_of_modules(modules: Iterable[nn.Module]) -> int:
    """Of parameters and buffers, each memory once."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def bytes_of_heads(modules: nn.Module, classes: int, tasks: int) -> int:
    """Of heads, gates and statistics once they know so many classes, which came in so many tasks."""
    parts = [part for part in modules.modules() if isinstance(part, GrowingState)]
    scored = any(part.remembers for part in parts if isinstance(part, SynapseGate))
    experts = any(isinstance(part, ExpertHead) for part in parts)
    return sum(_bytes_of_head(part, classes, tasks, scored=scored, experts=experts) for part in parts)


def _bytes_of_head(part: GrowingState, classes: int, tasks: int, *, scored: bool, experts: bool) -> int:
    # What is not used is empty: prototypes beside experts, statistics of gates that have no scores.
    if (isinstance(part, FeatureStatistics) and not scored) or (
        isinstance(part, PrototypeClassifier) and experts
    ):
        return sum(buffer.nbytes for buffer in part.buffers(recurse=False))
    sizes = {"C": classes, "T": tasks}
    if isinstance(part, PrototypeClassifier):
        sizes["K"] = 1 + tasks if part.base else part.subspaces
    elif isinstance(part, Recall):
        sizes["N"] = part.keep * classes if part.keeps_data else 0
    elif isinstance(part, NearestNeighbours):
        sizes["R"] = part.keep * -(-classes // max(tasks, 1))
    return part.bytes_with(**sizes)


@dataclass(frozen=True)
class PairsCost:
    """What pairs of an image and a task take on their way through a network with adapters.

    The images share a trunk, and go through it and behind it in pieces, where that is faster.

    Attributes:
        trunk: of images up to the first adapter, embedded too; behind: of pairs from there on.
        embedding: of images before the first block.
        tokens, kept: bytes of an image, embedded, and of what the trunk keeps of it.
        example: one image, embedded, without memory: what pieces are cut by.
    """

    embedding: Cost
    trunk: Cost
    behind: Cost
    tokens: int
    kept: int
    example: Tensor

    def peak(self, n: int) -> int:
        """Of n images at once, and no more pairs at once."""
        bounds = list(pieces_of(n, self.example))
        piece = max(rows.stop - rows.start for rows in bounds)
        moments = [
            self.embedding.peak(n),
            (self.tokens + self.kept) * (n - piece) + self.trunk.peak(piece),
            self.kept * n + self.behind.peak(piece),
        ]
        if len(bounds) > 1:  # all pieces, and what they are joined to
            moments.append((self.tokens + 2 * self.kept) * n)
        return max(moments)


def pairs_cost(
    adapted: AdaptedModel,
    images: Callable[[int], Tensor],
    precision: Callable[[], AbstractContextManager[object]],
    layers: int,
    mean: bool,
) -> PairsCost:
    """Measured on three images, with a task of the network's.

    Args:
        adapted: a network with an adapter.
        images: so many, as the network takes them.
        precision: the context in which it computes.
        layers, mean: of the tokens that are read, see :meth:`flexkern.nn.AdaptedModel.features`.
    """
    parts = adapted.parts

    def within(work: Callable[..., object], given: Tensor) -> object:
        with torch.no_grad(), precision():
            return work(given)

    def trunk_of(n: int) -> Trunk:
        with torch.no_grad(), precision():
            return adapted.trunk(images(n), layers=layers)

    def behind(trunk: Trunk) -> None:
        with torch.no_grad(), precision():
            rows = torch.arange(len(trunk.x), device=trunk.x.device)
            adapted.features(trunk, torch.zeros_like(rows, dtype=torch.int32), rows, mean=mean, layers=layers)

    example = trunk_of(2)
    return PairsCost(
        cost_of(images, partial(within, parts.embed)),
        cost_of(images, partial(within, partial(adapted.trunk, layers=layers))),
        cost_of(trunk_of, behind),
        example.tokens[:1].nbytes,
        sum(part[:1].nbytes for part in example),
        _without_memory(example.tokens[:1]),
    )


def _without_memory(tokens: Tensor) -> Tensor:
    """A tensor of the same shape, dtype and device, of one number."""
    return tokens.new_zeros(()).expand(tokens.shape)
