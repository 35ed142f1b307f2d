"""The order of an item's inputs: seed, item and epoch decide it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from flexkern.learners import MetaplasticMLP
from flexkern.streams import Experience


def _order(seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int, int], tuple[int, ...]]:
    """In which order inputs are learned, by seed, item and epoch."""
    labels = torch.arange(16) % 2
    inputs = torch.arange(16.0)[:, None]  # each input is its number
    learner = MetaplasticMLP((1,), 2, widths=(3, 3), scale=1.0, batch_size=4, seed=seed)
    shown: list[int] = []
    take_step = learner._take_step

    def watched(x: Tensor, y: Tensor) -> Tensor:
        shown.extend(int(v) for v in x[:, 0])
        return take_step(x, y)

    monkeypatch.setattr(learner, "_take_step", watched)
    for number in range(3):
        learner.learn(Experience(str(number), number, inputs, labels, inputs, labels), epochs=3)
    epochs = np.array(shown).reshape(3, 3, 16)
    return {(seed, item, epoch): tuple(epochs[item, epoch].tolist()) for item in range(3) for epoch in range(3)}


def test_every_epoch_of_every_item_has_its_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = _order(0, monkeypatch) | _order(1, monkeypatch)
    assert all(sorted(order) == list(range(16)) for order in orders.values())
    assert orders[0, 1, 2] != orders[1, 1, 1]  # they are not added up
    for (a, first), (b, second) in itertools.combinations(orders.items(), 2):
        assert first != second, (a, b)
    assert _order(1, monkeypatch) == {key: order for key, order in orders.items() if key[0] == 1}
