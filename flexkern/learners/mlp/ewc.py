"""Elastic weight consolidation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexkern.distributed import rank, sum_, world_size
from flexkern.learners.mlp.fisher import diagonal_fisher
from flexkern.learners.mlp.penalty import QuadraticPenalty
from flexkern.learners.mlp.rows import Rows, read
from flexkern.learners.registry import register_method
from flexkern.plain import number, whole_number

__all__ = ["EWC"]

_FISHER = 1  # what a random choice is for


@register_method("ewc")
class EWC(QuadraticPenalty):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796), in its online form.

    While an item is learned, each parameter is pulled towards the anchor theta*, its value when the last item
    ended::

        L(theta) = cross-entropy + strength / 2  sum_i F_i (theta_i - theta*_i)^2          (equation 3)

    F is the diagonal of the Fisher information. One running sum, ``F <- decay F + F of the item that ended``,
    and one anchor stand for all earlier items, as in online EWC (Schwarz et al. 2018, arXiv 1805.06370), so
    state does not grow. An item's F is measured by :func:`flexkern.learners.mlp.fisher.diagonal_fisher`. Where
    ``strength * F`` is over 1 / lr it counts as 1 / lr: a step of plain SGD would go beyond the anchor. F is a
    mean over an item's inputs, so that an item of ten inputs counts as much as one of a thousand: with many
    small items take a smaller strength, or decay < 1.

    Args:
        strength: lambda, at least 0; 0 is the conventional network. The default is the best of a sweep on ten
            two-digit items with lr 5e-3; it belongs to the data and the learning rate.
        decay: gamma in [0, 1]: what is left of earlier items' Fisher information at the end of each item.
        fisher_samples: how many training inputs the Fisher information is measured on, at most.
        input_shape, classes, widths, features, lr, momentum, batch_size, seed, device: as in
            :class:`flexkern.learners.MetaplasticMLP`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    _FACTOR = 1.0
    _takes_rows = True

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        strength: float = 2000.0,
        decay: float = 1.0,
        fisher_samples: int = 1000,
        **common: Any,
    ) -> None:
        decay = number(decay, "decay", 0, 1)
        fisher_samples = whole_number(fisher_samples, "fisher_samples")
        super().__init__(input_shape, classes, strength=strength, **common)
        self._configuration |= {"decay": decay, "fisher_samples": fisher_samples}

    def _after_item(self, inputs: Tensor | Rows, labels: Tensor) -> None:
        rng = self._rng(_FISHER)
        count = min(len(labels), self._configuration["fisher_samples"])
        chosen = torch.from_numpy(rng.choice(len(labels), count, replace=False)).to(self.device)
        # Drawn on the CPU, so that one seed gives the same numbers on every device.
        draws = torch.from_numpy(rng.random(count)).to(self.device)
        fisher = self._zeros()
        # Of several processes each takes every n-th batch.
        mine = slice(rank(), None, world_size())
        parts, of_parts = chosen.split(self.batch_size)[mine], draws.split(self.batch_size)[mine]
        for x, u in zip(read(inputs, parts), of_parts, strict=True):
            part = diagonal_fisher(self.model, x, u)
            for total, mean in zip(fisher, part, strict=True):
                total.add_(mean, alpha=len(x) / count)
        sum_(fisher)
        decay = self._configuration["decay"]
        self._importance = [decay * old + new for old, new in zip(self._importance, fisher, strict=True)]
        self._anchors = self._copies()
