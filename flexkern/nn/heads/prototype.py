"""A classifier of class means in the subspaces of several adapters (EASE, arXiv 2403.12030).

See docs/design.md, Artsy.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from flexkern.nn.growing import GrowingState, check_finite, check_labels
from flexkern.nn.not_learned import NotLearnedError
from flexkern.nn.task_scores import class_sums
from flexkern.ops import complete_prototypes, prototype_logits
from flexkern.ops.choices import COMPLETIONS, REWEIGHTINGS
from flexkern.plain import choice, flag, number, whole_number

__all__ = ["PrototypeClassifier"]


class PrototypeClassifier(GrowingState):
    """Class means in K subspaces, by running sums, with old classes completed in new subspaces.

    A task that comes appends one subspace (:meth:`add_subspace`) and its classes (:meth:`update`). Sums are in
    float64, so that any order and size of batches, and any split over :meth:`merge`, gives the same prototypes
    up to rounding. All state is in buffers; a fresh object of the same options loads any state_dict.

    Typical use, with ``base=False``, for task t (0, 1, ...)::

        classifier.add_subspace()
        classifier.update(features, labels)    # features [n, t + 1, dim], for each batch
        classifier.predict(features)           # of test samples

    Without adapters (SimpleCIL) or where adapters' features are summed (``combine="sum"``) there is one
    subspace, and no completion.

    Args:
        dim: width of a subspace.
        weight, reweighting, base, base_weight: of the logits, see :func:`flexkern.ops.prototype_logits`. With
            ``base`` subspace 0, the pre-trained network's, is there from the start.
        completion: ``"later"`` (EASE's code), ``"new"`` (the paper), see
            :func:`flexkern.ops.complete_prototypes`, or ``"none"``: prototypes that are not known stay 0.
        device: of the state.

    Raises:
        ValueError: naming the argument.
    """

    sums: Tensor
    counts: Tensor
    own_subspace: Tensor
    adds_up = ("sums", "counts")
    _SIZES: ClassVar = {"sums": ("C", "K", "dim"), "counts": ("C", "K"), "own_subspace": ("C",)}
    _DERIVED: ClassVar = (("C", "K", "dim"),)

    def __init__(
        self,
        dim: int,
        *,
        weight: float = 0.1,
        reweighting: str = "code",
        base: bool = False,
        base_weight: float = 0.0,
        completion: str = "later",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        dim = self.dim = whole_number(dim, "dim")
        self.weight, self.base_weight = number(weight, "weight"), number(base_weight, "base_weight")
        self.reweighting = choice(reweighting, "reweighting", REWEIGHTINGS)
        self.completion = choice(completion, "completion", (*COMPLETIONS, "none"))
        base = self.base = flag(base, "base")
        exact = torch.float64
        self.register_buffer("sums", torch.zeros((0, int(base), dim), dtype=exact, device=device))
        self.register_buffer("counts", torch.zeros((0, int(base)), dtype=torch.int64, device=device))
        self.register_buffer("own_subspace", torch.zeros(0, dtype=torch.int64, device=device))
        self._prototypes: Tensor | None = None

    # ------------------------------------------------------------------ sizes

    @property
    def classes(self) -> int:
        """How many classes are known."""
        return len(self.own_subspace)

    @property
    def subspaces(self) -> int:
        """K, with the pre-trained network's where ``base``."""
        return self.counts.shape[1]

    def add_subspace(self) -> int:
        """A task begins: one more subspace, in which its classes will be at home. Returns its number."""
        self.sums = torch.cat([self.sums, self.sums.new_zeros((self.classes, 1, self.dim))], 1)
        self.counts = torch.cat([self.counts, self.counts.new_zeros((self.classes, 1))], 1)
        self._prototypes = None
        return self.subspaces - 1

    # ------------------------------------------------------------------ learning

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Adds a batch to the running sums; new classes are appended, at home in the newest subspace.

        Args:
            features: floating-point [n, K, dim].
            labels: integers [n], >= 0. Classes up to the largest label are made; one without samples has
                prototypes 0 (all its logits are 0) until some come.

        Raises:
            TypeError, ValueError: naming the argument; RuntimeError if there is no subspace yet.
        """
        if not self.subspaces:
            raise NotLearnedError("there is no subspace yet; call add_subspace() when a task begins")
        self._check(features)
        check_labels(labels, len(features))
        check_finite(features, "features")
        if not len(features):
            return
        labels = labels.to(self.sums.device, torch.int64)
        seen, sums = class_sums(features.to(self.sums).flatten(1), labels)
        self._grow(int(labels.max()) + 1)
        self.sums[seen] += sums.view(-1, *self.sums.shape[1:])
        self.counts += torch.bincount(labels, minlength=self.classes)[:, None]
        self._prototypes = None

    def _grow(self, classes: int) -> None:
        names = {"sums": 0, "counts": 0, "own_subspace": 0}
        self._make_room(classes, names, own_subspace=self.subspaces - 1)

    def merge(self, other: PrototypeClassifier) -> None:
        """Adds the sums of another classifier, which has seen other samples of the same tasks.

        Raises:
            ValueError: if it has another width or number of subspaces, or a class is at home elsewhere.
        """
        if (other.dim, other.subspaces) != (self.dim, self.subspaces):
            raise ValueError(
                f"other must have dim {self.dim} and {self.subspaces} subspaces, got {other.dim} and "
                f"{other.subspaces}"
            )
        both = min(self.classes, other.classes)
        home = other.own_subspace.to(self.own_subspace.device)
        if not torch.equal(home[:both], self.own_subspace[:both]):
            raise ValueError("other has classes whose own subspace is another one than here")
        new = home[self.classes :]
        self._grow(other.classes)
        if len(new):
            self.own_subspace[-len(new) :] = new
        self.sums[: other.classes] += other.sums.to(self.sums)
        self.counts[: other.classes] += other.counts.to(self.counts)
        self._prototypes = None

    # ------------------------------------------------------------------ using

    @torch.no_grad()
    def complete(self) -> Tensor:
        """Prototypes, float32 [C, K, dim]: means, and completed where a class has no features.

        Kept until the next update.
        """
        self._look()
        prototypes = self._prototypes  # of this call: another thread may drop what is kept
        if prototypes is None:
            means = self.sums / self.counts.clamp(min=1)[..., None]
            if self.completion != "none":
                known = self.counts > 0
                means = complete_prototypes(means, self.own_subspace, known, over=self.completion)
            self._prototypes = prototypes = means.float()
        return prototypes

    def logits(self, features: Tensor, openings: Tensor | None = None) -> Tensor:
        """Logits float32 [n, C] of features [n, K, dim], see :func:`flexkern.ops.prototype_logits`.

        Args:
            openings: [n, K], how far each subspace counts, by the gates; with ``base`` the first column is the
                pre-trained network's. None: 1.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        self._check(features)
        return prototype_logits(
            features,
            self.complete(),
            self.own_subspace,
            weight=self.weight,
            reweighting=self.reweighting,
            base=self.base,
            base_weight=self.base_weight,
            openings=openings,
        )

    forward = logits

    def predict(self, features: Tensor, openings: Tensor | None = None) -> Tensor:
        """The class of largest logit, int64 [n]. RuntimeError if no class is known."""
        if not self.classes:
            raise NotLearnedError("no class is known yet; call update() first")
        return self.logits(features, openings).argmax(1)

    def _check(self, features: Tensor) -> None:
        if not isinstance(features, Tensor) or not features.is_floating_point():
            got = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise TypeError(f"features must be a floating-point tensor, got {got}")
        if features.dim() != 3 or tuple(features.shape[1:]) != (self.subspaces, self.dim):
            raise ValueError(
                f"features must be [n, K, dim] = [n, {self.subspaces}, {self.dim}], got {tuple(features.shape)}"
            )

    # ------------------------------------------------------------------ state

    def _check_state(self, state: dict[str, Any]) -> None:
        sums = state.get("sums")
        if sums is not None and (sums.dim() != 3 or sums.shape[2] != self.dim):
            raise ValueError(f"the state has sums {tuple(sums.shape)}, and this classifier dim {self.dim}")
        own = state.get("own_subspace")
        if (
            own is not None
            and sums is not None
            and own.numel()
            and not 0 <= own.min() <= own.max() < sums.shape[1]
        ):
            raise ValueError(
                f"own_subspace must be in [0, {sums.shape[1]}), and the state has {own.tolist()[:20]}"
            )

    def _changed(self) -> None:
        self._prototypes = None

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, subspaces={self.subspaces}, classes={self.classes}, weight={self.weight}, "
            f"reweighting={self.reweighting!r}, base={self.base}, completion={self.completion!r}"
        )
