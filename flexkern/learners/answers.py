"""Answers with names and probabilities, and the names of classes as a learner keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from flexkern.streams.base import Experience

__all__ = ["Answer", "answers", "check_names", "joined_names", "names_of"]


class Answer(NamedTuple):
    """One class that an input may be of.

    name: of the class; its number as a string where it was learned without a name.
    probability: by the learner, in [0, 1]; see :meth:`flexkern.learners.Learner.probabilities`.
    label: number of the class, in the learner's order.
    """

    name: str
    probability: float
    label: int


def answers(probabilities: Tensor, top: int, names: Sequence[str]) -> list[list[Answer]]:
    """The ``top`` likeliest classes of each input, best first; of equal ones the lower number first."""
    # Stable, so that the first is the one that argmax takes.
    order = probabilities.sort(dim=1, descending=True, stable=True)
    values, labels = order.values[:, :top].tolist(), order.indices[:, :top].tolist()
    return [
        [Answer(names[c], p, c) for p, c in zip(of_input, classes, strict=True)]
        for of_input, classes in zip(values, labels, strict=True)
    ]


def names_of(experience: Experience, labels: Tensor) -> dict[int, str]:
    """The names that an experience gives its classes, which are those of ``labels``.

    A class is called by its number where its name is empty, or where there are not as many names as classes, so
    that nobody can say whose they are.
    """
    classes, names = labels.unique().tolist(), experience.class_names
    given = names if len(names) == len(classes) else [""] * len(classes)
    return {c: name or str(c) for c, name in zip(classes, given, strict=True)}


def check_names(known: Mapping[int, str], new: Mapping[int, str], where: str) -> None:
    """Raises ValueError if a name would be that of two classes, or a class would have two names.

    Args:
        known: names of the classes that were learned, by their numbers; a number as a name is none.
        new: names that an experience gives, likewise.
        where: says which, for the message.
    """
    owner = {name: c for c, name in known.items()}
    for c, name in new.items():
        before = known.get(c, str(c))
        if str(c) not in (before, name) and before != name:
            raise ValueError(f"{where}: class {c} was learned as {before!r}, and is named {name!r} here")
        other = owner.setdefault(name, c)
        if other != c and not (c in known and name == str(c)):
            raise ValueError(
                f"{where}: classes {other} and {c} would both be named {name!r}; give each class a name of its "
                "own"
            )


def joined_names(known: Mapping[int, str], new: Mapping[int, str]) -> dict[int, str]:
    """All names; a number gives way to a name."""
    return {**known, **{c: name for c, name in new.items() if c not in known or name != str(c)}}
