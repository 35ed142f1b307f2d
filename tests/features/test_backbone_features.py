"""A backbone as an extractor: what the model pools, normalised and sized, and a module as any other."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flexkern.features import BackboneFeatures, extract_from, fingerprint
from flexkern.learners import MetaplasticMLP, load_mlp
from flexkern.streams.augment import test_view as view
from helpers.made_images import made_stream

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def small() -> BackboneFeatures:
    return BackboneFeatures("small")


IMAGES = torch.randint(0, 256, (9, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def tokens(of: BackboneFeatures, images: torch.Tensor) -> torch.Tensor:
    return of.backbone(pixel_values=view(images, 32)).last_hidden_state


def test_features_are_what_the_model_pools(small: BackboneFeatures) -> None:
    found = extract_from(small, IMAGES)
    assert torch.equal(found, tokens(small, IMAGES)[:, 0])
    assert found.shape == (9, small.out_features) == (9, 128)
    both = BackboneFeatures(small.backbone, mean=True)
    expected = tokens(small, IMAGES)
    assert torch.equal(extract_from(both, IMAGES), torch.cat([expected[:, 0], expected[:, 1:].mean(1)], 1))
    assert both.out_features == 256


def test_images_are_normalised(small: BackboneFeatures) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    found = extract_from(BackboneFeatures(small.backbone, normalize=[mean, std]), IMAGES)
    x = (view(IMAGES, 32) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        expected = small.backbone(pixel_values=x).last_hidden_state[:, 0]
    assert torch.equal(found, expected)
    assert torch.equal(
        extract_from(BackboneFeatures(small.backbone, normalize="none"), IMAGES), tokens(small, IMAGES)[:, 0]
    )


def test_another_size(small: BackboneFeatures) -> None:
    larger = BackboneFeatures(small.backbone, image_size=48)
    assert extract_from(larger, IMAGES).shape == (9, 128)
    assert (larger.image_size, small.image_size) == (48, 32)


def test_what_decides_features_is_in_the_fingerprint(small: BackboneFeatures) -> None:
    options: list[dict[str, Any]] = [
        {}, {"mean": True}, {"image_size": 48}, {"normalize": [[0.5] * 3, [0.5] * 3]},
    ]  # fmt: skip
    made = [fingerprint(BackboneFeatures(small.backbone, **o)) for o in options]
    assert len(set(made)) == 4
    assert made[0] == fingerprint(BackboneFeatures("small"))
    with pytest.raises(ValueError, match="state is of features with"):
        small.load_state_dict(BackboneFeatures(small.backbone, mean=True).state_dict())


def test_copies_have_a_backbone_of_their_own(small: BackboneFeatures) -> None:
    expected = extract_from(small, IMAGES)
    for copied in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert fingerprint(copied) == fingerprint(small)
        with torch.no_grad():
            for p in copied.parameters():
                p.mul_(1.5)
        assert not torch.equal(extract_from(copied, IMAGES), expected)
        assert torch.equal(extract_from(small, IMAGES), expected)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"backbone": nn.Linear(3, 4)}, ValueError, "backbone"),
        ({"backbone": 5}, TypeError, "backbone"),
        ({"image_size": 7}, ValueError, "image_size must be a multiple of the backbone's patches"),
        ({"image_size": 32.5}, TypeError, "image_size must be a whole number, got 32.5"),
        ({"mean": 1}, TypeError, "mean must be True or False, got 1"),
        ({"normalize": "imagenet"}, ValueError, "normalize must be 'auto', 'none', or a mean"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        BackboneFeatures(**options)


def test_in_one_line_for_a_learner(small: BackboneFeatures, tmp_path: Path) -> None:
    stream = made_stream(count=60)
    learner = MetaplasticMLP(
        stream.input_shape, stream.classes, features=BackboneFeatures("small"), widths=(8, 8),
        features_cache=tmp_path / "features",
    )  # fmt: skip
    for item in stream:
        learner.learn(item, epochs=1)
    learner.save(tmp_path / "learner")
    again = load_mlp(tmp_path / "learner", features=small)
    last = stream[1].test_inputs
    assert torch.equal(again.logits(last), learner.logits(last))
    assert learner.features_cache is not None
    assert len(learner.features_cache.files()) == 2
    with pytest.raises(ValueError, match="features: not the extractor that this learner was trained with"):
        load_mlp(tmp_path / "learner", features=BackboneFeatures("small", mean=True))
