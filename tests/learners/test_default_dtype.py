"""Learners are float32 to the bit, whatever ``torch.set_default_dtype`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern.features import RandomConvolutions
from flexkern.learners import METHODS, MLP_METHODS, Learner, load_learner, make_learner
from flexkern.nn import MetaplasticLinear, SilentLinear, SynapseGate
from flexkern.nn.adapters.bank import AdapterBank
from flexkern.nn.heads.discriminant import LDAHead
from flexkern.nn.heads.ridge import RidgeHead
from flexkern.streams import Experience, Stream
from helpers import tiny_vit
from helpers.mlp_blobs import blobs, make

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 16, "crop": (0.6, 1.0)}
VIT: dict[str, list[dict[str, Any]]] = {
    "artsy": [
        {"rank": 4, "gate": {"gate": "mlp", "gating": "soft", "epochs": 1}},
        {"rank": 4, "gate": {"gate": "none"}, "combine": "sum"},
        {
            "rank": 4, "head": "experts", "evidence": "class+mean",
            "gate": {"gate": "ridge", "gating": "topk", "k": 2, "fill": True, "features": 64},
        },
    ],
    "ease": [{"rank": 4}],
    "ranpac": [{"features": 64}],
}  # fmt: skip
MLP: dict[str, list[dict[str, Any]]] = {
    "metaplastic": [{}, {"silent_fraction": 0.3, "momentum": 0.9, "gate": "step"}, {"fused_step": True}],
    "ridge": [{"random_features": 24}],
}
GATES: list[dict[str, Any]] = [
    {"gate": "energy", "calibration": "platt", "threshold": "quantile"},
    {"gate": "knn", "negatives": "replay", "threshold": "adaptive"},
    {"gate": "likelihood_ratio", "calibration": "softmax"},
    {"gate": "mahalanobis", "threshold": "quantile"},
    {"gate": "mlp", "inputs": "whitened", "epochs": 2},
    {"gate": "none"},
    {"gate": "oracle"},
]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Whatever a test does, the next one finds the default dtype and the threads as they were."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def cases(methods: Any, options: dict[str, list[dict[str, Any]]]) -> list[Any]:
    # Methods by their names now: other tests register some of their own for a while.
    return [
        pytest.param(m, o, id=f"{m}-{i}") for m in sorted(methods) for i, o in enumerate(options.get(m, [{}]))
    ]


def tensors_of(learner: Learner) -> dict[str, Tensor]:
    """All that a learner has learned."""
    state = learner._modules().state_dict() | {f"extra.{n}": t for n, t in learner._extra_state().items()}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def run(
    dtype: torch.dtype, fresh: Callable[[], Learner], stream: Stream, path: Path, load: dict[str, Any]
) -> tuple[dict[str, Tensor], Tensor]:
    """Learns, is evaluated, is saved and loaded, and goes on, under a default dtype."""
    with default_dtype(dtype):
        one = fresh()
        one.learn(stream[0], epochs=1)
        one.save(path)
        one = load_learner(path, **load)
        one.learn(stream[1], epochs=1)
        one.evaluate(stream)
        images = stream[0].test_inputs
        logits = one.logits(images)
        assert torch.equal(one.predict(images), logits.argmax(1))
        assert logits.dtype is torch.float32
        return tensors_of(one), logits


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype is two[name].dtype, name
        assert torch.equal(value, two[name]), name


@pytest.mark.parametrize(("method", "options"), cases(MLP_METHODS, MLP))
def test_learners_on_linear_layers(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    stream, kind = blobs(2), MLP_METHODS[method]
    states, logits = zip(
        *(
            run(dtype, lambda: make(kind, **options), stream, tmp_path / str(dtype), {})
            for dtype in (torch.float32, torch.float64)
        ),
        strict=True,
    )
    assert_equal(*states)
    assert torch.equal(*logits)


@pytest.mark.parametrize(("method", "options"), cases(METHODS, VIT))
def test_learners_on_a_transformer(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    stream, network = tiny_vit.stream(4), tiny_vit.backbone()
    states, logits = zip(
        *(
            run(
                dtype,
                lambda: make_learner(method, network, **QUICK, **options),
                stream,
                tmp_path / str(dtype),
                {"backbone": network},
            )
            for dtype in (torch.float32, torch.float64)
        ),
        strict=True,
    )
    assert_equal(*states)
    assert torch.equal(*logits)


def test_artsy_shows_its_spaces() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    with default_dtype(torch.float64):
        network = tiny_vit.backbone().float()
        one = make_learner("artsy", network, rank=4, **QUICK)
        stream = tiny_vit.stream(2)
        one.learn(stream[0])
        assert one.spaces(stream[0].test_inputs).dtype is torch.float32
        assert one.means(stream[0].test_inputs).dtype is torch.float32


@pytest.mark.parametrize("options", GATES, ids=lambda o: "-".join(map(str, o.values())))
def test_gates(options: dict[str, Any]) -> None:
    data = blobs(3)

    def answers(dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        with default_dtype(dtype):
            gate = SynapseGate(20, seed=1, **options)
            for item in data:
                gate.learn(item.train_inputs, item.train_labels)
            task = data[1].test_labels // 2
            x = data[1].test_inputs
            return dict(gate.state_dict()), gate.evidence(x, task), gate(x, task)

    (state, *rest), (other, *others) = answers(torch.float32), answers(torch.float64)
    assert_equal(state, other)
    for one, two in zip(rest, others, strict=True):
        assert one.dtype is two.dtype is torch.float32
        assert torch.equal(one, two)


def test_features_and_heads() -> None:
    images, h0, labels = torch.rand(8, 12, 12), torch.rand(30, 6), torch.arange(30) % 5

    def made(dtype: torch.dtype) -> list[Tensor]:
        with default_dtype(dtype):
            features = RandomConvolutions(4, grid=3, seed=1).calibrate(images)
            head = RidgeHead(6, features=16, balanced=True, seed=2)
            head.update(h0, labels)
            lda = LDAHead(6)
            lda.update(h0, labels)
            lda.update(h0 + 1, labels)
            answers = [head.project(h0), head.logits(h0), lda.scatter, lda.logits(h0)]
            return [*features.buffers(), features(images), *answers]

    for one, two in zip(made(torch.float32), made(torch.float64), strict=True):
        assert one.dtype is two.dtype is torch.float32
        assert torch.equal(one, two)


def test_with_an_extractor(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 12, 12), dtype=torch.uint8, generator=generator)
    labels = torch.arange(40) % 6
    stream = Stream([Experience(str(i), i, images, labels, images, labels) for i in range(2)], 6)

    def learned(dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
        with default_dtype(dtype):
            features = RandomConvolutions(4, grid=3, seed=1).calibrate(images)
        load = {"features": features}
        kind = MLP_METHODS["replay"]
        return run(dtype, lambda: kind((12, 12), 6, widths=(8, 8), **load), stream, tmp_path / str(dtype), load)

    (state, logits), (other, other_logits) = learned(torch.float32), learned(torch.float64)
    assert_equal(state, other)
    assert torch.equal(logits, other_logits)


def test_layers_that_take_a_dtype_follow_the_default() -> None:
    with default_dtype(torch.float64):
        for layer in (SilentLinear(4, 3), MetaplasticLinear(4, 3)):
            assert layer.weight.dtype is torch.float64
            layer(torch.rand(2, 4)).sum().backward()
        bank = AdapterBank(2, 8, 4)
        bank.add_task()
        assert all(p.dtype is torch.float64 for p in bank.parameters())
        assert bank(0, torch.rand(2, 3, 8), 0).dtype is torch.float64
        assert SilentLinear(4, 3, dtype=torch.float32).weight.dtype is torch.float32
