"""Anchors and flexibilities that are stored, constant or procedural, in every mix."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import Field, Purpose, ops
from helpers import judge
from helpers.judge import Rule, make_inputs, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(33, 65), (3,), (0,), (9001,), (1, 1), (17,)]
ANCHORS = {
    "stored": None,
    "uniform": Field.uniform(2**64 - 5, 3, low=-1.5, high=0.75, purpose=Purpose.ANCHOR, offset=5),
    "normal": Field.normal(17, 2**32 - 1, mean=0.25, std=0.5, offset=2**40 + 3),
    "normal_table": Field.normal_table(17, 2**32 - 1, mean=0.25, std=0.5, offset=2**40 + 3),
}
FLEXIBILITIES = {
    "stored": None,
    "number": 0.3,
    "uniform": Field.uniform(9, 1, offset=2),
    "narrow": Field.uniform(2**63, 1, low=0.2, high=0.9, offset=7),
    "biased_high": Field.biased_high(9, 1),
    "biased_low": Field.biased_low(9, 1, offset=2**34 + 1),
}


def stored(source: object, tensor: Tensor) -> Tensor:
    """What a source stands for, as a tensor; ``tensor`` where it is stored anyway."""
    if source is None:
        return tensor
    if isinstance(source, Field):
        return ops.materialize(source, tensor.shape)
    return torch.full_like(tensor, source)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("flexibility", FLEXIBILITIES)
@pytest.mark.parametrize("anchor", ANCHORS)
def test_a_source_gives_the_bits_of_its_tensor(
    backend: str, anchor: str, flexibility: str, shape: tuple[int, ...]
) -> None:
    a, f = ANCHORS[anchor], FLEXIBILITIES[flexibility]
    x = make_inputs(shape, seed=1)
    stored_a, stored_f = stored(a, x.anchor), stored(f, x.flexibility)
    given_a, given_f = stored_a if a is None else a, stored_f if f is None else f
    alpha = ops.metaplastic_gate(x.master, given_a, given_f, 20.0)
    assert same_bits(alpha, ops.metaplastic_gate(x.master, stored_a, stored_f, 20.0))
    judge.assert_within(alpha, *judge.judge_gate(x.master, stored_a, stored_f, 20.0))
    for dtype in (torch.float32, torch.float16):
        mine, other = make_inputs(shape, 1, dtype), make_inputs(shape, 1, dtype)
        for _ in range(3):
            for y, source_a, source_f in ((mine, given_a, given_f), (other, stored_a, stored_f)):
                master = y.master if dtype is torch.float16 else None
                ops.metaplastic_sgd_(y.weight, y.grad, source_a, source_f, lr=0.1, scale=20.0, master=master)
        for got, expected in zip(mine, other, strict=True):
            assert same_bits(got, expected)
        if x.master.numel() > 16:  # of a few, none may be free to move
            assert not same_bits(mine.master if dtype is torch.float16 else mine.weight, x.master)


def test_every_mix_in_one_list(backend: str) -> None:
    mixes = list(itertools.product(ANCHORS.values(), FLEXIBILITIES.values()))
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(mixes))]
    for dtype in (torch.float32, torch.bfloat16):
        mine = [make_inputs(shape, i, dtype) for i, shape in enumerate(shapes)]
        other = [make_inputs(shape, i, dtype) for i, shape in enumerate(shapes)]
        rule = Rule(momentum=0.9, weight_decay=0.1)._asdict()
        low = dtype is torch.bfloat16
        ops.metaplastic_sgd_(
            [x.weight for x in mine], [x.grad for x in mine],
            [x.anchor if a is None else a for x, (a, _) in zip(mine, mixes, strict=True)],
            [x.flexibility if f is None else f for x, (_, f) in zip(mine, mixes, strict=True)],
            momentum_buffer=[x.buffer for x in mine], master=[x.master for x in mine] if low else None, **rule,
        )  # fmt: skip
        for x, y, (a, f) in zip(mine, other, mixes, strict=True):
            ops.metaplastic_sgd_(
                y.weight, y.grad, stored(a, y.anchor), stored(f, y.flexibility), momentum_buffer=y.buffer,
                master=y.master if low else None, **rule,
            )  # fmt: skip
            for got, expected in zip(x, y, strict=True):
                assert same_bits(got, expected)


@pytest.mark.parametrize("name", [n for n in ANCHORS if n != "stored"])
@pytest.mark.parametrize("cuts", [(0, 1, 4097, 9001), (0, 3, 6, 1030, 9001), (0, 2, 4096, 9001)], ids=str)
def test_shards_step_as_the_whole(backend: str, name: str, cuts: tuple[int, ...]) -> None:
    anchor, flexibility = ANCHORS[name], FLEXIBILITIES["uniform"]
    whole, parts = make_inputs((9001,), 2), make_inputs((9001,), 2)
    ops.metaplastic_sgd_(whole.weight, whole.grad, anchor, flexibility, lr=0.1, scale=20.0)
    for start, end in itertools.pairwise(cuts):
        part = slice(start, end)
        ops.metaplastic_sgd_(
            parts.weight[part],
            parts.grad[part],
            anchor.shard(start),
            flexibility.shard(start),
            lr=0.1,
            scale=20.0,
        )
    assert same_bits(parts.weight, whole.weight)


def test_backends_train_alike_from_procedural_state() -> None:
    # Fields are the same bits everywhere; only the gate may differ, within its bound.
    if not flexkern.backends()["cpu"].available:
        pytest.skip(flexkern.backends()["cpu"].reason)
    weights = {}
    for name in ("reference", "cpu"):
        x = make_inputs((3000,), 4)
        with flexkern.use_backend(name):
            for i in range(20):
                grad = torch.cos(x.grad * (i + 1))
                ops.metaplastic_sgd_(
                    x.weight, grad, ANCHORS["normal"], FLEXIBILITIES["uniform"], lr=0.01, scale=0.5
                )
        weights[name] = x.weight
    # Where f > 0.05, a step moves by at most |d(lr alpha g) / dw| <= 0.01 * 0.77 * 2 * 0.5 * 19 < 0.15 of an
    # error in w, so that an error grows at most 1.15^20 < 17 times in 20 steps. Each step adds at most
    # U |w| + 0.01 bound(alpha) < 3 U on either backend. For smaller f the gate is too steep in w for a bound.
    f = ops.materialize(FLEXIBILITIES["uniform"], (3000,))
    steady = f > 0.05
    difference = (weights["cpu"] - weights["reference"]).abs()[steady]
    assert difference.max() <= 20 * 17 * 2 * 3 * 2.0**-24
    assert difference.max() < (weights["cpu"] - make_inputs((3000,), 4).weight).abs().mean() / 1000
