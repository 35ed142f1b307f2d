"""Linear discriminant analysis on the tokens of several frozen layers."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from flexkern.learners.registry import register_method
from flexkern.learners.vit.sums import RunningSums
from flexkern.nn.feature_statistics import checked_shrinkage
from flexkern.nn.heads.discriminant import PRIORS, LDAHead
from flexkern.plain import choice, whole_number

__all__ = ["LDA"]

_LAYERS = 6


@register_method("lda")
class LDA(RunningSums):
    """Class means and one covariance of the frozen backbone's tokens, in closed form; nothing is trained.

    Tokens are what the backbone pools, and the mean of its patches' tokens, after each of the last ``layers``
    blocks. Sums over all tasks are exact, so that the order of tasks changes nothing, and no data is kept. More
    layers tell more, and need more images to learn their covariance: of the small backbone on CIFAR-100 six are
    better than one from about 50 images of each class on.

    It keeps (2 layers width)^2 numbers: 4 bytes each, 340 MB for six layers of ViT-B/16; twice that while an
    item ends, which can be undone.

    Args:
        layers: how many blocks, the last ones; None: six, or all where there are fewer.
        shrinkage: of the covariance towards a multiple of the identity, 0 to 1; "oas" takes it from the data.
        priors: of the classes: "uniform", or "counts" (as many as their images).
        backbone, recipe, images_per_pass, image_size, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.
    """

    head: LDAHead

    def __init__(
        self,
        backbone: str | os.PathLike[str] | nn.Module = "small",
        *,
        layers: int | None = None,
        shrinkage: float | str = "oas",
        priors: str = "uniform",
        **common: Any,
    ) -> None:
        layers = None if layers is None else whole_number(layers, "layers")
        shrinkage, priors = checked_shrinkage(shrinkage), choice(priors, "priors", PRIORS)
        super().__init__(backbone, layers=layers, shrinkage=shrinkage, priors=priors, **common)
        self._parts = parts = self._known_parts(self.backbone)
        self.layers = min(_LAYERS, len(parts.points)) if layers is None else parts.checked_layers(layers)
        width = self.layers * parts.summaries * self.width
        self.head = LDAHead(width, shrinkage=shrinkage, priors=priors, device=self.device)

    def _tokens(self, images: Tensor) -> Tensor:
        return self._run(self._parts.tokens, images, self.layers)

    def _finish(self, images: Tensor, labels: Tensor) -> None:
        batches = self._test_batches(images, labels)
        if self._few:
            return self._take_late([self._tokens(x) for x, _ in batches], labels)
        for x, y in batches:
            self.head.update(self._tokens(x), y)
        return self.head.check_solvable()  # what gives no answers is not learned

    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        return self.head.logits(self._tokens(images))

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"head": self.head})

    def _check_restored(self) -> None:
        super()._check_restored()
        if self.classes_seen:
            self.head.solve()  # raises where there are no answers; is kept for the first one

    @property
    def parameters_added(self) -> int:
        # All that is kept: means, and the covariance.
        return sum(buffer.numel() for buffer in self.head.buffers())
