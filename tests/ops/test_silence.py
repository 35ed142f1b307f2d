"""What silent and functional mean: the definition, synapse by synapse; lists; the same bits again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import Field, ops
from helpers.arguments import lay_out
from helpers.judge import Rule, same_bits
from helpers.judge_layer import (
    LOW,
    RULES,
    Layer,
    Opening,
    clone,
    eighths,
    linear_layer,
    make_batch,
    make_layer,
    mask_of,
    same_state,
    step_layer,
)

pytestmark = pytest.mark.usefixtures("one_thread")

INF, NAN = math.inf, math.nan
SHAPE = (6, 1060)  # a whole chunk, a whole word, and a rest


def activities(shape: tuple[int, int] = SHAPE) -> tuple[Tensor, Tensor]:
    return eighths((shape[1],), 1), eighths((shape[0],), 2)


def state(layer: Layer) -> tuple[Tensor, ...]:
    return layer.weight, layer.buffer, layer.master, layer.anchor, layer.silent


def same(a: Layer, b: Layer) -> bool:
    """As same_state, but for the gradients."""
    return all(same_bits(s, t) for s, t in zip(state(a), state(b), strict=True))


# --------------------------------------------------------------------------- the definition


@pytest.mark.parametrize("insert", ["init", "hebbian"])
@pytest.mark.parametrize("prune", [0.0, 0.4])
def test_the_definition(insert: str, prune: float) -> None:
    # The formulas of docs/design.md in Python's own float64 numbers, one synapse at a time, with 1 - tanh^2.
    shape, rule, how = (
        (5, 40),
        Rule(lr=0.2, scale=3.0, momentum=0.5, weight_decay=0.1),
        Opening(0.5, insert, 0.7, prune),
    )
    before, (pre, post) = make_layer(shape, 1, torch.float64), activities((5, 40))
    after, silent = clone(before), mask_of(before)
    done = step_layer(after, rule, how, pre.double(), post.double())
    converted, pruned = [0] * 5, [0] * 5
    for j in range(5):
        for i in range(40):
            w, a, f = (float(t[j, i]) for t in (before.weight, before.anchor, before.flexibility))
            m, goes_silent = float(before.buffer[j, i]), bool(silent[j, i])
            c = max(float(post[j]), 0.0) * max(float(pre[i]), 0.0)
            if silent[j, i] and c >= 0.5:
                w, m, goes_silent = a if insert == "init" else 0.7 * c, 0.0, False
                a = w
                converted[j] += 1
            elif not silent[j, i]:
                k = 3.0 * (1 - f) / f * abs(w - a)
                m = 0.5 * m + float(before.grad[j, i]) + 0.1 * w
                new = w - 0.2 * (1 - math.tanh(k) ** 2) * m
                if abs(w) < prune and abs(new) < prune:
                    new, m, goes_silent = 0.0, 0.0, True
                    pruned[j] += 1
                w = new
            got = [float(t[j, i]) for t in (after.weight, after.anchor, after.buffer)]
            assert got == pytest.approx([w, a, m], rel=1e-14, abs=1e-14)
            assert bool(mask_of(after)[j, i]) == goes_silent
    assert done.converted.tolist() == converted
    assert done.pruned.tolist() == pruned
    assert sum(converted) > 10
    assert (sum(pruned) > 10) == (prune > 0)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("gate", ["formula", "held"])
def test_a_functional_layer_takes_the_plain_step(
    backend: str, gate: str, rule: Rule, dtype: torch.dtype
) -> None:
    mine, other = (make_layer(SHAPE, 1, dtype, silent=0.0) for _ in range(2))
    alpha = torch.rand(SHAPE)
    held = {"alpha": alpha, "flexibility": None, "scale": None} if gate == "held" else {}
    done = step_layer(mine, rule, Opening(0.0, "hebbian"), *activities(), **held)
    assert int(done.converted.sum() + done.pruned.sum()) == 0
    common = {
        **rule._asdict(),
        "momentum_buffer": other.buffer if rule.momentum else None,
        "master": other.master if dtype in LOW else None,
    }
    if gate == "held":
        del common["scale"]
        ops.gated_sgd_(other.weight, other.grad, alpha, **common)
    else:
        ops.metaplastic_sgd_(other.weight, other.grad, other.anchor, other.flexibility, **common)
    assert same_state(mine, other)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_functional_synapses_do_not_see_the_silent_ones(backend: str, rule: Rule) -> None:
    # The same step, bit for bit, whatever the neighbours in a vector are.
    mixed, plain = make_layer(SHAPE, 1), make_layer(SHAPE, 1)
    silent = mask_of(mixed)
    step_layer(mixed, rule, Opening(0.5), *activities())
    buffer = plain.buffer if rule.momentum else None
    ops.metaplastic_sgd_(
        plain.weight, plain.grad, plain.anchor, plain.flexibility, momentum_buffer=buffer, **rule._asdict()
    )
    for name in ("weight", "buffer"):
        assert same_bits(getattr(mixed, name)[~silent], getattr(plain, name)[~silent])


@pytest.mark.parametrize("insert", ["init", "hebbian"])
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_silent_weights_and_masters_that_were_written_stay(
    backend: str, dtype: torch.dtype, share: float, insert: str
) -> None:
    # Somebody wrote one of them: nothing says which one counts, so both stay, also beside what converts.
    for name in ("synapse", "linear"):
        layer = make_layer(SHAPE, 1, dtype, silent=share)
        silent = mask_of(layer)
        layer.weight[silent], layer.master[silent] = 3.0, -0.25
        layer.weight[0, silent[0]] = NAN
        layer.weight[1, silent[1]] = -0.0
        layer.master[1, silent[1]] = 0.0
        before, how = clone(layer), Opening(0.5, insert, prune=0.1)
        if name == "synapse":
            done = step_layer(layer, RULES["dampening"], how, *activities())
        else:
            done = linear_layer(layer, make_batch(3, SHAPE, 2, dtype, exact=True), RULES["dampening"], how)
        asleep = silent & mask_of(layer)
        assert int(done.converted.sum()) > 100
        assert int(asleep.sum()) > 100
        for one in ("weight", "master", "buffer", "anchor"):
            assert same_bits(getattr(layer, one)[asleep], getattr(before, one)[asleep]), one
        assert same_bits(layer.weight[~asleep], layer.master[~asleep].to(dtype))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prune", [0.0, 0.4])
def test_bits_past_the_last_column_are_nobodys(backend: str, prune: float, share: float) -> None:
    # They stay as they are, and nothing else comes out.
    padding = -1 << (SHAPE[1] % 32)
    for name in ("synapse", "linear"):
        clean, odd = (make_layer(SHAPE, 1, silent=share) for _ in range(2))
        odd.silent[:, -1] |= padding
        for layer in (clean, odd):
            if name == "synapse":
                step_layer(layer, RULES["dampening"], Opening(0.5, prune=prune), *activities())
            else:
                batch = make_batch(3, SHAPE, 2, exact=True)
                linear_layer(layer, batch, RULES["dampening"], Opening(0.5, prune=prune))
        clean.silent[:, -1] |= padding
        assert same_state(clean, odd)


@pytest.mark.parametrize("value", [NAN, INF, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
def test_what_stands_in_a_silent_synapse_does_not_matter(
    backend: str, nonfinite: str, dtype: torch.dtype, value: float
) -> None:
    # Its gradient, flexibility and alpha are not looked at, its momentum and anchor stay as they are.
    for gate in ("formula", "held"):
        clean, dirty = (make_layer(SHAPE, 1, dtype) for _ in range(2))
        silent = mask_of(clean)
        alpha = torch.rand(SHAPE)
        clean.grad[silent] = 0.0
        for tensor in (dirty.grad, dirty.flexibility, dirty.buffer, dirty.anchor):
            tensor[silent] = value
        wrong_alpha = torch.where(silent, value, alpha)
        for layer, a in ((clean, alpha), (dirty, wrong_alpha)):
            held = {"alpha": a, "flexibility": None, "scale": None} if gate == "held" else {}
            step_layer(layer, RULES["nesterov"], Opening(9.0), *activities(), nonfinite=nonfinite, **held)
        for name in ("weight", "master", "buffer", "anchor", "silent"):
            got, expected = getattr(dirty, name), getattr(clean, name)
            if name in ("buffer", "anchor"):
                assert same_bits(got[silent], torch.full_like(got[silent], value)), name
                got, expected = got[~silent], expected[~silent]
            assert same_bits(got, expected), name
        zero = torch.zeros_like(dirty.weight)
        assert same_bits(dirty.weight[silent], zero[silent])


@pytest.mark.parametrize("insert", ["init", "hebbian"])
@pytest.mark.parametrize("rule", [Rule(), Rule(momentum=0.9)], ids=["plain", "momentum"])
def test_a_converted_synapse_starts_at_its_anchor_and_moves_freely(
    backend: str, rule: Rule, insert: str
) -> None:
    layer, (pre, post) = make_layer(SHAPE, 1, silent=1.0), activities()
    how = Opening(0.5, insert, eta=0.3)
    step_layer(layer, rule, how, pre, post)
    woke = ~mask_of(layer)
    assert 0 < int(woke.sum()) < woke.numel()
    assert same_bits(layer.weight[woke], layer.anchor[woke])
    if rule.momentum:
        assert (layer.buffer[woke] == 0).all()
    # alpha is 1: the step is that of f = 1, from no momentum
    layer = layer._replace(grad=eighths(SHAPE, 3) + 0.1)
    free = clone(layer)
    step_layer(layer, rule, how._replace(threshold=99.0), pre, post)
    ops.metaplastic_sgd_(
        free.weight, free.grad, free.anchor, 1.0, **rule._asdict(),
        momentum_buffer=free.buffer if rule.momentum else None,
    )  # fmt: skip
    for name in ("weight", "buffer") if rule.momentum else ("weight",):
        assert same_bits(getattr(layer, name)[woke], getattr(free, name)[woke]), name
    assert not torch.equal(layer.weight[woke], layer.anchor[woke])


def test_pruning_looks_before_and_after(backend: str) -> None:
    # w before, w after with g = 1 and lr = 1/2, f = 1; the bound 0.5 itself is not under 0.5
    before = torch.tensor([[0.25, 0.5, 0.75, -0.25, 1.25, 0.0, 0.49, 0.125, -0.5]])
    layer = Layer(
        before.clone(), torch.ones(1, 9), torch.zeros(1, 9), torch.ones(1, 9), torch.ones(1, 9), before.clone(),
        torch.zeros(1, 1, dtype=torch.int32),
    )  # fmt: skip
    done = step_layer(layer, Rule(lr=0.5), Opening(0.0, prune=0.5), torch.zeros(9), torch.zeros(1))
    gone = [True, False, False, False, False, False, True, True, False]
    assert mask_of(layer)[0].tolist() == gone
    assert done.pruned.tolist() == [3]
    expected = torch.where(torch.tensor([gone]), 0.0, before - 0.5)
    assert same_bits(layer.weight, expected)
    # a pruned synapse can be driven again, and then has its anchor
    done = step_layer(layer, Rule(lr=0.0), Opening(0.5), torch.ones(9), torch.ones(1))
    assert done.converted.tolist() == [3]
    assert same_bits(layer.weight, torch.where(torch.tensor([gone]), 0.0, expected))


def test_what_converts_is_not_pruned_at_once(backend: str) -> None:
    layer = make_layer(SHAPE, 1, silent=1.0)
    layer.anchor.mul_(2.0**-20)
    done = step_layer(layer, Rule(), Opening(0.0, prune=0.5), *activities())
    assert int(done.converted.sum()) == layer.weight.numel()
    assert int(done.pruned.sum()) == 0
    layer = layer._replace(grad=torch.zeros(SHAPE))
    assert (
        int(step_layer(layer, Rule(), Opening(99.0, prune=0.5), *activities()).pruned.sum())
        == layer.weight.numel()
    )


# --------------------------------------------------------------------------- lists


@pytest.mark.parametrize("insert", ["init", "hebbian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_list_is_its_layers_one_by_one(backend: str, dtype: torch.dtype, insert: str) -> None:
    shapes = [(33, 65), (0, 5), (3, 1030), (5, 0), (1, 1), (700, 3)]
    rule, how = RULES["nesterov"], Opening(0.5, insert, prune=0.2)
    together = [make_layer(s, i, dtype) for i, s in enumerate(shapes)]
    together[2] = Layer(*(lay_out(t, "transposed") for t in together[2]))
    alone = [clone(layer) for layer in together]
    drives = [activities(s) for s in shapes]
    thetas = [0.5, torch.tensor(0.25), torch.tensor([0.0, 0.5, 1.0]), 0.5, 0.5, torch.full((700,), 0.3)]
    flexibilities = [0.3 if i % 2 else layer.flexibility for i, layer in enumerate(together)]
    w, g, a, _, m, master, words = (list(column) for column in zip(*together, strict=True))
    pre, post = (list(column) for column in zip(*drives, strict=True))
    results = ops.synapse_step_(
        w, g, a, flexibilities, words, pre, post, momentum_buffer=m, master=master if dtype in LOW else None,
        **{**rule._asdict(), **how._asdict(), "threshold": thetas},
    )  # fmt: skip
    assert len(results) == len(shapes)
    for i, (one, other) in enumerate(zip(alone, together, strict=True)):
        change = {"flexibility": flexibilities[i]}
        done = step_layer(one, rule, how._replace(threshold=thetas[i]), *drives[i], **change)
        assert same_state(one, other)
        assert all(same_bits(x, y) for x, y in zip(done, results[i], strict=True))


def test_lists_of_coincidences_alphas_and_fields(backend: str) -> None:
    shapes = [(5, 40), (3, 7)]
    layers = [make_layer(s, 1) for s in shapes]
    alone = [clone(layer) for layer in layers]
    c, alpha = [eighths(s, 2) for s in shapes], [eighths(s, 3, 0, 8) for s in shapes]
    fields = [Field.normal(3), Field.uniform(4, purpose=flexkern.Purpose.ANCHOR)]
    ops.synapse_step_(
        [x.weight for x in layers], [x.grad for x in layers], fields, None, [x.silent for x in layers],
        coincidence=c, alpha=alpha, threshold=0.5, lr=0.1,
    )  # fmt: skip
    for i, one in enumerate(alone):
        ops.synapse_step_(
            one.weight, one.grad, fields[i], None, one.silent, coincidence=c[i], alpha=alpha[i], threshold=0.5,
            lr=0.1,
        )  # fmt: skip
        assert same(one, layers[i])
    assert ops.synapse_step_([], [], [], [], [], [], [], threshold=0.5, lr=0.1, scale=1.0) == []


# --------------------------------------------------------------------------- the same bits again


def both(layer: Layer, other: Layer) -> list[Tensor]:
    batch = make_batch(37, tuple(other.weight.shape), 3, exact=False)
    done = step_layer(
        layer, RULES["nesterov"], Opening(0.4, "hebbian", prune=0.1), *activities(tuple(layer.weight.shape))
    )
    also = linear_layer(other, batch, RULES["nesterov"], Opening(0.2, prune=0.1))
    return [*layer, *other, *done, *also]


def test_the_same_bits_twice(backend: str) -> None:
    first, second = (both(make_layer((70, 1100), 1), make_layer((70, 1100), 2)) for _ in range(2))
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


def test_threads_do_not_change_a_bit(backend: str) -> None:
    # of synapse_step_: the library's product may sum in another order
    start = [make_layer(s, 1) for s in ((70, 1100), (20000, 5), (1, 70001))]
    results: list[list[Tensor]] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)  # one_thread restores it
        results.append([])
        for layer in map(clone, start):
            shape = tuple(layer.weight.shape)
            done = step_layer(layer, RULES["nesterov"], Opening(0.5, "hebbian", prune=0.2), *activities(shape))
            results[-1] += [*layer, *done]
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
