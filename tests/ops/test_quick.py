"""The compiled operator is tried before the checks in Python: it is taken where it should be, does what the way
through the checks does, and refuses what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import Field, ops
from flexkern.ops import adapter, displacement, field, linear, mask, metaplastic, operator, synapse
from helpers.arguments import Arguments, gated, linear_arguments, refuses, step_arguments, synapse_arguments
from helpers.judge import same_bits
from helpers.refusals import NOT_GATED, ONLY_GATED, WRONG
from helpers.stand_in import on_a_gpu

status = flexkern.backends()["cpu"]
pytestmark = [
    pytest.mark.skipif(not status.available, reason=status.reason),
    pytest.mark.usefixtures("one_thread"),
]
BF16 = torch.bfloat16
ANCHOR, FLEXIBILITY = Field.normal(3, 4, offset=5), Field.uniform(1, 2)


@pytest.fixture(params=["cpu", "gpu"], autouse=True)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """On the CPU, and with its kernels in the place of a GPU's: tensors say that they are on one."""
    with flexkern.use_backend("auto"):
        if request.param == "gpu":
            on_a_gpu(monkeypatch)
        yield request.param


def without(arguments: Arguments, *names: str) -> Arguments:
    return {name: value for name, value in arguments.items() if name not in names}


def plain(arguments: Arguments) -> Arguments:
    return without(arguments, "momentum", "momentum_buffer", "master")


def held(arguments: Arguments) -> Arguments:
    """With a stored alpha in place of flexibility and scale."""
    return {**arguments, "flexibility": None, "scale": None, "alpha": arguments["flexibility"]}


def gate_arguments(**changes: object) -> Arguments:
    x = step_arguments()
    return {**{name: x[name] for name in ("weight", "anchor", "flexibility", "scale")}, **changes}


def adapter_arguments(dtype: torch.dtype = torch.float32) -> Arguments:
    generator = torch.Generator().manual_seed(1)
    shapes = {"x": (3, 4, 8), "down": (2, 8, 3), "down_bias": (2, 3), "up": (2, 3, 8), "up_bias": (2, 8)}
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return {**tensors, "index": torch.tensor([1, -1, 0]), "scale": 0.1}


def fields(arguments: Arguments, count: int = 1) -> Arguments:
    several = {"anchor": [ANCHOR] * count, "flexibility": [FLEXIBILITY, 0.5, 1.0][:count]}
    return arguments | (several if count > 1 else {"anchor": ANCHOR, "flexibility": FLEXIBILITY})


def displacement_arguments() -> Arguments:
    x = step_arguments()
    given = {name: x[name] for name in ("weight", "anchor", "flexibility", "scale")}
    return {**given, "before": x["weight"] + x["grad"]}


def held_displacement() -> Arguments:
    x = displacement_arguments()
    return {"weight": x["weight"], "before": x["before"], "alpha": x["flexibility"]}


def as_lists(arguments: Arguments) -> Arguments:
    return {name: [value] if isinstance(value, Tensor) else value for name, value in arguments.items()}


WITHOUT_CUDA = (ops.linear_step_, ops.gated_adapter)

# What calls the operator at once: the public function and arguments that are all in order.
QUICK: dict[str, tuple[Callable[..., Any], Callable[[], Arguments]]] = {
    "step": (ops.metaplastic_sgd_, lambda: plain(step_arguments())),
    "step momentum": (ops.metaplastic_sgd_, step_arguments),
    "step nesterov": (ops.metaplastic_sgd_, lambda: {**step_arguments(), "nesterov": True, "maximize": True}),
    "step bfloat16": (ops.metaplastic_sgd_, lambda: step_arguments(BF16)),
    "step master unused": (ops.metaplastic_sgd_, lambda: without(step_arguments(), "momentum")),
    "step fields": (ops.metaplastic_sgd_, lambda: fields(step_arguments())),
    "step number": (ops.metaplastic_sgd_, lambda: {**step_arguments(), "flexibility": 0.5, "lr": 1}),
    "step list": (ops.metaplastic_sgd_, lambda: step_arguments(count=3)),
    "step list fields": (ops.metaplastic_sgd_, lambda: fields(step_arguments(BF16, count=3), 3)),
    "step propagate": (ops.metaplastic_sgd_, lambda: {**step_arguments(), "nonfinite": "propagate"}),
    "held": (ops.gated_sgd_, lambda: gated(step_arguments())),
    "held list": (ops.gated_sgd_, lambda: gated(step_arguments(BF16, count=3))),
    "free": (ops.gated_sgd_, lambda: {**gated(step_arguments()), "alpha": None}),
    "free list": (ops.gated_sgd_, lambda: {**gated(step_arguments(count=3)), "alpha": None}),
    "gate": (ops.metaplastic_gate, gate_arguments),
    "gate fields": (ops.metaplastic_gate, lambda: fields(gate_arguments())),
    "synapses": (ops.synapse_step_, synapse_arguments),
    "synapses plain": (ops.synapse_step_, lambda: plain(synapse_arguments())),
    "synapses fields": (ops.synapse_step_, lambda: fields(synapse_arguments(BF16))),
    "synapses held": (ops.synapse_step_, lambda: held(synapse_arguments())),
    "synapses held, field": (ops.synapse_step_, lambda: held(synapse_arguments()) | {"anchor": ANCHOR}),
    "synapses Hebbian": (ops.synapse_step_, lambda: {**synapse_arguments(), "insert": "hebbian", "prune": 0.1}),
    "linear": (ops.linear_step_, lambda: linear_arguments(BF16)),
    "linear none silent": (ops.linear_step_, lambda: plain(without(linear_arguments(), "silent", "post"))),
    "linear held": (ops.linear_step_, lambda: held(linear_arguments())),
    "adapter": (ops.gated_adapter, adapter_arguments),
    "adapter residual": (
        ops.gated_adapter, lambda: {**adapter_arguments(BF16), "residual": torch.ones(3, 4, 8, dtype=BF16)}
    ),
    "displacement": (ops.scale_displacement_, displacement_arguments),
    "displacement list": (ops.scale_displacement_, lambda: as_lists(displacement_arguments())),
    "displacement held": (ops.gated_displacement_, lambda: held_displacement()),
    "field": (ops.materialize, lambda: {"field": ANCHOR, "shape": (3, 5)}),
    "flexibility": (ops.flexibility_field, lambda: {"shape": [7], "seed": 2**64 - 1, "offset": 3}),
    "pack": (ops.pack_mask, lambda: {"mask": torch.arange(99).view(3, 33) % 2 == 0}),
    "unpack": (ops.unpack_mask, lambda: {"words": torch.ones(3, 2, dtype=torch.int32), "columns": 40}),
}  # fmt: skip


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on all goes through the checks."""
    monkeypatch.setattr(operator.Operator, "serves", lambda *_: False)
    by_the_dispatcher(monkeypatch)


def by_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no call goes past it."""
    monkeypatch.setattr(operator.Operator, "goes_direct", lambda *_: False)


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for v in values for t in tensors_of(v)]


@pytest.mark.parametrize("name", QUICK)
def test_ordinary_calls_go_through_no_check(name: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, arguments = QUICK[name]

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a check in Python")

    for module, function in (
        (metaplastic, "check_step"),
        (metaplastic, "check_source"),
        (synapse, "check_step"),
        (linear, "check_rule"),
        (adapter, "_check_tensors"),
        (displacement, "_check_weight"),
        (field, "_checked"),
        (field, "_checked_fill"),
        (mask, "_check_tensor"),
    ):
        monkeypatch.setattr(module, function, fail)
    if place == "cpu" or call not in WITHOUT_CUDA:
        call(**arguments())
        by_the_dispatcher(monkeypatch)
        call(**arguments())
        slowly(monkeypatch)
    with pytest.raises(AssertionError, match="a check in Python"):
        call(**arguments())


@pytest.mark.parametrize("name", QUICK)
def test_the_same_bits_and_versions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, arguments = QUICK[name]
    sides = []
    for then in (by_the_dispatcher, slowly, slowly):
        given = arguments()
        result = call(**given)
        sides.append((tensors_of(given), tensors_of(result)))
        then(monkeypatch)
    given, results = sides[0]
    for other, other_results in sides[1:]:
        assert [t._version for t in given] == [t._version for t in other]
        assert all(map(same_bits, [*given, *results], [*other, *other_results]))


@pytest.mark.parametrize("name", [n for n in QUICK if n not in ("field", "flexibility", "pack", "unpack")])
def test_a_parameter_is_stepped_and_nothing_is_recorded(name: str) -> None:
    call, arguments = QUICK[name]
    given = arguments()
    if call is ops.gated_adapter:
        assert call(**{**given, "x": given["x"].requires_grad_()}).requires_grad
        return
    several = isinstance(given["weight"], list)
    weights = [torch.nn.Parameter(w) for w in (given["weight"] if several else [given["weight"]])]
    others = {k: v.requires_grad_() for k, v in given.items() if k in ("x", "grad_out", "grad") and not several}
    result = call(**{**given, **others, "weight": weights if several else weights[0]})
    for tensor in (*weights, *tensors_of(result)):
        assert tensor.grad_fn is None
    assert all(w.requires_grad for w in weights)
    assert not any(t.requires_grad for t in tensors_of(result))


# --------------------------------------------------------------------------- refusals


def refusal(call: Callable[..., Any], arguments: Arguments) -> tuple[type[Exception], str] | None:
    try:
        call(**arguments)
    except Exception as error:
        return type(error), str(error)
    return None


def refuses_alike(call: Callable[..., Any], arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = refusal(call, arguments)
    assert quick is not None
    refuses(call, arguments, quick[0], re.escape(quick[1]))
    slowly(monkeypatch)
    assert quick == refusal(call, arguments)


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG)
def test_a_step_refuses_alike(
    name: str, value: object, error: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses_alike(ops.metaplastic_sgd_, {**step_arguments(), name: value}, monkeypatch)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"), [w for w in WRONG if w[0] not in NOT_GATED] + ONLY_GATED
)
def test_a_gated_step_refuses_alike(
    name: str, value: object, error: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses_alike(ops.gated_sgd_, {**gated(step_arguments()), name: value}, monkeypatch)


IN_LAYERS = [w for w in WRONG if w[0] not in ("grad",) and "got list" not in w[3]]


@pytest.mark.parametrize(("name", "value", "error", "message"), IN_LAYERS)
@pytest.mark.parametrize("call", [ops.synapse_step_, ops.linear_step_], ids=["synapse", "linear"])
def test_a_layer_refuses_alike(
    call: Callable[..., Any],
    name: str,
    value: object,
    error: object,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = synapse_arguments() if call is ops.synapse_step_ else linear_arguments()
    refuses_alike(call, {**arguments, name: value}, monkeypatch)


def test_an_inference_tensor_is_refused_outside_inference_mode() -> None:
    for call, make in ((ops.metaplastic_sgd_, step_arguments), (ops.synapse_step_, synapse_arguments)):
        for name in ("weight", "momentum_buffer"):
            arguments = make()
            with torch.inference_mode():
                arguments[name] = arguments[name].clone()
            before = arguments[name].clone()
            with pytest.raises(RuntimeError, match="inference tensor"):
                call(**arguments)
            assert same_bits(arguments[name], before)


def test_a_tensor_does_not_pass_for_a_list_of_its_rows() -> None:
    arguments = {name: [v.flatten()] for name, v in plain(step_arguments()).items() if isinstance(v, Tensor)}
    for name in ("grad", "anchor", "flexibility"):
        wrong = {**arguments, name: arguments[name][0][None], "lr": 0.1, "scale": 20.0}
        refuses(ops.metaplastic_sgd_, wrong, ValueError, rf"{name} must have the shape of weight")


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_float64_and_other_backends_do_not_come_here(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the compiled operator")

    monkeypatch.setattr(metaplastic.SGD, "direct_one", fail)
    monkeypatch.setattr(metaplastic.SGD, "compiled_one", fail)
    with flexkern.use_backend(backend):
        ops.metaplastic_sgd_(**step_arguments(torch.float64))
        if backend == "reference":
            ops.metaplastic_sgd_(**step_arguments())
    with pytest.raises(AssertionError, match="the compiled operator"):
        ops.metaplastic_sgd_(**step_arguments())
