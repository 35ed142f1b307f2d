"""SynapseGate: every gate separates gaussians, at most k open, state survives, mistakes are named."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from flexkern.nn import GateOptions
from flexkern.nn.gates.mlp import Scaling, StackedMLP
from flexkern.nn.gates.synapse_gate import ALWAYS_OPEN, SynapseGate
from helpers.gaussians import GATES, TASKS, WIDTH, make_tasks, points, taught

NAMES = ["-".join(str(v) for v in options.values()) for options in GATES]


@pytest.fixture(autouse=True)
def backend() -> None:
    """In place of the one for all modules: there is one implementation."""


# ---------------------------------------------------------------------- gates


@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("options", GATES, ids=NAMES)
def test_gates_tell_gaussians_apart(options: dict[str, Any], refresh: bool) -> None:
    gate = taught(refresh=refresh, **options)
    report = gate.report(*points())
    # Six classes, 6 apart, with deviations about 1 (noise over 3 of them is rare): a gate has to be good on
    # these.
    # Trained once, a gate has not seen the tasks after its own; energy sees its own only.
    blind = options["gate"] == "energy" or (options["gate"] == "mlp" and not refresh)
    assert report["auroc_mean"] > (0.75 if blind else 0.85)
    assert report["open_rate_own"] > 0.7
    assert report["open_rate_other"] < (0.6 if blind else 0.3)
    assert report["best_right"] > 0.65
    assert gate.keeps_data == (options["gate"] == "knn" or options.get("negatives") == "replay")


def test_refresh_shows_early_gates_later_tasks() -> None:
    x, task = points()
    once, again = (taught(refresh=r).report(x, task) for r in (False, True))
    assert again["auroc"][0] > once["auroc"][0]
    assert again["open_rate_other"] < once["open_rate_other"]


def test_without_refresh_only_the_newest_gate_is_trained() -> None:
    data, _ = make_tasks(4, 2, 60)
    gate = SynapseGate(WIDTH, hidden=8)
    gate.learn(*data[0])
    initial = gate.mlp.hidden_weight[0].clone()
    gate.learn(*data[1])
    assert not torch.equal(gate.mlp.hidden_weight[0], initial)  # now there is something to tell it from
    for t in (2, 3):
        before = gate.mlp.hidden_weight.clone()
        gate.learn(*data[t])
        assert torch.equal(gate.mlp.hidden_weight[:t], before)


@pytest.mark.parametrize("gate", ["ridge", "mahalanobis", "mlp"])
def test_what_was_held_out_joins_the_sums(gate: str) -> None:
    few = {"features": 64} if gate == "ridge" else {}
    synapses = taught(gate=gate, threshold="quantile", **few)
    assert synapses.recall.statistics.count.tolist() == [60] * (2 * TASKS)
    if gate == "ridge":
        assert synapses.detector.head.count.tolist() == [60] * (2 * TASKS)


def test_the_first_gate_is_open_until_there_is_another_task() -> None:
    data, _ = make_tasks(TASKS, 2, 60)
    for first in ("trained", "open"):
        for gate in (SynapseGate(WIDTH, first=first), SynapseGate(WIDTH, first=first, threshold="quantile")):
            gate.learn(*data[0])
            assert gate(data[1][0]).eq(1).all()
            assert gate.evidence(data[1][0]).eq(ALWAYS_OPEN).all()
            gate.learn(*data[1])
            assert gate.evidence(data[1][0])[:, 0].eq(ALWAYS_OPEN).all() == (first == "open")
            gate.learn(*data[2])
            assert gate(data[1][0])[:, 0].eq(1).all() == (first == "open")
    refreshed = SynapseGate(WIDTH, first="open", refresh=True)
    for task in data:
        refreshed.learn(*task)
    assert not refreshed(data[1][0])[:, 0].eq(1).all()


def test_no_gate_and_the_oracle() -> None:
    x, task = points(20)
    none, oracle = taught(gate="none"), taught(gate="oracle")
    assert torch.equal(none(x), torch.ones(len(x), TASKS))
    assert torch.equal(oracle(x, task), nn.functional.one_hot(task, TASKS).float())
    assert oracle.report(x, task)["open_rate"] == pytest.approx(1 / TASKS, abs=1e-12)
    assert none.report(x, task)["open_per_sample"] == TASKS
    with pytest.raises(ValueError, match="task must be int64"):
        oracle(x)
    with pytest.raises(ValueError, match=r"task must be in 0 \.\.\. 2"):
        oracle(x, task + 1)
    assert not none.keeps_data
    assert none.parameters_added == 0


def test_evidence_is_that_of_one_module_a_task() -> None:
    gate = taught()
    x, _ = points(20)
    got = gate.evidence(x)
    for t in range(TASKS):
        module = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 1)).requires_grad_(False)
        module[0].weight.copy_(gate.mlp.hidden_weight[t])
        module[0].bias.copy_(gate.mlp.hidden_bias[t])
        module[2].weight.copy_(gate.mlp.out_weight[t : t + 1])
        module[2].bias.copy_(gate.mlp.out_bias[t : t + 1])
        inner = x.abs() @ gate.mlp.hidden_weight[t].abs().T + gate.mlp.hidden_bias[t].abs()
        size = (inner @ gate.mlp.out_weight[t].abs() + gate.mlp.out_bias[t].abs()).max()
        # two float32 computations of sums over WIDTH + 1 and 17 products
        bound = 2 * (WIDTH + 16 + 6) * 2**-24 * float(size)
        assert (got[:, t] - module(x).squeeze(1)).abs().max() <= bound


def test_one_mlp_does_not_see_another_ones_batches() -> None:
    scaling = Scaling(torch.zeros(WIDTH), torch.eye(WIDTH), torch.eye(WIDTH))
    g = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn((2, 8, WIDTH), generator=g), torch.arange(8).expand(2, 8) % 2 * 1.0) for _ in range(5)
    ]
    changed = [(torch.stack([x[0], -3 * x[1]]), torch.stack([y[0], 1 - y[1]])) for x, y in batches]
    weights = []
    for data in (batches, changed):
        mlp = StackedMLP(WIDTH, 4)
        for t in range(2):
            mlp.add(torch.Generator().manual_seed(t))
        mlp.fit(torch.arange(2), data, 5, lr=0.01, weight_decay=0.1, scaling=scaling)
        weights.append(mlp.hidden_weight.clone())
    assert torch.equal(weights[0][0], weights[1][0])
    assert not torch.equal(weights[0][1], weights[1][1])


@pytest.mark.parametrize("inputs", ["standard", "whitened"])
def test_scaling_is_folded_away(inputs: str) -> None:
    gate = taught()
    x, _ = points(50)
    before = gate.mlp(x)
    scaling = Scaling.of(gate.recall.statistics, inputs)
    scaled = (x - scaling.centre) @ scaling.matrix
    if inputs == "standard":
        everything = torch.cat([x for x, _ in make_tasks(TASKS, 2, 60, apart=6.0)[0]])
        spread = (everything - scaling.centre) @ scaling.matrix
        torch.testing.assert_close(spread.std(0), torch.ones(WIDTH), rtol=1e-4, atol=0)  # float32 sums of 360
    torch.testing.assert_close(scaled @ scaling.inverse + scaling.centre, x, rtol=0, atol=1e-4)
    gate.mlp.fit(torch.arange(TASKS), [], 0, lr=0.1, weight_decay=0.0, scaling=scaling)
    # into the scaling and back: two products over WIDTH of weights under 10 with entries under 10, times inputs
    torch.testing.assert_close(gate.mlp(x), before, rtol=0, atol=2 * WIDTH * 2**-24 * 1e4)


# ---------------------------------------------------------------------- gating


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.booleans(), st.sampled_from(["topk", "soft"]), st.integers(0, 2**31))
def test_at_most_k_synapses_open(k: int, fill: bool, gating: str, seed: int) -> None:
    fill = fill and gating == "topk"
    gate = SynapseGate(WIDTH, gating=gating, k=k, fill=fill)
    gate.ready, gate.theta_logit = torch.ones(4, dtype=torch.bool), torch.tensor([0.0, 1.0, -1.0, 0.0])
    evidence = torch.randn((6, 4), generator=torch.Generator().manual_seed(seed)) * 2
    openings = gate.open(evidence)
    assert ((openings > 0).sum(1) <= k).all()
    for row, opened in zip(evidence, openings, strict=True):
        best = sorted(range(4), key=lambda t: -row[t])[:k]
        for t in range(4):
            if t not in best:
                expected = 0.0
            elif gating == "soft":
                expected = float(torch.sigmoid(row[t]))
            else:
                expected = 1.0 if fill or row[t] >= gate.theta_logit[t] else 0.0
            assert float(opened[t]) == pytest.approx(expected, abs=2**-23)


def test_hard_and_soft() -> None:
    gate, soft = taught(theta=0.7), taught(theta=0.7, gating="soft")
    x, _ = points(50)
    evidence = gate.evidence(x)
    assert torch.equal(gate(x), (torch.sigmoid(evidence.double()) >= 0.7).float())
    assert torch.equal(soft(x), torch.sigmoid(evidence))
    gate.set_theta(0.2)
    assert torch.equal(gate(x), (torch.sigmoid(evidence.double()) >= 0.2).float())
    gate.set_theta(torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(gate.theta, torch.tensor([0.0, 0.5, 1.0]))
    assert gate(x)[:, 0].eq(1).all()
    assert gate(x)[:, 2].eq(0).all()


# ---------------------------------------------------------------------- state

STATES = [
    *GATES,
    {"gate": "none"},
    {"gate": "oracle"},
    {"threshold": "quantile", "refresh": True},
    {"threshold": "adaptive"},
    {"gate": "knn", "threshold": "adaptive", "refresh": True},
]


@pytest.mark.parametrize("options", STATES, ids=lambda k: "-".join(str(v) for v in k.values()))
def test_a_loaded_gate_goes_on_to_the_same_bits(options: dict[str, Any]) -> None:
    data, _ = make_tasks(4, 2, 40)
    gate, fresh_gate = (SynapseGate(WIDTH, seed=3, **options) for _ in range(2))
    for task in data[:2]:
        gate.learn(*task)
    fresh_gate.load_state_dict(load(save(gate.state_dict())))
    torch.manual_seed(1)
    gate.learn(*data[2])
    gate.learn(*data[3])
    torch.manual_seed(2)  # torch's own generator is neither used
    state = torch.random.get_rng_state()
    fresh_gate.learn(*data[2])
    fresh_gate.learn(*data[3])
    assert torch.equal(torch.random.get_rng_state(), state)  # nor moved
    for (name, one), other in zip(gate.state_dict().items(), fresh_gate.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    x, task = data[3][0], torch.full((80,), 3)
    assert torch.equal(gate.evidence(x, task), fresh_gate.evidence(x, task))


def test_the_seed_counts() -> None:
    assert not torch.equal(taught(seed=0).mlp.hidden_weight, SynapseGate(WIDTH, seed=1).mlp.hidden_weight)
    data, _ = make_tasks(2, 2, 60)
    gates = [SynapseGate(WIDTH, seed=s) for s in (0, 0, 1)]
    for gate in gates:
        for task in data:
            gate.learn(*task)
    assert torch.equal(gates[0].mlp.hidden_weight, gates[1].mlp.hidden_weight)
    assert not torch.equal(gates[0].mlp.hidden_weight, gates[2].mlp.hidden_weight)


def test_casting_and_autocast_change_nothing() -> None:
    gate = taught()
    x, _ = points(10)
    expected = gate.evidence(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gate.evidence(x), expected)
    assert torch.equal(gate.bfloat16().evidence(x), expected)
    assert torch.equal(gate.evidence(x.bfloat16()), gate.evidence(x.bfloat16().float()))


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "magic"}, "gate must be one of"),
        ({"gating": "sometimes"}, "gating must be one of"),
        ({"threshold": "none"}, "threshold must be one of"),
        ({"negatives": "data"}, "negatives must be one of"),
        ({"positives": "replay"}, "positives must be one of"),
        ({"inputs": "raw"}, "inputs must be one of"),
        ({"first": "closed"}, "first must be one of"),
        ({"calibration": "beta"}, "calibration must be one of"),
        ({"theta": 1.0}, r"theta must be in \(0, 1\)"),
        ({"target": 0.0}, "target must be a rate"),
        ({"holdout": 1.0}, "holdout must be in"),
        ({"k": 2}, "k=2 limits open synapses"),
        ({"gating": "topk", "k": 0}, "k must be an integer of at least 1"),
        ({"fill": True}, "fill opens the k best"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must be finite and > 0"),
        ({"weight_decay": -1.0}, "weight_decay must be finite"),
        ({"threshold": "adaptive", "gain": 0.0}, "gain must be > 0"),
        ({"threshold": "adaptive", "low": 1.0, "high": 0.0}, "low must be at most high"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynapseGate(WIDTH, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shrinkage": 2.0}, "shrinkage must be 'oas'"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"gate": "ridge", "ridge": 0.0}, "ridge must be 'auto'"),
        ({"threshold": "adaptive", "gain": 0.0}, "gain must be > 0"),
    ],
)
def test_the_record_checks_what_its_parts_check(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GateOptions(**options)


def test_options_as_a_record_and_one_by_one() -> None:
    record = GateOptions(gate="knn", gating="topk", threshold="quantile", keep=7, seed=3)
    one = SynapseGate(WIDTH, options=record)
    other = SynapseGate(WIDTH, gate="knn", gating="topk", threshold="quantile", keep=7, seed=3)
    both = SynapseGate(WIDTH, options=GateOptions(gate="knn", keep=9, seed=3), gating="topk",
                       threshold="quantile", keep=7)  # fmt: skip
    assert one.options == other.options == both.options == record.filled()
    assert (one.options.k, one.options.target, one.options.calibration) == (2, 0.95, "platt")
    assert (record.k, record.target, record.calibration) == (None, None, None)
    ridge = SynapseGate(WIDTH, options=record, gate="ridge").options
    assert (ridge.calibration, ridge.keep) == ("softmax", 7)  # defaults are filled in last
    for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert copied.options == one.options
    with pytest.raises(TypeError, match=r"options must be a flexkern.nn.GateOptions or None, got dict"):
        SynapseGate(WIDTH, options={"gate": "knn"})


def test_unknown_options_are_named() -> None:
    for wrong, right in (("refrsh", "refresh"), ("gatting", "gating"), ("devise", "device")):
        with pytest.raises(TypeError, match=f"SynapseGate has no argument '{wrong}'; did you mean '{right}'"):
            SynapseGate(WIDTH, **{wrong: 1})
    with pytest.raises(TypeError, match=r"has no argument 'xyz'$"):
        SynapseGate(WIDTH, xyz=1)


def test_hidden_must_be_an_integer() -> None:
    with pytest.raises(TypeError, match="hidden must be an integer"):
        SynapseGate(WIDTH, hidden=2.5)


@pytest.mark.parametrize("gate", ["mlp", "mahalanobis", "none"])
def test_tasks_that_are_wrong_change_nothing(gate: str) -> None:
    data, _ = make_tasks(2, 2, 40)
    synapses = SynapseGate(WIDTH, gate=gate)
    synapses.learn(*data[0])
    before = {name: value.clone() for name, value in synapses.state_dict().items()}
    x, y = data[1]
    broken = x.clone()
    broken[3, 3] = math.nan
    for arguments, message in (
        ((x, y - 2), "labels must be the next classes, 2, 3"),
        ((x, y + 1), "labels must be the next classes, 2, 3"),
        ((x[:, 1:], y), rf"h0 must be \[n, {WIDTH}\]"),
        ((x, y[1:]), r"labels must be \[80\]"),
        ((broken, y), "h0 has infinite or NaN elements"),
        ((x[:0], y[:0]), "h0 has no samples"),
        ((x[[0, 40]], y[[0, 40]]), "some class needs two samples"),
    ):
        with pytest.raises(ValueError, match=message):
            synapses.learn(*arguments)
    after = synapses.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_other_mistakes() -> None:
    data, _ = make_tasks(2, 1, 40)
    x, y = data[0]
    with pytest.raises(RuntimeError, match="no task has been learned"):
        SynapseGate(WIDTH)(x)
    with pytest.raises(ValueError, match="at least 2 classes a task"):
        SynapseGate(WIDTH, gate="energy").learn(x, y)
    with pytest.raises(ValueError, match="too few to hold 20% of each"):
        SynapseGate(WIDTH, gate="mahalanobis").learn(x[:4], y[:4])
    gate = taught()
    with pytest.raises(ValueError, match="theta must be a probability"):
        gate.set_theta(1.5)
    with pytest.raises(ValueError, match="theta must be a probability"):
        gate.set_theta(torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="MLPs of"):
        SynapseGate(WIDTH, hidden=5).load_state_dict(gate.state_dict())
