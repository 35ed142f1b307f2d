"""Gradients, activities, batches and anchors that are infinite or not a number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers.judge import Rule, same_bits
from helpers.judge_layer import (
    RULES,
    Batch,
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


POISON = {"nan": NAN, "inf": INF, "-inf": -INF}
PLACES = [0, 7, 16, 1023, 1024, 1058, 1059]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_a_poisoned_gradient(backend: str, poison: float, dtype: torch.dtype) -> None:
    rule, how = RULES["nesterov"], Opening(0.5, prune=0.1)
    hit = torch.zeros(SHAPE, dtype=torch.bool)
    hit[:, PLACES] = True
    before = make_layer(SHAPE, 1, dtype)
    hit &= ~mask_of(before)
    clean, skip, propagate = clone(before), clone(before), clone(before)
    for layer, mode in ((clean, "skip"), (skip, "skip"), (propagate, "propagate")):
        if layer is not clean:
            layer.grad[hit] = poison
        step_layer(layer, rule, how, *activities(), nonfinite=mode)
    for name in ("weight", "buffer", "master"):
        got = getattr(skip, name)
        small = before.exact.abs() < 0.1  # where nothing moved, it is under the bound before and after
        assert same_bits(got[hit & ~small], getattr(before, name)[hit & ~small]), name
        assert same_bits(got[~hit], getattr(clean, name)[~hit]), name
        assert same_bits(getattr(propagate, name)[~hit], getattr(clean, name)[~hit]), name
    assert mask_of(skip)[hit & small].all()
    assert not propagate.exact[hit].isfinite().any()
    assert not mask_of(propagate)[hit].any()
    raises = before._replace(grad=torch.where(hit, poison, 1.0).to(dtype))
    start = clone(raises)
    with pytest.raises(FloatingPointError, match=r"grad\[0\] .*infinite or NaN.*nothing was changed"):
        step_layer(raises, rule, how, *activities(), nonfinite="raise")
    assert same_state(raises, start)


@pytest.mark.parametrize("insert", ["init", "hebbian"])
@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
@pytest.mark.parametrize("where", ["pre", "post", "coincidence", "anchor"])
def test_a_poisoned_drive_or_anchor_converts_nothing(
    backend: str, where: str, poison: float, insert: str
) -> None:
    layer = make_layer(SHAPE, 1)
    silent = mask_of(layer)
    given = {"pre": torch.ones(SHAPE[1]), "post": torch.ones(SHAPE[0])}
    if where == "coincidence":
        given = {"coincidence": torch.ones(SHAPE)}
    hit = torch.zeros(SHAPE, dtype=torch.bool)
    hit[:, PLACES] = where != "post"
    hit[3] |= where == "post"
    if where == "anchor":
        layer.anchor[hit & silent] = poison
    elif where in ("pre", "post"):
        given[where][PLACES if where == "pre" else 3] = poison
    else:
        given[where][hit] = poison
    # an infinite anchor is of no matter where it is written; -inf counts as 0 as an activity
    converts = silent & ~hit if insert == "init" or where != "anchor" else silent
    done = step_layer(layer, Rule(), Opening(0.5, insert), **given)
    assert torch.equal(mask_of(layer), silent & ~converts)
    assert torch.equal(done.converted, converts.sum(1).to(torch.int32))
    assert layer.weight.isfinite().all()


def test_an_inserted_weight_that_overflows_is_not_inserted(backend: str) -> None:
    layer = make_layer((2, 40), 1, silent=1.0)
    pre = torch.tensor([1e30, 1.0] * 20)
    done = step_layer(layer, Rule(), Opening(0.5, "hebbian", eta=1e30), pre, torch.ones(2))
    assert done.converted.tolist() == [20, 20]
    assert mask_of(layer)[:, ::2].all()


@pytest.mark.parametrize("coincidence", ["hebbian", "rate"])
@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
@pytest.mark.parametrize("name", ["x", "grad_out", "post"])
def test_poison_in_a_batch(backend: str, name: str, poison: float, coincidence: str) -> None:
    rule, how, unit = RULES["nesterov"], Opening(2.0**-11), 5
    batch, before = make_batch(8, SHAPE, 1, exact=True), make_layer(SHAPE, 1)
    bad = Batch(*(t.clone() for t in batch))
    getattr(bad, name)[3, unit] = poison
    clean, skip, propagate, raises = (clone(before) for _ in range(4))
    linear_layer(clean, batch, rule, how, coincidence)
    linear_layer(skip, bad, rule, how, coincidence)
    linear_layer(propagate, bad, rule, how, coincidence, nonfinite="propagate")
    hit = torch.zeros(SHAPE, dtype=torch.bool)
    if name == "x":
        hit[:, unit] = True
    else:
        hit[unit] = True
    silent = mask_of(before)
    for layer in (skip, propagate):
        for got, expected in zip(state(layer)[:-1], state(clean)[:-1], strict=True):
            assert same_bits(got[~hit], expected[~hit])
        assert torch.equal(mask_of(layer)[~hit], mask_of(clean)[~hit])
    assert skip.weight.isfinite().all()
    assert skip.buffer.isfinite().all()
    functional = hit & ~silent
    if name == "post":  # it makes no gradient
        assert same_bits(propagate.weight[functional], clean.weight[functional])
    else:
        assert same_bits(skip.weight[functional], before.weight[functional])
        assert not propagate.weight[functional].isfinite().any()
    if name == "grad_out":  # it drives nothing
        assert torch.equal(mask_of(skip), mask_of(clean))
    elif poison != -INF:  # which is no activity: it counts as 0
        assert torch.equal(mask_of(skip)[hit], silent[hit])
    if name == "post":
        linear_layer(raises, bad, rule, how, coincidence, nonfinite="raise")
        assert same_state(raises, skip)
    else:
        with pytest.raises(FloatingPointError, match=rf"{name}\[0\] of shape .* has infinite or NaN"):
            linear_layer(raises, bad, rule, how, coincidence, nonfinite="raise")
        assert same_state(raises, before)
