"""Which random numbers an attack draws: others for every pair of a seed and an item."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexkern.streams import Experience
from flexkern.streams.poison import flipped_labels, foreign_inputs, perturbed_inputs

ATTACKS: dict[str, Callable[[Experience, int], Experience]] = {
    "flipped": lambda e, seed: flipped_labels(e, 0.5, 5, seed=seed),
    "foreign": lambda e, seed: foreign_inputs(e, -1 - torch.rand(50, 4), 0.5, seed=seed),
    "perturbed": lambda e, seed: perturbed_inputs(e, 1.0, seed=seed),
}


def item(number: int) -> Experience:
    """30 inputs, the same for every item, all rightly labelled."""
    inputs = torch.rand(30, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.full((30,), number)
    return Experience(f"item {number}", number, inputs, labels, inputs, labels)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_seed_and_an_item_are_two_numbers(name: str) -> None:
    """Seed 1 attacks item 2 in another way than seed 2 attacks item 1, or runs of several seeds share draws."""

    def attacked(seed: int, number: int) -> Tensor:
        before, after = item(number), ATTACKS[name](item(number), seed)
        if name == "perturbed":
            return after.train_inputs
        changed = after.train_labels != before.train_labels
        return changed | (after.train_inputs != before.train_inputs).any(1)

    assert torch.equal(attacked(1, 2), attacked(1, 2))
    for one, other in (((1, 2), (2, 1)), ((0, 3), (1, 2)), ((0, 3), (2, 1))):
        assert not torch.equal(attacked(*one), attacked(*other))
