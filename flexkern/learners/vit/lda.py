"""Linear discriminant analysis on the tokens of several frozen layers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexkern.backbones.parts import Parts
from flexkern.distributed import gathered, part
from flexkern.learners.processes import own_share
from flexkern.learners.registry import register_method
from flexkern.learners.vit.sums import RunningSums
from flexkern.nn.feature_statistics import checked_shrinkage
from flexkern.nn.heads.discriminant import PRIORS
from flexkern.nn.heads.selected import JUDGED, LAYERS, RULES, SelectedLDA
from flexkern.nn.together import learning_together
from flexkern.plain import choice, whole_number

__all__ = ["LDA"]


@register_method("lda")
class LDA(RunningSums):
    """Class means and one covariance of the frozen backbone's tokens, in closed form; nothing is trained.

    Tokens are what the backbone pools, and the mean of its patches' tokens, after each of the last ``layers``
    blocks. Sums over all tasks are exact, so that the order of tasks changes nothing, and no data is kept. More
    layers tell more, and need more images to learn their covariance: so each task's images, 512 at most, say
    how many are read, and how far the covariance is shrunk (:class:`flexkern.nn.SelectedLDA`).

    It keeps (2 layers width)^2 numbers: 4 bytes each, 340 MB for six layers of ViT-B/16; twice that while an
    item ends, which can be undone.

    Args:
        layers: how many blocks, the last ones; None: six, or all where there are fewer, of which all, half or
            one may be read (with ``first_session="both"`` all).
        shrinkage: of the covariance towards a multiple of the identity, 0 to 1, or "oas" or "gcv", which take
            it from the sums; see :class:`flexkern.nn.LDAHead`. "auto" selects among "oas", 0.2 and 0.5.
        priors: of the classes: "uniform", or "counts" (as many as their images).
        first_session, rank, adapter_scale, dropout, blocks: "adapter" or "both" for first-session adaptation;
            see :class:`flexkern.learners.vit.first_session.FirstSession`.
        backbone, recipe, images_per_pass, image_size, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.
    """

    head: SelectedLDA
    _calibrated = False  # its head has a temperature, of images left out: one of images as learned undoes it

    def __init__(
        self,
        backbone: str | os.PathLike[str] | nn.Module = "small",
        *,
        layers: int | None = None,
        shrinkage: float | str = "auto",
        priors: str = "uniform",
        **common: Any,
    ) -> None:
        layers = None if layers is None else whole_number(layers, "layers")
        shrinkage, priors = checked_shrinkage(shrinkage, RULES), choice(priors, "priors", PRIORS)
        super().__init__(backbone, layers=layers, shrinkage=shrinkage, priors=priors, **common)
        parts = self._parts
        self.layers = parts.checked_layers(layers, LAYERS)
        width = self.networks * self.layers * parts.summaries * self.width
        self.head = SelectedLDA(
            width, blocks=self.layers, fewer=layers is None and self.networks == 1, shrinkage=shrinkage,
            priors=priors, device=self.device,
        )  # fmt: skip

    def _tokens(self, images: Tensor) -> Tensor:
        return self._read(self._parts.tokens, images, self.layers)

    def _look(self, parts: Parts, images: Tensor) -> Tensor:
        return parts.tokens(images, self.layers)

    def _finish(self, images: Tensor, labels: Tensor) -> None:
        if self._few:
            batches = self._test_batches(images, labels)
            return self._take_late([self._tokens(x) for x, _ in batches], labels)
        rng = np.random.default_rng([self.seed, self.items_learned])
        chosen = np.sort(rng.choice(len(images), min(JUDGED, len(images)), replace=False))
        judged = torch.zeros((0, self.head.width), dtype=torch.float32, device=self.device)
        tokens_judged, of_judged = [judged], [torch.zeros(0, dtype=torch.int64, device=self.device)]
        done = part(len(images)).start
        with learning_together(self.head):
            for x, y in self._test_batches(*own_share(images, labels)):
                tokens = self._tokens(x)
                self.head.update(tokens, y)
                first, end = np.searchsorted(chosen, (done, done + len(x)))
                rows = torch.from_numpy(chosen[first:end] - done).to(tokens.device)
                tokens_judged.append(tokens[rows])
                of_judged.append(y[rows])
                done += len(x)
        self.head.check_solvable()  # what gives no answers is not learned
        return self.head.judge(*(gathered(torch.cat(each)) for each in (tokens_judged, of_judged)))

    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        return self.head.logits(self._tokens(images))

    def _modules(self) -> nn.ModuleDict:
        return self._with_adapter({"head": self.head})

    def _check_restored(self) -> None:
        super()._check_restored()
        if self.classes_seen:
            self.head.solve()  # raises where there are no answers; is kept for the first one

    @property
    def parameters_added(self) -> int:
        # All that is kept: means, and the covariance.
        return sum(buffer.numel() for buffer in self.head.buffers()) + self.adapter_parameters
