"""recompute=True: backward passes compute blocks again. The same is learned, and less is kept meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

pytest.importorskip("transformers", reason="transformers is not installed")

from flexkern import backbones
from flexkern.learners import load_learner, make_learner
from helpers import tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS: dict[str, dict[str, Any]] = {
    "artsy": {"rank": 4, "dropout": 0.5},
    "ease": {"rank": 4, "dropout": 0.5, "blocks": 2},
    "ranpac": {"features": 16, "first_session": "adapter", "rank": 4, "dropout": 0.5},
    "finetune": {},
}


def made(method: str, backbone: Any = None, **options: Any) -> Any:
    backbone = tiny_vit.backbone() if backbone is None else backbone
    return make_learner(method, backbone, **{"epochs": 2, "batch_size": 16, **METHODS[method], **options})


def gradients(learner: Any) -> tuple[list[Tensor | None], int]:
    """Of one batch, with the same dropout each time; and bytes that were kept for the backward pass, beside
    parameters."""
    images = torch.rand((6, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    with learner._trial() as (parameters, logits, trunk):
        known = {p.untyped_storage().data_ptr() for p in (*parameters, *learner.backbone.parameters())}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        if learner.method != "finetune":
            with torch.no_grad():  # an adapter whose output is 0 has no gradient to speak of
                for i, p in enumerate(parameters):
                    p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) / 4)
        torch.manual_seed(1)
        with saved_tensors_hooks(pack, lambda t: t):
            given = images if trunk is None else trunk(images)
            loss = functional.cross_entropy(logits(given).float(), torch.arange(6) % 2)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return list(found), sum(kept.values())


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_the_same_and_less_is_kept(method: str) -> None:
    (plain, much), (again, little) = gradients(made(method)), gradients(made(method, recompute=True))
    assert any(g is not None and bool(g.any()) for g in plain)
    for one, other in zip(plain, again, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-7)
    # Three small blocks: what comes before and behind them counts, too.
    assert little < (0.6 if method == "ease" else 0.45) * much, (little, much)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_is_learned(method: str) -> None:
    first, second = tiny_vit.stream()[:2]
    plain, again = made(method), made(method, recompute=True)
    for learner in (plain, again):
        learner.learn(first)
        learner.learn(second)
    for name, value in plain._modules().state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point():
            torch.testing.assert_close(again._modules().state_dict()[name], value, rtol=1e-4, atol=1e-5)
    x = first.test_inputs
    torch.testing.assert_close(again.logits(x), plain.logits(x), rtol=1e-4, atol=1e-4)


def test_the_plan_knows() -> None:
    plans = [
        make_learner("artsy", rank=8, batch_size=16, images_per_pass=1, recompute=r).memory_plan(classes=2)
        for r in (False, True)
    ]
    assert plans[1].activations < 0.4 * plans[0].activations
    assert plans[1].optimizer == plans[0].optimizer


@pytest.mark.parametrize("method", ["artsy", "finetune"])
def test_a_frozen_backbone_in_bfloat16(method: str) -> None:
    """Its weights take half; adapters and their gradients are float32."""
    low = backbones.load_backbone(tiny_vit.backbone(), dtype="bfloat16")
    learner = made(method, low, recompute=True)
    plain, again = gradients(made(method, low))[0], gradients(learner)[0]
    for one, other in zip(plain, again, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3)
    if method == "artsy":
        assert {p.dtype for p in learner.bank.parameters()} <= {torch.float32}
        whole, half = (made("artsy", b).memory_plan().parameters for b in (None, low))
        assert half == whole // 2
        learner.learn(tiny_vit.stream()[0])
        assert learner.predict(tiny_vit.stream()[0].test_inputs).shape == (20,)


def test_a_checkpoint_says_it_and_takes_another(tmp_path: Path) -> None:
    learner = made("artsy", recompute=True)
    learner.learn(tiny_vit.stream()[0])
    learner.save(tmp_path / "learner")
    backbone = tiny_vit.backbone()
    assert load_learner(tmp_path / "learner", backbone=backbone)._parts.recompute
    assert not load_learner(tmp_path / "learner", backbone=backbone, recompute=False)._parts.recompute
    with pytest.raises(TypeError, match="recompute must be True or False"):
        made("artsy", recompute="yes")
