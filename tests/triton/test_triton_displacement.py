"""The scaled displacement in Triton: against float64, and to the bit against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import flexkern
from flexkern import Field, ops
from flexkern.backends.tuning import config
from flexkern.triton_kernels.displacement import displacement_kernel
from helpers import judge
from helpers.judge import SECOND_ORDER, SUBNORMAL, U, assert_within, make_inputs, same_bits

pytestmark = [
    pytest.mark.usefixtures("triton_backend"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # 0 / 0 in masked lanes
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

TILE = config("displacement", "stored", "interpreter")["tile"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(), (0,), (5,), (33, 3), (TILE,), (2 * TILE + 1,)]


@pytest.mark.parametrize("procedural", [False, True])
def test_a_list_against_float64_in_one_launch(
    procedural: bool, device: torch.device, launches: Callable[[Any], list[dict[str, Any]]]
) -> None:
    seen = launches(displacement_kernel)
    inputs = [make_inputs(shape, i) for i, shape in enumerate(SHAPES)]
    befores = [x.weight.to(device) for x in inputs]
    weights = [(x.weight + 0.1 * x.grad).to(device) for x in inputs]
    after = [w.clone() for w in weights]
    anchors: list[Any] = [x.anchor.to(device) for x in inputs]
    flexibilities: list[Any] = [x.flexibility.to(device) for x in inputs]
    if procedural:
        anchors = [(Field.normal_table, Field.normal)[i % 2](1, i) for i in range(len(inputs))]
        flexibilities = [Field.uniform(2, i) for i in range(len(inputs))]
    ops.scale_displacement_(after, befores, anchors, flexibilities, scale=20.0)
    assert len(seen) == 1
    for new, w, w0, a, f in zip(after, weights, befores, anchors, flexibilities, strict=True):
        a, f = (ops.materialize(v, w.shape) if isinstance(v, Field) else v.cpu() for v in (a, f))
        alpha, bound = judge.judge_gate(w0.cpu(), a, f, 20.0)
        d = (w.double() - w0.double()).cpu()
        exact = w0.double().cpu() + alpha * d
        # Twice the bound of alpha, as on a GPU; w - w0, the product and the sum round once each.
        limit = (2 * bound * d.abs() + 2 * U * (alpha * d).abs() + U * exact.abs()) * SECOND_ORDER + SUBNORMAL
        assert_within(new.cpu(), exact, limit)


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_held_gate_is_the_reference_to_the_bit(
    dtype: torch.dtype, nonfinite: str, device: torch.device
) -> None:
    x = make_inputs((TILE + 7,), 3, dtype)
    weight = (x.weight + 0.1 * x.grad).to(dtype)
    weight[3], weight[4] = float("inf"), float("nan")
    alpha, master = x.flexibility.clone(), x.master.clone()
    alpha[:3] = torch.tensor([0.0, 1.0, 0.0])
    master[5] = 7.0  # the weight was written from outside
    results = []
    for backend in ("reference", "triton"):
        w, m = weight.to(device, copy=True), master.to(device, copy=True)
        with flexkern.use_backend(backend):
            ops.gated_displacement_(w, x.weight.to(device), alpha.to(device), master=m, nonfinite=nonfinite)
        results.append((w.cpu(), m.cpu()))
    good = torch.ones(TILE + 7, dtype=torch.bool)
    good[3:5] = nonfinite == "skip"  # NaN has many forms
    assert all(same_bits(one[good], other[good]) for one, other in zip(*results, strict=True))


def test_flexibilities_at_the_edges(device: torch.device) -> None:
    f = torch.tensor([1e-40, 2.0**-149, 0.0, 1.0, 1.0], device=device)
    a = torch.tensor([0.0, 0.5, 0.5, float("nan"), 3e38], device=device)
    w = torch.full((5,), 0.5, device=device)
    assert ops.metaplastic_gate(w, a, f, 4e5).tolist() == [0, 0, 0, 1, 1]
    before = w.clone()
    w += 1
    ops.scale_displacement_(w, before, a, f, scale=4e5)
    assert w.tolist() == [0.5, 0.5, 0.5, 1.5, 1.5]
