"""Class-incremental streams: a data set's classes, some at a time (B0-IncN, Bm-IncN)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from flexkern.plain import whole_number
from flexkern.streams.assembling import assembled
from flexkern.streams.base import Stream
from flexkern.streams.labelled import Images
from flexkern.streams.selection import class_order, classes_in_order, rows_by_class, title_of

# The order and the titles were here, and are found here still.
__all__ = ["class_incremental", "class_order", "title_of"]


def class_incremental(
    train: Images,
    test: Images,
    *,
    increment: int,
    base: int = 0,
    order: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
    seed: int = 1993,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
) -> Stream:
    """A stream whose experiences each bring new classes, and training and test images of them only.

    B0-IncN has ``base=0``: N classes in each experience. Bm-IncN has ``base=m``: m classes first, then N at a
    time. If the rest does not divide by N, the last experience has fewer.

    **Labels are renumbered**: the class that is learned first is 0, and so on, so that the classes seen so far
    are always 0 to k - 1: ``stream.class_names[label]`` is the name of one of them, ``train.names[label]`` is
    that of another class. Two classes that the data set gives one name have their own labels added to it. All
    images that take part are copied once, and the experiences' inputs are parts of that copy; of a source
    nothing is decoded, and the inputs are sources.

    Args:
        train, test: labelled images, as :func:`flexkern.streams.image_folders` and ``image_pack`` give them, or
            :func:`flexkern.streams.images_of` for any other data set; in memory or sources.
        increment: classes of an experience, at least 1.
        base: classes of the first experience; 0: as many as in the others.
        order: labels in the order of learning. Only these classes take part.
        classes: labels that take part, in an order that the seed decides (:func:`class_order`). Default: all
            that ``train`` has images of.
        seed: of the order, and of the choice of images.
        train_per_class, test_per_class: so many images of each class, chosen by the seed. Default: all.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if an argument is outside its range, or a class has no, or too few, images.
    """
    increment = whole_number(increment, "increment")
    base = whole_number(base, "base", least=0)
    chosen = classes_in_order(train, test, order, classes, seed)
    if base > len(chosen):
        raise ValueError(f"base is {base}, but only {len(chosen)} classes take part")

    of_train, of_test = rows_by_class(train, test, chosen, train_per_class, test_per_class, seed)
    bounds = _bounds(len(chosen), base, increment)
    coming = [{c: of_train[c] for c in chosen[first:end]} for first, end in itertools.pairwise(bounds)]
    return assembled(train, test, coming, of_test)


def _bounds(classes: int, base: int, increment: int) -> list[int]:
    """Where the classes of each experience begin, and where the last one's end."""
    first = min(base or increment, classes)
    return [0, *range(first, classes, increment), classes]
