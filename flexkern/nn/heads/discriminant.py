"""Linear discriminant analysis from running sums: class means and one covariance that all classes share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flexkern.nn.feature_statistics import checked_shrinkage, oas
from flexkern.nn.growing import check_features
from flexkern.nn.heads.class_scatter import ClassScatter
from flexkern.nn.heads.scatter import traces
from flexkern.nn.heads.shrinkage import Factored, Solved, by_validation, factored
from flexkern.nn.not_learned import NotLearnedError
from flexkern.plain import choice, whole_number

__all__ = ["PRIORS", "SHRINKAGES", "LDAHead"]

PRIORS = ("uniform", "counts")
SHRINKAGES = ("oas", "gcv")
_NOTHING = "no class is known yet; call update() first"
# A covariance of at most this width is factored in float64 (134 MB), whatever the sums are in.
_EXACT_WIDTH = 4096


class LDAHead(ClassScatter):
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
            tr(S^2) and the degrees of freedom; or ``"gcv"``: by how well classes are told apart, in ten
            factorisations (:func:`flexkern.nn.heads.shrinkage.by_validation`); of 50 classes of CIFAR-100 1 to
            5 points better with 5 images of each, up to 1 worse from 50 on. A number must keep S regular.
        priors: of the classes: ``"uniform"``, or ``"counts"``: as often as they were learned.
        per_class: keep a scatter for each class, [classes, width, width], for :meth:`forget`.
        dtype: of the scatter, float32 or float64.
        device: of the state.

    Raises:
        TypeError, ValueError: naming the argument.
    """

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
        super().__init__(width, per_class=per_class, dtype=dtype, device=device)
        self.shrinkage = checked_shrinkage(shrinkage, SHRINKAGES)
        self.priors = choice(priors, "priors", PRIORS)
        self._solved: Solved | None = None
        self.chosen: float | None = None
        """The rho that the last :meth:`solve` took; None where there was no covariance."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of everything that is kept now: the sums, and W and b once they are solved."""
        kept = [*self._buffers.values(), *(self._solved or ())]
        return sum(t.numel() * t.element_size() for t in kept if t is not None)

    # ------------------------------------------------------------------ using

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

    def part(self, first: int, *, shrinkage: float | str | None = None) -> LDAHead:
        """A head that answers by the values from ``first`` on, of what this one has learned.

        It has the sums of this one, not copies of them: it is for answers, and must not learn. After this one
        has learned more, ask for another.

        Args:
            first: the first value that it reads, in [0, width).
            shrinkage: of its own; None: this one's.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        first = whole_number(first, "first", least=0, most=self.width - 1)
        given = self.shrinkage if shrinkage is None else shrinkage
        part = LDAHead(
            self.width - first, shrinkage=given, priors=self.priors, per_class=self.per_class,
            dtype=self.scatter.dtype, device="meta",
        )  # fmt: skip
        part._buffers |= {
            "count": self.count, "freedom": self.freedom,
            "sum": self.sum[:, first:], "scatter": self.scatter[:, first:, first:],
        }  # fmt: skip
        return part

    def factored(self) -> Factored:
        """The shrunk covariance, factored.

        Raises:
            RuntimeError: if there is no covariance, or it is singular; NotLearnedError without a sample.
        """
        known = self.count > 0
        if not bool(known.any()):
            raise NotLearnedError(_NOTHING)
        found = self._covariance_factor()
        if found is None:
            raise RuntimeError("no class has two different samples, so there is no covariance within classes")
        rho, lower = found
        centre = (self.sum[known] / self.count[known, None]).mean(0)
        return Factored(centre, lower, (1 - rho) / int(self.freedom.sum()))

    def surely_solvable(self) -> bool:
        """Whether no factorisation can fail: the shrinkage outweighs what rounding can take off S."""
        return isinstance(self.shrinkage, str) or self.shrinkage > self._surely_regular()

    def _surely_regular(self) -> float:
        """A shrinkage that outweighs the roundings of the scatter, at most some u tr(S)."""
        return min(1.0, 8 * self.width * torch.finfo(self.scatter.dtype).eps)

    def _answer(self) -> Solved:
        self._look()
        solved = self._solved  # of this call: another thread may drop what is kept
        if solved is None:
            with torch.no_grad():
                solved = self._solve()
            self._solved = solved
        return solved

    def _solve(self) -> Solved:
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
        return Solved(centre, weight.float(), bias.float())

    def _distances(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """Half the squared Mahalanobis length of centred means [S, width], float64 [S], and S^-1 of them."""
        found = self._covariance_factor()
        if found is None:
            # Nothing tells directions apart: the nearest mean, in units of how far means are from each other.
            self.chosen = None
            variance = float(means.var(0, correction=0).mean()) or 1.0
            return means.square().sum(1) / (2 * variance), means.T / variance
        self.chosen, lower = found
        white = torch.linalg.solve_triangular(lower, means.T.to(lower.dtype), upper=False)
        half = white.double().square().sum(0) / 2
        return half, torch.linalg.solve_triangular(lower.T, white, upper=True)

    def _covariance_factor(self) -> tuple[float, Tensor] | None:
        """rho, and the lower triangle L with L L^T = the shrunk covariance; None where there is none."""
        freedom, d = int(self.freedom.sum()), self.width
        trace, square = traces(self._total(self.scatter.dtype) if self.per_class else self.scatter[0])
        if not bool((trace + square).isfinite()):
            raise RuntimeError("the scatter has infinite or NaN elements; load a sound state")
        if not (freedom and bool(trace > 0)):
            return None
        given, trace = self.shrinkage, trace / freedom
        if given == "gcv":
            known = self.count > 0
            rho = by_validation(self._total(self._dtypes()[0]), self.count[known], self.sum[known])
        else:
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
        return rho, lower

    def _factor(self, rho: float, freedom: int, trace: float) -> Tensor | None:
        """Lower triangle L with L L^T = the shrunk covariance; None if that is singular."""
        return factored(self._total, self._dtypes(), (1 - rho) / freedom, rho * trace / self.width)

    def _dtypes(self) -> tuple[torch.dtype, ...]:
        """What is factored in: float32 takes half the time and memory."""
        exact = self.scatter.dtype is torch.float64 or self.width <= _EXACT_WIDTH
        return (torch.float64,) if exact else (torch.float32, torch.float64)

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

    def _changed(self) -> None:
        self._solved = None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_seen"} | {"_solved": None}

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, shrinkage={self.shrinkage!r}, priors={self.priors!r}, "
            f"per_class={self.per_class}, classes={self.classes}"
        )
