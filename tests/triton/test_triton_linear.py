"""The pass inside the gradient's product in Triton, against the float64 judge; and what is not computed.

Activities and gradients are multiples of 1/8, so all products and sums are exact in float32 and in any order:
the gradient has no error, and coincidences (multiples of 1/64 over a batch of 16) never round across the
threshold.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from torch import Tensor

from flexkern import Field, ops, reference
from flexkern.backends.tuning import config
from flexkern.ops.adapter import BACKWARD, FORWARD
from flexkern.ops.linear import LINEAR
from flexkern.triton_kernels import adapter, linear
from flexkern.triton_kernels.adapter_bank import part_kernel
from flexkern.triton_kernels.adapter_pass import backward_kernel, forward_kernel
from flexkern.triton_kernels.linear import HEBBIAN, NOBODY, RATE, linear_kernel
from flexkern.triton_kernels.product import INTERPRETED, precision_of
from flexkern.triton_kernels.target import multiplies
from helpers.judge import Rule, same_bits
from helpers.judge_adapter import make_case
from helpers.triton_layer import Layer, check_layer, eighths, make_layer, step_arguments

# Masked lanes hold 0 / 0 in the interpreter.
pytestmark = [
    pytest.mark.usefixtures("triton_backend"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

MOMENTUM = Rule(momentum=0.9, weight_decay=0.1, nesterov=True)
# A mean over 16 of products of eighths is a multiple of 2^-10, a product of two such means one of 2^-14.
THETA = {"hebbian": 0.03 + 2.0**-16, "rate": 0.005 + 2.0**-16}


@pytest.fixture(scope="session")
def alpha_factor(device: torch.device) -> float:
    """See test_triton_metaplastic.py: the interpreter keeps one bound of the judge, a GPU's division two."""
    return 1.0 if device.type == "cpu" else 2.0


class Batch:
    """x, grad_out and post of a batch, and what follows from them in float64."""

    def __init__(self, size: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        out, units_in = shape
        self.x, self.post = eighths((size, units_in), 3).to(dtype), eighths((size, out), 4).to(dtype)
        self.grad_out = eighths((size, out), 5, -4, 4).to(dtype)
        self.on_device = [t.to(device) for t in (self.x, self.grad_out, self.post)]
        self.grad = self.grad_out.double().T @ self.x.double()

    def coincidence(self, rule: str) -> Tensor:
        pre, post = self.x.double().clamp(min=0), self.post.double().clamp(min=0)
        if rule == "hebbian":
            return post.T @ pre / len(pre)
        return torch.outer(post.mean(0), pre.mean(0))


def run(layer: Layer, batch: Batch, rule: Rule, activities: str | None, **changes: Any) -> ops.Conversions:
    x, (inputs, grad_out, post) = layer.inputs, batch.on_device
    arguments = {"anchor": x.anchor, "flexibility": x.flexibility, **step_arguments(layer, rule)}
    if activities is not None:
        arguments |= {"silent": layer.words, "post": post, "rule": activities, "threshold": THETA[activities]}
    return ops.linear_step_(x.weight, inputs, grad_out, **(arguments | changes))


@pytest.mark.parametrize(
    ("shape", "activities", "insert"),
    [
        *itertools.product([(1, 1), (37, 75)], ["hebbian", "rate"], ["init", "hebbian"]),
        ((65, 130), "hebbian", "hebbian"),
    ],
    ids=str,
)
def test_layers(
    shape: tuple[int, int], activities: str, insert: str, device: torch.device, alpha_factor: float
) -> None:
    before, batch = make_layer(shape, 1), Batch(16, shape, torch.float32, device)
    after = before.copy(device)
    result = run(after, batch, MOMENTUM, activities, insert=insert, eta=0.5, prune=0.25)
    check_layer(before, after, result, batch.coincidence(activities), THETA[activities], MOMENTUM,
                grad=batch.grad,
                insert=insert, eta=0.5, prune=0.25, alpha_factor=alpha_factor)  # fmt: skip
    if shape != (1, 1):
        assert result.converted.sum() > 0
        assert result.pruned.sum() > 0


@pytest.mark.parametrize(
    ("dtype", "x_dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("activities", [None, "hebbian"])
def test_dtypes(
    activities: str | None, dtype: torch.dtype, x_dtype: torch.dtype, device: torch.device, alpha_factor: float
) -> None:
    """Aligned, with a batch that is no multiple of a step's samples."""
    shape = (16, 40)
    before, batch = (
        make_layer(shape, 2, dtype, share=0.5 if activities else 0.0),
        Batch(19, shape, x_dtype, device),
    )
    after = before.copy(device)
    result = run(after, batch, Rule(), activities)
    c = None if activities is None else batch.coincidence(activities)
    check_layer(before, after, result, c, THETA["hebbian"], Rule(), grad=batch.grad, alpha_factor=alpha_factor)


@pytest.mark.parametrize("activities", [None, "hebbian", "rate"])
def test_an_empty_batch(activities: str | None, device: torch.device, alpha_factor: float) -> None:
    """No gradient, so only the decay moves weights; and nobody is driven, whatever the threshold."""
    before, batch = (
        make_layer((3, 33), 3, share=0.5 if activities else 0.0),
        Batch(0, (3, 33), torch.float32, device),
    )
    after = before.copy(device)
    rule = Rule(weight_decay=0.1)
    result = run(after, batch, rule, activities, **({"threshold": 0.0} if activities else {}))
    check_layer(
        before, after, result, None, 0.0, rule, grad=torch.zeros(3, 33).double(), alpha_factor=alpha_factor
    )


@pytest.mark.parametrize(
    ("columns", "normal"), [(40, Field.normal), (37, Field.normal), (37, Field.normal_table)]
)
def test_procedural_sources_give_the_bits_of_stored_ones(
    columns: int, normal: Callable[..., Field], device: torch.device
) -> None:
    shape = (5, columns)
    layer, batch = make_layer(shape, 4), Batch(16, shape, torch.float32, device)
    fields = {"anchor": normal(5, offset=2**33 + columns % 4), "flexibility": Field.uniform(7, 2)}
    tensors = {name: reference.materialize(field, shape).to(device) for name, field in fields.items()}
    one, other = layer.copy(device), layer.copy(device)
    results = [run(one, batch, Rule(), "hebbian", **fields), run(other, batch, Rule(), "hebbian", **tensors)]
    assert same_bits(one.inputs.weight, other.inputs.weight)
    assert torch.equal(one.words, other.words)
    assert all(map(torch.equal, *results))
    assert results[0].converted.sum() > 0


def test_thresholds_of_each_unit_and_a_held_gate(device: torch.device) -> None:
    shape = (9, 33)
    before, batch = make_layer(shape, 5), Batch(16, shape, torch.float32, device)
    after = before.copy(device)
    theta = torch.arange(9) / 64 + 2.0**-16
    alpha = before.inputs.flexibility
    result = run(after, batch, Rule(), "hebbian", threshold=theta.to(device), alpha=alpha.to(device),
                 flexibility=None, scale=None)  # fmt: skip
    check_layer(before, after, result, batch.coincidence("hebbian"), theta.double(), Rule(), grad=batch.grad,
                alpha=alpha)  # fmt: skip
    assert 0 < result.converted.sum() < before.silent.sum()


@pytest.mark.parametrize("columns", [40, 33])
def test_untouched_synapses_keep_every_bit(columns: int, device: torch.device) -> None:
    layer, batch = make_layer((5, columns), 6, torch.bfloat16), Batch(16, (5, columns), torch.bfloat16, device)
    x, nan = layer.inputs, float("nan")
    poison = {name: getattr(x, name).masked_fill(layer.silent, nan) for name in ("weight", "master", "buffer")}
    layer = layer._replace(inputs=x._replace(**poison))
    after = layer.copy(device)
    result = run(after, batch, MOMENTUM, "hebbian")
    check_layer(layer, after, result, batch.coincidence("hebbian"), THETA["hebbian"], MOMENTUM, grad=batch.grad,
                alpha_factor=2.0)  # fmt: skip


def test_the_same_bits_again(device: torch.device) -> None:
    layer, batch = make_layer((20, 36), 7), Batch(16, (20, 36), torch.float32, device)
    copies = [layer.copy(device) for _ in range(2)]
    results = [run(copy, batch, Rule(), "hebbian") for copy in copies]
    assert all(map(same_bits, *(copy.inputs for copy in copies)))
    assert torch.equal(*(copy.words for copy in copies))
    assert all(map(torch.equal, *results))


@pytest.mark.skipif(not INTERPRETED.value, reason="counts the products that the interpreter makes")
@pytest.mark.parametrize("activities", [None, "rate", "hebbian"])
def test_the_second_product_is_made_only_where_synapses_are_silent(
    activities: str | None, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tiles of three steps: 6 products for the gradient. A silent synapse: 3 more, if Hebbian."""
    from triton.runtime import interpreter

    made: list[int] = []
    dot = interpreter.InterpreterBuilder.create_dot

    def counted(*args: Any) -> Any:
        made.append(1)
        return dot(*args)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", counted)
    tile = config("linear", "ieee", "interpreter")
    batch = Batch(2 * tile["batch"] + 1, (5, 160), torch.float32, device)
    for silent in ([], [(4, 150)]):
        made.clear()
        mask = torch.zeros(5, 160, dtype=torch.bool)
        for at in silent:
            mask[at] = True
        layer = make_layer((5, 160), 8, share=0.0)._replace(silent=mask, words=reference.pack_mask(mask))
        run(layer.copy(device), batch, Rule(), activities)
        assert len(made) == (9 if silent and activities == "hebbian" else 6)


@pytest.mark.parametrize(("activities", "how"), [(None, NOBODY), ("rate", RATE), ("hebbian", HEBBIAN)])
def test_one_launch_of_the_variant_that_fits(
    activities: str | None, how: Any, device: torch.device, launches: Any
) -> None:
    seen = launches(linear_kernel)
    layer, batch = make_layer((8, 16), 9).copy(device), Batch(4, (8, 16), torch.float32, device)
    run(layer, batch, Rule(), activities)
    run(layer, batch, Rule(), activities, flexibility=1.0)
    assert [launch["COINCIDENCE"] for launch in seen] == [how.value] * 2
    assert [launch["ALIGNED"] for launch in seen] == [True] * 2
    if activities is None:  # f = 1: alpha is 1 wherever the anchor is, and nobody is inserted
        assert seen[1]["A_KIND"] == 1


@pytest.mark.parametrize(("setting", "expected"), [("none", "ieee"), ("ieee", "ieee"), ("tf32", "tf32")])
def test_float32_is_multiplied_as_torch_is_told(setting: str, expected: str) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = setting
        for architecture in ("interpreter", "sm_80", "sm_86", "sm_120", "gfx942"):
            assert precision_of(torch.float32, architecture) == expected
            assert precision_of(torch.bfloat16, architecture) == "ieee"
        for without in ("gfx90a", "gfx950", "gfx1100", "gfx1201"):
            assert precision_of(torch.float32, without) == "ieee"
    finally:
        matmul.fp32_precision = before


def test_high_precision_is_launched_as_the_gpu_can(
    device: torch.device, launches: Callable[[Any], list], monkeypatch: pytest.MonkeyPatch
) -> None:
    """tf32 on a GPU without it is a compilation error, in linear_step_ and in both passes of adapters."""
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    kernels = (linear_kernel, forward_kernel, backward_kernel, part_kernel)
    seen = [launches(kernel) for kernel in kernels]
    case = make_case((2, 3, 8, 4, 1))
    x, down, down_bias, up, up_bias, index, *_ = (v.to(device) if isinstance(v, Tensor) else v for v in case)
    layer, batch = make_layer((8, 16), 9).copy(device), Batch(4, (8, 16), torch.float32, device)
    try:
        setting.fp32_precision = "tf32"
        for architecture, expected in (("gfx90a", "ieee"), ("gfx942", "tf32"), ("sm_90", "tf32")):
            for module in (linear, adapter):
                monkeypatch.setattr(module, "architecture", lambda _, here=architecture: here)
            run(layer, batch, Rule(), None)
            _, hidden = FORWARD.on("triton")(x, down, down_bias, up, up_bias, index, None, None, 1.0, 0.0, True)
            BACKWARD.on("triton")(x, x, hidden, down, up, index, 1.0, 0.0, True, True)
            assert [launch[-1]["PRECISION"] for launch in seen] == [expected] * 4
            assert expected in multiplies(architecture)
    finally:
        setting.fp32_precision = before


def test_empty_layers(device: torch.device) -> None:
    for shape in ((0, 3), (3, 0)):
        layer, batch = make_layer(shape, 9).copy(device), Batch(4, shape, torch.float32, device)
        assert run(layer, batch, Rule(), "hebbian").converted.tolist() == [0] * shape[0]


def test_operands_that_do_not_fit(device: torch.device) -> None:
    layer, batch = make_layer((2, 3), 1).copy(device), Batch(4, (2, 3), torch.float32, device)
    i, (x, grad_out, post) = layer.inputs, batch.on_device
    names = [a.name for a in LINEAR.on("triton")._schema.arguments]
    values = [
        i.weight, x, grad_out, i.anchor, i.flexibility, layer.words, [post], 0.1, 0.1, 1.0, None, None, None,
        None, None, None, None, None, False, 1.0, 0.0, 0.0, 0.0, 0.0, False, False, True,
    ]  # fmt: skip
    good = dict(zip(names, values, strict=True))
    before = i.weight.clone()
    for changes, message in (
        ({"x": x.double()}, "x must be one of"),
        ({"x": x[:, :2].contiguous()}, r"x must be \[4, 3\]"),
        ({"grad_out": grad_out[:3]}, r"grad_out must be \[4, 2\]"),
        ({"grad_out": grad_out.half()}, "grad_out must be torch.float32 as x is"),
        ({"grad_out": grad_out.t().contiguous().t()}, "grad_out must be contiguous"),
        ({"activities": [x]}, r"post must be \[4, 2\]"),
        ({"activities": [post[0], post[0]]}, "pre must have 3 elements"),
        ({"silent": layer.words.long()}, "silent must be int32"),
        ({"x": i.weight}, "shares memory"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            LINEAR.on("triton")(*(good | changes).values())
    assert same_bits(i.weight, before)
