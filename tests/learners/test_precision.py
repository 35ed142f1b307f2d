"""precision="bfloat16" of learners on a perceptron: rounded weights, and float32 masters that step."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern.learners import EWC, MLP_METHODS, SI, MetaplasticMLP, Progress, load_mlp
from flexkern.learners.mlp.fisher import diagonal_fisher
from flexkern.runs.demo import DemoConfig, digit_features
from flexkern.streams import Stream, bundled_digits
from helpers.learner_state import fingerprint
from helpers.mlp_blobs import CLOSED_FORM, QUICK, make

TRAINED = [name for name in MLP_METHODS if name not in CLOSED_FORM]
OPTIONS: dict[str, dict[str, Any]] = {
    "item gate": {},
    "step gate": {"gate": "step", "scale": 20.0},
    "fused": {"fused_step": True, "momentum": 0.9},
    "fused, step gate": {"fused_step": True, "gate": "step", "scale": 20.0},
    "reserve": {"silent_fraction": 0.5, "threshold": 0.01, "insert": "hebbian", "eta": 1e-3},
    "fused reserve": {"silent_fraction": 0.5, "threshold": 0.01, "fused_step": True, "rule": "hebbian"},
    "output gate": {"output_gate": "frequency"},
}


def bfloat16(name: str, **options: Any) -> Any:
    return make(MLP_METHODS[name], precision="bfloat16", **QUICK.get(name, {}), **options)


def masters(learner: Any) -> list[Tensor]:
    return [learner.optimizer.state[p]["master"] for p in learner.model.parameters()]


def check_resumes(learner: Any, stream: Stream, tmp_path: Path) -> None:
    """Learns the stream; what was saved, copied and pickled on the way comes to the same bits."""
    others: list[Any] = []

    def leave(_: Progress) -> None:
        if learner.items_learned == 1 and not others:
            learner.save(tmp_path / "saved")
            others.append(load_mlp(tmp_path / "saved"))
            others.extend([copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))])

    for e in stream:
        learner.learn(e, epochs=2, progress=leave)
    assert others
    for other in others:
        for e in stream[other.items_learned :]:
            other.learn(e, epochs=2)
        assert fingerprint(other) == fingerprint(learner)
        assert torch.equal(other.logits(stream[0].test_inputs), learner.logits(stream[0].test_inputs))


def check_masters(learner: Any, stream: Stream) -> None:
    for p, master in zip(learner.model.parameters(), masters(learner), strict=True):
        assert (p.dtype, master.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(p, master.to(torch.bfloat16))
        assert not torch.equal(p.float(), master)
    logits = learner.logits(stream[0].test_inputs)
    assert logits.dtype is learner.probabilities(stream[0].test_inputs).dtype is torch.float32
    assert torch.equal(logits, logits.bfloat16().float())  # answers are computed as training computes


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_trains_and_resumes_to_the_bit(name: str, stream: Stream, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    learner = bfloat16(name)
    check_resumes(learner, stream, tmp_path)
    check_masters(learner, stream)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_trains_and_resumes_to_the_bit(
    options: dict[str, Any], stream: Stream, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    learner = bfloat16("metaplastic", **options)
    check_resumes(learner, stream, tmp_path)
    check_masters(learner, stream)
    if "silent_fraction" in options:
        assert sum(map(sum, learner.conversions())) > 0
    right = sum(learner.evaluate(stream).accuracies)
    full = make(MetaplasticMLP, **options)
    for e in stream:
        full.learn(e, epochs=2)
    assert right >= sum(full.evaluate(stream).accuracies) - 0.15


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_heads_in_closed_form_have_no_network_and_take_no_notice(name: str, stream: Stream) -> None:
    answers = []
    for precision in ("float32", "bfloat16"):
        learner = make(MLP_METHODS[name], precision=precision, **QUICK.get(name, {}))
        learner.learn(stream[0])
        answers.append(learner.logits(stream[0].test_inputs))
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", MLP_METHODS)
def test_other_precisions_are_refused(name: str) -> None:
    for wrong, kind in (("float16", ValueError), ("bfloat", ValueError), (torch.bfloat16, TypeError)):
        with pytest.raises((kind, ValueError), match=r"precision must be .*'float32'.*'bfloat16'"):
            make(MLP_METHODS[name], precision=wrong)


@pytest.mark.parametrize("name", TRAINED)
def test_steps_too_small_for_bfloat16_are_taken(name: str, stream: Stream) -> None:
    learner = bfloat16(name, lr=1e-6)
    weights = [p for p in learner.model.parameters() if p.dim() == 2]
    before = [p.detach().clone() for p in weights]
    learner.learn(stream[0], epochs=1)
    for p, start in zip(weights, before, strict=True):
        moved = (learner.optimizer.state[p]["master"] - start.float()).abs()
        assert float((p == start).float().mean()) > 0.99
        assert float((moved > 0).float().mean()) > 0.3
    if name == "si":  # which adds up what each step of the masters gave
        assert all(bool(importance.any()) for importance in learner._importance)


@pytest.mark.parametrize("kind", [EWC, SI])
def test_penalties_pull_the_masters(kind: Any, stream: Stream) -> None:
    """A displacement that bfloat16 does not show."""
    learner = make(kind, precision="bfloat16")
    learner.learn(stream[0], epochs=1)
    assert all(t.dtype is torch.float32 for t in (*learner._anchors, *learner._importance))
    learner._importance = [torch.ones_like(i) for i in learner._importance]
    for p, master in zip(learner.model.parameters(), masters(learner), strict=True):
        master.copy_(p.float() * (1 + 2**-12))
        p.grad = torch.zeros_like(p)
    learner._anchors = [p.detach().float() for p in learner.model.parameters()]
    learner._before_step()
    stiffness = min(learner._FACTOR * learner.configuration()["strength"], 1 / 0.05)
    for p, master, anchor in zip(learner.model.parameters(), masters(learner), learner._anchors, strict=True):
        assert p.grad is not None
        assert p.grad.dtype is torch.bfloat16
        assert torch.equal(p.grad, (stiffness * (master - anchor)).bfloat16())
        assert bool(p.grad.any())


def test_fisher_information_is_computed_in_float32(stream: Stream) -> None:
    learner = bfloat16("ewc")
    learner.learn(stream[0], epochs=1)
    wide = copy.deepcopy(learner.model).float()
    x = stream[0].train_inputs
    u = torch.rand(len(x), generator=torch.Generator().manual_seed(1))
    narrow = diagonal_fisher(learner.model, x, u)
    assert all(torch.equal(a, b) for a, b in zip(narrow, diagonal_fisher(wide, x, u), strict=True))
    assert narrow[0].dtype is torch.float32


def test_the_exact_weights_of_an_optimizer(stream: Stream) -> None:
    learner = bfloat16("metaplastic")
    parameter = next(learner.model.parameters())
    assert torch.equal(learner.optimizer.exact(parameter), parameter.float())
    learner.learn(stream[0], epochs=1)
    assert torch.equal(learner.optimizer.exact(parameter), masters(learner)[0])
    with torch.no_grad():
        parameter[0] = 1.0
    assert bool((learner.optimizer.exact(parameter)[0] == 1.0).all())
    with pytest.raises(ValueError, match=r"parameter of shape \(2,\) is not one of this optimizer"):
        learner.optimizer.exact(torch.zeros(2))


def test_a_checkpoint_of_either_precision_is_not_taken_for_the_other(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    for precision in ("float32", "bfloat16"):
        make(MetaplasticMLP, precision=precision).save(tmp_path / precision)
        learner = load_mlp(tmp_path / precision)
        assert learner.configuration()["precision"] == precision
        assert next(learner.model.parameters()).dtype is getattr(torch, precision)


def test_digits_are_learned_as_well_as_in_float32() -> None:
    """The demo's setting, smaller: average accuracy within a point, over three seeds."""
    config = DemoConfig(items=4, train_per_item=200)
    digits, right = bundled_digits(), {"float32": 0.0, "bfloat16": 0.0}
    for seed in range(3):
        features = digit_features(digits, config, seed)
        for precision in right:
            learner = MetaplasticMLP(
                features.input_shape, features.classes, widths=(256, 256), lr=config.lr, seed=seed,
                precision=precision,
            )  # fmt: skip
            for item in features:
                learner.learn(item, epochs=config.epochs)
            right[precision] += sum(learner.evaluate(features).accuracies) / len(features) / 3
    assert right["float32"] > 0.5
    assert abs(right["bfloat16"] - right["float32"]) <= 0.01
