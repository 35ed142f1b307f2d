"""An epoch of training a task's adapters, as Artsy's learner runs it, against EASE's in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.benchmarks.bench_artsy import HALF, RANKS, backbone
from flexkern.benchmarks.case import CPU, GPU, Comparison, Peer, Setting, Work, case, faster
from flexkern.benchmarks.peers.ease import Ease
from flexkern.benchmarks.peers.vit_training import CosineHead, EaseTraining
from flexkern.learners import ArtsyViT
from flexkern.learners.vit.training import Recipe, Training

__all__ = ["Epochs"]

CLASSES, SEED = 10, 0


class Epochs:
    """A task's images, and learners and peers that begin to train its adapters with the same weights.

    Args:
        at: full size: the small transformer and 192 images on a CPU; ViT-B/16 in bf16 and 480 on a GPU. Batches
            of 48, as in EASE.
        half: adapters are in the last half of the blocks.
        augment: whether images are cropped and flipped; what comes before the first adapter is kept if not.

    Raises:
        Skip: if transformers is not installed.
    """

    def __init__(self, at: Setting, *, half: bool = False, augment: bool = True) -> None:
        self.at, self.half, self.augment = at, half, augment
        on_gpu = at.device == GPU and not at.quick
        self.size = "vit-b16" if on_gpu else "small"
        self.recipe = Recipe(
            precision="bfloat16" if on_gpu else "float32", batch_size=at.size(48, 4), epochs=20,
            augment=augment,
        )  # fmt: skip
        pixels = backbone(self.size, CPU).config.image_size
        generator = torch.Generator().manual_seed(1)
        count = at.size(480 if on_gpu else 192 if augment else 48, 8)  # of 20 epochs a batch is enough
        self.images = torch.randint(0, 256, (count, 3, pixels, pixels), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(CLASSES, (count,), generator=generator)

    def title(self) -> str:
        name = "ViT-B/16, bf16" if self.size == "vit-b16" else "small ViT"
        what, how = ("an epoch", "with") if self.augment else (f"{self.recipe.epochs} epochs", "without")
        return (
            f"Artsy training, {what} of a task's adapters and head {how} augmentation, "
            f"{HALF if self.half else ''}{name}, {len(self.labels)} images, "
            f"batch {self.recipe.batch_size}{self.at.suffix()}"
        )

    def learner(self, dropout: float = 0.1, precision: str | None = None) -> ArtsyViT:
        """Whose first task has begun."""
        recipe = replace(self.recipe, precision=precision or self.recipe.precision)
        network = backbone(self.size, self.at.device)
        learner = ArtsyViT(
            network, recipe=recipe, rank=RANKS[self.size], dropout=dropout, blocks=self._blocks(), seed=SEED,
            device=self.at.device,
        )  # fmt: skip
        learner._begin(CLASSES)
        return learner

    def _blocks(self) -> int:
        """That have adapters."""
        depth: int = backbone(self.size, CPU).config.num_hidden_layers
        return depth // 2 if self.half else depth

    def training(self, learner: ArtsyViT) -> Training:
        """The learner's own training of the task that has begun."""
        training = learner._make_training()
        assert training is not None
        return training

    def plain(self, learner: ArtsyViT, adapters: Callable[[Ease], None] | None = None) -> EaseTraining:
        """A peer that begins where ``learner`` stands.

        Args:
            adapters: puts others in the place of the modules.
        """
        assert learner._head is not None
        ease = Ease(backbone(self.size, self.at.device), learner.bank)
        if adapters is not None:
            adapters(ease)
        options = asdict(learner.recipe) | {"size": learner.image_size, "seed": [SEED, 0]}
        del options["token_cache"]
        return EaseTraining(ease, CosineHead(learner._head.weight), **options)

    def again(self, training: Training | EaseTraining) -> Callable[[], float]:
        """The first epoch, again and again: the rate does not fall, and the adapters go on learning."""

        def run() -> float:
            training.epochs_done = 0
            return training.epoch(self.images, self.labels)

        return run

    def task(self, begin: Callable[[], Training | EaseTraining]) -> Callable[[], float]:
        """All epochs of a training that ``begin`` gives; what ours keeps between them is made in the first."""

        def run() -> float:
            training = begin()
            training.epochs_done = 0
            return [training.epoch(self.images, self.labels) for _ in range(self.recipe.epochs)][-1]

        return run

    def work(self) -> Work:
        """Operations: forward through all; backward by what is computed on, and by the adapters' weights."""
        config, rank = backbone(self.size, CPU).config, RANKS[self.size]
        tokens, d = 1 + (config.image_size // config.patch_size) ** 2, config.hidden_size
        depth, adapted = config.num_hidden_layers, self._blocks()
        block = 2 * tokens * (4 * d * d + 2 * d * config.intermediate_size) + 4 * tokens * tokens * d
        adapter = 4 * tokens * d * rank
        embedding = 2 * (tokens - 1) * d * 3 * config.patch_size**2
        # Attention's two products cost twice as much backward as forward; what comes before the first adapter
        # has no backward pass.
        backward = (adapted - 1) * (block + 4 * tokens * tokens * d) + (2 * adapted - 1) * adapter
        trunk = embedding + (depth - adapted) * block
        every = adapted * (block + adapter) + backward
        an_image = trunk + every if self.augment else trunk + self.recipe.epochs * every
        return Work(0, len(self.labels) * an_image, self.recipe.precision)

    def agrees(self, adapters: Callable[[Ease], None] | None = None) -> None:
        """The same losses and weights after two epochs, in float32 and without dropout (whose draws differ).

        A step's gradient comes out of sums of up to 4 d values, ten in a block, there and back, whose errors
        are independent: a relative error of sqrt(20 * depth) * sqrt(4 d) * 2^-24. So far may each step be
        apart, by the length of all of them. (Adapters begin with weights other than 0: so all are trained.)
        """
        learner = self.learner(dropout=0.0, precision="float32")
        with torch.no_grad():
            for p in learner.bank.parameters_of(0):
                p.normal_(std=0.05)
        plain = self.plain(learner, adapters)
        training = self.training(learner)
        ours = [*learner.bank.parameters_of(0), *learner._head.parameters()]  # type: ignore[union-attr]
        before = [p.detach().clone() for p in ours]
        config: Any = learner.backbone.config
        unit = math.sqrt(20 * config.num_hidden_layers * 4 * config.hidden_size) * 2**-24
        steps = 2 * math.ceil(len(self.labels) / self.recipe.batch_size)
        for _ in range(2):
            mine, theirs = training.epoch(self.images, self.labels), plain.epoch(self.images, self.labels)
            assert abs(mine - theirs) <= unit * steps * mine, f"loss {mine} and {theirs}"
        for start, p, q in zip(before, ours, same_shape(plain), strict=True):
            moved = (p.detach() - start).norm()
            assert moved > 0
            apart = float((p.detach() - q).norm() / moved)
            assert apart <= unit * steps, f"{apart:.1e} of the way apart, {unit * steps:.1e} allowed"


def same_shape(plain: EaseTraining) -> list[Tensor]:
    """Its parameters as a bank has them: down, its bias, up, its bias of each block; then the head's."""
    own: list[Tensor] = []
    for adapter in plain.ease.adapters[-1]:
        for name in ("down", "up"):
            linear = getattr(adapter, name)
            if isinstance(linear, nn.Linear):
                own += [linear.weight.detach().T, linear.bias.detach()]
            else:
                own += [linear.detach(), getattr(adapter, f"{name}_bias").detach()]
    return [*own, *(p.detach() for p in plain.head.parameters())]


@case("artsy/training", devices=(CPU, GPU), backends=("triton",))
def training(at: Setting) -> Comparison:
    epochs = Epochs(at)
    learner = epochs.learner()
    return Comparison(
        epochs.title(),
        epochs.again(epochs.training(learner)),
        [Peer("EASE's, adapters as modules", epochs.again(epochs.plain(learner)), epochs.agrees, faster(1.0))],
        epochs.work(),
        note="both without what comes after: gates, prototypes",
    )


@case("artsy/training-half", devices=(CPU, GPU), backends=("triton",), budget=True)
def training_half(at: Setting) -> Comparison:
    epochs, every = Epochs(at, half=True), Epochs(at)
    learner = epochs.learner()
    return Comparison(
        epochs.title(),
        epochs.again(epochs.training(learner)),
        [
            Peer(
                "EASE's, in all blocks", every.again(every.plain(every.learner())), "it trains more", faster(2)
            ),
            Peer("EASE's, in the same blocks", epochs.again(epochs.plain(learner)), epochs.agrees),
        ],
        epochs.work(),
        note="without what comes after: gates, prototypes",
    )


@case("artsy/training-half-kept", devices=(CPU, GPU), backends=("triton",), budget=True)
def training_half_kept(at: Setting) -> Comparison:
    epochs, every = (Epochs(at, half=half, augment=False) for half in (True, False))
    learner = epochs.learner()
    whole, part = every.plain(every.learner()), epochs.plain(learner)
    return Comparison(
        epochs.title(),
        epochs.task(lambda: epochs.training(learner)),  # a new one each time, which has kept nothing yet
        [
            Peer("EASE's, in all blocks", every.task(lambda: whole), "it trains more", faster(2)),
            Peer("EASE's, in the same blocks", epochs.task(lambda: part), epochs.agrees),
        ],
        epochs.work(),
        note="without what comes after: gates, prototypes; the tokens before the first adapter are kept",
    )
