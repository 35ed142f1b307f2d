"""Class means and the scatter within classes, as running sums that grow, merge and forget."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from flexkern.distributed import sum_
from flexkern.nn.growing import GrowingState, check_features, check_finite, check_labels
from flexkern.nn.heads.scatter import add_products, centred, row_sums
from flexkern.plain import flag, whole_number

__all__ = ["ClassScatter"]

_ROWS = 1024  # go into one product: their width beside the sums is little, and the product has its full speed


class ClassScatter(GrowingState):
    """What :class:`flexkern.nn.LDAHead` learns; see there for what the sums are, and how exact.

    Args:
        width: of a feature vector.
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
    adds_up = ("count", "sum", "scatter", "freedom")
    _SIZES: ClassVar = {
        "count": ("C",), "sum": ("C", "width"), "scatter": ("G", "width", "width"), "freedom": ("G",)
    }  # fmt: skip
    _DERIVED: ClassVar = (("width",), ("width", "C"), ("C",))

    def __init__(
        self,
        width: int,
        *,
        per_class: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        width = self.width = whole_number(width, "width")
        self.per_class = flag(per_class, "per_class")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        exact, groups = torch.float64, 0 if self.per_class else 1
        self.register_buffer("count", torch.zeros(0, dtype=torch.int64, device=device))
        self.register_buffer("sum", torch.zeros((0, width), dtype=exact, device=device))
        self.register_buffer("scatter", torch.zeros((groups, width, width), dtype=dtype, device=device))
        self.register_buffer("freedom", torch.zeros(groups, dtype=torch.int64, device=device))

    # ------------------------------------------------------------------ sizes

    @property
    def classes(self) -> int:
        """Largest label seen, plus 1."""
        return len(self.count)

    @property
    def largest(self) -> float:
        """The largest size of a feature that it takes: squares are added, up to a million millions of them."""
        return math.sqrt(torch.finfo(self.scatter.dtype).max) / 2**20

    @property
    def samples(self) -> int:
        """How many feature vectors the class means are of."""
        return int(self.count.sum())

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
        self._changed()

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
        self._changed()
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
    def merge(self, other: ClassScatter) -> None:
        """Adds what another head has learned, from other samples, of the same classes or others.

        Raises:
            TypeError: if it is no ClassScatter; ValueError: if its width or ``per_class`` is another one.
        """
        if not isinstance(other, ClassScatter):
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
        self._changed()

    @torch.no_grad()
    def _add_up(self, group: Any) -> None:
        n, sums = self.count.clone(), self.sum.clone()
        mine = (n > 0).nonzero().squeeze(1)
        holders = (n > 0).to(n)
        sum_([self.count, self.sum, holders], group)
        # Each process's scatter is around its own means: what is between these and the means of all.
        apart = sums[mine] / n[mine, None] - self.sum[mine] / self.count[mine, None]
        rows = apart.mul_(n[mine, None].double().sqrt()).to(self.scatter.dtype)
        if self.per_class:
            for label, row in zip(mine.tolist(), rows.split(1), strict=False):
                add_products(self.scatter[label], row)
        else:
            add_products(self.scatter[0], rows)
        sum_([self.scatter], group)
        sum_([self.freedom], group)
        several = (holders - 1).clamp_(min=0)
        self.freedom += several if self.per_class else several.sum()

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
        self._changed()

    def _grow(self, classes: int) -> None:
        of_class = ("scatter", "freedom") if self.per_class else ()
        self._make_room(classes, dict.fromkeys(("count", "sum", *of_class), 0))

    def _check(self, h0: Tensor) -> None:
        check_features(h0, self.width)
        largest = check_finite(h0)
        if largest > self.largest:
            raise ValueError(
                f"h0 must be within {self.largest:.3g}, so that sums of squares fit into "
                f"{self.scatter.dtype}, got {largest:.3g}; scale the features"
            )

    # ------------------------------------------------------------------ what was learned

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
