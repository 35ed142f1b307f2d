"""Learners on backbones of all kinds: other sizes, low precision, one that several share, in threads too."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flexkern import backbones
from flexkern.learners import METHODS, load_learner, make_learner
from flexkern.streams import Experience
from helpers.families import FAMILIES, family

pytest.importorskip("transformers", reason="transformers is not installed")

SMALL: dict[str, dict[str, Any]] = {
    "artsy": {"rank": 4, "evidence": "class+mean", "gate": {"gate": "ridge", "features": 20}},
    "ease": {"rank": 4},
    "ranpac": {"features": 20},
}
TRAIN = {"epochs": 1, "batch_size": 16, "images_per_pass": 64}


def made(method: str, backbone: Any, **options: Any) -> Any:
    return make_learner(method, backbone, **(TRAIN | SMALL.get(method, {}) | options))


def experience(size: int = 32, count: int = 24) -> Experience:
    """Two classes, dark and light."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    pixels = (labels[:, None, None, None] * 120 + rng.integers(0, 100, (count, 3, size, size))).astype(np.uint8)
    images, classes = torch.from_numpy(pixels), torch.from_numpy(labels)
    return Experience("0", 0, images, classes, images[:10], classes[:10])


def state(learner: Any) -> dict[str, Any]:
    return {k: v for k, v in learner._modules().state_dict().items() if isinstance(v, Tensor)}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ------------------------------------------------------------------ every family is learned with


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_learned_with(name: str, tmp_path: Path) -> None:
    learner, e = made("artsy", family(name)), experience()
    before = copy.deepcopy(learner.backbone.state_dict())
    learner.learn(e)
    logits = learner.logits(e.test_inputs)
    assert bool(logits.isfinite().all())
    assert any(bool(p.any()) for n, p in learner.bank.named_parameters() if ".up_" in n)  # adapters learned
    assert same(before, learner.backbone.state_dict())
    learner.save(tmp_path / "it")
    assert torch.equal(load_learner(tmp_path / "it", backbone=family(name)).logits(e.test_inputs), logits)
    assert torch.equal(copy.deepcopy(learner).logits(e.test_inputs), logits)


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("method", "name"),
    [(method, name) for name in ("ViT", "timm") for method in sorted(METHODS)] + [("simplecil", "DINOv2")],
)
def test_another_size(method: str, name: str, tmp_path: Path) -> None:
    backbone, e = family(name), experience()
    learner = made(method, backbone, image_size=48)
    learner.learn(e)
    logits = learner.logits(e.test_inputs)
    assert not torch.equal(logits, _learned(made(method, backbone), e).logits(e.test_inputs))
    learner.save(tmp_path / "it")
    loaded = load_learner(tmp_path / "it", backbone=backbone)  # the one that was given, at its own size
    assert (loaded.image_size, backbones.image_size(backbone)) == (48, 32)
    assert torch.equal(loaded.logits(e.test_inputs), logits)
    other = made(method, backbones.load_backbone(backbone, image_size=48))  # the size said elsewhere
    assert torch.equal(_learned(other, e).logits(e.test_inputs), logits)


def _learned(learner: Any, e: Experience) -> Any:
    learner.learn(e)
    return learner


def test_the_embedded_backbone_at_other_sizes() -> None:
    learner = made("simplecil", "small", image_size=48)
    assert _learned(learner, experience(48)).logits(experience(48).test_inputs).shape == (10, 2)
    for size in (7, 3, 50):
        with pytest.raises(
            ValueError, match=r"image_size must be a multiple of the backbone's patches of 4 x 4"
        ):
            made("artsy", "small", image_size=size)


# ------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_low_precision(method: str, dtype: str, tmp_path: Path) -> None:
    """The backbone computes in it; what is learned is float32, and so are answers."""
    e, exact = experience(), made(method, family("ViT"))
    low = backbones.load_backbone(family("ViT"), dtype=dtype)
    learner = made(method, low)
    learner.learn(e)
    logits = learner.logits(e.test_inputs)
    assert logits.dtype is torch.float32
    assert bool(logits.isfinite().all())
    trained = {
        v.dtype for k, v in state(learner).items() if v.is_floating_point() and not k.startswith("network.")
    }
    assert trained <= {torch.float32, torch.float64}
    learner.save(tmp_path / "it")
    assert torch.equal(load_learner(tmp_path / "it", backbone=low).logits(e.test_inputs), logits)
    if method == "ranpac":  # features the same to 16 roundings of half an ulp: the ridge's statistics are near
        exact.learn(e)
        torch.testing.assert_close(
            learner.head.cross, exact.head.cross, rtol=0, atol=16 * torch.finfo(getattr(torch, dtype)).eps / 2
            * float(exact.head.cross.abs().max()),
        )  # fmt: skip
    for again in (learner, copy.deepcopy(learner)):
        assert torch.equal(again.logits(e.test_inputs), logits)


@pytest.mark.parametrize("method", ["artsy", "finetune"])
def test_bfloat16_in_two_ways(method: str) -> None:
    low = {dtype: backbones.load_backbone(family("timm"), dtype=dtype) for dtype in ("bfloat16", "float16")}
    learner, e = made(method, low["bfloat16"], precision="bfloat16"), experience()
    learner.learn(e)
    assert bool(learner.logits(e.test_inputs).isfinite().all())
    with pytest.raises(ValueError, match="precision must be 'float32' for a backbone in float16"):
        made(method, low["float16"], precision="bfloat16")


def test_adapters_are_added_in_float32() -> None:
    """Their output is small beside the tokens: rounded on its own, it would be lost in bfloat16."""
    low = backbones.load_backbone(family("ViT"), dtype="bfloat16")
    learner, e = made("ease", low, precision="float32"), experience()
    learner.learn(e)
    assert {p.dtype for p in learner.bank.parameters()} == {torch.float32}
    assert learner.spaces(e.test_inputs).dtype is torch.float32


# ------------------------------------------------------------------ a backbone of several learners


@pytest.mark.parametrize("name", ["ViT", "timm EVA-02"])
def test_learners_share_a_backbone(name: str) -> None:
    """Neither of them acts in the other's passes, and the module alone is as before."""
    shared, e, x = copy.deepcopy(family(name)), experience(), experience().test_inputs
    expected = [_learned(made("artsy", copy.deepcopy(shared), seed=s), e) for s in (0, 1)]
    with torch.no_grad():
        alone = shared(x / 255)
    learners = [made("artsy", shared, seed=s) for s in (0, 1)]
    assert all(learner.backbone is shared for learner in learners)
    for learner in learners:
        learner.learn(e)
    for learner, other in zip(learners, expected, strict=True):
        assert same(state(learner), state(other))
        assert torch.equal(learner.logits(x), other.logits(x))
    with torch.no_grad():
        after = shared(x / 255)
    for one, other in zip(_tensors(alone), _tensors(after), strict=True):
        assert torch.equal(one, other)


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [v for v in output.values() if isinstance(v, Tensor)]


def test_another_precision_leaves_the_shared_backbone_as_it_is() -> None:
    """On CPUs bfloat16 wants other code for attention; a learner that shares the module keeps its own."""
    shared, e = copy.deepcopy(family("ViT")), experience()
    first = _learned(made("artsy", shared), e)
    before, attention = first.logits(e.test_inputs), shared.config._attn_implementation  # type: ignore[union-attr]
    second = made("artsy", shared, precision="bfloat16")
    assert second.backbone.config._attn_implementation == "eager"
    assert shared.config._attn_implementation == attention != "eager"  # type: ignore[union-attr]
    assert torch.equal(first.logits(e.test_inputs), before)
    memory = {p.data_ptr() for p in shared.parameters()}
    assert memory == {p.data_ptr() for p in second.backbone.parameters()}  # no second copy of the weights


def test_threads_share_a_backbone() -> None:
    shared, e = copy.deepcopy(family("timm")), experience()
    methods = ["artsy", "ease", "simplecil", "ranpac"]
    serial = [_learned(made(m, copy.deepcopy(shared)), e) for m in methods]
    learners: list[Any] = [made(m, shared) for m in methods]
    answers: dict[int, Tensor] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            learners[number].learn(e)
            for _ in range(3):
                answers[number] = learners[number].logits(e.test_inputs)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(methods))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for number, other in enumerate(serial):
        assert torch.equal(answers[number], other.logits(e.test_inputs)), methods[number]
        assert same(state(learners[number]), state(other)), methods[number]


def test_a_learner_that_is_gone_takes_its_adapters_with_it() -> None:
    """Else a backbone that learners share, one after the other, would hold the adapters of all of them."""
    import gc
    import weakref

    shared: nn.Module = copy.deepcopy(family("ViT"))
    learner = made("artsy", shared)
    bank = weakref.ref(learner.bank)
    del learner
    gc.collect()
    assert bank() is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in shared.modules())
