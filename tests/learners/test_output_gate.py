"""The class-gated error: its values, by hand; what it leaves as it was; and that learners go on to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexkern.learners import MLP_METHODS, Progress, load_mlp
from flexkern.learners.mlp.network import build
from flexkern.learners.mlp.output_gate import class_gates, gated
from flexkern.streams import Experience
from helpers.mlp_blobs import BATCH, CLASSES, LR, SIZE, all_bits, make, order

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "conventional": ("metaplastic", {"network": "conventional"}),
    "hybrid": ("metaplastic", {"scale": "auto"}),
    "steps": ("metaplastic", {"gate": "step", "momentum": 0.9, "scale": 30.0}),
    "fused": ("metaplastic", {"fused_step": True, "scale": 30.0}),
    "reserve": ("metaplastic", {"silent_fraction": 0.5, "threshold": 0.1, "scale": 30.0}),
    "ewc": ("ewc", {"strength": 10.0}),
    "si": ("si", {"strength": 1.0}),
    "replay": ("replay", {"memory": 25}),
    "joint": ("joint", {}),
}


def item(number: int, counts: list[int]) -> Experience:
    """An experience with so many inputs of each class."""
    generator = torch.Generator().manual_seed(number)
    y = torch.arange(CLASSES).repeat_interleave(torch.tensor(counts))
    x = torch.randn(len(y), SIZE, generator=generator) + y[:, None] % 3
    return Experience(f"item {number}", number, x, y, x, y)


def learner(way: str, **options: Any) -> Any:
    method, own = WAYS[way]
    return make(MLP_METHODS[method], **own, **options)


def test_gates_by_hand() -> None:
    for counts in ([30, 4, 4, 0, 1, 30], [1], [7, 7], [2**31, 3], [0.5, 40.0, 7.25]):
        expected = []
        for n in counts:
            share = n / max(counts)
            expected.append(share * share)
        found = class_gates(torch.tensor(counts))
        assert found.dtype is torch.float32
        assert found.tolist() == [float(np.float32(g)) for g in expected]


def test_the_error_of_each_output_by_hand() -> None:
    """The sum of a detached part and one that is not, written out, has the gradient; logits have their bits."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0, 1, 3, 3, 3, 2, 0, 3])
    g = class_gates(y.bincount()).double()
    loss = torch.nn.functional.cross_entropy(gated(z * 1, g), y)
    assert torch.equal(loss, torch.nn.functional.cross_entropy(z, y))
    loss.backward()
    other = z.detach().clone().requires_grad_()
    rows = []
    for row in other:
        rows.append(torch.stack([g[c] * row[c] + (1 - g[c]) * row[c].detach() for c in range(4)]))
    torch.nn.functional.cross_entropy(torch.stack(rows), y).backward()
    torch.testing.assert_close(z.grad, other.grad)
    error = torch.softmax(z.detach(), 1) - torch.nn.functional.one_hot(y)  # and from the formula
    torch.testing.assert_close(z.grad, g * error / len(y))
    assert gated(torch.ones(2, 3), torch.zeros(3)).tolist() == [[1.0] * 3] * 2  # nothing to multiply
    infinite = torch.tensor([[torch.inf, 0.0]], requires_grad=True)
    (gated(infinite * 1, torch.tensor([0.0, 0.5]))[0, 1] * 2).backward()
    assert infinite.grad is not None
    assert infinite.grad.tolist() == [[0.0, 1.0]]


def test_an_epoch_of_plain_sgd_by_hand() -> None:
    """The learner takes the steps of this loop, to rounding."""
    given = item(0, [40, 9, 5, 0, 40, 1])
    one = learner("conventional", output_gate="frequency")
    one.learn(given, epochs=2)
    model, _ = build((SIZE, 24, 16, CLASSES), 3, torch.device("cpu"))
    x, y = given.train_inputs, given.train_labels
    counts = [int((y == c).sum()) for c in range(CLASSES)]
    g = torch.tensor([(n / max(counts)) ** 2 for n in counts])
    for epoch in range(2):
        for rows in order(0, epoch, len(y)):
            z = model(x[rows])
            z = g * z + (1 - g) * z.detach()
            loss = torch.nn.functional.cross_entropy(z, y[rows])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, gradient in zip(model.parameters(), gradients, strict=True):
                    p -= LR * gradient
    for p, q in zip(one.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    # Of a class that the item has none of, nothing is learned.
    fresh = learner("conventional")
    assert torch.equal(one.model[-1].weight[3], fresh.model[-1].weight[3])
    assert one.model[-1].bias[3] == 0


@pytest.mark.parametrize("way", WAYS)
def test_where_all_classes_are_as_many_nothing_changes(way: str) -> None:
    def learned(items: list[Experience], **options: Any) -> dict[str, bytes]:
        one = learner(way, **options)
        for given in items:
            one.learn(given, epochs=2)
        return all_bits(one)

    alike = [item(n, [6] * CLASSES) for n in range(3)]
    if way == "replay":
        alike = alike[:1]  # of later ones the memory, whose classes are not as many, is counted too
    assert learned(alike, output_gate="frequency") == learned(alike)
    unlike = [item(n, [20 if c == n else 4 for c in range(CLASSES)]) for n in range(2)]
    assert learned(unlike, output_gate="frequency") != learned(unlike)


@pytest.mark.parametrize("way", WAYS)
def test_it_goes_on_to_the_bit(way: str, tmp_path: Path) -> None:
    items = [item(n, [20 if c == n else 4 for c in range(CLASSES)]) for n in range(2)]
    straight, paths = learner(way, output_gate="frequency"), []

    def save(now: Progress) -> None:
        paths.append(tmp_path / f"{now.item}-{now.epoch}")
        straight.save(paths[-1])

    for given in items:
        straight.learn(given, epochs=2, progress=save)
    for path in paths:
        resumed = load_mlp(path)
        assert resumed.output_gate == resumed.configuration()["output_gate"] == "frequency"
        for given in items[resumed.items_learned :]:
            resumed.learn(given, epochs=2)
        assert all_bits(resumed) == all_bits(straight), path.name


@pytest.mark.parametrize("replay_batch", [None, 5, 100])
def test_replay_counts_what_it_draws(replay_batch: int | None) -> None:
    one = learner("replay", output_gate="frequency", replay_batch=replay_batch)
    assert one._label_counts(item(0, [5, 0, 0, 0, 1, 2]).train_labels).tolist() == [5, 0, 0, 0, 1, 2]
    one.learn(item(0, [20, 10, 10, 0, 0, 5]), epochs=1)
    labels = item(1, [3, 0, 0, 40, 0, 7]).train_labels
    drawn = 0
    for start in range(0, len(labels), BATCH):
        batch = len(labels[start : start + BATCH])
        drawn += min(replay_batch or batch, one.inputs_kept)
    memory = [int((one._labels == c).sum()) for c in range(CLASSES)]
    expected = [n + drawn * m / sum(memory) for n, m in zip([3, 0, 0, 40, 0, 7], memory, strict=True)]
    torch.testing.assert_close(one._label_counts(labels), torch.tensor(expected, dtype=torch.float64))


def test_what_is_no_output_gate() -> None:
    for kind in MLP_METHODS.values():
        with pytest.raises(ValueError, match=r"output_gate must be .*'frequency'"):
            kind((SIZE,), CLASSES, widths=(6, 5), output_gate="freqency")
        with pytest.raises((TypeError, ValueError), match="output_gate must be"):
            kind((SIZE,), CLASSES, widths=(6, 5), output_gate=None)


def test_negatives_make_it_remember() -> None:
    """The protocol of two-digit items in small: an item names the other classes, too, wrongly."""
    centres = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(9))

    def told(number: int) -> Experience:
        own = item(number, [30 if c == number else 0 for c in range(CLASSES)])
        generator = torch.Generator().manual_seed(number + 50)
        others = [c for c in range(CLASSES) if c != number]
        of = torch.tensor(others).repeat(6)
        wrong = torch.tensor(others)[(torch.arange(30) + 1 + number) % 5]
        x = centres[of] + 0.3 * torch.randn(30, SIZE, generator=generator)
        mine = centres[number] + 0.3 * torch.randn(30, SIZE, generator=generator)
        return Experience(
            own.name, number, torch.cat([mine, x]), torch.cat([own.train_labels, wrong]), mine, own.train_labels
        )

    def left(**options: Any) -> float:
        one = learner("conventional", **options)
        items = [told(n) for n in range(CLASSES)]
        for given in items:
            one.learn(given, epochs=5)
        return float(one.evaluate(items).accuracies.mean())

    assert left(output_gate="frequency") > left() + 0.2
