"""Linear discriminant analysis from running sums: class means and one covariance that all classes share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flexkern.nn.feature_statistics import checked_shrinkage, oas
from flexkern.nn.growing import GrowingState, check_features, check_finite, check_labels
from flexkern.nn.heads.scatter import add_products, centred, row_sums, traces
from flexkern.nn.not_learned import NotLearnedError
from flexkern.plain import choice, flag, whole_number

__all__ = ["LDAHead"]

PRIORS = ("uniform", "counts")
_NOTHING = "no class is known yet; call update() first"
_ROWS = 1024  # go into one product: their width beside the sums is little, and the product has its full speed
# A covariance of at most this width is factored in float64 (134 MB), whatever the sums are in.
_EXACT_WIDTH = 4096


class LDAHead(GrowingState):
    """Log posteriors of gaussian classes with one covariance: ``x W + b``, in closed form, in one pass.

    ``W = S^-1 (mean_c - centre)`` with S the within-class covariance, pooled over all classes with ``samples -
    classes`` degrees of freedom and shrunk towards a multiple of the identity, ``(1 - rho) S + rho tr(S)/d I``.
    ``softmax`` of the logits are the classes' probabilities. No data is kept; classes come in any order and
    number, come again, and leave. Without two samples of any class, the nearest mean answers.

    **Sums.** Counts and sums of each class, the sums in float64, and the scatter ``sum (x - mean)(x - mean)^T``
    within classes: the lower triangle of [width, width]. Samples of a class, n before and m now, change its
    scatter by ``sum r r^T`` with ``r = x - (w mean_before + (1 - w) mean_now)``, ``w = sqrt(n / (n + m))``: the
    update of Chan, Golub and LeVeque (1983) as one product of m rows. Rows are centred in float64 and rounded
    to ``dtype``. So a float32 scatter errs by its own rounding only: with u = 2^-24, after k products,
    ``|error of S_ij| <= (min(n, 1024) + k + 4) u sqrt(S_ii S_jj)``, in practice about the root of that many u.
    Within this bound the order of samples, their batches, one at a time or all, and :meth:`merge` change
    nothing. Sums of ``x x^T``, from which the means are taken off in the end, would err (1 + mean^2 / variance)
    times as much.

    **Cost.** A batch costs one product, the lower half of ``x^T x``. Each update reads and writes the scatter
    once for 1,024 samples, and also for one: with 9,216 values batches of 256 are learned twenty times as fast
    as single samples. :meth:`solve`, once after learning, factors S: ``width^3 / 3`` multiplications.

    **Memory.** ``memory_bytes`` tells what is kept. 1,000 classes of 9,216 values: 324 MiB of scatter, 70 of
    sums, 35 of W; while it learns at most 250 more, while it solves a copy of the scatter, factored in place,
    and 200 more.

    Args:
        width: of a feature vector.
        shrinkage: rho in [0, 1], or ``"oas"``: the oracle approximating shrinkage estimator (Chen, Wiesel,
            Eldar, Hero, *Shrinkage algorithms for MMSE covariance estimation*, 2010, eq. 23), from tr(S),
            tr(S^2) and the degrees of freedom. A number must keep S regular; 0 may not.
        priors: of the classes: ``"uniform"``, or ``"counts"``: as often as they were learned.
        per_class: keep a scatter for each class, [classes, width, width], for :meth:`forget`.
        dtype: of the scatter, float32 or float64.
        device: of the state.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    count: Tensor
    sum: Tensor
    scatter: Tensor
    freedom: Tensor
    _SIZES: ClassVar = {
        "count": ("C",), "sum": ("C", "width"), "scatter": ("G", "width", "width"), "freedom": ("G",)
    }  # fmt: skip

    def __init__(
        self,
        width: int,
        *,
        shrinkage: float | str = "oas",
        priors: str = "uniform",
        per_class: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        width = self.width = whole_number(width, "width")
        self.shrinkage = checked_shrinkage(shrinkage)
        self.priors = choice(priors, "priors", PRIORS)
        self.per_class = flag(per_class, "per_class")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        exact, groups = torch.float64, 0 if self.per_class else 1
        self.register_buffer("count", torch.zeros(0, dtype=torch.int64, device=device))
        self.register_buffer("sum", torch.zeros((0, width), dtype=exact, device=device))
        self.register_buffer("scatter", torch.zeros((groups, width, width), dtype=dtype, device=device))
        self.register_buffer("freedom", torch.zeros(groups, dtype=torch.int64, device=device))
        self._solved: _Solved | None = None
        self.chosen: float | None = None
        """The rho that the last :meth:`solve` took; None where there was no covariance."""

    # ------------------------------------------------------------------ sizes

    @property
    def classes(self) -> int:
        """Largest label seen, plus 1."""
        return len(self.count)

    @property
    def samples(self) -> int:
        """How many feature vectors the class means are of."""
        return int(self.count.sum())

    @property
    def memory_bytes(self) -> int:
        """Bytes of everything that is kept now: the sums, and W and b once they are solved."""
        kept = [*self._buffers.values(), *(self._solved or ())]
        return sum(t.numel() * t.element_size() for t in kept if t is not None)

    # ------------------------------------------------------------------ learning

    @torch.no_grad()
    def update(self, h0: Tensor, labels: Tensor) -> None:
        """Adds feature vectors [n, width] of classes ``labels``, integers [n].

        Raises:
            TypeError, ValueError: naming the argument. Nothing was learned then.
        """
        self._check(h0)
        check_labels(labels, len(h0))
        if not len(h0):
            return
        labels = labels.to(self.count)
        self._grow(int(labels.max()) + 1)
        for x, y in zip(h0.split(_ROWS), labels.split(_ROWS), strict=True):
            self._add(x.to(self.sum.device), y)
        self._solved = None

    @torch.no_grad()
    def late_update(self, h0: Tensor, labels: Tensor) -> Callable[[], Any]:
        """:meth:`update` by few rows, but for the scatter, to which what is returned adds in one operation.

        Everything else is replaced and not written into, so that undoing it takes no copy of the scatter.
        Raises as :meth:`update`, and RuntimeError with ``per_class=True``, which has several scatters.
        """
        if self.per_class:
            raise RuntimeError("a head with per_class=True has several scatters; use update()")
        self._check(h0)
        check_labels(labels, len(h0))
        labels = labels.to(self.count)
        self._grow(int(labels.max()) + 1)
        self.sum, self.count, self.freedom = self.sum.clone(), self.count.clone(), self.freedom.clone()
        _, _, rows, freedom = self._take(h0.to(self.sum.device), labels)
        self.freedom += freedom.sum()
        self._solved = None
        return partial(self.scatter[0].addmm_, rows.T, rows)

    def _add(self, x: Tensor, labels: Tensor) -> None:
        seen, place, rows, freedom = self._take(x, labels)
        if self.per_class:
            for i, label in enumerate(seen.tolist()):
                add_products(self.scatter[label], rows[place == i])
            self.freedom[seen] += freedom
        else:
            add_products(self.scatter[0], rows)
            self.freedom += freedom.sum()

    def _take(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Adds to counts and sums. Returns the classes that occur, each sample's place among them, what the
        scatter is a sum of products of, and the classes' degrees of freedom."""
        seen, place, now = labels.unique(return_inverse=True, return_counts=True)
        before, sums = self.count[seen], row_sums(x, place, len(seen))
        weight = (before.double() / (before + now)).sqrt_()[:, None]
        centre = self.sum[seen].mul_(weight / before.clamp(min=1)[:, None])
        centre.addcmul_(sums, (1 - weight) / now[:, None])
        rows = centred(x, place, centre, self.scatter.dtype)
        self.sum[seen] += sums
        self.count[seen] += now
        return seen, place, rows, now - 1 + (before > 0).to(now)

    @torch.no_grad()
    def merge(self, other: LDAHead) -> None:
        """Adds what another head has learned, from other samples, of the same classes or others.

        Raises:
            TypeError: if it is no LDAHead; ValueError: if its width or ``per_class`` is another one.
        """
        if not isinstance(other, LDAHead):
            raise TypeError(f"other must be an LDAHead, got {type(other).__name__}")
        for name in ("width", "per_class"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"other must have {name} {mine}, got {theirs}")
        self._grow(other.classes)
        n, m = self.count[: other.classes], other.count.to(self.count)
        both = ((n > 0) & (m > 0)).nonzero().squeeze(1)
        apart = self.sum[both] / n[both, None] - other.sum.to(self.sum)[both] / m[both, None]
        apart *= (n[both].double() * m[both] / (n + m)[both]).sqrt_()[:, None]
        rows = apart.to(self.scatter.dtype)
        self.scatter[: len(other.scatter)] += other.scatter.to(self.scatter)
        self.freedom[: len(other.freedom)] += other.freedom.to(self.freedom)
        if self.per_class:
            for label, row in zip(both.tolist(), rows.split(1), strict=False):
                add_products(self.scatter[label], row)
            self.freedom[both] += 1
        else:
            add_products(self.scatter[0], rows)
            self.freedom += len(both)
        self.sum[: other.classes] += other.sum.to(self.sum)
        self.count[: other.classes] += m
        self._solved = None

    @torch.no_grad()
    def forget(self, label: int, h0: Tensor | None = None) -> None:
        """Takes a class out again: no answer names it, and it may be learned anew.

        What its samples have added to the covariance that all classes share goes too if the head was made with
        ``per_class=True`` (to the bits of a head that never saw the class), or if the class's features are
        given again (to the scatter's rounding). Without either it stays: in a sum over all classes nobody can
        tell a class's part, unless as much is kept as its samples hold.

        Args:
            label: of the class.
            h0: [n, width], all features of it that were learned; None: they are not there any more.

        Raises:
            TypeError, ValueError: naming the argument; if the class is not known, or ``h0`` is not what was
                learned of it. Nothing was changed then.
        """
        label = whole_number(label, "label", least=0)
        n = int(self.count[label]) if label < self.classes else 0
        if not n:
            raise ValueError(f"label must be a class that is known, got {label}")
        rows = None
        if h0 is not None:
            self._check(h0)
            h0, place = h0.to(self.sum.device), self.count.new_zeros(len(h0))
            total, size = row_sums(h0, place, 1), row_sums(h0.abs(), place, 1)
            # Features that a network computes again, in other batches, are the same to its rounding.
            if len(h0) != n or bool((total - self.sum[label]).abs().sum() > 1e-2 * size.sum()):
                raise ValueError(
                    f"h0 must be the {n} feature vectors of class {label} that were learned, got {len(h0)} "
                    "vectors" + (" with another sum" if len(h0) == n else "")
                )
            rows = centred(h0, place, total / n, self.scatter.dtype)
        if self.per_class:
            self.scatter[label] = 0
            self.freedom[label] = 0
        elif rows is not None:
            self.freedom -= n - 1
            if int(self.freedom):
                add_products(self.scatter[0], rows, -1)
                self.scatter[0].diagonal().clamp_(min=0)
            else:
                self.scatter.zero_()
        self.sum[label] = 0
        self.count[label] = 0
        self._solved = None

    def _grow(self, classes: int) -> None:
        new = classes - self.classes
        if new > 0:
            self._append("count", self.count.new_zeros(new))
            self._append("sum", self.sum.new_zeros((new, self.width)))
            if self.per_class:
                self._append("scatter", self.scatter.new_zeros((new, self.width, self.width)))
                self._append("freedom", self.freedom.new_zeros(new))

    def _check(self, h0: Tensor) -> None:
        check_features(h0, self.width)
        largest = check_finite(h0)
        # Their squares are added, up to a million millions of them.
        most = math.sqrt(torch.finfo(self.scatter.dtype).max) / 2**20
        if largest > most:
            raise ValueError(
                f"h0 must be within {most:.3g}, so that sums of squares fit into {self.scatter.dtype}, got "
                f"{largest:.3g}; scale the features"
            )

    # ------------------------------------------------------------------ using

    @torch.no_grad()
    def covariance(self) -> Tensor:
        """Within-class covariance S, not shrunk, in the scatter's dtype: [width, width].

        RuntimeError if no class has two samples.
        """
        freedom = int(self.freedom.sum())
        if not freedom:
            raise RuntimeError("no class has two samples, so there is no covariance within classes")
        lower = self._total(self.scatter.dtype).div_(freedom).tril_()
        return lower + lower.tril(-1).T

    def _total(self, dtype: torch.dtype) -> Tensor:
        """A new tensor, [width, width], whose lower triangle is that of the sum of the scatters."""
        if not self.per_class:
            return self.scatter[0].to(dtype, copy=True)
        total = torch.zeros((self.width, self.width), dtype=dtype, device=self.scatter.device)
        for label in (self.count > 0).nonzero().squeeze(1).tolist():
            total += self.scatter[label]
        return total

    @torch.no_grad()
    def solve(self) -> Tensor:
        """W, float32 [width, C], of features less their centre. Kept until the next update.

        Raises:
            NotLearnedError: without a sample.
            RuntimeError: if S is singular with a ``shrinkage`` that was given as a number.
        """
        return self._answer().weight

    def check_solvable(self) -> None:
        """Raises where :meth:`solve` would, as a rule without solving."""
        if not self.surely_solvable():
            self.solve()
        elif not bool((self.count > 0).any()):
            raise NotLearnedError(_NOTHING)

    def surely_solvable(self) -> bool:
        """Whether no factorisation can fail: the shrinkage outweighs what rounding can take off S."""
        return isinstance(self.shrinkage, str) or self.shrinkage > self._surely_regular()

    def _surely_regular(self) -> float:
        """A shrinkage that outweighs the roundings of the scatter, at most some u tr(S)."""
        return min(1.0, 8 * self.width * torch.finfo(self.scatter.dtype).eps)

    def _answer(self) -> _Solved:
        self._look()
        solved = self._solved  # of this call: another thread may drop what is kept
        if solved is None:
            with torch.no_grad():
                solved = self._solve()
            self._solved = solved
        return solved

    def _solve(self) -> _Solved:
        known = self.count > 0
        if not bool(known.any()):
            raise NotLearnedError(_NOTHING)
        count = self.count[known]
        means = self.sum[known] / count[:, None]
        # What all classes have in common is taken off features before the product: it would cancel after it.
        centre = means.mean(0).float()
        means -= centre
        half, weight = self._distances(means)
        prior = (count if self.priors == "counts" else torch.ones_like(count)).double().log()
        bias = torch.full((self.classes,), -math.inf, dtype=torch.float64, device=centre.device)
        bias[known] = prior.log_softmax(0) - half
        if not bool(known.all()):
            every = weight.new_zeros((self.width, self.classes))
            every[:, known] = weight
            weight = every
        return _Solved(centre, weight.float(), bias.float())

    def _distances(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """Half the squared Mahalanobis length of centred means [S, width], float64 [S], and S^-1 of them."""
        freedom, d = int(self.freedom.sum()), self.width
        trace, square = traces(self._total(self.scatter.dtype) if self.per_class else self.scatter[0])
        if not bool((trace + square).isfinite()):
            raise RuntimeError("the scatter has infinite or NaN elements; load a sound state")
        if not (freedom and bool(trace > 0)):
            # Nothing tells directions apart: the nearest mean, in units of how far means are from each other.
            self.chosen = None
            variance = float(means.var(0, correction=0).mean()) or 1.0
            return means.square().sum(1) / (2 * variance), means.T / variance
        given, trace = self.shrinkage, trace / freedom
        rho = oas(square / float(freedom) ** 2, trace, d, freedom) if isinstance(given, str) else given
        lower = self._factor(rho, freedom, float(trace))
        if lower is None and isinstance(given, str):
            # So many samples that the roundings of the scatter outweigh what rho adds.
            rho = max(rho, self._surely_regular())
            lower = self._factor(rho, freedom, float(trace))
        if lower is None:
            raise RuntimeError(
                f"the shared covariance is singular with shrinkage {rho:.3g} and {freedom} degrees of freedom "
                f"in {d} dimensions; give more samples or a larger shrinkage"
            )
        self.chosen = rho
        white = torch.linalg.solve_triangular(lower, means.T.to(lower.dtype), upper=False)
        half = white.double().square().sum(0) / 2
        return half, torch.linalg.solve_triangular(lower.T, white, upper=True)

    def _factor(self, rho: float, freedom: int, trace: float) -> Tensor | None:
        """Lower triangle L with L L^T = the shrunk covariance; None if that is singular."""
        exact = self.scatter.dtype is torch.float64 or self.width <= _EXACT_WIDTH
        # In float32 half the time and memory; what is singular there may not be so in float64.
        for dtype in (torch.float64,) if exact else (torch.float32, torch.float64):
            lower = self._total(dtype).mul_((1 - rho) / freedom)
            lower.diagonal().add_(rho * trace / self.width)
            # The transposed one is in LAPACK's order: it is factored where it is.
            info = torch.zeros((), dtype=torch.int32, device=lower.device)
            torch.linalg.cholesky_ex(lower.T, upper=True, out=(lower.T, info))
            if not int(info):
                return lower
            del lower
        return None

    def logits(self, h0: Tensor) -> Tensor:
        """Log posteriors but for a constant of each sample, float32 [n, C], of features [n, width].

        -inf for a label that has no samples. Raises as :meth:`solve`.
        """
        check_features(h0, self.width)
        centre, weight, bias = self._answer()
        with torch.autocast(h0.device.type, enabled=False):
            return torch.addmm(bias, (h0 - centre).float(), weight)

    forward = logits

    def predict(self, h0: Tensor) -> Tensor:
        """The class of largest logit, int64 [n]."""
        return self.logits(h0).argmax(1)

    # ------------------------------------------------------------------ state

    def _check_state(self, state: dict[str, Any]) -> None:
        scatter, count = state.get("scatter"), state.get("count")
        if scatter is None or count is None or scatter.dim() != 3:
            return
        if scatter.shape[-1] != self.width:
            raise ValueError(f"the state has features of width {scatter.shape[-1]}, this head {self.width}")
        expected = len(count) if self.per_class else 1
        if len(scatter) != expected:
            raise ValueError(
                f"the state has {len(scatter)} scatters, and this head, with per_class={self.per_class}, needs "
                f"{expected}"
            )

    def _changed(self) -> None:
        self._solved = None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_seen"} | {"_solved": None}

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, shrinkage={self.shrinkage!r}, priors={self.priors!r}, "
            f"per_class={self.per_class}, classes={self.classes}"
        )


class _Solved(NamedTuple):
    """centre: float32 [width], taken off features; weight: float32 [width, C]; bias: float32 [C]."""

    centre: Tensor
    weight: Tensor
    bias: Tensor
