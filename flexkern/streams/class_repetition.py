"""Streams in which classes come again (class-incremental learning with repetition)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flexkern.plain import number, whole_number
from flexkern.streams.assembling import assembled
from flexkern.streams.base import Stream
from flexkern.streams.labelled import Images
from flexkern.streams.selection import classes_in_order, rows_by_class

__all__ = ["class_repetition"]

_COMES, _DEALT = 33, 34  # first numbers of generators' seeds


def class_repetition(
    train: Images,
    test: Images,
    *,
    experiences: int,
    classes_per_experience: int | None = None,
    probability: float | None = None,
    order: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
    seed: int = 1993,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
) -> Stream:
    """A stream in which classes come again and again, as in the world: Hemati et al. (CoLLAs 2023).

    One of two ways to say how often:

    - ``classes_per_experience``: each experience has so many classes, drawn so that in the end all classes came
      equally often, or once less (the paper's slots). With as many as there are, every experience has all
      classes; with ``experiences * classes_per_experience`` equal to the classes, none comes again, and the
      stream is a class-incremental one.
    - ``probability``: new classes come as evenly as can be over the experiences; each that has come is in each
      later one with this probability. In an experience that would be empty one comes again.

    The images of a class are dealt out among the experiences in which it comes: each image comes once. (The
    paper's second generator draws an experience's images from all, so that they come again too.)

    **Labels are renumbered** in the order in which classes first come, and a class's test images belong to the
    experience in which it first comes, as in :func:`flexkern.streams.blurry`. **An experience without a new
    class has no test images.**

    Args:
        train, test: labelled images, in memory or sources, as of :func:`flexkern.streams.class_incremental`.
        experiences: how many, at least 1.
        classes_per_experience: at least 1, at most as many as take part.
        probability: 0 to 1.
        order, classes: which classes take part, as of :func:`flexkern.streams.class_incremental`. With
            ``probability`` it is the order in which they first come.
        seed: of the order, of which classes come when, and of which images.
        train_per_class, test_per_class: so many images of each class, chosen by the seed. Default: all.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if an argument is outside its range, not one of the two ways is given, or a class has no
            images, or fewer than the experiences in which it comes.
    """
    experiences = whole_number(experiences, "experiences")
    if (classes_per_experience is None) == (probability is None):
        raise ValueError("give either classes_per_experience or probability: how often classes come")
    if classes_per_experience is not None:
        classes_per_experience = whole_number(classes_per_experience, "classes_per_experience")
    if probability is not None:
        probability = number(probability, "probability", 0, 1)
    chosen = classes_in_order(train, test, order, classes, seed)
    rng = np.random.default_rng([_COMES, seed])
    if classes_per_experience is not None:
        _check_slots(len(chosen), experiences, classes_per_experience)
        comes = _slots(len(chosen), experiences, classes_per_experience, rng)
    else:
        assert probability is not None
        comes = _by_chance(len(chosen), experiences, probability, rng)
    of_train, of_test = rows_by_class(train, test, chosen, train_per_class, test_per_class, seed)

    coming: list[dict[int, np.ndarray]] = [{} for _ in range(experiences)]
    for c, times in zip(chosen, comes.T, strict=True):
        where, rows = np.flatnonzero(times).tolist(), of_train[c]
        if len(where) > len(rows):
            raise ValueError(
                f"train: class {c} comes in {len(where)} experiences and has {len(rows)} images; each needs one"
            )
        dealt = np.random.default_rng([_DEALT, seed, c]).permutation(len(rows))
        for experience, part in zip(where, np.array_split(dealt, len(where)), strict=True):
            coming[experience][c] = rows[np.sort(part)]
    return assembled(train, test, coming, of_test, "class-repetition")


def _check_slots(classes: int, experiences: int, each: int) -> None:
    if each > classes:
        raise ValueError(f"classes_per_experience is {each}, but only {classes} classes take part")
    if experiences * each < classes:
        raise ValueError(
            f"classes_per_experience: {experiences} experiences of {each} classes cannot have all {classes} "
            "classes; give more of one, or name fewer classes"
        )


def _slots(classes: int, experiences: int, each: int, rng: np.random.Generator) -> np.ndarray:
    """bool [experiences, classes]: ``each`` in each experience, all classes equally often or once less."""
    left = np.full(classes, experiences * each // classes)
    left[rng.permutation(classes)[: experiences * each % classes]] += 1
    comes = np.zeros((experiences, classes), dtype=bool)
    for i in range(experiences):
        # Those that must come in every experience from here on; there are never more than ``each``.
        due = np.flatnonzero(left == experiences - i)
        free = np.flatnonzero((left > 0) & (left < experiences - i))
        missing = each - len(due)
        drawn = rng.choice(free, missing, replace=False, p=left[free] / left[free].sum()) if missing else due
        here = np.union1d(due, drawn)
        comes[i, here] = True
        left[here] -= 1
    return comes


def _by_chance(classes: int, experiences: int, probability: float, rng: np.random.Generator) -> np.ndarray:
    """bool [experiences, classes]: first times in order, and then with a probability in each."""
    first = np.arange(classes) * experiences // classes
    again = rng.random((experiences, classes)) < probability
    now = np.arange(experiences)[:, None]
    comes = (now == first) | ((now > first) & again)
    for i in np.flatnonzero(~comes.any(axis=1)):
        comes[i, rng.choice(np.flatnonzero(first < i))] = True
    return comes
