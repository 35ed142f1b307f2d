"""Class-incremental streams: which classes come when, with which images and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexkern.streams import Experience, Stream
from flexkern.streams.class_incremental import class_incremental, class_order
from flexkern.streams.packs import Images


def coded(classes: int, each: int, part: int) -> Images:
    """Interleaved classes; the pixels of an image say its part, its class and its number in the class."""
    labels = torch.arange(classes * each) % classes
    numbers = torch.arange(classes * each) // classes
    pixels = torch.stack([torch.full_like(labels, part), labels, numbers], 1).to(torch.uint8)
    images = pixels[:, :, None, None].expand(-1, 3, 2, 2).contiguous()
    return Images(images, labels, [f"class {c}" for c in range(classes)])


TRAIN, TEST = coded(10, 6, 1), coded(10, 4, 2)


def test_the_published_order_of_seed_1993() -> None:
    # As in the options files of PILOT and its predecessors for CIFAR-100.
    assert class_order(range(100))[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    assert sorted(class_order(range(100))) == list(range(100))


def check(stream: Any, order: list[int], sizes: list[int], train_each: int, test_each: int) -> None:
    assert stream.classes == len(order)
    assert [len(e.class_names) for e in stream] == sizes
    assert [n for e in stream for n in e.class_names] == [f"class {c}" for c in order]
    first = 0
    for e, size in zip(stream, sizes, strict=True):
        for part, inputs, labels, each in (
            (1, e.train_inputs, e.train_labels, train_each),
            (2, e.test_inputs, e.test_labels, test_each),
        ):
            assert inputs.dtype == torch.uint8
            assert (inputs[:, 0] == part).all()  # no test image among training images
            assert labels.unique().tolist() == list(range(first, first + size))
            assert labels.bincount()[first:].tolist() == [each] * size
            # The label is the place of the image's own class in the order.
            assert [order[i] for i in labels.tolist()] == inputs[:, 1, 0, 0].tolist()
            for c in labels.unique():
                numbers = inputs[labels == c][:, 2, 0, 0].tolist()
                assert len(set(numbers)) == each  # no image twice
                assert numbers == sorted(numbers)
        first += size


@settings(max_examples=40, deadline=None)
@given(base=st.integers(0, 10), increment=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_b0_and_bm(base: int, increment: int, seed: int) -> None:
    stream = class_incremental(TRAIN, TEST, increment=increment, base=base, seed=seed)
    sizes, left = [], 10
    if base:
        sizes, left = [base], 10 - base
    while left:
        sizes.append(min(increment, left))
        left -= sizes[-1]
    check(stream, class_order(range(10), seed), sizes, 6, 4)


def test_fewer_images_of_each_class_by_the_seed() -> None:
    options: dict[str, Any] = {"increment": 5, "train_per_class": 3, "test_per_class": 2}
    one, same, other = (class_incremental(TRAIN, TEST, seed=s, **options) for s in (1, 1, 2))
    check(one, class_order(range(10), 1), [5, 5], 3, 2)
    assert all(torch.equal(a.train_inputs, b.train_inputs) for a, b in zip(one, same, strict=True))

    def numbers(stream: Any) -> set[tuple[int, int]]:
        return {tuple(row) for e in stream for row in e.train_inputs[:, 1:, 0, 0].tolist()}

    assert numbers(one) != numbers(other)
    # Each class has a choice of its own, and so have training and test images.
    assert len({frozenset(n for c2, n in numbers(one) if c2 == c) for c in range(10)}) > 1
    both = class_incremental(TRAIN, TRAIN, increment=10, train_per_class=3, test_per_class=3)[0]
    assert not torch.equal(both.train_inputs, both.test_inputs)
    # The choice for a class does not depend on when it comes.
    again = class_incremental(TRAIN, TEST, seed=1, order=range(10), increment=5, train_per_class=3)
    assert numbers(again) == numbers(one)


def test_a_given_order_takes_its_classes_only() -> None:
    stream = class_incremental(TRAIN, TEST, increment=2, order=[7, 1, 4])
    check(stream, [7, 1, 4], [2, 1], 6, 4)
    assert stream.names == ["class 7, class 1", "class 4"]


def test_some_classes_in_an_order_by_the_seed() -> None:
    stream = class_incremental(TRAIN, TEST, increment=2, classes=[5, 6, 7, 8, 9], seed=3)
    check(stream, class_order([5, 6, 7, 8, 9], 3), [2, 2, 1], 6, 4)


def test_classes_of_the_test_images_that_are_not_learned_are_left_out() -> None:
    few = Images(*(t[TRAIN.labels < 4] for t in TRAIN[:2]), TRAIN.names)
    stream = class_incremental(few, TEST, increment=2)
    check(stream, class_order(range(4)), [2, 2], 6, 4)


def test_experiences_are_parts_of_one_copy() -> None:
    stream = class_incremental(TRAIN, TEST, increment=2)
    assert len({e.train_inputs.untyped_storage().data_ptr() for e in stream}) == 1
    assert len({e.test_labels.untyped_storage().data_ptr() for e in stream}) == 1


def test_many_classes_have_a_short_name() -> None:
    stream = class_incremental(coded(30, 2, 1), coded(30, 2, 2), increment=15, order=range(30))
    assert stream.names[0] == "class 0, class 1, class 2 and 12 more"
    assert len(set(stream.names)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"increment": 0}, "increment must be at least 1, got 0"),
        ({"base": -1}, "base must be at least 0"),
        ({"base": 11}, "base is 11, but only 10 classes"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"train_per_class": 7}, "train_per_class is 7, but class .* has 6 images"),
        ({"test_per_class": 0}, "test_per_class must be at least 1"),
        ({"order": [1, 2, 1]}, "order must name each class once, got 1 twice"),
        ({"order": []}, "order must name at least one class"),
        ({"order": [1, 10]}, "order: there are no training images of class 10"),
        ({"classes": [-1, 2]}, "classes: there are no training images of class -1"),
        ({"order": [1], "classes": [1]}, "exclude each other"),
        ({"test": coded(9, 4, 2)}, "test: there are no images of class 9"),
        (
            {"test": Images(TEST.images[..., :1], TEST.labels, TEST.names)},
            "test: its images must be of the size",
        ),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"train": TRAIN, "test": TEST, "increment": 2} | change
    with pytest.raises(ValueError, match=message):
        class_incremental(**arguments)


# ----------------------------------------------------------------- names and kinds of arguments


def test_the_names_of_a_stream_are_those_of_its_labels() -> None:
    stream = class_incremental(TRAIN, TEST, increment=3, base=1, order=[7, 1, 4, 9])
    assert stream.class_names == ["class 7", "class 1", "class 4", "class 9"]
    for e in stream:
        for image, label in zip(e.test_inputs, e.test_labels.tolist(), strict=True):
            assert stream.class_names[label] == f"class {int(image[1, 0, 0])}"


def test_names_are_never_empty_and_never_two_alike() -> None:
    # As in ImageNet, where "crane" is a bird and a machine.
    train = TRAIN._replace(names=["crane", "", "dog", "crane"])
    stream = class_incremental(train, TEST, increment=2, order=[3, 1, 0, 2, 8])
    assert stream.class_names == ["crane (3)", "1", "crane (0)", "dog", "8"]
    assert stream.names == ["crane (3), 1", "crane (0), dog", "8"]
    assert class_incremental(train, TEST, increment=2, order=[3, 2]).class_names == ["crane", "dog"]


def test_a_stream_without_names_has_numbers() -> None:
    x, y = torch.zeros(2, 3), torch.tensor([0, 2])
    named = Experience("a", 0, x, y, x, y, class_names=("zero", ""))
    assert Stream([named], classes=4).class_names == ["zero", "1", "2", "3"]
    assert Stream([Experience("a", 0, x, y, x, y)], classes=3).class_names == ["0", "1", "2"]
    odd = Experience("a", 0, x, y, x, y, class_names=("what", "are", "these"))
    assert Stream([odd], classes=3).class_names == ["0", "1", "2"]


def test_scalars_of_numpy_and_torch_are_numbers() -> None:
    expected = class_incremental(TRAIN, TEST, increment=2, order=[7, 1, 4], train_per_class=3)
    given = class_incremental(
        TRAIN, TEST, increment=np.int64(2), order=torch.tensor([7, 1, 4]), train_per_class=np.uint8(3)
    )
    for a, b in zip(expected, given, strict=True):
        assert torch.equal(a.train_inputs, b.train_inputs)
    some = class_incremental(TRAIN, TEST, increment=2, classes=np.arange(3))
    assert sorted(some.class_names) == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"increment": 1.5}, TypeError, r"increment must be a whole number, got 1\.5"),
        ({"base": "2"}, TypeError, "base must be a whole number, got '2'"),
        ({"seed": None}, TypeError, "seed must be a whole number, got None"),
        ({"seed": 2**32}, ValueError, "seed must be at most 4294967295"),
        ({"train_per_class": True}, TypeError, "train_per_class must be a whole number"),
        ({"order": "abc"}, TypeError, "order must be a list of labels, got 'abc'"),
        ({"order": 3}, TypeError, "order must be a list of labels, got 3"),
        ({"classes": [0, 1.5]}, TypeError, r"classes\[1\] must be a whole number, got 1\.5"),
        ({"train": TRAIN[:2]}, TypeError, "train must be labelled images, got tuple; .*images_of"),
        ({"test": TEST._replace(images=[1])}, TypeError, "test: its images must be a tensor"),
        ({"test": TEST._replace(labels=TEST.labels[1:])}, ValueError, r"test: its labels must be int64 \[40\]"),
        ({"train": TRAIN._replace(labels=TRAIN.labels.int())}, ValueError, "train: its labels must be int64"),
        ({"train": TRAIN._replace(labels=[0])}, ValueError, "one for each image, got list"),
    ],
)
def test_arguments_of_other_kinds_are_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"train": TRAIN, "test": TEST, "increment": 2} | change
    with pytest.raises(error, match=message):
        class_incremental(**arguments)


def test_a_label_below_0_is_refused() -> None:
    images = Images(torch.zeros((4, 3, 2, 2), dtype=torch.uint8), torch.tensor([0, 1, -1, 0]), ["a", "b"])
    with pytest.raises(ValueError, match="train: its labels must be at least 0, got -1"):
        class_incremental(images, images, increment=1)
