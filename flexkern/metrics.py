"""How well a stream was learned: accuracies, forgetting, transfer, memorised items."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "AccuracyMatrix",
    "Evaluation",
    "anytime_accuracy",
    "confusion_matrix",
    "hypergeometric_tail",
    "memorised",
]


class _Answered(NamedTuple):
    accuracies: NDArray[np.float64]
    confusion: NDArray[np.int64]


class Evaluation(_Answered):
    """What a learner answers on the test inputs of a stream: a tuple of two, with more to be asked of it::

        accuracies, confusion = learner.evaluate(stream)
        learner.evaluate(stream).macro

    Args:
        accuracies: float64 [experiences], the share of right answers on each.
        confusion: int64 [classes, classes], all test inputs together: row = truth, column = answer.
        masked: float64 [experiences], the share of right answers on each where only the experience's own
            classes, those of its test inputs, may be answered: **task-incremental** accuracy (van de Ven and
            Tolias, 2019), as if the task were told. It is measured on the logits as they are; a learner that is
            told the task may do better with it. None where it was not measured.
        top: k of ``top_accuracies``.
        top_accuracies: float64 [experiences], the share of test inputs on each whose true class is among the k
            likeliest; of equal logits the lower number first. With k classes or fewer, 1. None: not measured.
    """

    masked: NDArray[np.float64] | None
    top: int | None
    top_accuracies: NDArray[np.float64] | None

    def __new__(
        cls,
        accuracies: NDArray[np.float64],
        confusion: NDArray[np.int64],
        *,
        masked: NDArray[np.float64] | None = None,
        top: int | None = None,
        top_accuracies: NDArray[np.float64] | None = None,
    ) -> Evaluation:
        made = super().__new__(cls, accuracies, confusion)
        made.masked, made.top, made.top_accuracies = masked, top, top_accuracies
        return made

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Evaluation:  # type: ignore[override] # no subclass has more
        return cls(*iterable)

    def _replace(self, **changes: Any) -> Evaluation:
        return type(self)(**(self._asdict() | vars(self) | changes))

    def __repr__(self) -> str:
        each = np.asarray(self.accuracies)
        spread = f" ({each.min():.1%} to {each.max():.1%})" if each.size > 1 else ""
        said = (
            f"mean accuracy {each.mean():.1%} over {each.size} experiences{spread}" if each.size else "nothing"
        )
        return f"<Evaluation: {said}, {len(self.confusion)} classes>"

    @property
    def per_class(self) -> NDArray[np.float64]:
        """float64 [classes]: the share of right answers on the test inputs of each; NaN where it has none."""
        counts = self.confusion.sum(1)
        shares = np.full(len(counts), np.nan)
        return np.divide(np.diag(self.confusion), counts, out=shares, where=counts > 0)

    @property
    def macro(self) -> float:
        """The mean of :attr:`per_class` over the classes with test inputs, where each class counts alike: that
        of balanced accuracy, and of mean recall."""
        return float(np.nanmean(self.per_class))


class AccuracyMatrix:
    """R[i, j]: accuracy on item j after learning item i, both counted from 0.

    Rows are added as the stream goes on, by :meth:`add`; each has the accuracies of all items of the
    stream, those not yet learned included. The summaries look at learned items only.

    Class-incremental results are over all test inputs of the classes seen so far, not means over items (PILOT,
    EASE). With as many test inputs in each item that is the same; where items differ, as in Bm-IncN, pass how
    many each has::

        AccuracyMatrix(weights=[len(e.test_labels) for e in stream])

    Args:
        rows: accuracies in [0, 1], shape [learned items, items of the stream].
        weights: test inputs of each item, for :meth:`after`, :attr:`average` and :attr:`last`; forgetting and
            backward transfer are means over items always. Default: all items count alike.
        tested: for each item whether it has test inputs, the first one included: an item that brings no new
            class may have none. Accuracies and weights of the others are not looked at. Default: all have.

    Raises:
        ValueError: if the rows are not such a matrix, or weights or ``tested`` do not fit it.
    """

    def __init__(
        self, rows: ArrayLike = (), *, weights: ArrayLike | None = None, tested: ArrayLike | None = None
    ) -> None:
        self._rows: list[NDArray[np.float64]] = []
        self._weights = None if weights is None else np.array(weights, dtype=np.float64)
        w = self._weights
        if w is not None and (w.ndim != 1 or w.size == 0 or not (np.isfinite(w) & (w > 0)).all()):
            raise ValueError(f"weights must be a list of positive numbers, one per item, got {weights!r}")
        self._tested = None if tested is None else np.array(tested)
        t = self._tested
        if t is not None and (t.ndim != 1 or t.dtype != np.bool_ or not t[:1].all() or not t.size):
            raise ValueError(
                f"tested must be a list of bools, one per item, and True of the first item, got {tested!r}"
            )
        if t is not None and w is not None and t.size != w.size:
            raise ValueError(f"tested must have {w.size} entries, as the weights do, got {t.size}")
        for row in np.asarray(rows, dtype=np.float64):
            self.add(row)

    def add(self, accuracies: ArrayLike) -> None:
        """Adds the accuracies of all items after one more item was learned."""
        row = np.asarray(accuracies, dtype=np.float64)
        if row.ndim != 1 or row.size == 0 or not ((row >= 0) & (row <= 1)).all():
            raise ValueError(
                f"accuracies must be a list of numbers in [0, 1], one per item, got {accuracies!r}; an item "
                "without test inputs has none: leave it out of the stream"
            )
        for given, name in ((self._weights, "the weights do"), (self._tested, "tested does")):
            if given is not None and row.size != given.size:
                raise ValueError(f"accuracies must have {given.size} numbers, as {name}, got {row.size}")
        if self._rows and row.size != self._rows[0].size:
            raise ValueError(f"accuracies must have {self._rows[0].size} numbers as before, got {row.size}")
        if len(self._rows) == row.size:
            raise ValueError(f"all {row.size} items of the stream have their row already")
        self._rows.append(row.copy())

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        if not self._rows:
            return "<AccuracyMatrix: no item learned>"
        figures = f"last {self.last:.1%}, average {self.average:.1%}, forgetting {self.forgetting:.1%}"
        return f"<AccuracyMatrix: {len(self)} of {self._rows[0].size} items learned, {figures}>"

    @property
    def array(self) -> NDArray[np.float64]:
        """A copy, float64 [learned items, items]."""
        return np.stack(self._rows) if self._rows else np.empty((0, 0))

    def tolist(self) -> list[list[float]]:
        """For JSON."""
        return self.array.tolist()

    @property
    def learning_accuracy(self) -> float:
        """Plasticity: the mean over the learned items of the accuracy on each right after it was learned.

        Riemer et al. (2019), "learning accuracy", and Mirzadeh et al. (2020). With as many test inputs in each
        item, ``last = learning_accuracy + backward_transfer * (n - 1) / n`` for n items.
        """
        self._last_row()
        return float(np.mean(np.diag(self.array)[self._with_tests(range(len(self)))]))

    def forward_transfer(self, baseline: ArrayLike) -> float:
        """FWT: mean over all items but the first of (accuracy on it just before it is learned - baseline).

        Lopez-Paz and Ranzato (2017), where the baseline is the accuracy of an untrained network; that of chance
        is one over the classes. It means something where an item asks about classes that earlier ones have
        taught (domain-incremental streams, a class again). On class-incremental streams the accuracy before an
        item is learned is 0 by construction, as no learner answers with a class it has never seen, and so is
        every comparison of FWT. Rows have to hold what was measured, then, beyond the items learned.

        Args:
            baseline: one number for all items, or one for each item of the stream, the first included.

        Returns:
            Over the items whose accuracy before they were learned is known (of n rows, items 1 to n, where the
            stream has as many); 0 with one item in the stream.

        Raises:
            ValueError: if the baseline is not such, or the matrix is empty.
        """
        items = self._last_row().size
        base = np.asarray(baseline, dtype=np.float64)
        if base.shape not in ((), (items,)) or not ((base >= 0) & (base <= 1)).all():
            raise ValueError(
                f"baseline must be a number in [0, 1], or one for each of the {items} items, got {baseline!r}"
            )
        base = np.broadcast_to(base, (items,))
        known = self._with_tests(range(1, min(len(self), items - 1) + 1))
        return float(np.mean([self._rows[i - 1][i] - base[i] for i in known])) if known else 0.0

    def _with_tests(self, items: Sequence[int]) -> list[int]:
        return [i for i in items if self._tested is None or self._tested[i]]

    def _last_row(self) -> NDArray[np.float64]:
        if not self._rows:
            raise ValueError("the accuracy matrix is empty: add() the accuracies after each item")
        return self._rows[-1]

    def after(self, item: int) -> float:
        """Mean accuracy over items 0..item, right after item ``item`` was learned."""
        return self._mean(item, item + 1)

    def _mean(self, row: int, items: int) -> float:
        weights = None if self._weights is None else self._weights[:items]
        if self._tested is not None:
            weights = self._tested[:items] * (1.0 if weights is None else weights)
        return float(np.average(self._rows[row][:items], weights=weights))

    @property
    def last(self) -> float:
        """Last accuracy: the mean over all learned items now, at the end.

        It is ACC of Lopez-Paz and Ranzato (2017) and the memory performance of arXiv 2407.07133.
        """
        self._last_row()
        return self._mean(len(self) - 1, len(self))

    @property
    def average(self) -> float:
        """Average accuracy: the mean of :meth:`after` over the stream (iCaRL's, PILOT's, EASE's)."""
        self._last_row()
        return float(np.mean([self.after(i) for i in range(len(self))]))

    @property
    def forgetting(self) -> float:
        """Mean over all items but the last of (best accuracy since it was learned - accuracy now).

        Chaudhry et al. (2018), equation 3. From -1 to 1; 0 with one item.
        """
        self._last_row()
        n = len(self)
        r = self.array
        earlier = self._with_tests(range(n - 1))
        return float(np.mean([r[j : n - 1, j].max() - r[n - 1, j] for j in earlier])) if n > 1 else 0.0

    @property
    def backward_transfer(self) -> float:
        """BWT: mean over all items but the last of (accuracy now - accuracy right after it was learned).

        Lopez-Paz and Ranzato (2017). Negative where items are forgotten; 0 with one item.
        """
        self._last_row()
        n = len(self)
        r = self.array
        earlier = self._with_tests(range(n - 1))
        return float(np.mean(r[n - 1, earlier] - np.diag(r)[earlier])) if n > 1 else 0.0


def anytime_accuracy(accuracies: ArrayLike, samples: ArrayLike | None = None) -> float:
    """Area under the curve of accuracy against the samples seen, divided by all samples: how good a learner is
    at any time of a stream, not at its end only.

    A_AUC of Koh et al. (2022), equation 1: the sum of each accuracy times the samples since the one before.

    Args:
        accuracies: in [0, 1], one at each time of a test, in order.
        samples: how many training samples came since the test before, or the beginning; default: always as
            many.

    Raises:
        ValueError: if these are no such lists.
    """
    values = np.asarray(accuracies, dtype=np.float64)
    if values.ndim != 1 or not values.size or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"accuracies must be a list of numbers in [0, 1], got {accuracies!r}")
    counts = np.ones(values.size) if samples is None else np.asarray(samples, dtype=np.float64)
    if counts.shape != values.shape or not (np.isfinite(counts) & (counts > 0)).all():
        raise ValueError(
            f"samples must be {values.size} positive numbers, one for each accuracy, got {samples!r}"
        )
    return float(np.average(values, weights=counts))


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts [classes, classes]: row = true label, column = prediction.

    Raises:
        ValueError: if the two differ in shape or hold a number outside [0, classes).
    """
    true, predicted = np.asarray(labels), np.asarray(predictions)
    if true.shape != predicted.shape or true.ndim != 1:
        raise ValueError(
            f"labels and predictions must be two lists of one length: {true.shape}, {predicted.shape}"
        )
    for name, values in (("labels", true), ("predictions", predicted)):
        if values.size and not (values.min() >= 0 and values.max() < classes):
            raise ValueError(f"{name} must be in [0, {classes}), got {values.min()} to {values.max()}")
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (true, predicted), 1)
    return counts


def hypergeometric_tail(hits: int, population: int, marked: int, drawn: int) -> float:
    """P(X >= hits), X = how many of ``marked`` among ``population`` are in ``drawn`` taken at random.

    Summed upwards from ``hits`` with log-gamma functions; good to about 1e-9 for populations up to 10^5.

    Raises:
        ValueError: if the numbers are impossible.
    """
    if not (0 <= marked <= population and 0 <= drawn <= population):
        raise ValueError(f"marked ({marked}) and drawn ({drawn}) must be in [0, population = {population}]")

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    low, high = max(0, drawn + marked - population), min(drawn, marked)
    if hits <= low:
        return 1.0
    total = log_choose(population, drawn)
    terms = (
        math.exp(log_choose(marked, x) + log_choose(population - marked, drawn - x) - total)
        for x in range(hits, high + 1)
    )
    return min(1.0, math.fsum(terms))


def memorised(
    confusion: ArrayLike, *, learned: Sequence[int] | None = None, level: float = 0.05
) -> NDArray[np.bool_]:
    """Which items a network remembers: more of their test images recognised than labels at random would give.

    The question is put to the network's predictions on the test images of all items. If the true labels
    were shuffled among the images, the right answers for an item would be hypergeometric: ``drawn`` = its test
    images, ``marked`` = images for which the network says this item, ``population`` = all images. An item is
    memorised if the probability of as many right answers or more is under ``level`` **and** its accuracy is
    above chance, 1 / items.

    This is the test that the release of arXiv 2407.07133 approximates with 1,000 shuffles, but not the
    same. The release asks how many shuffles do better than the network, strictly. For an item that the network
    never names, right answers and shuffled right answers are all 0, none is better, and so the item counts
    as memorised, although nothing of it is remembered. Here ties count against the network, which makes that
    probability 1. The second condition excludes items whose few right answers are significant only
    because the network hardly ever names them.

    Args:
        confusion: counts [items, items] from :func:`confusion_matrix` over the test images of all items.
        learned: items to look at; the others come out False. Default: all.
        level: of the test.

    Returns:
        bool [items].

    Raises:
        ValueError: if the matrix is not square or holds negative numbers.
    """
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.size == 0 or (counts < 0).any():
        raise ValueError(f"confusion must be a square matrix of counts, got shape {counts.shape}")
    items = len(counts)
    result = np.zeros(items, dtype=bool)
    for j in range(items) if learned is None else learned:
        hits, drawn, marked = int(counts[j, j]), int(counts[j].sum()), int(counts[:, j].sum())
        p = hypergeometric_tail(hits, int(counts.sum()), marked, drawn)
        result[j] = p < level and hits * items > drawn
    return result
