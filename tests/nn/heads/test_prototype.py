"""PrototypeClassifier: EASE's completed prototypes from batches in any order, merging, growing, saving."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from flexkern.nn.heads.prototype import PrototypeClassifier
from flexkern.ops.prototype import complete_prototypes, prototype_logits

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(autouse=True)
def backend() -> None:
    """In place of the one for all modules: there is one implementation."""


def stream(seed: int = 0, tasks: int = 3, classes: int = 2, n: int = 12, dim: int = 5) -> list:
    """For each task: features [n classes, task + 1, dim] and labels, shuffled."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for t in range(tasks):
        labels = torch.arange(t * classes, (t + 1) * classes).repeat(n)
        labels = labels[torch.randperm(len(labels), generator=g)]
        features = torch.randn((len(labels), t + 1, dim), generator=g) + labels[:, None, None] % 3
        out.append((features, labels))
    return out


def taught(data: list, batch: int = 1000, **options: object) -> PrototypeClassifier:
    classifier = PrototypeClassifier(5, **options)
    for features, labels in data:
        classifier.add_subspace()
        for x, y in zip(features.split(batch), labels.split(batch), strict=True):
            classifier.update(x, y)
    return classifier


@pytest.mark.parametrize("name", ["ease_a", "ease_b"])
def test_goldens_task_by_task(name: str) -> None:
    """Samples whose class means are the golden's prototypes, as a stream, give its prototypes and logits."""
    with np.load(DATA / f"{name}.npz") as file:
        z = {key: file[key] for key in file.files}
    dim, base, inc, tasks = int(z["dim"]), bool(z["use_init_ptm"]), int(z["inc"]), int(z["tasks"])
    before, after, features = (
        torch.from_numpy(z[key]).unflatten(1, (-1, dim))
        for key in ("prototypes_before", "prototypes_after", "features")
    )
    classifier = PrototypeClassifier(dim, base=base, base_weight=float(z["beta"]))
    g = torch.Generator().manual_seed(0)
    for t in range(tasks):
        classifier.add_subspace()
        mean = before[t * inc : (t + 1) * inc, : t + 1 + base].double()
        noise = torch.randn(mean.shape, generator=g, dtype=torch.float64)
        labels = torch.arange(t * inc, (t + 1) * inc)
        classifier.update(torch.cat([mean + noise, mean - noise]), labels.repeat(2))
    # float32 rounding of the golden: at most 80 + 40 roundings, as sqrt, of prototypes under 4 and logits under
    # 2
    assert (classifier.complete() - after).abs().max() <= 2 * math.sqrt(120) * 2**-24 * 4
    assert (classifier.logits(features) - torch.from_numpy(z["logits"])).abs().max() <= (
        2 * math.sqrt(120) * 2**-24 * 2
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**31), st.booleans())
def test_any_order_of_batches(batch: int, seed: int, base: bool) -> None:
    data = stream()
    if base:
        data = [(torch.cat([f[:, :1], f], 1), y) for f, y in data]
    expected = taught(data, base=base)
    g = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(y), generator=g) for _, y in data]
    shuffled = [(f[o], y[o]) for (f, y), o in zip(data, orders, strict=True)]
    # The class that comes first may be another one, but classes are numbered by label.
    got = taught(shuffled, batch, base=base)
    assert torch.equal(got.counts, expected.counts)
    assert torch.equal(got.own_subspace, expected.own_subspace)
    # 24 float64 sums of numbers under 8
    torch.testing.assert_close(got.sums, expected.sums, rtol=0, atol=24 * 8 * 24 * 2**-53)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 23))
def test_merge(cut: int) -> None:
    data = stream()
    whole = taught(data)
    halves = [[(f[:cut], y[:cut]) for f, y in data], [(f[cut:], y[cut:]) for f, y in data]]
    one, other = (PrototypeClassifier(5) for _ in range(2))
    for t in range(len(data)):
        for classifier, half in ((one, halves[0]), (other, halves[1])):
            classifier.add_subspace()
            classifier.update(*half[t])
    if one.classes < whole.classes:  # else its own subspace of a class that it has not seen is not known
        one, other = other, one
    if not torch.equal(one.own_subspace, whole.own_subspace) or not torch.equal(
        other.own_subspace, whole.own_subspace[: other.classes]
    ):
        with pytest.raises(ValueError, match="own subspace"):
            one.merge(other)
        return
    one.merge(other)
    assert torch.equal(one.counts, whole.counts)
    torch.testing.assert_close(one.sums, whole.sums, rtol=0, atol=24 * 8 * 24 * 2**-53)


def test_merge_into_an_empty_one() -> None:
    whole = taught(stream())
    empty = PrototypeClassifier(5)
    for _ in range(3):
        empty.add_subspace()
    empty.merge(whole)
    assert torch.equal(empty.complete(), whole.complete())
    assert torch.equal(empty.own_subspace, whole.own_subspace)


def test_completion_options() -> None:
    data = stream()
    means = torch.zeros(6, 3, 5, dtype=torch.float64)
    for t, (f, y) in enumerate(data):
        for c in y.unique():
            means[c, : t + 1] = f[y == c].double().mean(0)
    own = torch.arange(6) // 2
    for over in ("later", "new"):
        expected = complete_prototypes(means, own, over=over).float()
        # both round to float32 what agrees in float64 but for a few roundings: at most one step of float32
        torch.testing.assert_close(taught(data, completion=over).complete(), expected, rtol=2**-23, atol=1e-12)
    plain = taught(data, completion="none").complete()
    assert plain[:2, 1:].eq(0).all()
    assert plain[4:].ne(0).all()


def test_a_class_that_comes_back_is_not_completed() -> None:
    data = stream()
    classifier = taught(data)
    completed = classifier.complete()[0, 2].clone()
    again = torch.ones(4, 3, 5)
    classifier.update(again, torch.zeros(4, dtype=torch.int64))
    assert classifier.complete()[0, 2].eq(classifier.complete()[0, 2, 0]).all()
    assert not torch.equal(completed, classifier.complete()[0, 2])


def test_logits_and_predictions() -> None:
    data = stream()
    classifier = taught(data, weight=0.3, reweighting="paper")
    x = data[2][0]
    openings = torch.rand(len(x), 3)
    expected = prototype_logits(
        x, classifier.complete(), classifier.own_subspace, weight=0.3, reweighting="paper", openings=openings
    )
    assert torch.equal(classifier.logits(x, openings), expected)
    assert torch.equal(classifier(x, openings), expected)
    assert torch.equal(classifier.predict(x, openings), expected.argmax(1))


def test_one_subspace_separates_classes() -> None:
    g = torch.Generator().manual_seed(1)
    means = torch.eye(4) * 10
    labels = torch.arange(4).repeat(20)
    classifier = PrototypeClassifier(4)
    classifier.add_subspace()
    classifier.update((means[labels] + torch.randn((80, 4), generator=g))[:, None], labels)
    test = means[labels] + torch.randn((80, 4), generator=g)
    assert torch.equal(classifier.predict(test[:, None]), labels)


def test_saved_and_loaded_into_a_fresh_one() -> None:
    classifier = taught(stream(), base=False)
    restored = PrototypeClassifier(5)
    restored.complete()
    restored.load_state_dict(load(save(classifier.state_dict())))
    assert torch.equal(restored.complete(), classifier.complete())
    features, labels = stream(seed=9, tasks=4)[3]
    for c in (classifier, restored):
        c.add_subspace()
        c.update(features, labels)
    assert torch.equal(restored.complete(), classifier.complete())


def test_casting_leaves_the_sums_exact() -> None:
    classifier = taught(stream())
    sums = classifier.sums.clone()
    classifier.to(torch.bfloat16)
    assert torch.equal(classifier.sums, sums)


def test_bfloat16_features_under_autocast() -> None:
    data = stream()
    low = [(f.bfloat16(), y) for f, y in data]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = taught(low).complete()
    assert torch.equal(got, taught([(f.float(), y) for f, y in low]).complete())


def test_errors() -> None:
    classifier = PrototypeClassifier(5)
    features, labels = torch.zeros(4, 1, 5), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="add_subspace"):
        classifier.update(features, labels)
    classifier.add_subspace()
    with pytest.raises(RuntimeError, match="no class"):
        classifier.predict(features)
    with pytest.raises(ValueError, match=r"features must be \[n, K, dim\] = \[n, 1, 5\]"):
        classifier.update(torch.zeros(4, 2, 5), labels)
    with pytest.raises(TypeError, match="floating-point"):
        classifier.update(features.long(), labels)
    with pytest.raises(ValueError, match="labels must be >= 0"):
        classifier.update(features, labels - 1)
    with pytest.raises(ValueError, match=r"labels must be \[4\]"):
        classifier.update(features, labels[:3])
    with pytest.raises(ValueError, match="other must have dim"):
        classifier.merge(PrototypeClassifier(5))
    assert classifier.classes == 0
    for options in ({"reweighting": "x"}, {"completion": "x"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            PrototypeClassifier(5, **options)
    with pytest.raises(ValueError, match="dim"):
        PrototypeClassifier(4).load_state_dict(taught(stream()).state_dict())
