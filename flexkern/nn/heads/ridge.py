"""A ridge regression head on a random projection of features, from exact running sums (RanPAC)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from flexkern.nn.growing import GrowingState, check_features, check_finite, check_labels, seeded
from flexkern.nn.not_learned import NotLearnedError
from flexkern.nn.task_scores import class_sums
from flexkern.plain import flag, number, whole_number

__all__ = ["RidgeHead", "checked_ridge"]

_NOTHING = "the features are all 0 (or not finite); there is nothing to fit"


class RidgeHead(GrowingState):
    """Class scores ``phi(h) W`` with ``W = (G + ridge I)^-1 C`` (RanPAC, arXiv 2307.02251).

    ``phi(h) = relu(h R)`` with R a fixed normal matrix [width, features], regenerated from ``seed`` and not
    saved; ``features=0``: phi(h) = h. ``G = sum phi^T phi`` and ``C = sum phi^T y`` (y one-hot) are running
    sums in float64, so that any order of batches, tasks and classes, and any split over :meth:`merge`, gives
    the head of joint training.

    ``ridge="auto"`` takes the value in 10^-8 ... 10^8 times the mean eigenvalue of G (in steps of a factor sqrt
    10) that minimises generalised cross-validation (Golub, Heath, Wahba 1979), ``RSS / (1 - tr H / n)^2``: what
    RanPAC estimates by holding data out, here in closed form from G, C and n, so that no data is held out or
    kept. It takes the eigenvalues of G; a number is solved by Cholesky.

    Args:
        width: of h.
        features: columns of the random projection; RanPAC has 10,000.
        seed: of the projection.
        ridge: > 0, or ``"auto"``.
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
    _SIZES: ClassVar = {"gram": ("D", "D"), "cross": ("D", "C"), "count": ("C",)}

    def __init__(
        self,
        width: int,
        *,
        features: int = 0,
        seed: int = 0,
        ridge: float | str = "auto",
        balanced: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.width, self.features = whole_number(width, "width"), whole_number(features, "features", least=0)
        self.seed = whole_number(seed, "seed", least=None, most=None)
        self.ridge, self.balanced = checked_ridge(ridge), flag(balanced, "balanced")
        columns, exact = self.features or self.width, torch.float64
        self.register_buffer("gram", torch.zeros((columns, columns), dtype=exact, device=device))
        self.register_buffer("cross", torch.zeros((columns, 0), dtype=exact, device=device))
        self.register_buffer("count", torch.zeros(0, dtype=torch.int64, device=device))
        self._projection: Tensor | None = None
        self._weight: Tensor | None = None
        self.chosen: float | None = None
        """The ridge that the last :meth:`solve` took."""

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
            # Drawn on the CPU: the same numbers on every device.
            generator = seeded(torch.device("cpu"), self.seed, self.width, self.features)
            draw = torch.randn(
                (self.width, self.features), generator=generator, dtype=torch.float32, device="cpu"
            )
            self._projection = projection = draw.to(self.gram.device)
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
        self._weight = None

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
        self._weight = None
        return partial(self.gram.addmm_, phi.T, phi)

    def merge(self, other: RidgeHead) -> None:
        """Adds what another head has seen. ValueError if its projection is another one."""
        mine, theirs = (self.width, self.features, self.seed), (other.width, other.features, other.seed)
        if mine != theirs:
            raise ValueError(f"other must have (width, features, seed) = {mine}, got {theirs}")
        self._grow(other.classes)
        self.gram += other.gram.to(self.gram)
        self.cross[:, : other.classes] += other.cross.to(self.cross)
        self.count[: other.classes] += other.count.to(self.count)
        self._weight = None

    def _grow(self, classes: int) -> None:
        new = classes - self.classes
        if new > 0:
            self.cross = torch.cat([self.cross, self.cross.new_zeros((len(self.cross), new))], 1)
            self._append("count", self.count.new_zeros(new))

    # ------------------------------------------------------------------ using

    @torch.no_grad()
    def solve(self) -> Tensor:
        """W, float32 [columns, C]. Kept until the next update.

        Raises:
            RuntimeError: without a sample, or if ``ridge`` is too small for the Cholesky factorisation.
        """
        self._look()
        solved = self._weight  # of this call: another thread may drop what is kept
        if solved is None:
            if not self.classes:
                raise NotLearnedError("no class is known yet; call update() first")
            if isinstance(self.ridge, str):
                weight, self.chosen = self._solve_auto()
            else:
                damped = self.gram.clone()
                damped.diagonal().add_(self.ridge)
                factor, info = torch.linalg.cholesky_ex(damped)
                if int(info):
                    raise RuntimeError(
                        f"ridge={self.ridge:g} is too small: G + ridge I is not positive definite in float64"
                    )
                weight, self.chosen = torch.cholesky_solve(self._targets(), factor), self.ridge
            self._weight = solved = weight.float()
        return solved

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

    def _targets(self) -> Tensor:
        """C, or with ``balanced`` its columns as if all classes had the same number of samples."""
        if not self.balanced:
            return self.cross
        seen = self.count > 0
        mean_count = self.count.sum().float() / seen.sum()
        return self.cross * (mean_count / self.count.clamp(min=1))

    def _solve_auto(self) -> tuple[Tensor, float]:
        values, vectors = torch.linalg.eigh(self.gram)
        values = values.clamp(min=0)  # G is a sum of squares; what is under 0 is rounding
        samples, scale = self.count.sum(), values.mean()
        if not bool(scale > 0):
            raise RuntimeError(_NOTHING)
        powers = torch.arange(-16, 17, dtype=values.dtype, device=values.device) / 2
        ridges = scale * 10**powers
        shrunk = values / (values + ridges[:, None])  # eigenvalues of H, [ridges, columns]
        # In the eigenvectors' coordinates, with z the rows of C: |y - phi W|^2 = |y|^2 - sum z^2 s (2 - s) / v.
        # GCV is of the ordinary sums also with ``balanced``: it judges how G is to be damped.
        z = vectors.T @ self.cross
        power = torch.where(values > 0, (z * z).sum(1) / values.clamp(min=1e-300), 0.0)
        rest = samples - (power * shrunk * (2 - shrunk)).sum(1)
        free = (1 - shrunk.sum(1) / samples).clamp(min=1e-12)
        best = int((rest.clamp(min=0) / free**2).argmin())
        coordinates = z if not self.balanced else vectors.T @ self._targets()
        return vectors @ (coordinates / (values + ridges[best])[:, None]), float(ridges[best])

    def logits(self, h0: Tensor) -> Tensor:
        """Scores float32 [n, C] of features [n, width]: regressed one-hot labels, not log probabilities."""
        weight = self.solve()
        with torch.autocast(h0.device.type, enabled=False):
            return self.project(h0.float()) @ weight

    forward = logits

    def predict(self, h0: Tensor) -> Tensor:
        """The class of largest score, int64 [n]."""
        return self.logits(h0).argmax(1)

    # ------------------------------------------------------------------ state

    def _check_state(self, state: dict[str, Any]) -> None:
        gram = state.get("gram")
        if gram is not None and gram.shape != self.gram.shape:
            raise ValueError(f"the state has {len(gram)} columns, this head {len(self.gram)}")

    def _changed(self) -> None:
        self._projection = self._weight = None

    def _written(self) -> None:
        self._weight = None  # the projection is of the seed alone

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, features={self.features}, seed={self.seed}, ridge={self.ridge!r}, "
            f"balanced={self.balanced}, classes={self.classes}"
        )


def checked_ridge(ridge: object) -> float | str:
    """``ridge`` as :class:`RidgeHead` keeps it; TypeError or ValueError if it is not one."""
    if isinstance(ridge, str):
        if ridge != "auto":
            raise ValueError(f"ridge must be 'auto' or a finite number > 0, got {ridge!r}")
        return ridge
    return number(ridge, "ridge", 0, above=True, kind="'auto' or a finite number > 0")
