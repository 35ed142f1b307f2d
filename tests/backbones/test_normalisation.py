"""How images are normalised: what files and networks say of it, and what learners make of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flexkern import backbones
from flexkern.learners import METHODS, load_learner, make_learner
from helpers import tiny_vit
from helpers.families import family

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
TRAIN = {"epochs": 1, "batch_size": 16, "images_per_pass": 64}
pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    tiny_vit.backbone().save_pretrained(folder)
    return folder


def say(folder: Path, **what: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(what))


SAID: dict[str, tuple[dict[str, Any], Any]] = {
    "old": ({"do_normalize": True, "image_mean": HALF[0], "image_std": HALF[1]}, HALF),
    "ImageNet": (
        {"image_mean": IMAGENET[0], "image_std": IMAGENET[1], "rescale_factor": 0.00392156862745098},
        IMAGENET,
    ),
    "not normalised": ({"do_normalize": False, "image_mean": HALF[0]}, ((0.0,) * 3, (1.0,) * 3)),
    "not rescaled": (
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, HALF,
    ),
    "neither": ({"do_rescale": False, "do_normalize": False}, ((0.0,) * 3, (1 / 255,) * 3)),
    "to two": ({"rescale_factor": 2 / 255, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}, HALF),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_a_folder_says(case: str, saved: Path) -> None:
    say(saved, **SAID[case][0])
    model = backbones.load_backbone(saved)
    for one in (model, copy.deepcopy(model), backbones.load_backbone(model, image_size=24, dtype="bfloat16")):
        for found, expected in zip(backbones.normalisation(one), SAID[case][1], strict=True):  # type: ignore[arg-type]
            assert found == pytest.approx(expected)


def test_what_modules_say(saved: Path) -> None:
    import transformers

    say(saved, image_mean=IMAGENET[0], image_std=IMAGENET[1])
    assert backbones.normalisation(transformers.ViTModel.from_pretrained(saved)) == IMAGENET
    assert backbones.normalisation(transformers.ViTForImageClassification.from_pretrained(saved)) == IMAGENET
    (saved / "preprocessor_config.json").unlink()
    assert backbones.normalisation(backbones.load_backbone(saved)) is None
    assert backbones.normalisation(tiny_vit.backbone()) is None
    assert backbones.normalisation(torch.nn.Linear(1, 1)) is None
    assert backbones.normalisation(backbones.load_backbone("small")) is None  # it was trained on [0, 1]
    clip = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    assert backbones.normalisation(family("timm EVA-02")) == clip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object, got list"),
        ('{"do_normalize": true}', "does not say image_mean and image_std"),
        ('{"image_mean": [0, 0], "image_std": [1, 1, 1]}', "mean must be three numbers"),
        ('{"image_mean": "red", "image_std": [1, 1, 1]}', "mean must be three numbers"),
        ('{"image_mean": [0, 0, 0], "image_std": [1, 0, 1]}', "standard deviation must be"),
        ('{"image_mean": [0, 0, NaN], "image_std": [1, 1, 1]}', "mean must be"),
        ('{"rescale_factor": 0}', "rescale_factor must be"),
    ],
)
def test_a_file_that_says_what_cannot_be(content: str, message: str, saved: Path) -> None:
    (saved / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        backbones.load_backbone(saved)
    assert str(saved / "preprocessor_config.json") in str(caught.value)


@pytest.mark.parametrize(
    "normalize",
    ["non", 3, [1, 2], [[1, 1, 1]], [[0, 0], [1, 1]], [[0, 0, 0], [0, 1, 1]], None, [[0, 0, 0], "abc"]],
)
def test_options_that_cannot_be(normalize: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="normalize"):
        make_learner("simplecil", tiny_vit.backbone(), normalize=normalize)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_learners_see_normalised_images(method: str, tmp_path: Path) -> None:
    """As one that is given images normalised by hand would: through the whole of learning and answering."""
    backbone, stream = tiny_vit.backbone(), tiny_vit.stream()
    backbone.flexkern_normalisation = IMAGENET
    small: dict[str, dict[str, Any]] = {
        "artsy": {"gate": {"gate": "ridge", "features": 20}}, "ranpac": {"features": 20},
    }  # fmt: skip
    own = small.get(method, {})
    makes = {how: make_learner(method, backbone, normalize=how, **TRAIN, **own) for how in ("auto", "none")}
    makes["numbers"] = make_learner(method, backbone, normalize=IMAGENET, **TRAIN, **own)
    x = stream[0].test_inputs
    answers = {}
    for how, learner in makes.items():
        learner.learn(stream[0])
        answers[how] = learner.logits(x)
        learner.save(tmp_path / how)
        assert torch.equal(load_learner(tmp_path / how, backbone=backbone).logits(x), answers[how])
        said = learner._configuration["normalize"]
        assert said == ("none" if how == "none" else [list(numbers) for numbers in IMAGENET])
    assert torch.equal(answers["auto"], answers["numbers"])
    assert not torch.equal(answers["auto"], answers["none"])
    # A checkpoint has the numbers: another backbone's say nothing then.
    plain = tiny_vit.backbone()
    assert torch.equal(load_learner(tmp_path / "auto", backbone=plain).logits(x), answers["auto"])


@torch.no_grad()
def test_the_numbers_themselves() -> None:
    backbone = tiny_vit.backbone()
    x = torch.rand(3, 3, 16, 16)
    for mean, std in (IMAGENET, HALF):
        learner = make_learner("simplecil", backbone, normalize=(mean, std))
        by_hand = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        expected = backbone(by_hand).last_hidden_state[:, 0]
        torch.testing.assert_close(learner._parts.features(x), expected, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_without_the_key_goes_on_as_it_was(tmp_path: Path) -> None:
    """Those of earlier versions have none, and their learners saw images in [0, 1]."""
    from flexkern.learners.vit.simplecil import SimpleCIL

    configuration = make_learner("simplecil", tiny_vit.backbone(), normalize="none")._configuration
    del configuration["normalize"]
    assert SimpleCIL._arguments(configuration)["normalize"] == "none"


def test_the_papers_configurations_keep_images_as_they_are() -> None:
    from flexkern.runs.incremental.config import read_config, shipped

    for name, path in shipped().items():
        if "paper" in path.read_text() or name.startswith(("cifar100_b0", "tinyimagenet")):
            assert all(m.options["normalize"] == "none" for m in read_config(path).methods), name
