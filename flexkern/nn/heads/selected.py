"""Linear discriminant analysis that selects for itself what it reads, and how far it shrinks its covariance."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from flexkern.nn.feature_statistics import checked_shrinkage
from flexkern.nn.growing import check_labels
from flexkern.nn.heads.class_scatter import ClassScatter
from flexkern.nn.heads.discriminant import SHRINKAGES, LDAHead
from flexkern.nn.heads.leave_one_out import leave_one_out
from flexkern.nn.not_learned import NotLearnedError
from flexkern.nn.temperature import fit_log_temperature
from flexkern.plain import flag, whole_number

__all__ = ["JUDGED", "LAYERS", "RULES", "SelectedLDA"]

RULES = ("auto", *SHRINKAGES)

LAYERS = 6
"""Blocks of a transformer whose tokens are read where nothing is said."""
JUDGED = 512
"""Samples of a task that are enough to judge by; each takes products with the covariance's factor."""

# With 10 images of each class half of the trace is better than the 0.07 of "oas" by 2 points of CIFAR-100, with
# 100 of them worse by 3.
_SHRINKAGES = (0.2, 0.5)


class SelectedLDA(LDAHead):
    """An LDA head on blocks of values, of which it reads the last ones: as many as have served best.

    What is best depends on the number of samples: more values, such as the tokens of more layers, tell more
    apart, and need more samples for their covariance. So :meth:`judge` answers for samples that were learned,
    each as if it had not been (:func:`flexkern.nn.heads.leave_one_out.leave_one_out`), by all candidates; the
    one with the most right answers so far gives the logits, the first of the list if there are several. It also
    fits the temperature by which the logits are divided, so that ``softmax`` of them is about as sure as it is
    right. Before anything was judged the first candidate answers, all blocks with ``shrinkage="oas"``.

    All candidates have the same sums; of each beside them two numbers are kept.

    Args:
        width: of a feature vector, all blocks.
        blocks: of the same width, one after the other.
        fewer: whether all, half or one of the blocks may be read, or always all.
        shrinkage: ``"auto"``: "oas", 0.2 or 0.5 may be selected; or what :class:`flexkern.nn.LDAHead` takes.
        priors, per_class, dtype, device: as in :class:`flexkern.nn.LDAHead`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    right: Tensor
    log_temperature: Tensor
    judged: Tensor
    _SIZES: ClassVar = ClassScatter._SIZES | {
        "right": ("options",),
        "log_temperature": ("options",),
        "judged": (),
    }

    def __init__(
        self,
        width: int,
        *,
        blocks: int = 1,
        fewer: bool = True,
        shrinkage: float | str = "auto",
        **options: Any,
    ) -> None:
        auto = checked_shrinkage(shrinkage, RULES) == "auto"
        super().__init__(width, shrinkage="oas" if auto else shrinkage, **options)
        self.blocks = whole_number(blocks, "blocks")
        if self.width % self.blocks:
            raise ValueError(f"width must be a multiple of blocks, got {self.width} of {self.blocks}")
        fewest = (-(-self.blocks // 2), 1) if flag(fewer, "fewer") else ()
        counts = dict.fromkeys((self.blocks, *fewest))
        shrinkages = (self.shrinkage, *(_SHRINKAGES if auto else ()))
        self.candidates = [(count, shrinkage) for count in counts for shrinkage in shrinkages]
        """What may be selected: how many blocks, and the shrinkage."""
        device = self.count.device
        self.register_buffer("right", torch.zeros(self.options, dtype=torch.int64, device=device))
        self.register_buffer("log_temperature", torch.zeros(self.options, dtype=torch.float64, device=device))
        self.register_buffer("judged", torch.zeros((), dtype=torch.int64, device=device))
        self._selected: tuple[LDAHead, ...] = ()  # not as a module of this one: it has the same sums

    @property
    def options(self) -> int:
        """How many candidates there are."""
        return len(self.candidates)

    @property
    def selected(self) -> tuple[int, float | str]:
        """The candidate that answers: how many blocks, and its shrinkage."""
        return self.candidates[int(self.right.argmax())]

    @property
    def temperature(self) -> float:
        """By which the logits are divided."""
        return math.exp(float(self.log_temperature[int(self.right.argmax())]))

    @property
    def memory_bytes(self) -> int:
        return super().memory_bytes + sum(
            t.numel() * t.element_size() for part in self._selected for t in part._solved or ()
        )

    def merge(self, other: ClassScatter) -> None:
        """Adds what another head has learned; of what it has judged too, if it has the same candidates."""
        super().merge(other)
        if isinstance(other, SelectedLDA) and other.candidates == self.candidates and int(other.judged):
            self._count(other.right.to(self.right), other.log_temperature, int(other.judged))

    @torch.no_grad()
    def judge(self, h0: Tensor, labels: Tensor) -> None:
        """Counts for each candidate how many of these samples, which were learned, it answers rightly without.

        Samples that are the only ones of their class are left out.

        Args:
            h0: floating-point [n, width].
            labels: integers [n].

        Raises:
            TypeError, ValueError: naming the argument, also for a class that was not learned; RuntimeError,
            NotLearnedError: as :meth:`flexkern.nn.LDAHead.solve`.
        """
        self._check_learned(h0, labels)
        several = self.count[labels.to(self.count)] > 1
        h0, labels = h0[several.to(h0.device)], labels.to(self.count)[several]
        if not len(labels) or not bool(self.scatter.diagonal(dim1=-2, dim2=-1).sum() > 0):
            return
        right, temperatures = torch.zeros_like(self.right), torch.zeros_like(self.log_temperature)
        for i, candidate in enumerate(self.candidates):
            logits = self._left_out(candidate, h0, labels)
            right[i] = (logits.argmax(1) == labels).sum()
            known = logits.isfinite().all(0)
            places = known.cumsum(0) - 1
            temperatures[i] = fit_log_temperature(logits[:, known], places[labels]) or 0.0
        self._count(right, temperatures, len(labels))

    def left_out(self, h0: Tensor, labels: Tensor) -> Tensor:
        """Logits [n, C] of samples that were learned, by the candidate that answers, each without that sample.

        Args, Raises: as :meth:`judge`.
        """
        self._check_learned(h0, labels)
        return self._left_out(self.selected, h0, labels) / self.temperature

    def _check_learned(self, h0: Tensor, labels: Tensor) -> None:
        self._check(h0)
        check_labels(labels, len(h0))
        known = set(self.count.nonzero().squeeze(1).tolist())
        unknown = set(labels.tolist()) - known
        if unknown and not known:
            raise NotLearnedError("the head has not learned anything yet: call update()")
        if unknown:
            raise ValueError(f"labels must be of classes that were learned, got {min(unknown)}")

    def _left_out(self, candidate: tuple[int, float | str], h0: Tensor, labels: Tensor) -> Tensor:
        part = self._of(candidate)
        return leave_one_out(part, h0[:, self.width - part.width :], labels)

    def _count(self, right: Tensor, log_temperature: Tensor, judged: int) -> None:
        total = int(self.judged) + judged
        self.right += right
        news = log_temperature.to(self.log_temperature) - self.log_temperature
        self.log_temperature += news * judged / total
        self.judged += judged
        self._selected = ()

    def _of(self, candidate: tuple[int, float | str]) -> LDAHead:
        blocks, shrinkage = candidate
        return self.part(self.width - self.width // self.blocks * blocks, shrinkage=shrinkage)

    def _answering(self) -> LDAHead:
        self._look()
        kept = self._selected  # of this call: another thread may drop what is kept
        if not kept:
            self._selected = kept = (self._of(self.selected),)
        return kept[0]

    def solve(self) -> Tensor:
        return self._answering().solve()

    def logits(self, h0: Tensor) -> Tensor:
        """Log posteriors but for a constant of each sample, over the temperature: float32 [n, C]."""
        part = self._answering()
        return part.logits(h0[:, self.width - part.width :]) / self.temperature

    forward = logits

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # A head that judged nothing, such as those of before there were candidates, may say nothing of it.
        judged = {"right": self.right, "log_temperature": self.log_temperature, "judged": self.judged}
        missing = {prefix + name: torch.zeros_like(buffer) for name, buffer in judged.items()}
        super()._load_from_state_dict(missing | state_dict, prefix, *rest)

    def _changed(self) -> None:
        super()._changed()
        self._selected = ()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_selected": ()}
