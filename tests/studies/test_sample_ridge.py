"""The ridge head worked out among the samples answers as the learner's, which keeps sums of columns."""

from __future__ import annotations

import pytest
import torch

from flexkern.nn import RidgeHead
from studies.sample_ridge import SampleRidge


@pytest.mark.parametrize("features", [30, 60, 200])  # fewer than the 60 samples, as many, more
def test_it_answers_as_ridge_head(features: int) -> None:
    g = torch.Generator().manual_seed(features)
    centres = torch.randn((5, 12), generator=g)
    labels = torch.arange(60) % 5
    x = centres[labels] + torch.randn((60, 12), generator=g)
    head, ours = (kind(12, features=features, seed=3) for kind in (RidgeHead, SampleRidge))
    for part, y in zip(x.split(25), labels.split(25), strict=True):
        head.update(part, y)
        ours.update(part, y)
        asked = torch.randn((40, 12), generator=g)
        # Both solve in float64 with the same ridge; RidgeHead projects in float32, its weights are float32:
        # some 2^-24 of the sum of |phi| |W|, which is under 100.
        torch.testing.assert_close(ours.logits(asked), head.logits(asked), rtol=0, atol=1e-5)
    assert ours.bytes == sum(x.numel() * x.element_size() for x in head.state_dict().values())
