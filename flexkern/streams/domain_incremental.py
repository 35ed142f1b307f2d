"""Domain-incremental streams: the same classes again and again, looking otherwise each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.plain import choice, nearest, whole_number
from flexkern.spec.argument import shown
from flexkern.streams.assembling import cut
from flexkern.streams.base import Experience, Stream
from flexkern.streams.labelled import Images, resized
from flexkern.streams.selection import check_images, label_list, names_apart, rows_of

__all__ = ["domain_incremental"]

_ORDER = 36  # first number of a generator's seed
_PARTS = ("train", "test")


def domain_incremental(
    domains: Mapping[str, tuple[Images, Images]],
    *,
    order: Sequence[str] | str | None = None,
    seed: int = 1993,
    classes: Sequence[int] | None = None,
    size: int | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
) -> Stream:
    """A stream of one experience a domain: the same classes in each, and test images of that domain.

    A class is the same in two domains if it has the same name there (or, where all domains name their classes
    alike, the same label). Its label in the stream is its label in the first domain; a class that the first
    domain lacks has the next number when it first comes. A domain may lack classes.

    Args:
        domains: of each domain, by its name, its training and its test images; in memory or sources, all of one
            size.
        order: names of the domains in the order of learning, only these take part; or "shuffled", by the seed.
            Default: as ``domains`` has them.
        seed: of the choice of images, and of a shuffled order.
        classes: labels of the domain that comes first which take part; those of other domains go by their
            names, and classes that are not named do not take part. Default: all. Labels are renumbered 0, 1, 2,
            ... in the order in which they stand here, or rise.
        size: images in memory are resized to so many pixels. Without it domains of another size are refused.
        train_per_class, test_per_class: so many images of each class and domain, chosen by the seed. Default:
            all.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: naming the domain, if its images do not fit the others', a class has test images and no
            training images there, or too few; or the argument that is outside its range.
    """
    seed = whole_number(seed, "seed", least=0)
    counts = [
        n if n is None else whole_number(n, f"{part}_per_class")
        for n, part in zip((train_per_class, test_per_class), _PARTS, strict=True)
    ]
    given = {name: _pair(domains[name], name, size) for name in _in_order(domains, order, seed)}
    _check_shapes(given)
    joint = _joint(given)
    chosen = joint.chosen(classes)
    coming = {name: [c for c in chosen if c in joint.classes(name, 0)] for name in given}
    label = {c: i for i, c in enumerate(dict.fromkeys(c for here in coming.values() for c in here))}
    names = names_apart(joint.names, list(label))

    experiences = []
    for number, (name, here) in enumerate(coming.items()):
        here.sort(key=label.__getitem__)
        tested = [c for c in here if c in joint.classes(name, 1)]
        alone = [c for c in chosen if c in joint.classes(name, 1) and c not in here]
        if alone:
            raise ValueError(
                f"domains[{name!r}]: it has test images of {joint.names[alone[0]]!r} and no training images; "
                "leave them out, or name the classes that take part"
            )
        for part, those in zip(_PARTS, (here, tested), strict=True):
            if not those:
                raise ValueError(
                    f"domains[{name!r}], {part}: there are no images of the classes that take part"
                )
        inputs: list[tuple[Any, Tensor]] = []
        for kind, (part, those) in enumerate(zip(_PARTS, (here, tested), strict=True)):
            images = joint.images(name, kind)
            try:
                rows = rows_of(images, those, counts[kind], part, [kind, seed, number])
            except ValueError as error:
                raise ValueError(f"domains[{name!r}]: {error}") from error
            inputs.append(cut(images.images, [(label[c], rows[c]) for c in those]))
        own = tuple(names[label[c]] for c in here)
        experiences.append(Experience(name, number, *inputs[0], *inputs[1], class_names=own))
    return Stream(experiences, classes=len(label), scenario="domain-incremental")


def _in_order(domains: Any, order: Any, seed: int) -> list[str]:
    """Names of the domains in the order of learning."""
    if not isinstance(domains, Mapping) or not all(isinstance(name, str) for name in domains):
        raise TypeError(f"domains must map names to pairs of training and test images, got {shown(domains)}")
    if not domains:
        raise ValueError("domains must have at least one")
    known = list(domains)
    if order is None:
        return known
    if isinstance(order, str):
        choice(order, "order", ("shuffled",))
        return [known[i] for i in np.random.default_rng([_ORDER, seed]).permutation(len(known))]
    if not isinstance(order, Iterable):
        raise TypeError(f"order must be names of domains, or 'shuffled', got {shown(order)}")
    names = list(order)
    for i, name in enumerate(names):
        if name not in known:
            there = ", ".join(map(repr, known[:10]))
            raise ValueError(
                f"order[{i}]: there is no domain {shown(name)}{nearest(name, known)}; there are {there}"
            )
        if name in names[:i]:
            raise ValueError(f"order must name each domain once, got {name!r} twice")
    if not names:
        raise ValueError("order must name at least one domain")
    return names


def _pair(both: Any, name: str, size: int | None) -> tuple[Images, Images]:
    """A domain's training and test images, of the size that is wanted."""
    if not isinstance(both, (tuple, list)) or isinstance(both, Images) or len(both) != 2:
        raise TypeError(f"domains[{name!r}] must be a pair of training and test images, got {shown(both)}")
    for images, part in zip(both, _PARTS, strict=True):
        check_images(images, f"domains[{name!r}], {part}")
    if size is None:
        return both[0], both[1]
    return resized(both[0], size, f"domains[{name!r}]"), resized(both[1], size, f"domains[{name!r}]")


def _check_shapes(given: Mapping[str, tuple[Images, Images]]) -> None:
    first = next(iter(given))
    shape = tuple(given[first][0].images.shape[1:])
    for name, both in given.items():
        for images, part in zip(both, _PARTS, strict=True):
            if tuple(images.images.shape[1:]) != shape:
                raise ValueError(
                    f"domains[{name!r}], {part}: its images are {tuple(images.images.shape[1:])} and those of "
                    f"{first!r} {shape}; pass size=, the pixels of each side that all are resized to, or read "
                    "sources with one size"
                )


class _Joint:
    """Domains whose labels have become those of all domains together.

    names: of the classes, by their joint labels.
    """

    def __init__(self, parts: Mapping[str, tuple[Images, Images]], names: list[str]) -> None:
        self._parts, self.names = parts, names
        self._classes = {d: tuple(set(i.labels.unique().tolist()) for i in both) for d, both in parts.items()}

    def images(self, domain: str, part: int) -> Images:
        """Training (0) or test (1) images of a domain."""
        return self._parts[domain][part]

    def classes(self, domain: str, part: int) -> set[int]:
        """Those of which there are any."""
        return self._classes[domain][part]

    def chosen(self, classes: Any) -> list[int]:
        """Joint labels that take part; they are the first domain's, so far as that has them."""
        every = sorted(set().union(*(of[0] | of[1] for of in self._classes.values())))
        if classes is None:
            return every
        chosen = label_list(classes, "classes")
        unknown = [c for c in chosen if c not in every]
        if unknown or not chosen:
            of = f", got {unknown[0]}, of which no domain has images" if unknown else ", got none"
            raise ValueError(f"classes must name at least one class that is there{of}")
        twice = [c for i, c in enumerate(chosen) if c in chosen[:i]]
        if twice:
            raise ValueError(f"classes must name each class once, got {twice[0]} twice")
        return chosen


def _joint(given: Mapping[str, tuple[Images, Images]]) -> _Joint:
    """Labels as they are where all domains have the same names, and matched by their names elsewhere."""
    lists = [list(images.names) for both in given.values() for images in both]
    count = 1 + max(int(i.labels.max()) for both in given.values() for i in both if len(i.labels))
    if all(names == lists[0] for names in lists):
        return _Joint(given, [_name(lists[0], c) for c in range(max(count, len(lists[0])))])
    names = [_name(lists[0], c) for c in range(len(lists[0]))]
    number: dict[str, int] = {}
    parts = {}
    for domain, both in given.items():
        changed = []
        for images, part in zip(both, _PARTS, strict=True):
            there = images.labels.unique().tolist()
            of = {c: _name(images.names, c) for c in there}
            twice = [name for name, times in Counter(of.values()).items() if times > 1]
            if twice:
                raise ValueError(
                    f"domains[{domain!r}], {part}: two of its classes are named {twice[0]!r}; classes are the "
                    "same in two domains if their names are, so each needs one of its own"
                )
            for c, name in of.items():
                if name not in number:
                    first = domain == next(iter(given)) and c < len(names)
                    number[name] = c if first else len(names)
                    names += [name] * (not first)
            table = torch.zeros(1 + max(there, default=0), dtype=torch.int64)
            table[there] = torch.tensor([number[name] for name in of.values()], dtype=torch.int64)
            changed.append(images._replace(labels=table.to(images.labels.device)[images.labels]))
        parts[domain] = (changed[0], changed[1])
    return _Joint(parts, names)


def _name(names: Sequence[str], c: int) -> str:
    return (names[c] if c < len(names) else "") or str(c)
