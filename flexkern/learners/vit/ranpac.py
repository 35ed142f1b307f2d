"""RanPAC: a ridge head on random features of the frozen ones."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.learners.processes import own_share
from flexkern.learners.registry import register_method
from flexkern.learners.vit.sums import RunningSums
from flexkern.nn.heads.ridge import RidgeHead, checked_ridge
from flexkern.nn.together import learning_together
from flexkern.plain import flag, whole_number

__all__ = ["RanPAC"]


@register_method("ranpac")
class RanPAC(RunningSums):
    """A ridge head on a random ReLU projection of the frozen backbone's features (arXiv 2307.02251).

    Its sums over all tasks are exact, so the order of tasks changes nothing, and no data is kept.

    Args:
        features: of the random projection; the sums are features x features numbers of 8 bytes: 32 MB for
            2,000, 800 MB for the 10,000 of the paper; as much again while an item ends, and three times as much
            while it is solved.
        ridge: the head's regularisation, or "auto".
        intercept: of the head, see :class:`flexkern.nn.RidgeHead`.
        first_session, rank, adapter_scale, dropout, blocks: "adapter" or "both" for first-session adaptation;
            see :class:`flexkern.learners.vit.first_session.FirstSession`.
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
        intercept: bool = False,
        seed: int = 0,
        **common: Any,
    ) -> None:
        options: dict[str, Any] = {
            "features": whole_number(features, "features", least=0), "ridge": checked_ridge(ridge),
            "intercept": flag(intercept, "intercept"),
        }  # fmt: skip
        super().__init__(backbone, seed=seed, **options, **common)
        self.head = RidgeHead(self.networks * self.width, seed=self.seed, **options).to(self.device)

    def _finish(self, images: Any, labels: Tensor) -> None:
        if self._few:
            batches = self._test_batches(images, labels)
            return self._take_late([self._read(self._parts.features, x) for x, _ in batches], labels)
        # So many at a time, however large a pass is: the bits of one update, and memory does not grow with the
        # task.
        images, labels = own_share(images, labels)
        most = self.head.rows_at_once
        h0 = torch.empty((min(most, len(images)), self.head.width), dtype=torch.float32, device=self.device)
        done = have = 0
        with learning_together(self.head):
            for x, _ in self._test_batches(images, labels):
                features = self._read(self._parts.features, x)
                while len(features):
                    part, features = features[: most - have], features[most - have :]
                    h0[have : have + len(part)] = part
                    have += len(part)
                    if have == most or done + have == len(images):
                        self.head.update(h0[:have], labels[done : done + have].to(self.device))
                        done, have = done + have, 0
        return self.head.check_solvable()  # what gives no answers is not learned

    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        return self.head.logits(self._read(self._parts.features, images))

    def _modules(self) -> nn.ModuleDict:
        return self._with_adapter({"head": self.head})

    @property
    def parameters_added(self) -> int:
        # As many as the head's weights; the projection is drawn anew from its seed.
        return self.head.cross.numel() + self.adapter_parameters
