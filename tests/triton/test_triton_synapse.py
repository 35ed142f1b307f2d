"""One pass over a layer's synapses in Triton against the float64 judge: update, mask, weights, counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from torch import Tensor

from flexkern import Field, ops, reference
from flexkern.ops.synapse import SYNAPSE
from helpers import judge
from helpers.judge import Rule, same_bits
from helpers.triton_layer import Layer, check_layer, eighths, make_layer, step_arguments

# Masked lanes hold 0 / 0 in the interpreter.
pytestmark = [
    pytest.mark.usefixtures("triton_backend"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

RULES = {
    "plain": Rule(),
    "momentum": Rule(momentum=0.9, dampening=0.3, weight_decay=0.1),
    "nesterov": Rule(momentum=0.9, weight_decay=0.1, nesterov=True, maximize=True),
}
THETA = 9 / 128  # coincidences are multiples of 1/64: never equal to it, so rounding decides nothing


@pytest.fixture(scope="session")
def alpha_factor(device: torch.device) -> float:
    """See test_triton_metaplastic.py: the interpreter keeps one bound of the judge, a GPU's division two."""
    return 1.0 if device.type == "cpu" else 2.0


def drives(kind: str, shape: tuple[int, int], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """The activities's arguments, and the coincidence in float64."""
    if kind == "matrix":
        c = eighths(shape, 5) ** 2
        return {"coincidence": c.to(device)}, c.double()
    pre, post = eighths((shape[1],), 3), eighths((shape[0],), 4)
    c = torch.outer(post.clamp(min=0), pre.clamp(min=0)).double()
    return {"pre": pre.to(device), "post": post.to(device)}, c


def run(layer: Layer, activities: dict[str, Tensor], rule: Rule, **changes: Any) -> ops.Conversions:
    x = layer.inputs
    sources = {"anchor": x.anchor, "flexibility": x.flexibility}
    arguments = {**sources, "threshold": THETA, **step_arguments(layer, rule), **activities, **changes}
    return ops.synapse_step_(x.weight, x.grad, silent=layer.words, **arguments)


@pytest.mark.parametrize("insert", ["init", "hebbian"])
@pytest.mark.parametrize("activities", ["rate", "matrix"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (37, 75), (64, 64), (1, 4100), (65, 132)], ids=str)
def test_layers(
    shape: tuple[int, int], activities: str, insert: str, device: torch.device, alpha_factor: float
) -> None:
    before = make_layer(shape, 1)
    after = before.copy(device)
    arguments, c = drives(activities, shape, device)
    result = run(after, arguments, RULES["momentum"], insert=insert, eta=0.7, prune=0.25)
    check_layer(before, after, result, c, THETA, RULES["momentum"], insert=insert, eta=0.7, prune=0.25,
                alpha_factor=alpha_factor)  # fmt: skip
    if shape[0] > 1:
        assert result.converted.sum() > 0
        assert result.pruned.sum() > 0


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.float16)],
    ids=str,
)
@pytest.mark.parametrize("shape", [(5, 36), (5, 37)], ids=str)
def test_low_precision(
    shape: tuple[int, int], dtype: torch.dtype, grad_dtype: torch.dtype, rule: Rule, device: torch.device,
    alpha_factor: float,
) -> None:  # fmt: skip
    before = make_layer(shape, 2, dtype, grad_dtype=grad_dtype)
    after = before.copy(device)
    arguments, c = drives("rate", shape, device)
    result = run(after, arguments, rule, prune=0.25)
    check_layer(before, after, result, c, THETA, rule, prune=0.25, alpha_factor=alpha_factor)


@pytest.mark.parametrize("theta", ["one", "per unit", "never"])
def test_thresholds(theta: str, device: torch.device, alpha_factor: float) -> None:
    shape = (37, 75)
    before = make_layer(shape, 3)
    after = before.copy(device)
    arguments, c = drives("rate", shape, device)
    per_unit = (2 * torch.arange(37) + 1) / 128
    value = {"one": torch.tensor([THETA]), "per unit": per_unit, "never": torch.tensor(1e30)}[theta]
    result = run(after, arguments, Rule(), threshold=value.to(device))
    expected = value.double() if theta == "per unit" else value.item()
    check_layer(before, after, result, c, expected, Rule(), alpha_factor=alpha_factor)
    assert (result.converted.sum() == 0) == (theta == "never")


@pytest.mark.parametrize("insert", ["init", "hebbian"])
def test_a_held_gate(insert: str, device: torch.device) -> None:
    before = make_layer((7, 40), 4)
    after = before.copy(device)
    arguments, c = drives("rate", (7, 40), device)
    alpha = before.inputs.flexibility
    result = run(after, arguments, Rule(), alpha=alpha.to(device), flexibility=None, scale=None, insert=insert)
    check_layer(before, after, result, c, THETA, Rule(), insert=insert, alpha=alpha)


ANCHORS = {
    "stored": None,
    "normal": Field.normal(2**64 - 1, 5, std=0.5),
    "table": Field.normal_table(2**64 - 1, 5, std=0.5),
    "shard": Field.normal_table(5, offset=2**33 + 3),
}
FLEXIBILITIES = {
    "stored": None,
    "number": 0.3,
    "uniform": Field.uniform(7, 2),
    "low": Field.biased_low(8, offset=2),
}


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("flexibility", [*FLEXIBILITIES, "held"])
def test_every_mix_of_sources(anchor: str, flexibility: str, device: torch.device) -> None:
    """To the bit what the stored tensors of these values give, also in rows that straddle Philox blocks."""
    held = flexibility == "held"
    shape = (6, 36) if anchor == "normal" else (5, 37)
    layer = make_layer(shape, 5)
    stored, mixed = layer.copy(device), layer.copy(device)
    arguments, _ = drives("rate", shape, device)
    sources: dict[str, Any] = {"anchor": ANCHORS[anchor], "flexibility": FLEXIBILITIES.get(flexibility)}
    tensors = {}
    for name, source in sources.items():
        stored_one = getattr(layer.inputs, name)
        if source is None:
            sources[name], tensors[name] = stored_one.to(device), stored_one.to(device)
        elif isinstance(source, Field):
            tensors[name] = reference.materialize(source, shape).to(device)
        else:
            tensors[name] = torch.full(shape, source, device=device)
    extra = {"alpha": layer.inputs.flexibility.to(device), "flexibility": None, "scale": None} if held else {}
    results = [
        run(copy, arguments, Rule(), prune=0.2, **(given | extra))
        for copy, given in ((mixed, sources), (stored, tensors))
    ]
    assert same_bits(mixed.inputs.weight, stored.inputs.weight)
    assert torch.equal(mixed.words, stored.words)
    assert all(map(torch.equal, *results))
    assert results[0].converted.sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [36, 37])
def test_untouched_synapses_keep_every_bit(columns: int, dtype: torch.dtype, device: torch.device) -> None:
    """Whatever stands in their weight, master and momentum, and whatever their gradient is."""
    layer = make_layer((5, columns), 6, dtype)
    x, nan = layer.inputs, float("nan")
    poison = {
        name: getattr(x, name).masked_fill(layer.silent, nan) for name in ("weight", "master", "buffer", "grad")
    }
    layer = layer._replace(inputs=x._replace(**poison))
    after = layer.copy(device)
    arguments, c = drives("rate", (5, columns), device)
    result = run(after, arguments, RULES["momentum"])
    check_layer(layer, after, result, c, THETA, RULES["momentum"], alpha_factor=2.0)


@pytest.mark.parametrize("columns", [36, 37])
def test_silent_weights_and_masters_that_were_written_stay(columns: int, device: torch.device) -> None:
    """So do the bits past the last column of a row."""
    layer = make_layer((5, columns), 6, torch.bfloat16)
    layer.inputs.weight[layer.silent], layer.inputs.master[layer.silent] = 3.0, -0.25
    layer.words[:, -1] |= -1 << (columns % 32)
    after = layer.copy(device)
    arguments, _ = drives("rate", (5, columns), device)
    result = run(after, arguments, RULES["momentum"])
    asleep = layer.silent & ops.unpack_mask(after.words, columns).cpu()
    assert result.converted.sum() > 0
    assert asleep.any()
    for name in ("weight", "master", "buffer"):
        before, now = (getattr(one.inputs, name).cpu()[asleep] for one in (layer, after))
        assert same_bits(now, before), name
    assert torch.equal(after.words.cpu()[:, -1] >> (columns % 32), torch.full((5,), -1, dtype=torch.int32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_drive_that_is_not_finite_converts_nothing(value: float, device: torch.device) -> None:
    layer = make_layer((3, 40), 7)
    after = layer.copy(device)
    arguments, _ = drives("rate", (3, 40), device)
    result = run(after, {**arguments, "pre": torch.full((40,), value, device=device)}, Rule(), threshold=0.0)
    assert result.converted.sum() == 0
    assert torch.equal(after.words.cpu(), layer.words)
    bad_anchor = layer.inputs.anchor.fill_(value).to(device)
    assert run(layer.copy(device), arguments, Rule(), anchor=bad_anchor).converted.sum() == 0


def test_the_same_bits_again_and_from_an_odd_address(device: torch.device) -> None:
    layer = make_layer((9, 64), 8)
    arguments, _ = drives("rate", (9, 64), device)
    copies = [layer.copy(device) for _ in range(3)]
    memory = torch.zeros(9 * 64 + 1, device=device)[1:].view(9, 64)
    copies[2] = copies[2]._replace(inputs=copies[2].inputs._replace(weight=memory.copy_(layer.inputs.weight)))
    results = [run(copy, arguments, RULES["momentum"], prune=0.2) for copy in copies]
    for copy, result in zip(copies[1:], results[1:], strict=True):
        assert all(map(same_bits, copy.inputs, copies[0].inputs))
        assert torch.equal(copy.words, copies[0].words)
        assert all(map(torch.equal, result, results[0]))


def test_empty_layers(device: torch.device) -> None:
    for shape in ((0, 3), (3, 0)):
        layer = make_layer(shape, 9).copy(device)
        arguments, _ = drives("rate", shape, device)
        assert run(layer, arguments, Rule()).converted.tolist() == [0] * shape[0]


def test_operands_that_do_not_fit(device: torch.device) -> None:
    x = make_layer((2, 3), 1).copy(device)
    i = x.inputs
    names = [a.name for a in SYNAPSE.on("triton")._schema.arguments]
    units = [torch.ones(3, device=device), torch.ones(2, device=device)]
    values = [
        i.weight, i.grad, i.anchor, i.flexibility, x.words, units, 0.1, 0.1, 1.0, None, None, None, None, None,
        None, None, None, False, 1.0, 0.0, 0.0, 0.0, 0.0, False, False, True,
    ]  # fmt: skip
    good = dict(zip(names, values, strict=True))
    before = i.weight.clone()
    for changes, message in (
        ({"weight": i.weight.double()}, "weight must be one of"),
        ({"grad": i.grad.half()}, "grad must be torch.float32"),
        ({"grad": i.grad[:1]}, "grad has 3 elements"),
        ({"silent": x.words[:1]}, r"silent must be int32 \[2, 1\]"),
        ({"activities": units[::-1]}, "pre must have 3 elements"),
        ({"activities": [units[0]]}, "coincidence has 3 elements"),
        ({"threshold_tensor": torch.ones(3, device=device)}, "threshold_tensor must have 2 elements"),
        ({"momentum_buffer": i.buffer[:1], "momentum": 0.9}, "momentum_buffer has 3 elements"),
        ({"sources": [2, 0, 0, 0, 0] * 2, "parameters": [0.0] * 4, "hebbian": True, "anchor": None,
          "flexibility": None}, "anchor must be a tensor"),
        ({"grad": i.weight}, "shares memory"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=message):
            SYNAPSE.on("triton")(*(good | changes).values())
    assert same_bits(i.weight, before)
    judge.assert_within(i.weight, before.double(), torch.zeros(()))
