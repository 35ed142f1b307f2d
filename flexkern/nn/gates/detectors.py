"""Out-of-distribution detectors on h0 as gates: how much a feature vector looks like each task.

See docs/design.md, Artsy.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from flexkern.nn.gates.negatives import Recall
from flexkern.nn.growing import GrowingState
from flexkern.nn.heads.ridge import RidgeHead
from flexkern.nn.heads.selected import JUDGED, SelectedLDA
from flexkern.nn.task_scores import group_logsumexp, group_max, others_logsumexp, rank_in_class

__all__ = [
    "DETECTORS",
    "Detector",
    "Energy",
    "Lda",
    "LikelihoodRatio",
    "Mahalanobis",
    "NearestNeighbours",
    "Ridge",
    "make_detector",
]


class Detector(GrowingState):
    """Scores of tasks; larger means more like the task. The :class:`Recall` says which task a class is of."""

    moving = False
    """Whether the scores of earlier tasks change when a task comes."""
    keeps_data = False
    """Whether feature vectors of samples are kept."""
    least_classes = 1
    """Classes that a task must have."""
    reads_recall = True
    """Whether its scores, or what makes them evidence, take statistics of the :class:`Recall`."""

    @property
    def parameters_added(self) -> int:
        """Trained numbers; sums and kept features are not counted."""
        return 0

    def learn(self, h0: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        """Learns the newest task from float32 [n, width] and labels int64 [n]; ``recall`` has these already."""

    def absorb(self, h0: Tensor, labels: Tensor) -> None:
        """Adds what was held out of :meth:`learn`, where the detector is made of running sums."""

    def check_answers(self, recall: Recall) -> None:
        """Raises RuntimeError if :meth:`scores` would, from what was learned."""

    def scores(self, h0: Tensor, recall: Recall, tasks: int) -> Tensor:
        """float32 [N, width] to float32 [N, T]."""
        raise NotImplementedError


class Mahalanobis(Detector):
    """Minus the squared Mahalanobis distance to the task's nearest class mean, with the shared covariance.

    Lee, Lee, Lee, Shin, *A simple unified framework for detecting out-of-distribution samples and adversarial
    attacks*, arXiv 1807.03888. Nothing is trained: only class means and the shared covariance.
    """

    moving = True

    def check_answers(self, recall: Recall) -> None:
        recall.statistics.cholesky()

    def scores(self, h0: Tensor, recall: Recall, tasks: int) -> Tensor:
        x, means = recall.statistics.whiten(h0)
        distances = x.square().sum(1, keepdim=True) - 2 * (x @ means.T) + means.square().sum(1)
        return group_max(-distances, recall.class_task, tasks)


class LikelihoodRatio(Detector):
    """log of the likelihood under the task over the likelihood under the other tasks.

    Each is a mixture of its classes' gaussians, with equal shares and the shared covariance. As a background
    model the other tasks stand in for all data (Ren et al., *Likelihood ratios for out-of-distribution
    detection*, arXiv 1906.02845; with the other tasks as background Lin et al., arXiv 2309.15048). With two
    tasks or more; before, 0.
    """

    moving = True

    def check_answers(self, recall: Recall) -> None:
        if recall.classes and int(recall.class_task[-1]):
            recall.statistics.cholesky()

    def scores(self, h0: Tensor, recall: Recall, tasks: int) -> Tensor:
        if tasks < 2:
            return h0.new_zeros((len(h0), tasks))
        x, means = recall.statistics.whiten(h0)
        density = x @ means.T - means.square().sum(1) / 2  # less |x|^2 / 2, which both likelihoods have
        own = group_logsumexp(density, recall.class_task, tasks)
        classes = torch.bincount(recall.class_task, minlength=tasks)
        log_share = torch.log(classes.float() / (recall.classes - classes)).to(own)
        return own - others_logsumexp(own) - log_share


class Energy(Detector):
    """Minus the energy, log sum exp of the logits of a classifier of the task's own classes.

    Liu, Wang, Owens, Li, *Energy-based out-of-distribution detection*, arXiv 2010.03759, at temperature 1. The
    classifier is multinomial logistic regression on h0, standardised, with ``decay / 2 |W|^2``, fitted by
    L-BFGS. It does not know other tasks. A task needs two classes: of one, it learns nothing.
    """

    least_classes = 2
    weight: Tensor
    bias: Tensor
    _SIZES: ClassVar = {"weight": ("C", "width"), "bias": ("C",)}

    def __init__(self, width: int, *, decay: float = 1e-3, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.width, self.decay = width, decay
        self.register_buffer("weight", torch.zeros((0, width), dtype=torch.float32, device=device))
        self.register_buffer("bias", torch.zeros(0, dtype=torch.float32, device=device))

    @property
    def classes(self) -> int:
        """How many classes it knows."""
        return len(self.bias)

    @property
    def parameters_added(self) -> int:
        return self.weight.numel() + self.bias.numel()

    def learn(self, h0: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        first = len(self.bias)
        x = h0.double()  # so that L-BFGS converges
        centre, spread = x.mean(0), x.std(0).clamp(min=1e-6)
        x, y = (x - centre) / spread, labels - first
        classes = int(y.max()) + 1
        w = x.new_zeros((classes, x.shape[1])).requires_grad_()
        b = x.new_zeros(classes).requires_grad_()
        optimizer = torch.optim.LBFGS([w, b], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(linear(x, w, b), y) + self.decay / 2 * w.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        w, b = w.detach() / spread, b.detach()
        self._append("weight", w)
        self._append("bias", b - w @ centre)

    def scores(self, h0: Tensor, recall: Recall, tasks: int) -> Tensor:
        return group_logsumexp(linear(h0, self.weight, self.bias), recall.class_task, tasks)

    def _check_state(self, state: dict[str, Any]) -> None:
        w = state.get("weight")
        if w is not None and w.shape[1] != self.weight.shape[1]:
            raise ValueError(f"the state has width {w.shape[1]}, this detector {self.weight.shape[1]}")


class NearestNeighbours(Detector):
    """Cosine to the k-th nearest of the task's features: a decreasing function of the distance on the sphere.

    Sun, Ming, Zhu, Li, *Out-of-distribution detection with deep nearest neighbors*, arXiv 2204.06507. Keeps at
    most ``keep`` features of each class. Where a task has fewer than k, its last neighbour counts.
    """

    keeps_data = True
    bank: Tensor
    size: Tensor
    _SIZES: ClassVar = {"bank": ("T", "R", "width"), "size": ("T",)}

    def __init__(
        self, width: int, *, neighbours: int = 5, keep: int = 20, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.width, self.neighbours, self.keep = width, neighbours, keep
        self.register_buffer("bank", torch.zeros((0, 0, width), dtype=torch.float32, device=device))
        self.register_buffer("size", torch.zeros(0, dtype=torch.int64, device=device))

    @property
    def tasks(self) -> int:
        """How many tasks it knows."""
        return len(self.size)

    def learn(self, h0: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        kept = normalize(h0[rank_in_class(labels, generator) < self.keep].to(self.bank), dim=1)
        tasks, room, width = self.bank.shape
        bank = self.bank.new_zeros((tasks + 1, max(room, len(kept)), width))
        bank[:tasks, :room] = self.bank
        bank[tasks, : len(kept)] = kept
        self.bank = bank
        self._append("size", self.size.new_tensor([len(kept)]))

    def scores(self, h0: Tensor, recall: Recall, tasks: int) -> Tensor:
        room = self.bank.shape[1]
        empty = torch.arange(room, device=h0.device) >= self.size[:, None]
        k = min(self.neighbours, room)
        place = (self.size.clamp(max=k) - 1)[None, :, None]
        rows = max(1, 2**24 // max(1, tasks * room))  # 64 MiB of cosines at once
        out = []
        for x in normalize(h0, dim=1).split(rows):
            cosines = linear(x, self.bank.flatten(0, 1)).view(len(x), tasks, room)
            best = cosines.masked_fill_(empty, -math.inf).topk(k, dim=2).values
            out.append(best.gather(2, place.expand(len(x), -1, 1)).squeeze(2))
        return torch.cat(out) if out else h0.new_zeros((0, tasks))

    def _check_state(self, state: dict[str, Any]) -> None:
        bank = state.get("bank")
        if bank is not None and bank.shape[-1] != self.bank.shape[-1]:
            raise ValueError(f"the state has width {bank.shape[-1]}, this detector {self.bank.shape[-1]}")
        size = state.get("size")
        if bank is not None and size is not None and size.numel():
            room = bank.shape[1]
            if not 1 <= size.min() <= size.max() <= room:
                raise ValueError(f"size must be in [1, {room}], and the state has {size.tolist()[:20]}")


class Ridge(Detector):
    """The best class of the task by a ridge head on a random ReLU projection of h0, from exact running sums.

    See :class:`flexkern.nn.RidgeHead` (RanPAC, arXiv 2307.02251).
    """

    moving = True

    def __init__(self, head: RidgeHead) -> None:
        super().__init__()
        self.head = head

    @property
    def parameters_added(self) -> int:
        return self.head.cross.numel()

    def learn(self, h0: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        self.head.update(h0, labels)

    def absorb(self, h0: Tensor, labels: Tensor) -> None:
        self.head.update(h0, labels)

    def check_answers(self, recall: Recall) -> None:
        self.head.check_solvable()

    def scores(self, h0: Tensor, recall: Recall, tasks: int) -> Tensor:
        return group_max(self.head.logits(h0), recall.class_task, tasks)


class Lda(Detector):
    """The logit of the task's probability by linear discriminant analysis: the sum over the task's classes.

    See :class:`flexkern.nn.heads.selected.SelectedLDA`, whose temperature makes these probabilities what they
    say, so that nothing is held out to calibrate them. With two tasks or more; before, 0.
    """

    moving = True
    reads_recall = False

    def __init__(self, head: SelectedLDA) -> None:
        super().__init__()
        self.head = head

    @property
    def parameters_added(self) -> int:
        return self.head.sum.numel()

    def learn(self, h0: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        self.head.update(h0, labels)
        chosen = torch.randperm(len(h0), generator=generator, device=h0.device)[:JUDGED]
        self.head.judge(h0[chosen], labels[chosen])

    def absorb(self, h0: Tensor, labels: Tensor) -> None:
        self.head.update(h0, labels)

    def check_answers(self, recall: Recall) -> None:
        self.head.check_solvable()

    def scores(self, h0: Tensor, recall: Recall, tasks: int) -> Tensor:
        if tasks < 2:
            return h0.new_zeros((len(h0), tasks))
        own = group_logsumexp(self.head.logits(h0), recall.class_task, tasks)
        return own - others_logsumexp(own)


DETECTORS = ("energy", "mahalanobis", "knn", "likelihood_ratio", "ridge", "lda")


def make_detector(
    gate: str,
    width: int,
    *,
    neighbours: int,
    keep: int,
    features: int,
    ridge: float | str,
    layers: int,
    shrinkage: float | str,
    seed: int,
    device: torch.device | str | None,
) -> Detector | None:
    """The detector that ``gate`` names; None for a gate that is no detector."""
    if gate == "energy":
        return Energy(width, device=device)
    if gate == "mahalanobis":
        return Mahalanobis()
    if gate == "knn":
        return NearestNeighbours(width, neighbours=neighbours, keep=keep, device=device)
    if gate == "likelihood_ratio":
        return LikelihoodRatio()
    if gate == "ridge":
        return Ridge(RidgeHead(width, features=features, seed=seed, ridge=ridge, device=device))
    if gate == "lda":
        given = "auto" if isinstance(shrinkage, str) else shrinkage
        return Lda(SelectedLDA(width, blocks=layers, shrinkage=given, device=device))
    return None
