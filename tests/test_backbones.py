"""Backbones: the embedded transformer, a folder, a module; sizes by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from flexkern import backbones

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def test_the_embedded_one_is_small_and_says_how_it_was_trained() -> None:
    model = backbones.load_backbone("small")
    assert sum(f.stat().st_size for f in backbones.SMALL.iterdir()) < 3_000_000
    assert 1_000_000 < sum(p.numel() for p in model.parameters()) < 1_500_000
    assert (backbones.image_size(model), backbones.width_of(model)) == (32, 128)
    assert not model.training
    assert all(p.dtype is torch.float32 for p in model.parameters())
    record = json.loads((backbones.SMALL / "training.json").read_text())
    assert record["test_accuracy_of_60_classes"]["cifar10"] > 0.5


def test_a_folder_and_a_module(tmp_path: Path) -> None:
    model = backbones.random_backbone("small", num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    loaded = backbones.load_backbone(tmp_path)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x).last_hidden_state, model(x).last_hidden_state)
    assert backbones.load_backbone(model) is model


@pytest.mark.parametrize(("size", "millions"), [("vit-b16", 86), ("vit-l16", 303)])
def test_sizes_of_the_papers(size: str, millions: int) -> None:
    with torch.device("meta"):
        model = backbones.random_backbone(size)
    # 85.8 and 303.3 million without pooler and head (Dosovitskiy et al., 2021, table 1: 86 and 307 with them).
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    assert backbones.image_size(model) == 224


def test_errors() -> None:
    with pytest.raises(ValueError, match="size must be one of"):
        backbones.random_backbone("huge")
    with pytest.raises(OSError, match="no-such-folder"):
        backbones.load_backbone("./no-such-folder")
    with pytest.raises(ValueError, match="does not say its image size"):
        backbones.image_size(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="does not say the width"):
        backbones.width_of(nn.Linear(1, 1))
