"""Folders that transformers wrote, of all families: what is read pools as what was written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexkern import backbones
from flexkern.backbones.families import own_features
from helpers.families import FAMILIES, REFUSED, family

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
NAMES = [name for name in FAMILIES if not name.startswith("timm")]


def pooled(model: Any) -> torch.Tensor:
    x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = own_features(model, x)
    assert features is not None
    return features


@pytest.mark.parametrize("name", NAMES)
def test_a_folder(name: str, tmp_path: Path) -> None:
    family(name).save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = backbones.load_backbone(tmp_path).requires_grad_(
        False
    )  # attention pooling computes otherwise else
    assert torch.equal(pooled(loaded), pooled(family(name)))
    assert backbones.image_size(loaded) == 32
    assert not hasattr(loaded, "text_model")


@pytest.mark.parametrize(
    "name",
    ["ViTMAE", "Data2Vec", "Swin", "ResNet", "CLIP, texts", "SigLIP, classifier", "SigLIP without a pooler"],
)
def test_a_folder_of_no_such_family(name: str, tmp_path: Path) -> None:
    """Read or not, it is refused when the learner is made."""
    from flexkern.learners import make_learner

    REFUSED[name][0]().save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"^backbone: "):
        make_learner("simplecil", os.fspath(tmp_path))


@pytest.mark.parametrize(
    ("name", "weight"),
    [("BEiT", "pooler.layernorm.weight"), ("SigLIP", "head.probe"), ("CLIP", "post_layernorm.weight")],
)
def test_a_pooler_without_its_weights_is_not_made_up(name: str, weight: str, tmp_path: Path) -> None:
    family(name).save_pretrained(tmp_path)  # type: ignore[operator]
    file = tmp_path / "model.safetensors"
    state = {k: v for k, v in load_file(file).items() if not k.endswith(weight)}
    assert len(state) < len(load_file(file))
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"has no weights for .*{weight}"):
        backbones.load_backbone(tmp_path)


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With how its images are normalised, which another file says."""
    import huggingface_hub
    from huggingface_hub import errors

    family("ViT").save_pretrained(tmp_path)  # type: ignore[operator]
    half = [0.5] * 3
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": half, "image_std": half}))
    absent: dict[str, Exception] = {}

    def download(name: str, filename: str) -> str:
        if filename in absent:
            raise absent[filename]
        return os.fspath(tmp_path / filename)

    def read(name: str, *, local: bool) -> Any:
        assert (name, local) == ("organisation/name", False)
        return read_backbone(tmp_path, local=True)

    from flexkern.backbones import reading

    read_backbone = reading.read_backbone
    monkeypatch.setattr(reading, "read_backbone", read)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    loaded = backbones.load_backbone("organisation/name")
    assert torch.equal(pooled(loaded), pooled(family("ViT")))
    assert backbones.normalisation(loaded) == ((0.5,) * 3, (0.5,) * 3)
    absent["preprocessor_config.json"] = errors.EntryNotFoundError("there is none")
    (tmp_path / "preprocessor_config.json").unlink()
    assert backbones.normalisation(backbones.load_backbone("organisation/name")) is None
    absent["preprocessor_config.json"] = errors.LocalEntryNotFoundError("no network")
    with pytest.warns(UserWarning, match="cannot be asked how images of 'organisation/name' are normalised"):
        backbones.load_backbone("organisation/name")
