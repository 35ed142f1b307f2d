"""Heads and statistics that several processes fill together; each case runs on all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flexkern.distributed import gathered, part, rank, sum_, world_size
from flexkern.nn import (
    FeatureStatistics,
    GateOptions,
    LDAHead,
    PrototypeClassifier,
    RidgeHead,
    SelectedLDA,
    SynapseGate,
    learning_together,
)

WIDTH, CLASSES = 6, 5


def _prototypes() -> PrototypeClassifier:
    head = PrototypeClassifier(WIDTH)
    head.add_subspace()
    return head


HEADS: dict[str, Callable[[], Any]] = {
    "ridge": partial(RidgeHead, WIDTH, features=16, seed=3),
    "ridge with intercept": partial(RidgeHead, WIDTH, intercept=True, balanced=True),
    "lda": partial(LDAHead, WIDTH),
    "lda, double": partial(LDAHead, WIDTH, dtype=torch.float64),
    "lda, per class": partial(LDAHead, WIDTH, per_class=True),
    "selected lda": partial(SelectedLDA, WIDTH, blocks=2),
    "prototypes": _prototypes,
    "statistics": partial(FeatureStatistics, WIDTH),
}


def samples(seed: int, labels: list[int], each: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(labels).repeat_interleave(each)
    y = y[torch.randperm(len(y), generator=generator)]
    return torch.randn(len(y), WIDTH, generator=generator) + y[:, None] * 0.7, y


def _rows(y: Tensor, how: str) -> Tensor:
    """Which samples this process has."""
    n, r = world_size(), rank()
    if how == "by class":  # each label on one process only
        return (y % n == r).nonzero().squeeze(1)
    if how == "first has none":
        if n == 1:
            return torch.arange(len(y))
        return torch.arange(len(y))[r - 1 :: n - 1] if r else torch.arange(0)
    return torch.randperm(len(y), generator=torch.Generator().manual_seed(9))[r::n]


def _update(head: Any, x: Tensor, y: Tensor) -> None:
    for a, b in zip(x.split(9), y.split(9), strict=True):
        head.update(a.unsqueeze(1) if isinstance(head, PrototypeClassifier) else a, b)


def fill(name: str, how: str) -> dict[str, Any]:
    """Two items; some classes come again, and the last ones in another order."""
    head = HEADS[name]()
    for seed, labels in enumerate(([2, 0, 1], [4, 1, 3])):
        x, y = samples(seed, labels)
        with learning_together(head):
            rows = _rows(y, how)
            _update(head, x[rows], y[rows])
        if isinstance(head, SelectedLDA):
            head.judge(x, y)
    state = {key: value.clone() for key, value in head.state_dict().items()}
    if not isinstance(head, FeatureStatistics):
        x = samples(7, [0, 1, 2, 3, 4])[0]
        state["logits"] = head.logits(x.unsqueeze(1) if isinstance(head, PrototypeClassifier) else x)
    else:
        state["covariance"] = head.shared_covariance()
    return state


def gate() -> dict[str, Any]:
    """A gate learns from the features of all processes."""
    found = SynapseGate(WIDTH, options=GateOptions(gate="ridge", features=8))
    for seed, labels in enumerate(([0, 1], [2, 3])):
        x, y = samples(seed, labels, each=20)
        own = part(len(y))
        found.learn(gathered(x[own]), gathered(y[own]))
    return {key: value.clone() for key, value in found.state_dict().items()}


def failing() -> tuple[dict[str, Any], dict[str, Any]]:
    """What is raised in the block leaves the head as it was, on each process."""
    head = RidgeHead(WIDTH)
    _update(head, *samples(0, [0, 1]))
    before = {key: value.clone() for key, value in head.state_dict().items()}
    try:
        with learning_together(head):
            _update(head, *samples(1, [2, 3]))
            raise KeyError
    except KeyError:
        pass
    return before, head.state_dict()


def sums() -> dict[str, Any]:
    """Tensors of several dtypes and shapes, and rows of different numbers."""
    r = rank() + 1
    tensors = [
        torch.full((2, 3), 1.5 * r), torch.tensor(r), torch.full((4,), r, dtype=torch.bfloat16),
        torch.full((1,), 2**40 * r), torch.full((3, 2), float(r)).T,
    ]  # fmt: skip
    sum_(tensors)
    return {
        "tensors": tensors,
        "rows": gathered(torch.full((rank(), 2), float(r))),
        "flags": gathered(torch.tensor([r % 2 == 0])),
        "none": gathered(torch.zeros((0, 3))),
        "part": (part(7).start, part(7).stop),
    }


HOWS = ("by class", "first has none", "mixed")
FILLED = {f"{name}, {how}": partial(fill, name, how) for name in HEADS for how in HOWS}
CASES: dict[str, Callable[[], Any]] = {**FILLED, "gate": gate, "failing": failing, "sums": sums}
