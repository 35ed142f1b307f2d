"""Random numbers of a seed, a task and a purpose; buffers that grow by all or nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from flexkern.nn import FeatureStatistics, LDAHead, PrototypeClassifier, RidgeHead
from flexkern.nn.growing import GrowingState, seeded


def test_every_tuple_has_random_numbers_of_its_own() -> None:
    cpu = torch.device("cpu")
    drawn = {
        numbers: tuple(torch.rand(4, generator=seeded(cpu, *numbers)).tolist())
        for numbers in itertools.product(range(4), repeat=3)
    }
    assert drawn[0, 1, 2] != drawn[1, 1, 1]  # they are not added up
    assert len(set(drawn.values())) == len(drawn)
    assert drawn[0, 1, 2] == tuple(torch.rand(4, generator=seeded(cpu, 0, 1, 2)).tolist())


@pytest.mark.parametrize(
    "make",
    [
        lambda: LDAHead(2000), lambda: LDAHead(4, per_class=True), lambda: RidgeHead(4, features=2000),
        lambda: FeatureStatistics(2000), lambda: PrototypeClassifier(2000),
    ],
)  # fmt: skip
def test_a_label_for_which_there_is_no_memory_changes_nothing(make: Callable[[], GrowingState]) -> None:
    """8 bytes for each class, and there may be room for these, before 16 kB for each."""
    head = make()
    width = 4 if isinstance(head, RidgeHead) or getattr(head, "per_class", False) else 2000
    h0, y = torch.randn(6, width), torch.arange(6) % 3
    if isinstance(head, PrototypeClassifier):
        head.add_subspace()
        h0 = h0[:, None].expand(-1, head.subspaces, -1)
    head.update(h0, y)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"labels must be .*the largest is 2000000000000, and there is no memory"
    ):
        head.update(h0[:2], torch.tensor([0, 2 * 10**12]))
    after = head.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert head.classes == 3
