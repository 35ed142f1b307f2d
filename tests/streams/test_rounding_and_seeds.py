"""What decides a stream's last bits: halves, the border of an image, and which numbers a seed stands for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flexkern.streams import Experience, two_digit_items
from flexkern.streams.augment import random_resized_crop
from flexkern.streams.poison import flipped_labels, foreign_inputs, perturbed_inputs


def test_halves_of_images_of_others_are_rounded_up() -> None:
    """As in the release: 10 images among 4 other items are 3 of each, not 2, the even neighbour of 2.5."""
    images, labels = torch.arange(300.0)[:, None, None].expand(300, 4, 4) / 300, torch.arange(300) % 10
    for own, of_each in ((10, 3), (18, 5), (14, 4), (9, 2), (11, 3)):
        items = two_digit_items(images, labels, items=5, train_per_item=own, test_per_item=5, seed=0)
        for number in range(5):
            assert len(items.experience(number).train_labels) == own + 4 * of_each


def test_crops_of_a_plain_image_are_plain_to_their_edges() -> None:
    """What is read beyond the image's edge is the edge, not black."""
    images = torch.full((16, 3, 8, 8), 0.75)
    for scale in ((1.0, 1.0), (0.05, 1.0)):
        crops = random_resized_crop(images, 24, scale=scale, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(crops, torch.full((16, 3, 24, 24), 0.75), rtol=0, atol=1e-6)


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
