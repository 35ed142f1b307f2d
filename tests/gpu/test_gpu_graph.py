"""A learner's steps in a CUDA graph: the bits of the learner without one, over items, on both GPU backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern.learners import EWC, SI, MetaplasticMLP
from flexkern.learners.mlp.cuda_graph import CudaGraphRecorder
from flexkern.nn import AdaptiveThreshold
from flexkern.streams import Experience
from helpers.gpu import gpu_backend

__all__ = ["gpu_backend"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

SIZE, CLASSES, BATCH = 48, 6, 32
RESERVE = {"silent_fraction": 0.3, "threshold": AdaptiveThreshold(target=0.01, gain=30.0, start=0.05)}
OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "auto": {"scale": "auto"},
    "reserve": RESERVE,
    "hebbian": {**RESERVE, "rule": "hebbian", "insert": "hebbian", "eta": 0.1, "prune": 0.01},
}


def items() -> list[Experience]:
    """Two items of two classes; 200 inputs are six whole batches and one of 8."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, SIZE, generator=generator)
    drawn = []
    for i in range(2):
        labels = torch.tensor([2 * i, 2 * i + 1]).repeat_interleave(100)
        inputs = centres[labels] + 0.4 * torch.randn(200, SIZE, generator=generator)
        drawn.append(Experience(f"item {i}", i, inputs, labels, inputs, labels))
    return drawn


def learn(kind: type[MetaplasticMLP] = MetaplasticMLP, **options: Any) -> MetaplasticMLP:
    own = {"scale": 30.0} if kind is MetaplasticMLP else {}
    options = {"widths": (128, 64), "lr": 0.02, "batch_size": BATCH, "device": "cuda", **own, **options}
    learner = kind((SIZE,), CLASSES, **options)
    for item in items():
        learner.learn(item, epochs=3)
    return learner


def state(learner: MetaplasticMLP) -> list[bytes]:
    """All tensors of model and optimizer."""
    tensors = [t for t in learner.model.state_dict().values() if isinstance(t, Tensor)]
    tensors += [t for of in learner.optimizer.state.values() for t in of.values() if isinstance(t, Tensor)]
    return [t.cpu().numpy().tobytes() for t in tensors]


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each replay."""
    seen: list[int] = []
    capture = CudaGraphRecorder.capture

    def counted(self: CudaGraphRecorder, step: Any) -> Any:
        replay, loss = capture(self, step)
        return lambda: (seen.append(1), replay()), loss

    monkeypatch.setattr(CudaGraphRecorder, "capture", counted)
    return seen


@pytest.mark.parametrize("gate", ["step", "item"])
@pytest.mark.parametrize("fused_step", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_graph_of_a_learner(
    gpu_backend: str, replays: list[int], gate: str, fused_step: bool, options: dict[str, Any]
) -> None:
    if fused_step and gpu_backend == "cuda":
        pytest.skip("linear_step_ runs through Triton")
    options = {"gate": gate, "fused_step": fused_step, **options}
    expected = learn(**options)
    got = learn(**options, cuda_graph=True)
    assert state(got) == state(expected)
    assert got.conversions() == expected.conversions()
    whole = 3 * 6 - 2  # of each item, but for its first two
    assert len(replays) == (1 if options.get("scale") == "auto" else 2) * whole


@pytest.mark.parametrize("kind", [EWC, SI])
def test_graph_of_other_methods(replays: list[int], kind: type[MetaplasticMLP]) -> None:
    assert state(learn(kind, cuda_graph=True)) == state(learn(kind))
    assert replays


def test_graph_reads_a_learning_rate_on_the_device() -> None:
    learners = []
    for cuda_graph in (False, True):
        learner = MetaplasticMLP(
            (SIZE,),
            CLASSES,
            widths=(64, 64),
            scale=30.0,
            batch_size=BATCH,
            device="cuda",
            cuda_graph=cuda_graph,
        )
        lr = torch.tensor([0.02], device="cuda")
        learner.optimizer.param_groups[0]["lr"] = lr
        learner.learn(items()[0], epochs=3, progress=lambda _, lr=lr: lr.mul_(0.5))
        learners.append(learner)
    assert state(learners[0]) == state(learners[1])


def test_graph_learner_resumes_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    expected = learn()
    learner = MetaplasticMLP(
        (SIZE,),
        CLASSES,
        widths=(128, 64),
        lr=0.02,
        scale=30.0,
        batch_size=BATCH,
        device="cuda",
        cuda_graph=True,
    )
    learner.learn(items()[0], epochs=3)
    learner.save(tmp_path / "one")
    resumed = MetaplasticMLP.load(tmp_path / "one", device="cuda", cuda_graph=True)
    resumed.learn(items()[1], epochs=3)
    assert state(resumed) == state(expected)
