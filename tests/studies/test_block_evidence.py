"""Evidence by blocks is looked at, and changes nothing of what is learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")

from flexkern.learners import ArtsyViT, Recipe
from flexkern.learners.vit.artsy import BEST
from flexkern.streams import Experience
from helpers.tiny_vit import backbone, stream
from studies.block_evidence import Judge
from studies.gate_bounds import as_one_task


def noisy(item: Experience) -> Experience:
    """Images whose classes E0 alone cannot be sure of."""
    x = item.train_inputs
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 90
    return replace(item, train_inputs=(x + noise).clamp(0, 255).to(torch.uint8))


def test_who_judges_learns_what_best_learns() -> None:
    options: dict[str, Any] = {
        "recipe": Recipe(epochs=2, lr=0.1, crop=(1.0, 1.0), flip=0.0), "rank": 8, "adapter_scale": 1.0,
        "calibration_images": 0, **BEST,
    }  # fmt: skip
    judge, plain = Judge(backbone(), last=(3, 2, 0), **options), ArtsyViT(backbone(), **options)
    item = noisy(next(iter(as_one_task(stream(8)))))
    judge.learn(item)
    plain.learn(item)
    assert plain.experts is not None
    assert [gains[3] for gains in judge.noted] == pytest.approx(plain.experts.gain.tolist(), abs=1e-4)
    # Without any block there is no adapter, and [E0, Et] is E0 twice: another gain.
    assert all(gains[0] != gains[3] for gains in judge.noted)
    x = item.test_inputs
    torch.testing.assert_close(judge.logits(x), plain.logits(x), rtol=0, atol=0)
