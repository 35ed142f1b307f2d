"""The two-digit stream: what an item is made of, where its images come from, reproducibility."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexkern.streams import Experience, Stream, TwoDigitItems, mnist, two_digit_items, two_digit_stream
from flexkern.streams.two_digit import CLASSES, compose, wrong_labels

Coded = tuple[torch.Tensor, torch.Tensor]
SMALL = {"items": 5, "train_per_item": 40, "test_per_item": 20}


@pytest.fixture(scope="module")
def coded_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """30 images a digit in which every pixel of image i is i + 1: a composite tells where it comes from."""
    labels = torch.arange(300) % 10
    images = (torch.arange(300) + 1.0)[:, None, None].expand(300, 4, 4).clone()
    return images, labels


def sources(composites: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the left and right digit images in composites of :func:`coded_digits`."""
    middle = composites.shape[1] // 2
    return composites[:, middle, 0].long() - 1, composites[:, middle, -1].long() - 1


def digest(stream: Stream) -> str:
    sha = hashlib.sha256()
    for e in stream:
        for t in (e.train_inputs, e.train_labels, e.test_inputs, e.test_labels):
            sha.update(t.numpy().tobytes())
    return sha.hexdigest()


def test_compose_puts_digits_side_by_side_in_the_middle_of_a_square() -> None:
    left, right = torch.full((2, 28, 28), 3, dtype=torch.uint8), torch.full((2, 28, 28), 7, dtype=torch.uint8)
    image = compose(left, right)
    assert image.shape == (2, 56, 56)
    assert image.dtype == torch.uint8
    assert (image[:, 14:42, :28] == 3).all()
    assert (image[:, 14:42, 28:] == 7).all()
    assert (image[:, :14] == 0).all()
    assert (image[:, 42:] == 0).all()


def test_an_item_is_its_images_and_as_many_others_with_wrong_labels(coded_digits: Coded) -> None:
    images, labels = coded_digits
    stream = two_digit_stream(images, labels, seed=3, **SMALL)
    assert len(stream) == stream.classes == 5
    assert stream.input_shape == (8, 8)
    for e in stream:
        target = tuple(int(d) for d in e.name.split())
        assert target in CLASSES
        assert len(e.train_inputs) == 40 + 4 * round(40 / 4)
        assert (e.train_labels[:40] == e.number).all()
        assert (e.test_labels == e.number).all()
        assert len(e.test_labels) == 20
        digit_pairs = [
            tuple(pair) for pair in torch.stack([labels[s] for s in sources(e.train_inputs)], 1).tolist()
        ]
        assert set(digit_pairs[:40]) == {target}
        item_of = {tuple(int(d) for d in name.split()): i for i, name in enumerate(stream.names)}
        true = np.array([item_of[pair] for pair in digit_pairs[40:]])
        told = e.train_labels[40:].numpy()
        assert not (true == e.number).any()
        assert not (told == e.number).any()
        assert not (told == true).any()
        assert (np.bincount(true, minlength=5) == np.bincount(told, minlength=5)).all()
        assert (np.bincount(true, minlength=5) == [0 if i == e.number else 10 for i in range(5)]).all()
        left, right = sources(e.test_inputs)
        assert {(int(labels[a]), int(labels[b])) for a, b in zip(left, right, strict=True)} == {target}


def test_halves_of_other_images_round_up(coded_digits: Coded) -> None:
    """As the release rounds: 10 images and four other items give 3 of each, where 2.5 to even would be 2."""
    for train_per_item, each in ((10, 3), (14, 4), (13, 3)):
        stream = two_digit_stream(
            *coded_digits, items=5, train_per_item=train_per_item, test_per_item=2, seed=0
        )
        for e in stream:
            assert len(e.train_labels) == train_per_item + 4 * each


def test_seeds_and_numbers_are_not_added_up(coded_digits: Coded) -> None:
    """Item 1 of seed 0 and item 0 of seed 1: the same images, and other ones of them are drawn."""
    items = two_digit_items(*coded_digits, seed=3, **SMALL)

    def drawn(number: int, seed: int) -> list[list[int]]:
        same = TwoDigitItems(items.names, [items.train[0]] * 5, items.tests, seed)
        others = sources(same.experience(number).train_inputs[40:])
        return torch.stack(others).tolist()

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 0) != drawn(0, 1)
    assert drawn(2, 0) != drawn(1, 1) != drawn(0, 2)


def test_training_and_test_images_share_no_digit_image(coded_digits: Coded) -> None:
    stream = two_digit_stream(*coded_digits, seed=0, **SMALL)
    train = {int(s) for e in stream for side in sources(e.train_inputs) for s in side}
    test = {int(s) for e in stream for side in sources(e.test_inputs) for s in side}
    assert train
    assert test
    assert not train & test


def test_no_composite_of_an_item_occurs_twice(coded_digits: Coded) -> None:
    for e in two_digit_stream(*coded_digits, seed=0, **SMALL):
        for composites in (e.train_inputs[:40], e.train_inputs[40:], e.test_inputs):
            pairs = torch.stack(sources(composites), 1)
            assert len(pairs.unique(dim=0)) == len(pairs)


def test_a_given_test_split_is_used(coded_digits: Coded) -> None:
    images, labels = coded_digits
    stream = two_digit_stream(
        images, labels, seed=0, test_images=images + 1000, test_labels=labels.clone(), **SMALL
    )
    for e in stream:
        assert e.train_inputs.amax() < 1000
        assert (sources(e.test_inputs)[0] >= 1000).all()


def test_one_seed_gives_the_same_bits_and_leaves_global_generators_alone(coded_digits: Coded) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = digest(two_digit_stream(*coded_digits, seed=5, **SMALL))
    torch.manual_seed(2)
    np.random.seed(2)
    assert first == digest(two_digit_stream(*coded_digits, seed=5, **SMALL))
    assert first != digest(two_digit_stream(*coded_digits, seed=6, **SMALL))
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_a_longer_stream_begins_with_the_shorter_one(coded_digits: Coded) -> None:
    short = two_digit_stream(*coded_digits, seed=5, **SMALL)
    long = two_digit_stream(*coded_digits, seed=5, **(SMALL | {"items": 9}))
    assert long.names[:5] == short.names
    for s, e in zip(short, long, strict=False):
        assert torch.equal(s.test_inputs, e.test_inputs)
        assert torch.equal(s.train_inputs[:40], e.train_inputs[:40])
    head = two_digit_items(*coded_digits, seed=5, **(SMALL | {"items": 9})).head(5)
    assert digest(head.stream()) == digest(short)


def test_items_with_features_make_the_stream_of_features(coded_digits: Coded) -> None:
    """A training set gathered from features is the features of the gathered training set."""
    items = two_digit_items(*coded_digits, seed=3, **SMALL)
    of_features = items.map(lambda x: x.flatten(1)[:, ::3] * 2)
    for i, e in enumerate(items.stream()):
        mapped = of_features.experience(i)
        assert torch.equal(mapped.train_inputs, e.train_inputs.flatten(1)[:, ::3] * 2)
        assert torch.equal(mapped.test_inputs, e.test_inputs.flatten(1)[:, ::3] * 2)
        assert torch.equal(mapped.train_labels, e.train_labels)
        assert mapped.name == e.name
    with pytest.raises(ValueError, match=r"items must be in \[3, 5\], got 6"):
        items.head(6)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), st.integers(0, 2**32))
def test_wrong_labels_are_all_wrong_and_keep_their_counts(counts: list[int], seed: int) -> None:
    own = np.repeat(np.arange(len(counts)), counts)
    if max(counts) * 2 > sum(counts):
        with pytest.raises(ValueError, match="more than half"):
            wrong_labels(own, np.random.default_rng(seed))
        return
    told = wrong_labels(own, np.random.default_rng(seed))
    assert not (told == own).any()
    assert (np.sort(told) == own).all()


def test_bundled_digits_are_scikit_learns() -> None:
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    from flexkern.streams import bundled_digits

    images, labels = bundled_digits()
    data = sklearn_datasets.load_digits()
    assert images.dtype == torch.uint8
    assert (images.numpy() == np.rint(data.images / 16 * 255)).all()
    assert (labels.numpy() == data.target).all()
    stream = two_digit_stream(images, labels, seed=0, items=3, train_per_item=10, test_per_item=10)
    assert stream[0].train_inputs.shape == (20, 16, 16)


def test_mnist_reads_an_archive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "y_train": np.arange(20, dtype=np.uint8) % 10,
        "x_test": rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        "y_test": np.arange(10, dtype=np.uint8),
    }
    np.savez(tmp_path / "mnist.npz", **arrays)
    train, test = mnist(tmp_path / "mnist.npz")
    assert (train.images.numpy() == arrays["x_train"]).all()
    assert test.labels.dtype == torch.int64
    assert test.labels.tolist() == list(range(10))
    with pytest.raises(FileNotFoundError, match="no MNIST archive"):
        mnist(tmp_path / "absent.npz")
    np.savez(tmp_path / "part.npz", x_train=arrays["x_train"])
    with pytest.raises(ValueError, match="has no y_train, x_test, y_test"):
        mnist(tmp_path / "part.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": 2}, r"items must be in \[3, 45\], got 2"),
        ({"items": 46}, r"items must be in \[3, 45\], got 46"),
        ({"train_per_item": 0}, "train_per_item must be at least 1, got 0"),
        ({"train_per_item": 10**6}, "train_per_item is 1000000, but .* give only"),
        ({"test_fraction": 1.0}, "test_fraction must be between 0 and 1, got 1.0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"test_images": torch.zeros(5, 4, 4)}, "go together"),
    ],
)
def test_wrong_arguments_are_named(coded_digits: Coded, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_digit_stream(*coded_digits, **({"seed": 0} | SMALL | change))


def test_wrong_images_are_named(coded_digits: Coded) -> None:
    images, labels = coded_digits
    with pytest.raises(ValueError, match=r"images must be \[n, height, width\], got \(300, 4\)"):
        two_digit_stream(images[:, 0], labels, seed=0)
    with pytest.raises(ValueError, match="images must be uint8"):
        two_digit_stream(images.long(), labels, seed=0)
    with pytest.raises(ValueError, match="labels must be one a image"):
        two_digit_stream(images, labels[:-1], seed=0)
    with pytest.raises(ValueError, match="every digit"):
        two_digit_stream(images[labels < 9], labels[labels < 9], seed=0)
    with pytest.raises(TypeError, match="must be tensors"):
        two_digit_stream(images.numpy(), labels, seed=0)


def test_experience_and_stream_check_their_parts() -> None:
    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    good = Experience("a", 0, x, y, x, y)
    with pytest.raises(ValueError, match="train_labels must be int64"):
        Experience("a", 0, x, y.int(), x, y)
    with pytest.raises(ValueError, match="test_labels must be int64"):
        Experience("a", 0, x, y, x, y[:3])
    with pytest.raises(ValueError, match="inputs of one shape"):
        Experience("a", 0, x, y, torch.zeros(4, 3), y)
    with pytest.raises(ValueError, match="must not be empty"):
        Stream([], 2)
    with pytest.raises(ValueError, match="numbered in order"):
        Stream([good, good], 2)
    with pytest.raises(ValueError, match=r"must be in \[0, 2\)"):
        Stream([Experience("a", 0, x, y + 2, x, y)], 2)
    with pytest.raises(ValueError, match="must have one shape"):
        Stream([good, Experience("b", 1, torch.zeros(4, 3), y, torch.zeros(4, 3), y)], 2)


# ----------------------------------------------------------------- as the paper's code does it


def told_to(e: Experience, labels: torch.Tensor, names: tuple[str, ...], own: int) -> np.ndarray:
    """[true item, told item]: how many of an item's foreign images carry which label."""
    item_of = {tuple(int(d) for d in name.split()): i for i, name in enumerate(names)}
    pairs = zip(*(labels[s].tolist() for s in sources(e.train_inputs[own:])), strict=True)
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (np.array([item_of[pair] for pair in pairs]), e.train_labels[own:].numpy()), 1)
    return counts


@pytest.mark.parametrize(
    ("items", "own", "each", "share", "rest"), [(10, 2000, 222, 27, 6), (30, 580, 20, 0, 20)]
)
def test_as_released_wrong_labels_are_spread_evenly_over_the_other_items(
    coded_digits: Coded, items: int, own: int, each: int, share: int, rest: int
) -> None:
    """With the release's numbers: 27 of each of 8 labels and 6 more, for the 222 images of each of 9 items."""
    made = two_digit_items(
        *coded_digits, items=items, train_per_item=own, test_per_item=5, seed=2, as_released=True
    )
    labels = coded_digits[1]
    for number in (0, items - 1):
        counts = told_to(made.experience(number), labels, made.names, own)
        others = [i for i in range(items) if i != number]
        assert not counts[number].any()
        assert not counts[:, number].any()
        assert not counts.diagonal().any()
        for i in others:
            wrong = counts[i, [j for j in others if j != i]]
            assert wrong.sum() == each
            assert wrong.min() >= share
            assert (wrong - share).sum() == rest


def test_as_released_the_others_are_their_first_images_dealt_out_anew(coded_digits: Coded) -> None:
    made = two_digit_items(*coded_digits, seed=3, as_released=True, **SMALL)
    first, again, same = (made.experience(2, turn) for turn in (0, 1, 0))
    assert torch.equal(first.train_inputs, same.train_inputs)
    assert torch.equal(first.train_labels, same.train_labels)
    expected = torch.stack([made.train[i][:10].sum((1, 2)).sort().values for i in (0, 1, 3, 4)])
    for e in (first, again):
        assert torch.equal(e.train_inputs[:40], made.train[2])
        found = e.train_inputs[40:].view(4, 10, 8, 8).sum((2, 3)).sort(dim=1).values
        assert torch.equal(found, expected)
    assert not torch.equal(first.train_inputs, again.train_inputs)
    # By default a repeated item is the same to the bit, and its others are drawn from all of an item's images.
    usual = two_digit_items(*coded_digits, seed=3, **SMALL)
    assert torch.equal(usual.experience(2, 1).train_inputs, usual.experience(2).train_inputs)
    found = usual.experience(2).train_inputs[40:].view(4, 10, 8, 8).sum((2, 3)).sort(dim=1).values
    assert not torch.equal(
        found, torch.stack([usual.train[i][:10].sum((1, 2)).sort().values for i in (0, 1, 3, 4)])
    )


def test_as_released_composites_are_drawn_with_replacement(coded_digits: Coded) -> None:
    """So there may be more of them than there are pairs of digit images, and some occur twice."""
    sizes = {"items": 3, "train_per_item": 1000, "test_per_item": 100, "seed": 0}
    with pytest.raises(ValueError, match="give only"):
        two_digit_items(*coded_digits, **sizes)
    for x in two_digit_items(*coded_digits, as_released=True, **sizes).train:
        pairs = torch.stack(sources(x), 1)
        different = len(pairs.unique(dim=0))
        # Of 22 x 22 pairs 1,000 draws leave a share of e^(-1000/484) = 0.127 out, with a standard deviation of
        # about 0.011.
        assert len(pairs) == 1000
        assert abs(1 - different / (22 * 22) - 0.127) < 0.06


def test_as_released_goes_with_what_is_made_of_items(coded_digits: Coded) -> None:
    made = two_digit_items(*coded_digits, seed=3, as_released=True, **SMALL)
    assert made.map(lambda x: x * 2).as_released
    assert made.head(4).as_released
    with pytest.raises(TypeError, match="as_released must be"):
        two_digit_items(*coded_digits, seed=3, as_released="yes", **SMALL)


def test_selected_items_are_a_stream_of_their_own(coded_digits: Coded) -> None:
    items = two_digit_items(*coded_digits, seed=3, **SMALL)
    chosen = items.select([4, 0, 2])
    assert chosen.names == (items.names[4], items.names[0], items.names[2])
    assert torch.equal(chosen.train[0], items.train[4])
    assert [set(e.train_labels.tolist()) for e in chosen.stream()] == [{0, 1, 2}] * 3
    for wrong in ([0, 1], [0, 1, 1], [0, 1, 5], [-1, 0, 1]):
        with pytest.raises(ValueError, match=r"numbers must be at least 3 different ones in \[0, 5\), got"):
            items.select(wrong)
