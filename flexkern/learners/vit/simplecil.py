"""SimpleCIL: class means on frozen features."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from flexkern.learners.processes import own_share
from flexkern.learners.registry import register_method
from flexkern.learners.scenarios import SCENARIOS
from flexkern.learners.vit.first_session import FirstSession
from flexkern.nn.heads.prototype import PrototypeClassifier
from flexkern.nn.together import learning_together

__all__ = ["SimpleCIL"]


@register_method("simplecil")
class SimpleCIL(FirstSession):
    """Nearest class mean on the frozen backbone's features, by cosine; nothing is trained (arXiv 2303.07338).

    With ``first_session="both"`` it is APER with an adapter, of the same paper.

    Args:
        first_session, rank, adapter_scale, dropout, blocks: "adapter" or "both" for first-session adaptation;
            see :class:`flexkern.learners.vit.first_session.FirstSession`.
        backbone, recipe, images_per_pass, image_size, normalize, calibration_images, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.
    """

    takes = SCENARIOS

    def __init__(self, backbone: str | os.PathLike[str] | nn.Module = "small", **common: Any) -> None:
        super().__init__(backbone, **common)
        self.prototypes = PrototypeClassifier(self.networks * self.width, device=self.device)
        self.prototypes.add_subspace()

    def _finish(self, images: Any, labels: Tensor) -> None:
        with learning_together(self.prototypes):
            for x, y in self._test_batches(*own_share(images, labels)):
                self.prototypes.update(self._read(self._parts.features, x).unsqueeze(1), y)

    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        return self.prototypes.logits(self._read(self._parts.features, images).unsqueeze(1))

    def _modules(self) -> nn.ModuleDict:
        return self._with_adapter({"prototypes": self.prototypes})

    @property
    def parameters_added(self) -> int:
        return self.classes_seen * self.networks * self.width + self.adapter_parameters
