"""precision="bfloat16" of the ViT learners: what is trained moves as in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed")

from flexkern.learners import make_learner
from helpers.tiny_vit import backbone, stream

RECIPE: dict[str, Any] = {"epochs": 6, "lr": 0.05, "crop": (1.0, 1.0), "flip": 0.0, "calibration_images": 0}
TRAINED = {
    "finetune": {},
    "joint": {},
    "ease": {"rank": 8, "adapter_scale": 1.0},
    "artsy": {"rank": 8, "adapter_scale": 1.0, "gate": {"gate": "mlp"}},
}


def trained(name: str, precision: str, caller: bool = False) -> Any:
    learner = make_learner(name, backbone(), precision=precision, **RECIPE, **TRAINED[name])
    with torch.autocast("cpu", torch.bfloat16, enabled=caller):
        learner.learn(stream()[0])
    return learner


def moved(learner: Any) -> Tensor:
    """All that was trained of the network or of the adapters, less where it began."""
    if hasattr(learner, "network"):
        begin = backbone().state_dict()
        return torch.cat([(x - begin[name]).flatten() for name, x in learner.network.state_dict().items()])
    state = learner.bank.state_dict()
    return torch.cat([x.flatten().float() for name, x in state.items() if "up" in name])  # it begins at 0


@pytest.mark.parametrize("caller", [False, True], ids=["", "inside of the caller's autocast"])
@pytest.mark.parametrize("name", TRAINED)
def test_training_in_bfloat16_goes_where_training_in_float32_goes(name: str, caller: bool) -> None:
    plain, rounded = trained(name, "float32"), trained(name, "bfloat16", caller)
    # 8 bits in each product, a few dozen steps: the directions differ by some percent. Steps taken with weights
    # that are those of the first step go elsewhere: 0.80 here.
    cosine = torch.cosine_similarity(moved(plain), moved(rounded), dim=0)
    assert cosine > 0.95, float(cosine)
    item = stream()[0]
    answers = (learner.logits(item.train_inputs).argmax(1) for learner in (plain, rounded))
    accuracies = [(a == item.train_labels).double().mean() for a in answers]
    assert accuracies[1] > accuracies[0] - 0.1, accuracies
