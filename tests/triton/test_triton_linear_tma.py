"""linear_step_ by tensor descriptors: against the float64 judge, against the other form, and where it is taken.

As in test_triton_linear.py gradients and activities are multiples of 1/8: the product has no error, so both
forms give the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from torch import Tensor

from flexkern import Field, ops, use_backend
from flexkern.backends import tuning
from flexkern.triton_kernels import linear_tma
from flexkern.triton_kernels.catalogue import CANDIDATES, all_variants, variants_on
from flexkern.triton_kernels.linear import linear_kernel
from flexkern.triton_kernels.linear_tma import KEY, linear_tma_kernel
from flexkern.triton_kernels.product import INTERPRETED
from helpers.judge import Rule, same_bits
from helpers.triton_layer import Layer, check_layer, eighths, make_layer

# Masked lanes hold 0 / 0 in the interpreter.
pytestmark = [
    pytest.mark.usefixtures("triton_backend"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

SMALL = {"out": 64, "batch": 16, "group": 2, "num_warps": 1, "num_stages": 1}
PLAIN = Rule()
TMA = {**SMALL, KEY: 3} if INTERPRETED else linear_tma.PROPOSED
OTHER = {name: value for name, value in TMA.items() if name != KEY}


@contextlib.contextmanager
def tried(configuration: dict[str, int]) -> Iterator[None]:
    """Every variant has this configuration."""
    with contextlib.ExitStack() as stack:
        for variant in ("half", "half-procedural", "half-silent", "tf32", "ieee"):
            stack.enter_context(tuning.trial("linear", variant, configuration))
        yield


@pytest.fixture
def forced() -> Iterator[None]:
    """Every variant has a configuration that asks for this form."""
    with tried(TMA):
        yield


@pytest.fixture
def taken(launches: Callable[[Any], list]) -> Callable[[], tuple[int, int]]:
    """``taken()``: how many launches there were by tensor descriptors, and of the other form."""
    seen = launches(linear_tma_kernel), launches(linear_kernel)
    return lambda: (len(seen[0]), len(seen[1]))


@pytest.fixture
def tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    yield
    matmul.fp32_precision = before


class Batch:
    """x and grad_out, and the gradient in float64."""

    def __init__(self, size: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        x, grad_out = eighths((size, shape[1]), 3), eighths((size, shape[0]), 5, -4, 4)
        self.x, self.grad_out = x.to(device, dtype), grad_out.to(device, dtype)
        self.grad = grad_out.double().T @ x.double()


def run(layer: Layer, batch: Batch, rule: Rule = PLAIN, **changes: Any) -> ops.Conversions:
    x = layer.inputs
    arguments = {"anchor": x.anchor, "flexibility": x.flexibility, **rule._asdict()}
    return ops.linear_step_(x.weight, batch.x, batch.grad_out, **(arguments | changes))


@pytest.mark.parametrize(
    ("shape", "size", "dtype"),
    [
        ((8, 8), 1, torch.bfloat16),
        ((16, 40), 19, torch.float16),
        ((72, 136), 16, torch.bfloat16),  # two tiles each way, of which the second are 8 wide
        ((24, 24), 17, torch.float32),
        ((200, 264), 33, torch.bfloat16),  # more rows of tiles than a group, in whole and in part
    ],
    ids=str,
)
@pytest.mark.usefixtures("forced", "tf32")
def test_against_the_judge(
    shape: tuple[int, int],
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    taken: Callable[[], tuple[int, int]],
) -> None:
    before, batch = make_layer(shape, 2, share=0.0), Batch(size, shape, dtype, device)
    after = before.copy(device)
    rule = Rule(weight_decay=0.1, maximize=size == 19)
    result = run(after, batch, rule)
    assert taken() == (1, 0)
    check_layer(before, after, result, None, 0.0, rule, grad=batch.grad,
                alpha_factor=1.0 if device.type == "cpu" else 2.0)  # fmt: skip
    assert not same_bits(before.inputs.weight, after.inputs.weight.cpu())


def _sources(layer: Layer) -> dict[str, dict[str, Any]]:
    x = layer.inputs
    one = torch.tensor([0.05], device=x.weight.device)
    return {
        "stored": {},
        "held": {"alpha": x.flexibility, "flexibility": None, "scale": None},
        "a number": {"flexibility": 0.3},
        "plain": {"flexibility": 1.0},
        "tensors": {"lr": one, "scale": one * 40},
        "finite only": {"nonfinite": "skip"},
    }


@pytest.mark.parametrize("name", ["stored", "held", "a number", "plain", "tensors", "finite only"])
def test_the_same_bits_as_the_other_form(
    name: str, device: torch.device, taken: Callable[[], tuple[int, int]]
) -> None:
    layer, batch = (
        make_layer((72, 136), 4, share=0.0).copy(device),
        Batch(19, (72, 136), torch.bfloat16, device),
    )
    if name == "finite only":
        batch.grad_out[3, 7] = float("inf")
    one, other = layer.copy(device), layer.copy(device)
    for copy, configuration in ((one, TMA), (other, OTHER)):
        with tried(configuration):
            run(copy, batch, **_sources(copy)[name])
    assert taken() == (1, 1)
    assert same_bits(one.inputs.weight, other.inputs.weight)
    assert not same_bits(one.inputs.weight, layer.inputs.weight)


def _inside(tensor: Tensor, before: int) -> tuple[Tensor, Tensor]:
    """Its values, ``before`` elements after the beginning of a larger tensor; and that one."""
    whole = torch.full((before + tensor.numel() + 64,), 3.0, dtype=tensor.dtype, device=tensor.device)
    part = whole[before:][: tensor.numel()].view(tensor.shape)
    part.copy_(tensor)
    return part, whole


@pytest.mark.usefixtures("forced")
def test_nothing_around_the_weight_is_written(
    device: torch.device, taken: Callable[[], tuple[int, int]]
) -> None:
    layer, batch = (
        make_layer((72, 136), 5, share=0.0).copy(device),
        Batch(19, (72, 136), torch.bfloat16, device),
    )
    weight, whole = _inside(layer.inputs.weight, 64)
    run(layer._replace(inputs=layer.inputs._replace(weight=weight)), batch)
    assert taken() == (1, 0)
    assert (whole[:64] == 3).all()
    assert (whole[64 + weight.numel() :] == 3).all()
    run(layer, batch)
    assert same_bits(weight, layer.inputs.weight)


@pytest.mark.usefixtures("forced")
def test_a_single_sample_may_have_any_stride(
    device: torch.device, taken: Callable[[], tuple[int, int]]
) -> None:
    layer, batch = make_layer((24, 24), 5, share=0.0).copy(device), Batch(1, (24, 24), torch.bfloat16, device)
    one, other = layer.copy(device), layer.copy(device)
    run(one, batch)
    batch.x, batch.grad_out = batch.x.as_strided((1, 24), (1, 1)), batch.grad_out.as_strided((1, 24), (0, 1))
    assert batch.x.is_contiguous()
    run(other, batch)
    assert taken() == (2, 0)
    assert same_bits(one.inputs.weight, other.inputs.weight)


def _unaligned(tensor: Tensor) -> Tensor:
    return _inside(tensor, 1)[0]


@pytest.mark.parametrize(
    "why",
    ["rows", "columns", "weight", "x", "grad_out", "anchor", "alpha", "float32", "low weight", "momentum",
     "drawn", "silent", "no batch"],
)  # fmt: skip
@pytest.mark.usefixtures("forced")
def test_what_it_does_not_serve_goes_the_other_way(
    why: str, device: torch.device, taken: Callable[[], tuple[int, int]]
) -> None:
    """And is right: as the reference has it."""
    shape = {"rows": (20, 24), "columns": (24, 20)}.get(why, (24, 24))
    layer = make_layer(shape, 6, torch.bfloat16 if why == "low weight" else torch.float32, share=0.0).copy(
        device
    )
    batch = Batch(
        0 if why == "no batch" else 8, shape, torch.float32 if why == "float32" else torch.bfloat16, device
    )
    if why in ("x", "grad_out"):
        setattr(batch, why, _unaligned(getattr(batch, why)))
    changes: dict[str, Any] = {}
    if why == "alpha":
        changes = {"alpha": _unaligned(layer.inputs.flexibility), "flexibility": None, "scale": None}
    elif why == "drawn":
        changes = {"flexibility": Field.uniform(3)}
    elif why == "silent":
        changes = {"silent": layer.words, "post": torch.zeros_like(batch.grad_out), "threshold": 1.0}
    results = []
    for backend in ("triton", "reference"):
        copy = layer.copy(device)
        x = copy.inputs
        if why in ("weight", "anchor"):
            copy = copy._replace(inputs=x._replace(**{why: _unaligned(getattr(x, why))}))
        more = {"master": x.master} if why == "low weight" else {}
        rule = Rule(momentum=0.9) if why == "momentum" else Rule(weight_decay=0.1)
        more |= {"momentum_buffer": x.buffer} if why == "momentum" else {}
        with use_backend(backend):
            run(copy, batch, rule, **changes, **more)
        results.append(copy.inputs.weight)
    assert taken() == (0, 1)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_the_other_form_is_the_default_until_a_gpu_has_raced_it(
    device: torch.device, taken: Callable[[], tuple[int, int]]
) -> None:
    for variant, targets in tuning.table().configurations["linear"].items():
        for target, (row, why) in targets.items():
            assert KEY not in row or why.startswith("measured: "), (variant, target)
    layer, batch = make_layer((16, 40), 2, share=0.0).copy(device), Batch(8, (16, 40), torch.bfloat16, device)
    run(layer, batch)
    assert taken() == (0, 1)


@pytest.mark.parametrize(("variant", "x"), [("half", "bf16"), ("tf32", "tf32")])
def test_the_tuner_races_it(variant: str, x: str) -> None:
    (raced,) = [c for c in CANDIDATES["linear", variant] if KEY in c]
    assert raced == (linear_tma.PROPOSED if x == "bf16" else linear_tma.PROPOSED_TF32)
    known = all_variants()[f"linear-{x}-stored"]
    assert known.kernel is linear_kernel
    assert known.forms[KEY].kernel is linear_tma_kernel
    assert not all_variants()[f"linear-{x}-mixed"].forms


def test_it_is_compiled_where_there_is_a_copy_engine() -> None:
    for architecture, there in (
        ("sm_80", False),
        ("sm_89", False),
        ("sm_90", True),
        ("sm_120", True),
        ("gfx942", False),
    ):
        assert ("linear-tma-bf16-stored" in variants_on(architecture)) is there
