"""Blurry, repeating, domain-incremental and online streams: which images come when, under which labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexkern.features import extract
from flexkern.streams import (
    Experience,
    Images,
    ImageSource,
    OnlineStream,
    Stream,
    blurry,
    class_incremental,
    class_repetition,
    domain_incremental,
    online,
)
from flexkern.streams.image_source import identity_of


def coded(classes: int, each: int, part: int) -> Images:
    """Interleaved classes; the pixels of an image say its part, its class and its number in the class."""
    labels = torch.arange(classes * each) % classes
    numbers = torch.arange(classes * each) // classes
    pixels = torch.stack([torch.full_like(labels, part), labels, numbers], 1).to(torch.uint8)
    images = pixels[:, :, None, None].expand(-1, 3, 2, 2).contiguous()
    return Images(images, labels, [f"class {c}" for c in range(classes)])


class Lazy(ImageSource):
    """Images of a tensor as a source; counts what it decodes."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__(images.shape[-1], workers=0)
        self.images, self.decoded = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def decode(self, i: int) -> np.ndarray:
        self.decoded += 1
        return self.images[i].permute(1, 2, 0).numpy()

    def name(self, i: int) -> str:
        return str(i)

    def identity(self, i: int) -> str:
        return str(i)


TRAIN, TEST = coded(10, 12, 1), coded(10, 4, 2)
DOMAINS = {"plain": (TRAIN, TEST), "dark": (coded(10, 8, 3), coded(10, 3, 4))}
STREAMS: dict[str, Callable[[Images, Images], Stream]] = {
    "class-incremental": lambda a, b: class_incremental(a, b, increment=3, seed=3),
    "blurry": lambda a, b: blurry(a, b, tasks=4, seed=3),
    "class-repetition": lambda a, b: class_repetition(a, b, experiences=5, classes_per_experience=4, seed=3),
    "domain-incremental": lambda a, b: domain_incremental({"a": (a, b), "b": (a, b)}, seed=3),
    "online": lambda a, b: online(blurry(a, b, tasks=4, seed=3), batch_size=7, seed=3),
}


def pixels(inputs: Any) -> list[tuple[int, int, int]]:
    """Part, class and number of each image."""
    images = inputs if isinstance(inputs, torch.Tensor) else inputs.tensor()
    return [tuple(row) for row in images[:, :, 0, 0].tolist()]


def check(stream: Stream) -> None:
    """Labels in the order of first coming, names with them, tests where a class comes first."""
    seen = 0
    for e in stream:
        labels = e.train_labels.unique().tolist()
        new = [c for c in labels if c >= seen]
        assert new == list(range(seen, seen + len(new)))
        assert [stream.class_names[c] for c in labels] == list(e.class_names)
        for inputs, told in ((e.train_inputs, e.train_labels), (e.test_inputs, e.test_labels)):
            for (_, c, _), label in zip(pixels(inputs), told.tolist(), strict=True):
                assert stream.class_names[label] == f"class {c}"
        if "domain-incremental" not in (stream.scenario, getattr(stream, "of", "")):
            assert e.test_labels.unique().tolist() == new
        seen += len(new)
    assert seen == stream.classes
    assert len(set(stream.names)) == len(stream)


def of_training(stream: Stream) -> list[tuple[int, int, int]]:
    return [image for e in stream for image in pixels(e.train_inputs)]


@pytest.mark.parametrize("scenario", STREAMS)
def test_labels_names_and_tests(scenario: str) -> None:
    stream = STREAMS[scenario](TRAIN, TEST)
    assert stream.scenario == scenario
    check(stream)
    assert identity_of(stream[1].train_inputs) == identity_of(STREAMS[scenario](TRAIN, TEST)[1].train_inputs)


@pytest.mark.parametrize("scenario", STREAMS)
def test_of_a_source_nothing_is_decoded(scenario: str) -> None:
    sources = [Lazy(part.images) for part in (TRAIN, TEST)]
    lazy = STREAMS[scenario](*(p._replace(images=s) for p, s in zip((TRAIN, TEST), sources, strict=True)))
    here = STREAMS[scenario](TRAIN, TEST)
    assert not any(s.decoded for s in sources)
    for a, b in zip(lazy, here, strict=True):
        assert isinstance(a.train_inputs, ImageSource)
        assert torch.equal(a.train_inputs.tensor(), b.train_inputs)
        assert torch.equal(a.test_labels, b.test_labels)
        assert a.test_inputs.shape == b.test_inputs.shape


# ---------------------------------------------------------------------- blurry


@settings(max_examples=20, deadline=None)
@given(
    tasks=st.integers(2, 10),
    disjoint=st.floats(0, 1),
    blur=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_blurry(tasks: int, disjoint: float, blur: float, seed: int) -> None:
    stream = blurry(TRAIN, TEST, tasks=tasks, disjoint=disjoint, blur=blur, seed=seed)
    check(stream)
    assert len(stream) == tasks
    assert sorted(of_training(stream)) == sorted(pixels(TRAIN.images))  # each image once
    counts = torch.stack([e.train_labels.bincount(minlength=10) for e in stream])  # [tasks, classes]
    away = 12 - counts.max(0).values
    blurred = min(round(blur * 12), 11)
    assert (counts.sum(1) > 0).all()
    # Where most of a class's images are away, its own time is no longer the fullest.
    if blur <= 0.5:
        assert sorted(away.tolist()) == sorted(
            [0] * round(disjoint * 10) + [blurred] * (10 - round(disjoint * 10))
        )
        if 12 - blurred > -(-blurred // (tasks - 1)):  # half of the images in one other task are as many
            assert (counts.argmax(0).bincount(minlength=tasks) > 0).all()  # each task has classes of its own
    if blurred:
        spread = counts.sort(0).values[:-1] if blur <= 0.5 else counts[:0]
        assert not len(spread) or ((spread.max(0).values - spread.min(0).values) <= 1).all()


def test_the_default_is_i_blurry_50_10() -> None:
    images = coded(20, 100, 1)
    stream = blurry(images, coded(20, 2, 2), tasks=5)
    counts = torch.stack([e.train_labels.bincount(minlength=20) for e in stream])
    assert sorted(counts.max(0).values.tolist()) == [90] * 10 + [100] * 10
    assert counts.sum(1).float().std() < 20  # tasks are about as large as each other


def test_without_blur_it_is_class_incremental() -> None:
    sharp = class_incremental(TRAIN, TEST, increment=2, seed=4)
    same = blurry(TRAIN, TEST, tasks=5, disjoint=1, blur=0.3, seed=4)
    for a, b in zip(sharp, same, strict=True):
        assert torch.equal(a.train_inputs, b.train_inputs)
        assert torch.equal(a.test_labels, b.test_labels)
        assert a.class_names == b.class_names


# ---------------------------------------------------------------------- classes that come again


@settings(max_examples=20, deadline=None)
@given(experiences=st.integers(1, 12), each=st.integers(1, 10), seed=st.integers(0, 2**32 - 1))
def test_repetition_in_slots(experiences: int, each: int, seed: int) -> None:
    def made() -> Stream:
        return class_repetition(TRAIN, TEST, experiences=experiences, classes_per_experience=each, seed=seed)

    if experiences * each < 10:
        with pytest.raises(ValueError, match=r"classes_per_experience: .* cannot have all 10 classes"):
            made()
        return
    stream = made()
    check(stream)
    assert sorted(of_training(stream)) == sorted(pixels(TRAIN.images))
    comes = torch.stack([e.train_labels.bincount(minlength=10) for e in stream])
    assert ((comes > 0).sum(1) == each).all()
    times = (comes > 0).sum(0)
    assert int(times.max() - times.min()) <= 1
    if experiences * each == 10:  # none comes again
        assert int(times.max()) == 1


@settings(max_examples=20, deadline=None)
@given(experiences=st.integers(1, 12), probability=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_repetition_by_chance(experiences: int, probability: float, seed: int) -> None:
    stream = class_repetition(TRAIN, TEST, experiences=experiences, probability=probability, seed=seed)
    check(stream)
    assert sorted(of_training(stream)) == sorted(pixels(TRAIN.images))
    assert all(len(e.train_labels) for e in stream)
    if probability == 1:
        assert len(stream[-1].class_names) == 10
    if probability == 0 and experiences <= 10:
        assert sum(len(e.class_names) for e in stream) == 10


# ---------------------------------------------------------------------- domains


def test_domains_have_the_same_classes_and_their_own_tests() -> None:
    stream = domain_incremental(DOMAINS)
    check(stream)
    assert stream.names == ["plain", "dark"]
    assert stream.classes == 10
    assert stream.class_names == [f"class {c}" for c in range(10)]
    assert {p for p, _, _ in pixels(stream[0].test_inputs)} == {2}
    assert {p for p, _, _ in pixels(stream[1].train_inputs)} == {3}
    assert {p for p, _, _ in pixels(stream[1].test_inputs)} == {4}


def test_order_classes_and_counts_of_domains() -> None:
    three = DOMAINS | {"wet": DOMAINS["plain"]}
    assert domain_incremental(three, order=["wet", "plain"]).names == ["wet", "plain"]
    orders = {tuple(domain_incremental(three, order="shuffled", seed=s).names) for s in range(8)}
    assert len(orders) > 2
    assert all(sorted(o) == sorted(three) for o in orders)
    stream = domain_incremental(DOMAINS, classes=[7, 2], train_per_class=3, test_per_class=2)
    check(stream)
    assert stream.class_names == ["class 7", "class 2"]
    assert [len(e.train_labels) for e in stream] == [6, 6]
    assert [len(e.test_labels) for e in stream] == [4, 4]


def test_classes_are_matched_by_their_names_and_may_be_missing() -> None:
    def some(part: int, names: list[str]) -> Images:
        """Folders of which some are missing: labels by the alphabet of those that are there."""
        images = coded(len(names), 4, part)
        code = torch.tensor([int(n[-1]) for n in names])[images.labels]
        x = images.images.clone()
        x[:, 1] = code[:, None, None].to(torch.uint8)
        return Images(x, images.labels, names)

    first, second = ["class 0", "class 2"], ["class 0", "class 1", "class 2"]
    stream = domain_incremental(
        {"a": (some(1, first), some(2, first)), "b": (some(3, second), some(4, second))}
    )
    check(stream)
    assert stream.class_names == ["class 0", "class 2", "class 1"]
    assert stream[0].class_names == ("class 0", "class 2")
    # The domain that has fewer may come later.
    turned = domain_incremental(
        {"b": (some(3, second), some(4, second)), "a": (some(1, first), some(2, first))}
    )
    check(turned)
    assert turned.class_names == second
    assert turned[1].train_labels.unique().tolist() == [0, 2]


def test_a_class_may_have_no_test_images_in_a_domain() -> None:
    keep = TEST.labels != 4
    test = TEST._replace(images=TEST.images[keep], labels=TEST.labels[keep])
    stream = domain_incremental({"a": (TRAIN, TEST), "b": (TRAIN, test)})
    check(stream)
    assert stream[1].test_labels.unique().tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_images_of_another_size_are_resized_when_it_is_said() -> None:
    large = TRAIN._replace(images=TRAIN.images.repeat_interleave(2, -1).repeat_interleave(2, -2))
    domains = {"a": (TRAIN, TEST), "b": (large, TEST)}
    with pytest.raises(ValueError, match=r"domains\['b'\], train: its images are \(3, 4, 4\) and .*size="):
        domain_incremental(domains)
    stream = domain_incremental(domains, size=4)
    assert stream.input_shape == (3, 4, 4)
    check(stream)
    lazy = TRAIN._replace(images=Lazy(TRAIN.images))
    with pytest.raises(ValueError, match=r"domains\['c'\]: .* are 2 pixels wide; read them with size=4"):
        domain_incremental({"c": (lazy, TEST)}, size=4)


# ---------------------------------------------------------------------- online


@pytest.mark.parametrize("scenario", [s for s in STREAMS if s != "online"])
@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_online_parts(scenario: str, batch_size: int) -> None:
    stream = STREAMS[scenario](TRAIN, TEST)
    parts = online(stream, batch_size=batch_size, seed=5)
    assert parts.of == scenario
    check(parts)
    seen = number = 0
    for i, e in enumerate(stream):
        assert parts[i].train_inputs is e.train_inputs  # nothing is copied
        found: list[Any] = []
        for part in parts.parts(i):
            assert part.number == number
            labels = part.train_labels.unique().tolist()
            new = [c for c in labels if c >= seen]
            assert new == list(range(seen, seen + len(new)))
            assert [parts.class_names[c] for c in labels] == list(part.class_names)
            assert 1 <= len(part.train_labels) <= batch_size
            assert not len(part.test_labels)
            for (_, c, _), label in zip(pixels(part.train_inputs), part.train_labels.tolist(), strict=True):
                assert parts.class_names[label] == f"class {c}"
            found += pixels(part.train_inputs)
            seen, number = seen + len(new), number + 1
        assert found != pixels(e.train_inputs)  # shuffled
        assert sorted(found) == sorted(pixels(e.train_inputs))  # each image once
        assert len(parts.parts(i)) == -(-len(e.train_labels) // batch_size)
    again = online(stream, batch_size=batch_size, seed=5)
    other = online(stream, batch_size=batch_size, seed=6)
    assert torch.equal(parts.parts(0)[0].train_inputs, again.parts(0)[0].train_inputs)
    assert not torch.equal(parts.parts(0)[0].train_inputs, other.parts(0)[0].train_inputs)


def test_a_run_goes_on_in_the_middle() -> None:
    parts = online(STREAMS["blurry"](TRAIN, TEST), batch_size=5).parts(2)
    left = parts[3:]
    assert [e.name for e in left] == [e.name for e in parts][3:]
    assert left[0].number == parts[3].number
    assert torch.equal(left[-1].train_inputs, parts[-1].train_inputs)
    with pytest.raises(IndexError):
        parts[len(parts)]


@pytest.mark.parametrize("scenario", STREAMS)
def test_features_of_a_stream_are_a_stream_of_that_kind(scenario: str) -> None:
    stream = STREAMS[scenario](TRAIN, TEST)
    module = torch.nn.Flatten()
    features = extract(stream, module)
    assert features.scenario == scenario
    assert features.class_names == stream.class_names
    assert [len(e.test_labels) for e in features] == [len(e.test_labels) for e in stream]
    if isinstance(stream, OnlineStream):
        assert isinstance(features, OnlineStream)
        assert (features.of, features.batch_size) == (stream.of, stream.batch_size)
        for a, b in zip(features.parts(1), stream.parts(1), strict=True):
            assert torch.equal(a.train_inputs, b.train_inputs.flatten(1).float())
            assert (a.number, a.name, a.class_names) == (b.number, b.name, b.class_names)
        with pytest.raises(ValueError, match="experiences must have as many training inputs"):
            stream.with_experiences(stream[:1])


def test_a_stream_without_names_stays_without() -> None:
    x, y = torch.zeros(4, 3), torch.tensor([3, 1, 0, 3])
    stream = online(Stream([Experience("a", 0, x, y, x, y)], classes=5))
    assert stream.class_names == ["0", "1", "2", "3", "4"]
    assert [p.class_names for p in stream.parts(0)] == [()] * 4
    assert sorted(stream[0].train_labels.tolist()) in ([0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2])
    assert torch.equal(stream[0].train_labels, stream[0].test_labels)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("make", "change", "error", "message"),
    [
        (blurry, {"tasks": 1}, ValueError, "tasks must be at least 2, got 1"),
        (blurry, {"tasks": 11}, ValueError, "tasks is 11, but only 10 classes take part"),
        (blurry, {"tasks": 2, "disjoint": 50}, ValueError, r"disjoint must be in \[0, 1\], got 50"),
        (blurry, {"tasks": 2, "blur": 1}, ValueError, r"blur must be in \[0, 1\), got 1"),
        (blurry, {"tasks": 2, "blur": "x"}, TypeError, "blur must be a number, got 'x'"),
        (blurry, {"tasks": 2, "train_per_class": 13}, ValueError, "train_per_class is 13, but class"),
        (class_repetition, {"experiences": 3}, ValueError, "either classes_per_experience or probability"),
        (class_repetition, {"experiences": 3, "classes_per_experience": 2, "probability": 1}, ValueError,
         "either"),
        (class_repetition, {"experiences": 3, "classes_per_experience": 11}, ValueError, "only 10 classes"),
        (class_repetition, {"experiences": 3, "probability": 1.5}, ValueError,
         r"probability must be in \[0, 1\]"),
        (class_repetition, {"experiences": 13, "probability": 1}, ValueError,
         "train: class . comes in 1. experiences and has 12 images"),
        (class_repetition, {"experiences": 0, "probability": 1}, ValueError, "experiences must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(
    make: Any, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(TRAIN, TEST, **change)


@pytest.mark.parametrize(
    ("domains", "change", "error", "message"),
    [
        ({}, {}, ValueError, "domains must have at least one"),
        ([TRAIN], {}, TypeError, "domains must map names to pairs"),
        ({"a": TRAIN}, {}, TypeError, r"domains\['a'\] must be a pair of training and test images"),
        ({"a": (TRAIN, 3)}, {}, TypeError, r"domains\['a'\], test must be labelled images"),
        (DOMAINS, {"order": ["drak"]}, ValueError,
         r"order\[0\]: there is no domain 'drak'; did you mean 'dark'"),
        (DOMAINS, {"order": ["dark", "dark"]}, ValueError, "order must name each domain once"),
        (DOMAINS, {"order": "random"}, ValueError, r"order must be one of \('shuffled',\)"),
        (DOMAINS, {"order": 3}, TypeError, "order must be names of domains"),
        (DOMAINS, {"order": []}, ValueError, "order must name at least one"),
        (DOMAINS, {"classes": [10]}, ValueError, "classes must name .* got 10, of which no domain has images"),
        (DOMAINS, {"classes": [1, 1]}, ValueError, "classes must name each class once"),
        (DOMAINS, {"classes": []}, ValueError, "classes must name at least one class"),
        (DOMAINS, {"train_per_class": 9}, ValueError,
         r"domains\['dark'\]: train_per_class is 9, but class 0 has 8"),
        (DOMAINS, {"seed": -1}, ValueError, "seed must be at least 0"),
        ({"a": (TRAIN, TEST), "b": (coded(5, 3, 1)._replace(names=TRAIN.names), TEST)}, {}, ValueError,
         r"domains\['b'\]: it has test images of 'class 5' and no training images"),
        ({"a": (TRAIN, TEST), "b": (coded(2, 3, 1)._replace(names=["x", "x"]), TEST)}, {}, ValueError,
         r"domains\['b'\], train: two of its classes are named 'x'"),
    ],
)  # fmt: skip
def test_wrong_domains_are_named(
    domains: Any, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        domain_incremental(domains, **change)


def test_wrong_streams_to_take_online() -> None:
    stream = STREAMS["blurry"](TRAIN, TEST)
    with pytest.raises(TypeError, match="stream must be a Stream"):
        online([stream[0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stream is online already"):
        online(online(stream))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        online(stream, batch_size=0)
    with pytest.raises(IndexError, match="experience 4 of a stream of 4"):
        online(stream).parts(4)
    with pytest.raises(ValueError, match="scenario must be one of"):
        Stream(stream.experiences, stream.classes, scenario="blured")
