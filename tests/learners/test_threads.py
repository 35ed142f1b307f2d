"""Several threads may ask one learner, and each may teach one of its own: the bits are those of one thread."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern.features import RandomConvolutions, extract_from
from flexkern.learners import MLP_METHODS, ArtsyViT, make_learner
from flexkern.learners.vit.training import Recipe, Training
from flexkern.nn import LDAHead, PrototypeClassifier, RidgeHead, SynapseGate
from flexkern.streams import Stream
from helpers import tiny_vit
from helpers.mlp_blobs import QUICK, blobs

THREADS = 6


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Threads take turns after a few operations."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(call: Callable[[], Any], times: int = 3) -> list[Any]:
    """What each call of each thread returns; all begin at once."""
    start, found, raised = threading.Barrier(THREADS), [], []

    def work() -> None:
        start.wait()
        try:
            for _ in range(times):
                found.append(call())
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    assert len(found) == THREADS * times
    return found


def images(stream: Stream) -> Tensor:
    return torch.cat([e.test_inputs for e in stream])


@pytest.fixture(scope="module")
def stream() -> Stream:
    return tiny_vit.stream()


@pytest.fixture(scope="module")
def taught(stream: Stream) -> dict[str, Any]:
    recipe = Recipe(epochs=1)
    learners: dict[str, Any] = {
        name: make_learner(name, tiny_vit.backbone(), epochs=1, images_per_pass=16, **options)
        for name, options in (
            ("ease", {}),
            ("finetune", {}),
            ("simplecil", {}),
            ("lda", {}),
            ("ranpac", {"features": 64}),
        )
    }
    learners["best"] = ArtsyViT.best(tiny_vit.backbone(), recipe=recipe)
    for gate in ("mlp", "mahalanobis", "oracle"):
        learners[gate] = ArtsyViT(tiny_vit.backbone(), recipe=recipe, gate={"gate": gate})
    for learner in learners.values():
        for experience in stream:
            learner.learn(experience)
    return learners


NAMES = ("ease", "finetune", "simplecil", "lda", "ranpac", "best", "mlp", "mahalanobis", "oracle")


@pytest.mark.parametrize("name", NAMES)
def test_learners_on_a_transformer_answer(name: str, taught: dict[str, Any], stream: Stream) -> None:
    """Also where all begin before anything that is kept has been made: a copy has made nothing."""
    learner, x = taught[name], images(stream)
    task = torch.arange(3).repeat_interleave(len(x) // 3)
    fresh = copy.deepcopy(learner)
    expected = learner.logits(x, task=task)
    for found in in_threads(lambda: fresh.logits(x, task=task)):
        assert torch.equal(found, expected)
    for found in in_threads(lambda: fresh.predict(x, task=task), 1):
        assert torch.equal(found, expected.argmax(1))


@pytest.mark.parametrize("name", ["mlp", "ease", "best", "ranpac"])
def test_learners_on_a_transformer_are_evaluated(name: str, taught: dict[str, Any], stream: Stream) -> None:
    """Each thread counts its own images: the report is that of one evaluation."""
    learner = taught[name]

    def evaluate() -> tuple[Any, dict[str, float]]:
        found = learner.evaluate(stream)
        report = {key: value for key, value in learner.report.items() if key != "seconds_per_image"}
        return found, report

    expected, counted = evaluate()
    for found, report in in_threads(evaluate):
        assert (found.confusion == expected.confusion).all()
        assert report == counted


@pytest.mark.parametrize("name", MLP_METHODS)
def test_learners_on_a_perceptron_answer(name: str) -> None:
    stream = blobs(3, per_class=10)
    learner = MLP_METHODS[name](stream.input_shape, stream.classes, widths=(12, 8), **QUICK.get(name, {}))
    for experience in stream:
        learner.learn(experience, epochs=1)
    x = images(stream)
    expected, confusion = learner.logits(x), learner.evaluate(stream).confusion
    for found in in_threads(lambda: learner.logits(x), 10):
        assert torch.equal(found, expected)
    for found in in_threads(lambda: learner.evaluate(stream)):
        assert (found.confusion == confusion).all()


def heads() -> dict[str, tuple[Any, Callable[[Any, Tensor], Tensor]]]:
    """Taught ones that have not been asked anything, and what they are asked."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 12, generator=generator), torch.arange(80) % 4
    ridge, lda, prototypes = RidgeHead(12, features=50), LDAHead(12), PrototypeClassifier(12)
    ridge.update(x, y)
    lda.update(x, y)
    prototypes.add_subspace()
    prototypes.update(x[:, None], y)
    found: dict[str, tuple[Any, Callable[[Any, Tensor], Tensor]]] = {
        "ridge": (ridge, lambda head, x: head.logits(x)),
        "lda": (lda, lambda head, x: head.logits(x)),
        "prototypes": (prototypes, lambda head, x: head.logits(x[:, None])),
    }
    for gate in ("mlp", "mahalanobis", "knn", "ridge", "energy", "likelihood_ratio"):
        synapses = SynapseGate(12, gate=gate, features=50)
        synapses.learn(x[y < 2], y[y < 2])
        synapses.learn(x[y >= 2], y[y >= 2])
        found[f"gate of {gate}"] = (synapses, lambda gate, x: gate(x))
    return found


@pytest.mark.parametrize("name", heads())
def test_heads_and_gates_that_nobody_has_asked_yet(name: str) -> None:
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    head, ask = heads()[name]
    expected = ask(copy.deepcopy(head), x)
    for _ in range(5):
        fresh = copy.deepcopy(head)
        for found in in_threads(lambda of=fresh: ask(of, x), 2):
            assert torch.equal(found, expected)


def test_learners_learn_each_in_a_thread(stream: Stream) -> None:
    """Dropout, too, draws what it draws in one thread, and torch's generator is where it was."""

    def learn(backbone: Any, seed: int) -> list[Tensor]:
        recipe = Recipe(epochs=2, batch_size=16)
        learner = ArtsyViT(backbone, recipe=recipe, rank=4, dropout=0.5, gate={"gate": "none"}, seed=seed)
        learner.learn(stream[0])
        return [t.clone() for t in learner._modules().state_dict().values()]

    expected = [learn(tiny_vit.backbone(), seed) for seed in range(2)]
    jobs = [(tiny_vit.backbone(), n % 2) for n in range(THREADS)]
    before = torch.get_rng_state()

    def one() -> tuple[int, list[Tensor]]:
        backbone, seed = jobs.pop()
        return seed, learn(backbone, seed)

    for seed, state in in_threads(one, 1):
        assert all(torch.equal(a, b) for a, b in zip(state, expected[seed], strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_of_torch_in_several_trainings() -> None:
    """Of a network of someone's own, whose dropout draws from torch's only generator."""

    def train() -> Tensor:
        weight = torch.nn.Parameter(torch.ones(12))
        training = Training(
            [weight],
            lambda x: torch.nn.functional.dropout(x.mean((2, 3)).repeat(1, 4) * weight, 0.5),
            Recipe(epochs=3, batch_size=4),
            size=8,
            seed=[1],
            device=torch.device("cpu"),
        )
        for _ in range(3):
            training.epoch(torch.arange(24 * 3 * 64).view(24, 3, 8, 8).to(torch.uint8), torch.arange(24) % 12)
        return weight.detach()

    expected = train()
    for found in in_threads(train, 2):
        assert torch.equal(found, expected)


def test_features_of_a_module_that_trains() -> None:
    """It is in eval mode while features are taken, whoever else takes some, and trains again afterwards."""
    module = torch.nn.Sequential(RandomConvolutions(2, grid=2), torch.nn.Dropout(0.9), torch.nn.Dropout(0.9))
    module[2].eval()
    x = torch.rand(600, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = extract_from(module, x, batch_size=20)
    for found in in_threads(lambda: extract_from(module, x, batch_size=20)):
        assert torch.equal(found, expected)
    assert [part.training for part in module.modules()] == [True, True, True, False]
