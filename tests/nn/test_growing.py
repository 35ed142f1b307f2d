"""Random numbers of a seed, a task and a purpose."""

from __future__ import annotations

import itertools

import torch

from flexkern.nn.growing import seeded


def test_every_tuple_has_random_numbers_of_its_own() -> None:
    cpu = torch.device("cpu")
    drawn = {
        numbers: tuple(torch.rand(4, generator=seeded(cpu, *numbers)).tolist())
        for numbers in itertools.product(range(4), repeat=3)
    }
    assert drawn[0, 1, 2] != drawn[1, 1, 1]  # they are not added up
    assert len(set(drawn.values())) == len(drawn)
    assert drawn[0, 1, 2] == tuple(torch.rand(4, generator=seeded(cpu, 0, 1, 2)).tolist())
