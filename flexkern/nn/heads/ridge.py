"""A ridge regression head on a random projection of features, from exact running sums (RanPAC)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flexkern.nn.growing import GrowingState, check_features, check_finite, check_labels, seeded
from flexkern.nn.heads.cross_validation import best_ridge, best_ridge_by_factors, plain_best_ridge
from flexkern.nn.not_learned import NotLearnedError
from flexkern.nn.task_scores import class_sums
from flexkern.plain import flag, number, whole_number

__all__ = ["RidgeHead", "checked_ridge", "random_projection"]

_NOTHING = "the features are all 0 (or not finite); there is nothing to fit"
_EIGENVALUES_UP_TO = 4096  # columns; of 10,000 they would take many minutes


class RidgeHead(GrowingState):
    """Class scores ``phi(h) W`` with ``W = (G + ridge I)^-1 C`` (RanPAC, arXiv 2307.02251).

    ``phi(h) = relu(h R)`` with R a fixed normal matrix [width, features], regenerated from ``seed`` and not
    saved; ``features=0``: phi(h) = h. ``G = sum phi^T phi`` and ``C = sum phi^T y`` (y one-hot) are running
    sums in float64, so that any order of batches, tasks and classes, and any split over :meth:`merge`, gives
    the head of joint training.

    ``ridge="auto"`` takes the value in 10^-8 ... 10^8 times the mean eigenvalue of G (in steps of a factor sqrt
    10) that minimises generalised cross-validation (Golub, Heath, Wahba 1979), ``RSS / (1 - tr H / n)^2``,
    among those whose fit uses up no more than half of the samples, ``tr H <= n / 2``: with more columns than
    samples the score says nothing beyond that. It is what RanPAC estimates by holding data out, here in closed
    form from G, C and n, so that no data is held out or kept. It takes the eigenvalues of G, and with more than
    4,096 columns some ten Cholesky factorisations; a number takes one.

    **Memory.** 8 bytes for each of columns^2 sums: 32 MB for 2,000, 800 MB for the 10,000 of RanPAC; while it
    solves twice that again.

    A state of an earlier version, which has no ``sum``, answers and goes on as it did there: without the limit
    on tr H.

    Args:
        width: of h.
        features: columns of the random projection; RanPAC has 10,000.
        seed: of the projection.
        ridge: > 0, or ``"auto"``.
        intercept: fit ``phi W + b``, where b is not penalised: G and C are centred by the sum of phi, in
            float64. Of classes that have about as many samples each it makes no difference that we could
            measure, and none is in RanPAC.
        balanced: each class's column of C is its mean (times the mean count) instead of its sum, so that rare
            classes count as much as frequent ones.
        device: of the state.

    Raises:
        ValueError: naming the argument.
    """

    rows_at_once: ClassVar[int] = 2048
    """Rows that :meth:`update` projects at once: bounds memory to a few times the Gram matrix. Updates by so
    many rows each give the bits of one update by all of them."""

    gram: Tensor
    cross: Tensor
    count: Tensor
    sum: Tensor | None
    adds_up = ("gram", "cross", "count", "sum")
    _SIZES: ClassVar = {"gram": ("D", "D"), "cross": ("D", "C"), "count": ("C",), "sum": ("D",)}
    _DERIVED: ClassVar = (("width", "features"), ("D", "C"))

    def __init__(
        self,
        width: int,
        *,
        features: int = 0,
        seed: int = 0,
        ridge: float | str = "auto",
        intercept: bool = False,
        balanced: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.width, self.features = whole_number(width, "width"), whole_number(features, "features", least=0)
        self.seed = whole_number(seed, "seed", least=None, most=None)
        self.ridge, self.balanced = checked_ridge(ridge), flag(balanced, "balanced")
        self.intercept = flag(intercept, "intercept")
        columns, exact = self.features or self.width, torch.float64
        self.register_buffer("gram", torch.zeros((columns, columns), dtype=exact, device=device))
        self.register_buffer("cross", torch.zeros((columns, 0), dtype=exact, device=device))
        self.register_buffer("count", torch.zeros(0, dtype=torch.int64, device=device))
        # Of phi; None where an earlier version has learned, which had no such sum.
        self.register_buffer("sum", torch.zeros(columns, dtype=exact, device=device))
        self._projection: Tensor | None = None
        self._solved: _Solved | None = None
        self.chosen: float | None = None
        """The ridge that the last :meth:`solve` took; infinite where all samples have the same phi."""

    @property
    def classes(self) -> int:
        """Largest label seen, plus 1."""
        return len(self.count)

    # ------------------------------------------------------------------ learning

    def project(self, h0: Tensor) -> Tensor:
        """phi: floating-point [n, width] to float32 [n, columns]; of float64 features float64."""
        check_features(h0, self.width)
        h0 = h0 if h0.dtype is torch.float64 else h0.float()
        if not self.features:
            return h0
        projection = self._projection
        if projection is None:
            drawn = random_projection(self.width, self.features, self.seed)
            self._projection = projection = drawn.to(self.gram.device)
        return torch.relu(h0 @ projection.to(h0.dtype))

    @torch.no_grad()
    def update(self, h0: Tensor, labels: Tensor) -> None:
        """Adds features [n, width] of classes ``labels``, integers [n]; new classes are appended.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        check_features(h0, self.width)
        check_labels(labels, len(h0))
        check_finite(h0)
        if not len(h0):
            return
        labels = labels.to(self.count)
        self._grow(int(labels.max()) + 1)
        self.count += torch.bincount(labels, minlength=self.classes)
        for x, y in zip(h0.split(self.rows_at_once), labels.split(self.rows_at_once), strict=True):
            with torch.autocast(x.device.type, enabled=False):
                phi = self.project(x.to(self.gram))  # float64: a product's order changes nothing that counts
            self.gram.addmm_(phi.T, phi)
            seen, sums = class_sums(phi, y)
            self.cross[:, seen] += sums.T
            if self.sum is not None:
                self.sum += sums.sum(0)
        self._solved = None

    @torch.no_grad()
    def late_update(self, h0: Tensor, labels: Tensor) -> Callable[[], Any]:
        """:meth:`update` by few rows, but for the Gram matrix, to which what is returned adds in one operation.

        Everything else is replaced and not written into, so that whoever can put attributes back can undo it
        without a copy of the Gram matrix. The bits are those of :meth:`update`.

        Args:
            h0, labels: at least one, at most ``rows_at_once``.

        Raises:
            TypeError, ValueError: as :meth:`update`; RuntimeError: if all features are 0.
        """
        check_features(h0, self.width)
        check_labels(labels, len(h0))
        check_finite(h0)
        labels = labels.to(self.count)
        self._grow(int(labels.max()) + 1)
        with torch.autocast(h0.device.type, enabled=False):
            phi = self.project(h0.to(self.gram))
        if not bool((self.gram.diagonal().sum() > 0) | phi.any()):
            raise RuntimeError(_NOTHING)
        seen, sums = class_sums(phi, labels)
        self.count = self.count + torch.bincount(labels, minlength=self.classes)
        self.cross = self.cross.clone()
        self.cross[:, seen] += sums.T
        if self.sum is not None:
            self.sum = self.sum + sums.sum(0)
        self._solved = None
        return partial(self.gram.addmm_, phi.T, phi)

    def merge(self, other: RidgeHead) -> None:
        """Adds what another head has seen.

        Raises:
            ValueError: if its projection is another one, or if it has no sum of phi and this one an intercept.
        """
        mine, theirs = (self.width, self.features, self.seed), (other.width, other.features, other.seed)
        if mine != theirs:
            raise ValueError(f"other must have (width, features, seed) = {mine}, got {theirs}")
        if other.sum is None and self.intercept:
            raise ValueError(
                "other was learned by an earlier version, without the sum that intercept=True needs"
            )
        if self.sum is not None:
            self.sum = None if other.sum is None else self.sum + other.sum.to(self.sum)
        self._grow(other.classes)
        self.gram += other.gram.to(self.gram)
        self.cross[:, : other.classes] += other.cross.to(self.cross)
        self.count[: other.classes] += other.count.to(self.count)
        self._solved = None

    def _grow(self, classes: int) -> None:
        self._make_room(classes, {"cross": 1, "count": 0})

    # ------------------------------------------------------------------ using

    @torch.no_grad()
    def solve(self) -> Tensor:
        """W, float32 [columns, C]. Kept until the next update.

        Raises:
            RuntimeError: without a sample, or if ``ridge`` is too small for the Cholesky factorisation.
        """
        return self._answer().weight

    def check_solvable(self) -> None:
        """Raises RuntimeError where :meth:`solve` would, as a rule without solving."""
        if not self.surely_solvable():
            self.solve()
        elif isinstance(self.ridge, str) and not bool(self.gram.diagonal().sum() > 0):
            raise RuntimeError(_NOTHING)

    def surely_solvable(self) -> bool:
        """Whether no factorisation can fail: the ridge is more than rounding can take off G's eigenvalues.

        Not before the first samples, which tell how large features are.
        """
        if isinstance(self.ridge, str):
            return True
        trace = float(self.gram.diagonal().sum())
        return self.ridge > 16 * len(self.gram) * torch.finfo(self.gram.dtype).eps * trace > 0

    def _answer(self) -> _Solved:
        self._look()
        solved = self._solved  # of this call: another thread may drop what is kept
        if solved is None:
            if not self.classes:
                raise NotLearnedError("no class is known yet; call update() first")
            with torch.no_grad():
                self._solved = solved = self._solve()
        return solved

    def _solve(self) -> _Solved:
        gram, mean = self.gram, None
        if self.intercept:
            assert self.sum is not None
            mean = self.sum / self.count.sum()
            gram = torch.addr(gram, self.sum, mean, alpha=-1)
        if isinstance(self.ridge, str) and not self._chooses_by_factors():
            weight, self.chosen = self._solve_auto(gram)
        else:
            weight, self.chosen = self._solve_by_factor(gram)
        if mean is None:
            return _Solved(weight.float(), None)
        bias = self._weights() * self.count / self.count.sum() - mean @ weight
        return _Solved(weight.float(), bias.float())

    def _weights(self) -> Tensor | float:
        """Of each class's samples, [C]: 1, or with ``balanced`` as if all classes had the same number."""
        if not self.balanced:
            return 1.0
        seen = self.count > 0
        mean_count = self.count.sum().float() / seen.sum()
        return mean_count / self.count.clamp(min=1)

    def _cross(self) -> Tensor:
        """C, of centred columns if there is an intercept."""
        if not self.intercept:
            return self.cross
        assert self.sum is not None
        return torch.addr(self.cross, self.sum, self.count / self.count.sum().double(), alpha=-1)

    def _targets(self) -> Tensor:
        """C, or with ``balanced`` its columns as if all classes had the same number of samples."""
        return self._cross() * self._weights() if self.balanced else self._cross()

    def _chooses_by_factors(self) -> bool:
        return len(self.gram) > _EIGENVALUES_UP_TO and self.sum is not None

    def _freedom(self) -> tuple[int, float]:
        """Samples, and the squared length of all targets, without what the intercept takes."""
        samples, total = int(self.count.sum()), float(self.count.sum())
        if not self.intercept:
            return samples, total
        return samples - 1, total - float((self.count.double() ** 2).sum() / samples)

    def _nothing_to_fit(self, gram: Tensor) -> bool:
        """Whether only the intercept can answer. RuntimeError where nothing can."""
        size = self.gram.diagonal().mean()
        if not bool(size > 0):
            raise RuntimeError(_NOTHING)
        # Up to that it is the rounding of a sum: all samples have the same phi.
        least = torch.finfo(gram.dtype).eps * int(self.count.sum()) * size
        return self.intercept and not bool(gram.diagonal().mean() > least)

    def _solve_by_factor(self, gram: Tensor) -> tuple[Tensor, float]:
        ridge = self.ridge
        if isinstance(ridge, str):
            if self._nothing_to_fit(gram):
                return torch.zeros_like(self.cross), math.inf
            ridge = best_ridge_by_factors(gram, self._cross(), *self._freedom())
        damped = gram.clone()
        damped.diagonal().add_(ridge)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info):
            raise RuntimeError(f"ridge={ridge:g} is too small: G + ridge I is not positive definite in float64")
        return torch.cholesky_solve(self._targets(), factor), ridge

    def _solve_auto(self, gram: Tensor) -> tuple[Tensor, float]:
        if self._nothing_to_fit(gram):
            return torch.zeros_like(self.cross), math.inf
        values, vectors = torch.linalg.eigh(gram)
        values = values.clamp(min=0)  # G is a sum of squares; what is under 0 is rounding
        if not bool(values.mean() > 0):
            raise RuntimeError(_NOTHING)
        # The choice is of the ordinary sums also with ``balanced``: it judges how G is to be damped.
        z = vectors.T @ self._cross()
        if self.sum is None:
            ridge = plain_best_ridge(values, z, self.count.sum())
        else:
            ridge = best_ridge(values, z, *self._freedom())
        coordinates = z if not self.balanced else vectors.T @ self._targets()
        return vectors @ (coordinates / (values + ridge)[:, None]), float(ridge)

    def logits(self, h0: Tensor) -> Tensor:
        """Scores float32 [n, C] of features [n, width]: regressed one-hot labels, not log probabilities."""
        weight, bias = self._answer()
        with torch.autocast(h0.device.type, enabled=False):
            phi = self.project(h0.float())
            return phi @ weight if bias is None else torch.addmm(bias, phi, weight)

    forward = logits

    def predict(self, h0: Tensor) -> Tensor:
        """The class of largest score, int64 [n]."""
        return self.logits(h0).argmax(1)

    # ------------------------------------------------------------------ state

    def _check_state(self, state: dict[str, Any]) -> None:
        gram = state.get("gram")
        if gram is not None and gram.shape != self.gram.shape:
            raise ValueError(f"the state has {len(gram)} columns, this head {len(self.gram)}")
        if gram is not None and state.get("sum") is None and self.intercept:
            raise ValueError("the state has no sum, which intercept=True needs: an earlier version wrote it")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        kept = self.sum
        if prefix + "sum" in state_dict:
            self.sum = self.gram.new_zeros(len(self.gram)) if kept is None else kept
        elif prefix + "gram" in state_dict:
            self.sum = None
        try:
            super()._load_from_state_dict(state_dict, prefix, *rest)
        except ValueError:
            self.sum = kept
            raise

    def _changed(self) -> None:
        self._projection = self._solved = None

    def _written(self) -> None:
        self._solved = None  # the projection is of the seed alone

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, features={self.features}, seed={self.seed}, ridge={self.ridge!r}, "
            f"intercept={self.intercept}, balanced={self.balanced}, classes={self.classes}"
        )


def random_projection(width: int, features: int, seed: int) -> Tensor:
    """R, float32 [width, features], drawn on the CPU: the same numbers on every device."""
    generator = seeded(torch.device("cpu"), seed, width, features)
    return torch.randn((width, features), generator=generator, dtype=torch.float32, device="cpu")


class _Solved(NamedTuple):
    """weight: float32 [columns, C]; bias: float32 [C], None without an intercept."""

    weight: Tensor
    bias: Tensor | None


def checked_ridge(ridge: object) -> float | str:
    """``ridge`` as :class:`RidgeHead` keeps it; TypeError or ValueError if it is not one."""
    if isinstance(ridge, str):
        if ridge != "auto":
            raise ValueError(f"ridge must be 'auto' or a finite number > 0, got {ridge!r}")
        return ridge
    return number(ridge, "ridge", 0, above=True, kind="'auto' or a finite number > 0")
