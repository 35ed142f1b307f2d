"""RanPAC: a ridge head on random features of the frozen ones."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.learners.registry import register_method
from flexkern.learners.vit.sums import RunningSums
from flexkern.nn.heads.ridge import RidgeHead, checked_ridge
from flexkern.plain import whole_number

__all__ = ["RanPAC"]


@register_method("ranpac")
class RanPAC(RunningSums):
    """A ridge head on a random ReLU projection of the frozen backbone's features (arXiv 2307.02251).

    Its sums over all tasks are exact, so the order of tasks changes nothing, and no data is kept.

    Args:
        features: of the random projection; the paper has 10,000. The sums are features x features numbers.
        ridge: the head's regularisation, or "auto".
        backbone, recipe, images_per_pass, image_size, normalize, calibration_images, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.
    """

    head: RidgeHead

    def __init__(
        self,
        backbone: str | os.PathLike[str] | nn.Module = "small",
        *,
        features: int = 2000,
        ridge: float | str = "auto",
        seed: int = 0,
        **common: Any,
    ) -> None:
        features, ridge = whole_number(features, "features", least=0), checked_ridge(ridge)
        super().__init__(backbone, seed=seed, features=features, ridge=ridge, **common)
        self._parts = self._known_parts(self.backbone)
        self.head = RidgeHead(self.width, features=features, ridge=ridge, seed=self.seed).to(self.device)

    def _finish(self, images: Any, labels: Tensor) -> None:
        if self._few:
            batches = self._test_batches(images, labels)
            return self._take_late([self._run(self._parts.features, x) for x, _ in batches], labels)
        # So many at a time, however large a pass is: the bits of one update, and memory does not grow with the
        # task.
        most = self.head.rows_at_once
        h0 = torch.empty((min(most, len(images)), self.width), dtype=torch.float32, device=self.device)
        done = have = 0
        for x, _ in self._test_batches(images, labels):
            features = self._run(self._parts.features, x)
            while len(features):
                part, features = features[: most - have], features[most - have :]
                h0[have : have + len(part)] = part
                have += len(part)
                if have == most or done + have == len(images):
                    self.head.update(h0[:have], labels[done : done + have].to(self.device))
                    done, have = done + have, 0
        return self.head.check_solvable()  # what gives no answers is not learned

    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        return self.head.logits(self._run(self._parts.features, images))

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"head": self.head})

    @property
    def parameters_added(self) -> int:
        # As many as the head's weights; the projection is drawn anew from its seed.
        return self.head.cross.numel()
