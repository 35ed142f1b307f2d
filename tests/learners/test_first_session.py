"""Learners with a frozen network that the first task adapts."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern.learners import checkpoint
from flexkern.learners.progress import Progress
from flexkern.learners.registry import load_learner, make_learner
from flexkern.learners.vit.first_session import FirstSession
from helpers.tiny_vit import backbone, stream

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 16,
    "crop": (0.6, 1.0),
    "rank": 4,
    "adapter_scale": 2.0,
    "lr": 0.1,
}
METHODS: dict[str, dict[str, Any]] = {"simplecil": {}, "ranpac": {"features": 64}, "lda": {"layers": 2}}
SPACES = [("adapter", 1), ("both", 2)]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return backbone()


def learner(method: str, network: nn.Module, **options: Any) -> Any:
    return make_learner(method, copy.deepcopy(network), **(QUICK | METHODS[method] | options))


def state(one: Any) -> dict[str, Tensor]:
    return dict(one._modules().state_dict())


def assert_same(one: Any, other: Any) -> None:
    mine, theirs = state(one), state(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


class StopError(Exception):
    pass


@pytest.mark.parametrize("first_session", ["adapter", "both"])
@pytest.mark.parametrize("method", METHODS)
def test_stopped_in_the_first_task_and_after_it_goes_on_to_the_bit(
    method: str, first_session: str, network: nn.Module, tmp_path: Path
) -> None:
    given, path = stream(), tmp_path / "learner"
    straight = learner(method, network, first_session=first_session)
    losses: list[tuple[int, float]] = []
    for item in given:
        straight.learn(item, progress=lambda now: losses.append((now.item, now.loss)))
    assert [item for item, _ in losses] == [0, 0]  # only the first task is trained
    assert losses[1][1] < losses[0][1]
    stopped = learner(method, network, first_session=first_session)

    def stop(now: Progress) -> None:
        stopped.save(path)
        raise StopError

    with pytest.raises(StopError):
        stopped.learn(given[0], progress=stop)
    loaded = load_learner(path, backbone=copy.deepcopy(network))
    assert "session_head.weight" in state(loaded)
    for again in (stopped, loaded):
        again.learn(given[0])
        again.save(path)
        again = load_learner(path, backbone=copy.deepcopy(network))
        for item in given[1:]:
            again.learn(item)
        assert_same(again, straight)
        assert torch.equal(again.logits(given[1].test_inputs), straight.logits(given[1].test_inputs))
    assert not [name for name in state(straight) if "session_head" in name]
    assert straight.evaluate(given).accuracies.mean() > 0.6


@pytest.mark.parametrize("method", METHODS)
def test_without_it_nothing_is_other_than_before(method: str, network: nn.Module) -> None:
    one, other = (learner(method, network, **o) for o in ({}, {"first_session": "none", "rank": 7}))
    for item in list(stream())[:2]:
        one.learn(item)
        other.learn(item)
    assert_same(one, other)
    assert one.adapted is None
    assert set(one._modules()) == {"prototypes" if method == "simplecil" else "head"}


def test_the_adapter_is_artsys_first(network: nn.Module) -> None:
    item = stream()[0]
    one = learner("simplecil", network, first_session="adapter", seed=5)
    artsy = make_learner("ease", copy.deepcopy(network), seed=5, **QUICK)
    one.learn(item)
    artsy.learn(item)
    for mine, theirs in zip(one.adapted.bank.parameters_of(0), artsy.bank.parameters_of(0), strict=True):
        assert torch.equal(mine, theirs)
    x = item.test_inputs[:5].float() / 255
    expected = artsy.adapted.features(artsy.adapted.trunk(x), 0)
    torch.testing.assert_close(one._read(one._parts.features, x), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one._read(one._parts.features, x), one._parts.features(x), atol=1e-2)


@pytest.mark.parametrize(("first_session", "spaces"), SPACES)
def test_tokens_of_all_layers_come_from_the_adapted_network(
    first_session: str, spaces: int, network: nn.Module
) -> None:
    one = learner("lda", network, first_session=first_session)
    one.learn(stream()[0])
    x = torch.rand(3, 3, 16, 16)
    plain, found = one._parts.tokens(x, 2), one._tokens(x)
    assert found.shape == (3, spaces * plain.shape[1]) == (3, one.head.width)
    own = found[:, -plain.shape[1] :]
    # Adapters sit in every block, so that the tokens of each layer differ.
    for mine, theirs in zip(own.split(2 * one.width, 1), plain.split(2 * one.width, 1), strict=True):
        assert not torch.allclose(mine, theirs, atol=1e-2)
    if spaces == 2:
        assert torch.equal(found[:, : plain.shape[1]], plain)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_later_tasks_changes_nothing(method: str, network: nn.Module) -> None:
    one = learner(method, network, first_session="adapter")
    one.learn(stream()[0])
    before = [p.clone() for p in one.adapted.bank.parameters()]
    one.learn(stream()[1])
    assert not any(p.requires_grad for p in one.adapted.bank.parameters())
    for was, now in zip(before, one.adapted.bank.parameters(), strict=True):
        assert torch.equal(was, now)


def test_threads_and_copies_answer_as_one(network: nn.Module) -> None:
    one = learner("lda", network, first_session="both")
    one.learn(stream()[0])
    images = stream()[0].test_inputs
    expected, found = one.logits(images), list[Tensor]()
    threads = [threading.Thread(target=lambda: found.append(one.logits(images))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(logits, expected) for logits in found)
    other = copy.deepcopy(one)
    other.learn(stream()[1])
    assert torch.equal(one.logits(images), expected)
    assert other.adapted.bank is not one.adapted.bank


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_session": "adapters"}, "first_session must be one of"),
        ({"first_session": True}, "first_session must be"),
        ({"first_session": "adapter", "rank": 0}, "rank must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"adapter_scale": "x"}, "adapter_scale must be"),
    ],
)
def test_errors(method: str, options: dict[str, Any], message: str, network: nn.Module) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        learner(method, network, **options)


def test_a_checkpoint_whose_adapter_is_missing_is_refused(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "learner"
    one = learner("simplecil", network, first_session="adapter")
    assert isinstance(one, FirstSession)
    one.learn(stream()[0])
    one.save(path)
    tensors, record = checkpoint.read(path)
    checkpoint.write(path, {k: v for k, v in tensors.items() if "bank" not in k}, record)
    with pytest.raises(ValueError, match="does not fit, tensors"):
        load_learner(path, backbone=copy.deepcopy(network))


def test_an_end_that_fails_is_undone(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    one, straight = (learner("ranpac", network, first_session="adapter") for _ in range(2))
    straight.learn(stream()[0])
    with monkeypatch.context() as patched:
        patched.setattr(one.head, "check_solvable", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            one.learn(stream()[0])
    assert one.tasks_learned == 0
    one.learn(stream()[0])
    assert_same(one, straight)
