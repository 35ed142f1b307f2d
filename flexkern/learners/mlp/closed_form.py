"""Heads in closed form on frozen features, in place of a network that is trained: ridge regression and LDA."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.distributed import part
from flexkern.learners.mlp.base import MLPLearner
from flexkern.learners.mlp.rows import Rows, read
from flexkern.learners.progress import tell
from flexkern.learners.registry import register_method
from flexkern.nn.feature_statistics import checked_shrinkage
from flexkern.nn.heads.discriminant import PRIORS, SHRINKAGES, LDAHead
from flexkern.nn.heads.ridge import RidgeHead, checked_ridge
from flexkern.nn.together import learning_together
from flexkern.plain import choice, flag, whole_number
from flexkern.streams.base import Experience
from flexkern.streams.image_source import ImageSource

__all__ = ["LDAMLP", "ClosedFormMLP", "RidgeMLP"]


class ClosedFormMLP(MLPLearner):
    """A head that takes each item in at once, in one pass, and keeps running sums; no data, and no gradients.

    The sums of all items are those of one item with all of their inputs, up to rounding. So the order of items
    changes nothing, classes may come again, and there is nothing to forget. Of ``epochs`` one is made whatever
    is asked for; ``progress`` is not called.

    Before the first item all classes are as likely; from then on those that were never told have the least
    logit that there is (of float32, and finite), the probability 0, and no answer names them.
    """

    _takes_rows = True

    def _make_head(self, width: int) -> RidgeHead | LDAHead:
        """The head, on the learner's device, for features of this width."""
        raise NotImplementedError

    def _build(self, sizes: Sequence[int], lr: float, momentum: float) -> tuple[nn.Module, None]:
        return nn.ModuleDict({"head": self._make_head(sizes[0])}), None

    @property
    def head(self) -> Any:
        """The :class:`flexkern.nn.RidgeHead` or :class:`flexkern.nn.LDAHead` that learns and answers."""
        return self.model["head"]

    @property
    def parameters_added(self) -> int:
        """Numbers that are kept: all of the head's sums."""
        return sum(buffer.numel() for buffer in self.head.buffers())

    def _after_item(self, inputs: Tensor | Rows, labels: Tensor) -> None:
        # Of several processes each takes its share in, and the sums are added.
        each, here = RidgeHead.rows_at_once, part(len(labels))
        parts = [slice(i, min(i + each, here.stop)) for i in range(here.start, here.stop, each)]
        with learning_together(self.head), closing(read(inputs, parts)) as taken:
            for rows, x in zip(parts, taken, strict=True):
                try:
                    self.head.update(x, labels[rows])
                except ValueError as error:
                    raise ValueError(f"experience: its features cannot be learned: {error}") from error
                tell("taking in", rows.stop, len(labels))
        self.head.check_solvable()  # what gives no answers is not learned

    def _answer(self, x: Tensor) -> Tensor:
        logits = x.new_zeros((len(x), self.classes))
        known = (self.head.count > 0).nonzero().squeeze(1)
        if len(known):
            logits.fill_(torch.finfo(logits.dtype).min)
            logits[:, known] = self.head.logits(x)[:, known]
        return logits

    def _check_restored(self) -> None:
        super()._check_restored()
        if self.head.classes > self.classes:
            raise ValueError(f"the head has {self.head.classes} classes, and there are {self.classes}")
        if bool((self.head.count < 0).any()):
            raise ValueError(f"the head's counts must be >= 0, got {int(self.head.count.min())}")
        if self.head.classes:
            self.head.check_solvable()


@register_method("ridge")
class RidgeMLP(ClosedFormMLP):
    """A ridge regression on random ReLU features of the frozen ones (:class:`flexkern.nn.RidgeHead`, RanPAC).

    Args:
        random_features: columns of the random projection, whose sums are random_features^2 numbers of 8 bytes;
            0: none, the features are taken as they are.
        ridge: the regularisation, > 0, or "auto".
        intercept: whether there is one, which is not penalised.
        balanced: whether rare classes count as much as frequent ones.
        input_shape, classes, features, seed, device, features_cache: as in
            :class:`flexkern.learners.mlp.base.MLPLearner`, and its other arguments, which are of a network and
            of its training: they are taken so that methods can take each other's place, and do nothing.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        random_features: int = 2000,
        ridge: float | str = "auto",
        intercept: bool = False,
        balanced: bool = False,
        **common: Any,
    ) -> None:
        self._options: dict[str, Any] = {
            "random_features": whole_number(random_features, "random_features", least=0),
            "ridge": checked_ridge(ridge),
            "intercept": flag(intercept, "intercept"),
            "balanced": flag(balanced, "balanced"),
        }
        super().__init__(input_shape, classes, **common)
        self._configuration |= self._options

    def _make_head(self, width: int) -> RidgeHead:
        options = dict(self._options)
        columns = options.pop("random_features")
        return RidgeHead(width, features=columns, seed=self.seed, device=self.device, **options)

    def _widest(self, width: int) -> int:
        return max(width, self.head.features)


@register_method("lda")
class LDAMLP(ClosedFormMLP):
    """Class means and one covariance of the frozen features (:class:`flexkern.nn.LDAHead`).

    Args:
        shrinkage: of the covariance towards a multiple of the identity, 0 to 1, or "oas" or "gcv", which take
            it from the data.
        priors: of the classes: "uniform", or "counts" (as many as their inputs).
        input_shape, classes, features, seed, device, features_cache: as in :class:`RidgeMLP`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        shrinkage: float | str = "oas",
        priors: str = "uniform",
        **common: Any,
    ) -> None:
        self._options: dict[str, Any] = {
            "shrinkage": checked_shrinkage(shrinkage, SHRINKAGES), "priors": choice(priors, "priors", PRIORS)
        }  # fmt: skip
        super().__init__(input_shape, classes, **common)
        self._configuration |= self._options

    def _make_head(self, width: int) -> LDAHead:
        return LDAHead(width, device=self.device, **self._options)

    def _check(self, experience: Experience) -> None:
        super()._check(experience)
        x, most = experience.train_inputs, self.head.largest
        if self.features is None and not isinstance(x, ImageSource) and x.is_floating_point():
            largest = max(abs(float(bound)) for bound in torch.aminmax(x.detach()))
            if largest > most:
                raise ValueError(
                    f"experience: its train_inputs must be within {most:.3g}, of which squares are added, got "
                    f"{largest:.3g}; scale them"
                )
