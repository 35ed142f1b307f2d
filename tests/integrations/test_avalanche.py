"""Items end where an Avalanche strategy ends steps, epochs and experiences, and heads may grow meanwhile."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern.fields import Field
from flexkern.optim import MetaplasticSGD
from flexkern.optim.flexibilities import field_of
from helpers import avalanche_protocol
from helpers.avalanche_protocol import Experience, Growing, MultiHead, OnlineExperience, Strategy
from helpers.ending_items import Remembering, remembering

avalanche_protocol.install()

from flexkern.integrations.avalanche import ConsolidatePlugin  # noqa: E402


def batches(seed: int, count: int = 6, first_class: int = 0, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    labels = first_class + torch.arange(4) % classes
    return [(torch.randn(4, 6, generator=generator), labels) for _ in range(count)]


def strategy(every: Any = "experience", model: nn.Module | None = None, **options: Any) -> Strategy:
    torch.manual_seed(0)
    model = MultiHead(6, 3) if model is None else model
    optimizer = remembering(model, **options)
    return Strategy(model, optimizer, train_epochs=2, plugins=[ConsolidatePlugin(every)])


@pytest.mark.parametrize(
    ("every", "ended"),
    [
        ("experience", [12, 24]),
        ("epoch", [6, 12, 18, 24]),
        (5, [5, 10, 15, 20]),
        (("epoch", 9), [6, 9, 12, 18, 24]),
        (("experience", 12), [12, 24]),
    ],
)
def test_when_items_end(every: Any, ended: list[int]) -> None:
    learner = strategy(every)
    learner.train([Experience(batches(0)), Experience(batches(1))])
    assert learner.optimizer.ended == ended


def test_steps_go_on_from_one_call_to_the_next_and_through_a_checkpoint() -> None:
    learner = strategy((8, "epoch"))
    learner.train(Experience(batches(0)))
    assert learner.optimizer.ended == [6, 8, 12]
    # What Avalanche's save_checkpoint does with the whole strategy. torch keeps no attributes of an optimizer's
    # own.
    learner = pickle.loads(pickle.dumps(learner))
    learner.optimizer.taken, learner.optimizer.ended = 12, []
    learner.train(Experience(batches(1)))
    assert learner.optimizer.ended == [16, 18, 24]


def test_an_online_experience_ends_with_its_last_part() -> None:
    learner = strategy()
    learner.train([OnlineExperience(batches(i, 1), is_last_subexp=i % 3 == 2) for i in range(6)])
    assert learner.optimizer.ended == [6, 12]


def test_a_head_for_each_task() -> None:
    """Parameters that Avalanche appends to the group get flexibilities of their own; nothing else changes."""
    learner = strategy(scale=1e3)
    optimizer = learner.optimizer
    for task in range(4):
        learner.train(Experience(batches(task), task))
    assert len(optimizer.param_groups) == 1
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 2 * 5
    fields = [field_of(optimizer.state[p]["flexibility"]) for p in group["params"] if p.dim() == 2]
    assert fields == [Field.uniform(0, stream) for stream in (0, 2, 4, 6, 8)]
    assert optimizer.ended == [12, 24, 36, 48]
    # A saved state fits an optimizer that has these parameters from the start.
    other = Remembering(learner.model.parameters(), lr=0.05, scale=1.0)
    other.load_state_dict(optimizer.state_dict())
    for p in learner.model.parameters():
        assert other.state[p].keys() == optimizer.state[p].keys()


def test_a_head_for_each_task_of_named_parameters() -> None:
    model = MultiHead(6, 3)
    optimizer = Remembering(model.named_parameters(), lr=0.05, scale=10.0)
    learner = Strategy(model, optimizer, plugins=[ConsolidatePlugin()])
    for task in range(3):
        learner.train(Experience(batches(task), task))
    (group,) = optimizer.param_groups
    assert group["param_names"] == [name for name, _ in model.named_parameters()]


def test_a_new_head_without_the_plugin() -> None:
    """The optimizer takes in by itself what was put into its groups."""
    learner = strategy()
    learner.plugins = []
    learner.train(Experience(batches(0)))
    learner.model.adapt(Experience(batches(1), 1))
    learner._make_optimizer(reset_state=False)
    before = [p.detach().clone() for p in learner.model.parameters()]
    for p in learner.model.parameters():
        p.grad = torch.ones_like(p)
    learner.optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(learner.model.parameters(), before, strict=True))


def test_a_head_that_is_replaced_by_a_larger_one() -> None:
    learner = strategy(model=Growing(6, 3))
    learner.train(Experience(batches(0)))
    trunk = learner.optimizer.state[learner.model.trunk.weight]["anchor"].clone()
    learner.train(Experience(batches(1, first_class=3)))
    assert learner.model.head.out_features == 6
    state = learner.optimizer.state
    assert torch.equal(state[learner.model.trunk.weight]["anchor"], trunk)
    assert state[learner.model.head.weight]["anchor"].shape == (6, 8)
    assert learner.optimizer.ended == [12, 24]


def test_a_new_strategy_keeps_what_the_optimizer_remembers() -> None:
    """Avalanche empties the state when a strategy first trains: without anchors all would be flexible again."""
    learner = strategy()
    learner.train(Experience(batches(0)))
    weight = learner.model.trunk.weight
    anchor = learner.optimizer.state[weight]["anchor"].clone()
    second = Strategy(learner.model, learner.optimizer, plugins=[ConsolidatePlugin()])
    second.train(Experience(batches(1)))
    assert torch.equal(learner.optimizer.state[weight]["anchor"], anchor)
    assert not torch.equal(weight, anchor)


def test_given_flexibilities_survive_the_first_experience() -> None:
    model = Growing(6, 3)
    given = [torch.full_like(p, 0.25) if p.dim() == 2 else 1.0 for p in model.parameters()]
    optimizer = MetaplasticSGD(model.parameters(), lr=0.05, scale=10.0, flexibility=given)
    Strategy(model, optimizer, plugins=[ConsolidatePlugin()]).train(Experience(batches(0)))
    assert torch.equal(optimizer.state[model.trunk.weight]["flexibility"], given[0])


def test_parameters_that_were_taken_out() -> None:
    """Each of the others keeps its own flexibility and anchor."""
    learner = strategy()
    learner.train(Experience(batches(0)))
    optimizer = learner.optimizer
    params = optimizer.param_groups[0]["params"]
    del params[1]
    kept = {p: (optimizer.state[p]["flexibility"], optimizer.state[p].get("anchor")) for p in params}
    learner.train(Experience(batches(1)))
    for p, (flexibility, anchor) in kept.items():
        assert optimizer.state[p]["flexibility"] == flexibility
        assert optimizer.state[p].get("anchor") is anchor


def test_an_optimizer_that_cannot_consolidate() -> None:
    model = MultiHead(6, 3)
    learner = Strategy(model, torch.optim.SGD(model.parameters(), 0.1), plugins=[ConsolidatePlugin()])
    with pytest.raises(TypeError, match=r"torch\.optim\.sgd\.SGD, which has no .*the strategy's optimizer="):
        learner.train(Experience(batches(0)))


def test_no_item_has_ended() -> None:
    learner = strategy(100)
    with pytest.warns(UserWarning, match=r"ConsolidatePlugin\(every=100\): training ended after 12 "):
        learner.train(Experience(batches(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.train(Experience(batches(1)))  # once


def test_it_may_train_in_several_processes() -> None:
    assert ConsolidatePlugin.supports_distributed
