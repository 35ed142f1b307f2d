"""Streams of random images, labels and options: the right images under the right names, or refused in words."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch

from flexkern.streams import (
    Images,
    OnlineStream,
    Stream,
    blurry,
    class_incremental,
    class_repetition,
    domain_incremental,
    online,
)
from fuzz.harness import fuzzer

_NAMED = (
    "train", "test", "domains", "order", "classes", "base", "tasks", "disjoint", "blur", "probability",
)  # fmt: skip


def _images(rng: np.random.Generator, labels: np.ndarray, names: list[str], part: int) -> Images:
    """Each image says its part, its class's own name's number, and its place."""
    code = np.stack([np.full(len(labels), part), labels, np.arange(len(labels))], 1).astype(np.uint8)
    x = torch.from_numpy(code[:, :, None, None].copy())
    return Images(x, torch.from_numpy(labels.astype(np.int64)), names)


def _pair(rng: np.random.Generator, classes: int, names: list[str], part: int) -> tuple[Images, Images]:
    """Uneven classes; now and then one that is missing on one side."""
    both = []
    for kind in range(2):
        counts = rng.integers(0 if rng.random() < 0.04 else 1, 7, classes)
        labels = rng.permutation(np.repeat(np.arange(classes), counts))
        both.append(_images(rng, labels, names, part + kind))
    return both[0], both[1]


@fuzzer("streams", quick=100, full=4_000)
def stream(rng: np.random.Generator) -> str:
    classes = int(rng.integers(1, 8))
    names = [str(n) for n in rng.choice(["", "a", "b", "cat", "dog", "owl", "eel", "7"], classes)]
    if rng.random() < 0.7:
        names = [f"class {c}" for c in range(classes)]
    train, test = _pair(rng, classes, names, 1)
    options = _options(rng, classes)
    which = int(rng.integers(4))
    given: dict[str, tuple[Images, Images]] = {"": (train, test)}
    try:
        if which == 0:
            made = class_incremental(
                train, test, increment=int(rng.integers(1, 5)), base=int(rng.integers(0, 4)), **options
            )
        elif which == 1:
            made = blurry(
                train, test, tasks=int(rng.integers(2, 6)), disjoint=float(rng.random()),
                blur=float(rng.random() * 1.02), **options,
            )  # fmt: skip
        elif which == 2:
            often: dict[str, Any] = (
                {"classes_per_experience": int(rng.integers(1, 6))}
                if rng.random() < 0.5
                else {"probability": float(rng.random())}
            )
            made = class_repetition(train, test, experiences=int(rng.integers(1, 6)), **often, **options)
        else:
            given = {"day": (train, test), "night": _pair(rng, classes, names, 3)}
            options.pop("order", None)
            made = domain_incremental(given, **options)
    except ValueError as error:
        if not str(error).startswith(_NAMED):
            raise AssertionError("the message names no argument") from error
        return "refused"
    _judge(made, given)
    batch = int(rng.integers(1, 9))
    parts = online(made, batch_size=batch, seed=int(rng.integers(100)))
    _judge(parts, given)
    _judge_parts(parts, batch)
    return made.scenario


def _options(rng: np.random.Generator, classes: int) -> dict[str, Any]:
    options: dict[str, Any] = {"seed": int(rng.integers(1000))}
    if rng.random() < 0.3:
        options["train_per_class"] = int(rng.integers(1, 4))
    if rng.random() < 0.3:
        options["test_per_class"] = 1
    if rng.random() < 0.4:
        some = rng.permutation(classes)[: rng.integers(1, classes + 1)].tolist()
        options["order" if rng.random() < 0.5 else "classes"] = some
    return options


def _judge(made: Stream, given: dict[str, tuple[Images, Images]]) -> None:
    names = {c: n for both in given.values() for images in both for c, n in enumerate(images.names)}
    own: dict[int, int] = {}  # the class of each label of the stream
    images: Counter[tuple[int, ...]] = Counter()
    seen = 0
    assert len(set(made.class_names)) == made.classes
    for i, e in enumerate(made):
        labels = e.train_labels.unique().tolist()
        new = [c for c in labels if c >= seen]
        assert new == list(range(seen, seen + len(new))), "new classes have the next numbers"
        assert labels, "an experience has training images"
        assert list(e.class_names) == [made.class_names[c] for c in labels]
        tested = e.test_labels.unique().tolist()
        assert set(tested) <= set(labels)
        if len(given) == 1:
            assert tested == new, "a class is tested where it first comes"
        for inputs, told, kind in ((e.train_inputs, e.train_labels, 0), (e.test_inputs, e.test_labels, 1)):
            for row, label in zip(inputs[:, :, 0, 0].tolist(), told.tolist(), strict=True):
                part = 1 + kind + (2 * list(given).index(e.name) if len(given) > 1 else 0)
                assert row[0] == part, "a training image is none of the tests, nor of another domain"
                assert own.setdefault(label, row[1]) == row[1], "a label is one class's"
                assert names[row[1]] in made.class_names[label] or made.class_names[label] == str(row[1])
                images[tuple(row)] += 1
        seen += len(new)
        assert e.number == i
    assert seen == made.classes
    assert len(set(own.values())) == len(own), "a class has one label"
    assert set(images.values()) == {1}, "each image comes once"


def _judge_parts(made: OnlineStream, batch: int) -> None:
    seen = number = 0
    for i, e in enumerate(made):
        parts = made.parts(i)
        told: list[int] = []
        for part in parts:
            labels = part.train_labels.unique().tolist()
            new = [c for c in labels if c >= seen]
            assert new == list(range(seen, seen + len(new)))
            assert list(part.class_names) == [made.class_names[c] for c in labels]
            assert part.number == number
            seen, number = seen + len(new), number + 1
            told += part.train_labels.tolist()
        assert sorted(told) == sorted(e.train_labels.tolist())
        assert len(parts) == -(-len(told) // batch)
