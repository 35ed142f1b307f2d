"""Running statistics of features: what stands for the data of earlier tasks, where no data is kept.

See docs/design.md, Artsy.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flexkern.nn.growing import GrowingState, check_features, check_finite, check_labels
from flexkern.nn.task_scores import class_sums
from flexkern.plain import number, whole_number

__all__ = ["FeatureStatistics", "Whitened", "checked_shrinkage", "oas"]


class Whitened(NamedTuple):
    """Features where the shared covariance is the identity: squared distances are Mahalanobis distances.

    features: float32 [N, width].
    means: float32 [C, width], of the classes.
    """

    features: Tensor
    means: Tensor


class FeatureStatistics(GrowingState):
    """Counts, class means and covariances of features, by running sums in float64.

    Sums are exact up to float64's rounding, so any order and size of batches, and any split over :meth:`merge`,
    gives the same. The state is (C + width) * width numbers for C classes, whatever the number of samples.

    The within-class covariance is shared by all classes and pooled over them, with ``n - C`` degrees of freedom
    (C classes with samples). Its estimate is shrunk towards a multiple of the identity, ``(1 - rho) S + rho
    tr(S)/d I``, where it is inverted or drawn from. ``shrinkage="oas"`` takes rho by the closed form of the
    oracle approximating shrinkage estimator (Chen, Wiesel, Eldar, Hero, *Shrinkage algorithms for MMSE
    covariance estimation*, 2010), which needs S, d and the degrees of freedom only.

    Args:
        width: of a feature vector.
        shrinkage: ``"oas"``, or rho itself, in [0, 1].
        device: of the state.

    Raises:
        ValueError: naming the argument.
    """

    count: Tensor
    sum: Tensor
    outer: Tensor
    adds_up = ("count", "sum", "outer")
    _SIZES: ClassVar = {"count": ("C",), "sum": ("C", "width"), "outer": ("width", "width")}
    _DERIVED: ClassVar = (("3", "width", "width"), ("C", "width"))  # the factor is of twice as many bytes

    def __init__(
        self, width: int, *, shrinkage: float | str = "oas", device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        width = self.width = whole_number(width, "width")
        self.shrinkage = checked_shrinkage(shrinkage)
        exact = torch.float64
        self.register_buffer("count", torch.zeros(0, dtype=torch.int64, device=device))
        self.register_buffer("sum", torch.zeros((0, width), dtype=exact, device=device))
        self.register_buffer("outer", torch.zeros((width, width), dtype=exact, device=device))
        self._kept: dict[str, Tensor] = {}

    @property
    def classes(self) -> int:
        """Largest label seen, plus 1."""
        return len(self.count)

    @property
    def samples(self) -> int:
        """How many feature vectors have been seen."""
        return int(self.count.sum())

    # ------------------------------------------------------------------ learning

    @torch.no_grad()
    def update(self, h0: Tensor, labels: Tensor) -> None:
        """Adds feature vectors [n, width] of classes ``labels``, integers [n].

        Raises:
            TypeError, ValueError: naming the argument.
        """
        check_features(h0, self.width)
        check_labels(labels, len(h0))
        check_finite(h0)
        if not len(h0):
            return
        exact, labels = h0.to(self.sum), labels.to(self.count)
        self._grow(int(labels.max()) + 1)
        self.count += torch.bincount(labels, minlength=self.classes)
        seen, sums = class_sums(exact, labels)
        self.sum[seen] += sums
        self.outer.addmm_(exact.T, exact)
        self._kept = {}

    def merge(self, other: FeatureStatistics) -> None:
        """Adds what another object has seen. ValueError if its width is another one."""
        if other.width != self.width:
            raise ValueError(f"other must have width {self.width}, got {other.width}")
        self._grow(other.classes)
        self.count[: other.classes] += other.count.to(self.count)
        self.sum[: other.classes] += other.sum.to(self.sum)
        self.outer += other.outer.to(self.outer)
        self._kept = {}

    def _grow(self, classes: int) -> None:
        self._make_room(classes, {"count": 0, "sum": 0})

    # ------------------------------------------------------------------ statistics

    def means(self) -> Tensor:
        """Class means, float64 [C, width]; 0 for a label without samples."""
        return self.sum / self.count.clamp(min=1)[:, None]

    def mean(self) -> Tensor:
        """Mean of all samples, float64 [width]. RuntimeError without a sample."""
        self._need(self.samples, 1)
        return self.sum.sum(0) / self.samples

    def total_covariance(self) -> Tensor:
        """Covariance of all samples around their mean, float64 [width, width].

        RuntimeError with fewer than two samples.
        """
        self._need(self.samples, 2)
        mean = self.mean()
        return (self.outer - self.samples * torch.outer(mean, mean)) / (self.samples - 1)

    def shared_covariance(self) -> Tensor:
        """Within-class covariance, pooled over classes, not shrunk: float64 [width, width].

        RuntimeError if no class has two samples.
        """
        freedom = self.degrees_of_freedom()
        self._need(freedom, 1)
        means = self.means()
        between = (means * self.count[:, None]).T @ means
        return (self.outer - between) / freedom

    def degrees_of_freedom(self) -> int:
        """Of the shared covariance: samples less classes that have any."""
        return self.samples - int((self.count > 0).sum())

    def cholesky(self) -> Tensor:
        """Lower triangle L, float64 [width, width], with L L^T = the shrunk shared covariance.

        Kept until the next update. RuntimeError if there are too few samples, or they have no covariance.
        """
        self._look()
        kept = self._kept  # of this call: another thread may drop what is kept
        if "cholesky" not in kept:
            s, d, freedom = self.shared_covariance(), self.width, self.degrees_of_freedom()
            trace = s.diagonal().sum()
            if not bool(trace > 0):
                raise RuntimeError(
                    "the features of each class are all the same (or not finite), so that they "
                    "have no covariance"
                )
            rho = oas((s * s).sum(), trace, d, freedom) if isinstance(self.shrinkage, str) else self.shrinkage
            shrunk = (1 - rho) * s
            shrunk.diagonal().add_(rho * trace / d)
            factor, info = torch.linalg.cholesky_ex(shrunk)
            if int(info):
                raise RuntimeError(
                    f"the shared covariance is singular with shrinkage {rho:.3g} and {freedom} degrees of "
                    f"freedom in {d} dimensions; give more samples or a larger shrinkage"
                )
            kept["cholesky"] = factor
        return kept["cholesky"]

    def whiten(self, h0: Tensor) -> Whitened:
        """Features [N, width] and class means where the shrunk shared covariance is the identity.

        Around the overall mean, so that float32 loses little. Raises as :meth:`cholesky`.
        """
        check_features(h0, self.width)
        self._look()
        kept = self._kept
        if "whitening" not in kept:
            identity = torch.eye(self.width, dtype=self.sum.dtype, device=self.sum.device)
            inverse = torch.linalg.solve_triangular(self.cholesky(), identity, upper=False)
            centre = self.mean()
            kept["centre"] = centre.float()
            kept["means"] = ((self.means() - centre) @ inverse.T).float()
            kept["whitening"] = inverse.T.float()  # the last one: where it is, the others are
        return Whitened((h0.float() - kept["centre"]) @ kept["whitening"], kept["means"])

    @torch.no_grad()
    def sample(
        self, classes: Tensor, n: int = 1, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws gaussian features: the class's mean and the shrunk shared covariance.

        Args:
            classes: integers [M], with repetitions as wanted; each must have samples.
            n: how many of each, one after the other.
            generator: on the device of the statistics; None for torch's own.

        Returns:
            float32 [M n, width], and their labels, int64 [M n].

        Raises:
            IndexError: for a class that has no samples; ValueError for n < 0.
        """
        if n < 0:
            raise ValueError(f"n must be >= 0, got {n}")
        labels = classes.to(self.count).repeat_interleave(n)
        if classes.numel():
            lowest, highest = int(classes.min()), int(classes.max())
            if lowest < 0 or highest >= self.classes or int(self.count[classes.to(self.count)].min()) == 0:
                raise IndexError("classes must have samples in these statistics; one of them has none")
        self._look()
        kept = self._kept
        if "factor" not in kept:
            factor = self.cholesky().T.float()
            kept["own_means"] = self.means().float()
            kept["factor"] = factor
        noise = torch.randn(
            (len(labels), self.width), generator=generator, dtype=torch.float32, device=self.sum.device
        )
        return kept["own_means"][labels].addmm_(noise, kept["factor"]), labels

    def _need(self, have: int, need: int) -> None:
        if have < need:
            raise RuntimeError(
                f"there are {self.samples} samples of {int((self.count > 0).sum())} classes, too few; "
                "update() first (a covariance needs at least two samples of one class)"
            )

    # ------------------------------------------------------------------ state

    def _check_state(self, state: dict[str, Any]) -> None:
        outer = state.get("outer")
        if outer is not None and tuple(outer.shape) != (self.width, self.width):
            raise ValueError(f"the state has features of width {len(outer)}, these statistics {self.width}")

    def _changed(self) -> None:
        self._kept = {}

    def extra_repr(self) -> str:
        return f"width={self.width}, classes={self.classes}, samples={self.samples}"


def checked_shrinkage(shrinkage: object, rules: tuple[str, ...] = ("oas",)) -> float | str:
    """``shrinkage`` as those keep it who know these rules; TypeError or ValueError if it is not one."""
    if isinstance(shrinkage, str) and shrinkage in rules:
        return shrinkage
    kind = f"{', '.join(map(repr, rules))} or a number in [0, 1]"
    if isinstance(shrinkage, str):
        raise ValueError(f"shrinkage must be {kind}, got {shrinkage!r}")
    return number(shrinkage, "shrinkage", 0, 1, kind=kind)


def oas(square: Tensor, trace: Tensor, d: int, freedom: int) -> float:
    """rho of the oracle approximating shrinkage estimator, from tr(S^2) and tr(S) of a covariance in d
    dimensions with so many degrees of freedom (Chen, Wiesel, Eldar, Hero 2010, eq. 23)."""
    rho = ((1 - 2 / d) * square + trace**2) / ((freedom + 1 - 2 / d) * (square - trace**2 / d))
    return float(rho.nan_to_num(1.0, posinf=1.0).clamp(0, 1))  # x / 0 where s is a multiple of I already
