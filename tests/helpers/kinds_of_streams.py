"""A tiny stream of each kind that a learner may take, made of the patterns of :mod:`helpers.tiny_vit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flexkern.streams import Experience, Stream
from helpers import tiny_vit

__all__ = ["STREAMS", "as_they_come"]

CLASSES = 4
ONLINE = (1, 1, 3, 1, 2, 5)


def _images(part: str) -> tuple[Tensor, Tensor]:
    """Of four classes, class after class."""
    first = tiny_vit.stream(CLASSES)
    x = torch.cat([getattr(e, f"{part}_inputs") for e in first])
    y = torch.cat([getattr(e, f"{part}_labels") for e in first])
    order = y.argsort(stable=True)
    return x[order], y[order]


def as_they_come(
    parts: Sequence[tuple[Tensor, Tensor]], tests: Sequence[tuple[Tensor, Tensor]] | None = None
) -> Stream:
    """Experiences of these inputs and labels; classes are numbered as they come, and named by their old label.

    Args:
        parts: what is learned.
        tests: what is tested, for each of them; default: of the classes seen by then, one image each.
    """
    number: dict[int, int] = {}
    experiences = []
    for i, (x, y) in enumerate(parts):
        for c in y.tolist():
            number.setdefault(c, len(number))
        if tests is None:
            images, labels = _images("test")
            rows = torch.cat([(labels == c).nonzero()[:1, 0] for c in number])
            test_x, test_y = images[rows], labels[rows]
        else:
            test_x, test_y = tests[i]
        new, new_tests = (torch.tensor([number[c] for c in labels.tolist()]) for labels in (y, test_y))
        old = {n: c for c, n in number.items()}
        names = tuple(f"class {old[c]}" for c in new.unique().tolist())
        experiences.append(Experience(f"part {i}", i, x, new, test_x, new_tests, class_names=names))
    return Stream(experiences, len(number))


def _class_incremental() -> Stream:
    return tiny_vit.stream(CLASSES)


def _domain_incremental() -> Stream:
    (x, y), (tx, ty) = _images("train"), _images("test")
    domains: list[Callable[[Tensor], Tensor]] = [lambda x: x, lambda x: 255 - x, lambda x: x.flip(1)]
    return as_they_come([(d(x), y) for d in domains], [(d(tx), ty) for d in domains])


def _blurry() -> Stream:
    """Two classes are an experience's own, and one image in six is of another's."""
    x, y = _images("train")
    rows = torch.arange(len(y))
    astray = rows % 6 == 0
    own = torch.where(astray, (y // 2 + 1) % 2, y // 2)
    return as_they_come([(x[own == i], y[own == i]) for i in range(2)])


def _class_repetition() -> Stream:
    x, y = _images("train")
    chosen = [(0, 2), (1, 2), (0, 3), (1, 3)]
    halves = [
        torch.isin(y, torch.tensor(c)) & (torch.arange(len(y)) % 2 == i % 2) for i, c in enumerate(chosen)
    ]
    return as_they_come([(x[h], y[h]) for h in halves])


def _online() -> Stream:
    x, y = _images("train")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[: sum(ONLINE)]
    return as_they_come([(x[rows], y[rows]) for rows in order.split(list(ONLINE))])


STREAMS: dict[str, Callable[[], Stream]] = {
    "class-incremental": _class_incremental,
    "domain-incremental": _domain_incremental,
    "blurry": _blurry,
    "class-repetition": _class_repetition,
    "online": _online,
}
