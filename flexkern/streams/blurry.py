"""Blurry streams: classes of which some images come when it is another class's time (i-Blurry-N-M)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flexkern.plain import number, whole_number
from flexkern.streams.assembling import assembled
from flexkern.streams.base import Stream
from flexkern.streams.labelled import Images
from flexkern.streams.selection import classes_in_order, rows_by_class

__all__ = ["blurry"]

_DISJOINT, _BLUR = 31, 32  # first numbers of generators' seeds


def blurry(
    train: Images,
    test: Images,
    *,
    tasks: int,
    disjoint: float = 0.5,
    blur: float = 0.1,
    order: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
    seed: int = 1993,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
) -> Stream:
    """A stream whose tasks have no sharp borders: i-Blurry-N-M of Koh et al. (ICLR 2022).

    A share of the classes, ``disjoint``, comes in one task only. Each of the others, the blurry ones, has its
    time too, but a share of its images, ``blur``, comes in the other tasks, as many in each as can be. The
    paper's i-Blurry-50-10 is the default. Each image comes once, and one of each class at least in its time.

    **Labels are renumbered** in the order in which classes first come, so that new classes always have the
    numbers from that of the classes seen so far on. A class's test images belong to the experience in which it
    first comes, so that accuracy over the experiences so far is that over all classes seen so far. Most blurry
    classes first come in the first task; **an experience may have no new class, and then no test images**.

    Args:
        train, test: labelled images, in memory or sources, as of :func:`flexkern.streams.class_incremental`.
        tasks: experiences, at least 2, and at most as many as there are classes.
        disjoint: share of the classes, 0 to 1, that come in one task only.
        blur: share of a blurry class's images, 0 to under 1, that come in other tasks.
        order, classes: which classes take part, as of :func:`flexkern.streams.class_incremental`; the first
            ones have their time first.
        seed: of the order, of which classes are disjoint, and of which images come when.
        train_per_class, test_per_class: so many images of each class, chosen by the seed. Default: all.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if an argument is outside its range, or a class has no, or too few, images.
    """
    tasks = whole_number(tasks, "tasks", least=2)
    disjoint, blur = number(disjoint, "disjoint", 0, 1), number(blur, "blur", 0, 1, below=True)
    chosen = classes_in_order(train, test, order, classes, seed)
    if tasks > len(chosen):
        raise ValueError(f"tasks is {tasks}, but only {len(chosen)} classes take part; each task needs one")
    of_train, of_test = rows_by_class(train, test, chosen, train_per_class, test_per_class, seed)

    count = round(disjoint * len(chosen))
    picked = np.random.default_rng([_DISJOINT, seed]).permutation(len(chosen))[:count]
    sharp = {chosen[i] for i in picked.tolist()}
    time = _times([c for c in chosen if c in sharp], [c for c in chosen if c not in sharp], tasks)
    coming: list[dict[int, np.ndarray]] = [{} for _ in range(tasks)]
    for c in chosen:
        rows = of_train[c]
        rng = np.random.default_rng([_BLUR, seed, c])
        # One stays, or a task of a single class could have no image.
        leaving = 0 if c in sharp else min(round(blur * len(rows)), len(rows) - 1)
        away = rng.permutation(len(rows))[:leaving]
        others = rng.permutation([t for t in range(tasks) if t != time[c]])
        task_of = np.full(len(rows), time[c])
        task_of[away] = np.resize(others, len(away))
        for task in np.unique(task_of).tolist():
            coming[task][c] = rows[task_of == task]
    return assembled(train, test, coming, of_test, "blurry")


def _times(sharp: Sequence[int], others: Sequence[int], tasks: int) -> dict[int, int]:
    """The task in which each class has its time; no task is without."""
    time: dict[int, int] = {}
    # What does not divide goes to the first tasks of the one kind, and to the last ones of the other.
    for classes, sizes in ((sharp, _sizes(len(sharp), tasks)), (others, _sizes(len(others), tasks)[::-1])):
        time |= dict(zip(classes, np.repeat(np.arange(tasks), sizes).tolist(), strict=True))
    return time


def _sizes(count: int, parts: int) -> list[int]:
    return [count // parts + (i < count % parts) for i in range(parts)]
