"""What does not fit is refused by name, whatever it is, by every public operator; and nothing is changed."""

from __future__ import annotations

import fractions
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import Field, ops
from flexkern.ops.operator import Operator
from flexkern.spec import SPECS
from fuzz import operators
from fuzz.operator_calls import FUNCTIONS
from helpers.arguments import gated, step_arguments, synapse_arguments
from helpers.calls import OPERATORS, make_call
from helpers.hostile import Memory
from helpers.judge import same_bits

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*(prototype stage|beta state|are deprecated)"),
]


def refuses(call: Any, arguments: dict[str, Any], error: Any, message: str) -> None:
    memory = Memory(arguments)
    with pytest.raises(error, match=message):
        call(**arguments)
    assert not memory.has_changed()


class Subclass(Tensor):
    pass


def nested() -> Tensor:
    return torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)])


ODD: dict[str, Any] = {
    "nothing": lambda: None,
    "a string": lambda: "0.1",
    "a list of strings": lambda: ["0.1"],
    "an array": lambda: np.array([0.1, 0.2]),
    "words in an array": lambda: np.array(["skip", "init"]),
    "a dictionary": dict,
    "a huge integer": lambda: 10**5000,
    "a huge fraction": lambda: fractions.Fraction(10**400),
    "nested": nested,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "on the meta device": lambda: torch.zeros((), device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(1), 0.1, 0, torch.qint8),
    "of another library": lambda: torch.ones(1).to_mkldnn(),
    "complex": lambda: torch.tensor(1j),
    "a subclass": lambda: torch.zeros(3, 4).as_subclass(Subclass),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", ODD)
def test_every_argument_of_every_operator(name: str, kind: str) -> None:
    for seed in range(3):
        count = len(FUNCTIONS[name](np.random.default_rng(seed)).arguments)
        for i in range(count):
            call = FUNCTIONS[name](np.random.default_rng(seed))
            argument = list(call.arguments)[i]
            call.arguments[argument] = ODD[kind]()
            operators.judge(call, [argument])
            if isinstance(call.arguments.get("weight"), list):  # in the middle of a list
                call = FUNCTIONS[name](np.random.default_rng(seed))
                if isinstance(call.arguments[argument], list) and call.arguments[argument]:
                    call.arguments[argument] = [*call.arguments[argument][:-1], ODD[kind]()]
                    operators.judge(call, [argument])


@pytest.mark.parametrize("name", ["lr", "scale"])
@pytest.mark.parametrize("kind", ["nested", "sparse", "on the meta device", "a string"])
def test_numbers_as_tensors(name: str, kind: str) -> None:
    refuses(ops.metaplastic_sgd_, {**step_arguments(), name: ODD[kind]()}, (TypeError, ValueError), f"^{name} ")


@pytest.mark.parametrize("shape", [5, None, "ab", (2.5,), (True, 2), torch.tensor(5), ((2,),), {1.5: 2}])
@pytest.mark.parametrize("call", [
    lambda shape: ops.materialize(Field.uniform(0), shape), lambda shape: ops.flexibility_field(shape, seed=0),
])  # fmt: skip
def test_shapes_that_are_none(call: Any, shape: Any) -> None:
    with pytest.raises(TypeError, match=r"^shape must be"):
        call(shape)


@pytest.mark.parametrize("shape", [(-1,), (2**62, 4), (2**40, 2**40), (10**400,), (0, 2**63)])
def test_shapes_that_no_memory_has(shape: Any) -> None:
    with pytest.raises(ValueError, match=r"^shape must be of sizes >= 0"):
        ops.materialize(Field.uniform(0), shape)


def test_sizes_of_numpy_are_sizes() -> None:
    values = ops.materialize(Field.uniform(3), np.array([2, 3]))
    assert same_bits(values, ops.materialize(Field.uniform(3), (2, 3)))
    assert same_bits(values, ops.materialize(Field.uniform(3), torch.tensor([2, 3])))
    assert torch.equal(
        ops.unpack_mask(torch.ones(1, 1, dtype=torch.int32), np.int64(2)), torch.tensor([[True, False]])
    )


@pytest.mark.parametrize(("device", "error"), [("nowhere", ValueError), (2.5, TypeError), (2**63, ValueError)])
def test_devices_that_are_none(device: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^device must be"):
        ops.materialize(Field.uniform(0), (2,), device=device)


@pytest.mark.parametrize("make", [
    lambda: Field.uniform(0, low="0.5"), lambda: Field.normal(0, std=True), lambda: Field.uniform(0, high=None),
    lambda: Field(2, 0, parameters=(0.0,)),
])  # fmt: skip
def test_parameters_of_a_field_are_two_numbers(make: Any) -> None:
    with pytest.raises(TypeError, match=r"parameters \((low, high|mean, std)\) must be two numbers"):
        make()
    with pytest.raises(TypeError, match="start must be an int"):
        Field.uniform(0).shard("3")  # type: ignore[arg-type]


# ------------------------------------------------------------------ prototypes

PROTOTYPES: dict[str, Any] = {"prototypes": torch.ones(3, 2, 4), "own_subspace": torch.tensor([0, 1, 1])}


@pytest.mark.parametrize(("change", "error"), [
    ({"prototypes": None}, TypeError), ({"own_subspace": [0, 1, 1]}, TypeError), ({"known": True}, TypeError),
    ({"known": torch.ones(3, 2)}, ValueError), ({"own_subspace": torch.tensor([0, 1, 2])}, ValueError),
    ({"own_subspace": torch.tensor([0, -1, 1])}, ValueError), ({"over": None}, ValueError),
    ({"own_subspace": torch.tensor([0, 1, 1], device="meta")}, ValueError),
])  # fmt: skip
def test_complete_prototypes(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{next(iter(change))} must be"):
        ops.complete_prototypes(**PROTOTYPES | change)


@pytest.mark.parametrize(("change", "error"), [
    ({"features": torch.ones(1, 2, 4).to_sparse()}, TypeError), ({"weight": "0.1"}, TypeError),
    ({"base": 2}, TypeError),
    ({"weight": 10**400}, ValueError), ({"base_weight": None}, TypeError), ({"openings": 0.5}, TypeError),
    ({"openings": torch.ones(1, 2, dtype=torch.complex64)}, TypeError), ({"reweighting": ["code"]}, ValueError),
    ({"own_subspace": torch.tensor([0, 1, 7])}, ValueError),
])  # fmt: skip
def test_prototype_logits(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{next(iter(change))} must be"):
        ops.prototype_logits(**{"features": torch.ones(1, 2, 4), **PROTOTYPES} | change)


# ------------------------------------------------------------------ the way past the checks


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize(("name", "good", "bad"), [
    ("dampening", 1, True), ("weight_decay", 1, True), ("maximize", True, 1), ("nesterov", False, 0),
])  # fmt: skip
def test_a_switch_is_no_number_though_they_are_equal(chosen: str, name: str, good: Any, bad: Any) -> None:
    """1 == True, so that what is known of the one must not be found for the other."""
    with flexkern.use_backend(chosen):
        ops.metaplastic_sgd_(**{**step_arguments(), name: good})
        refuses(ops.metaplastic_sgd_, {**step_arguments(), name: bad}, TypeError, f"{name} must be")


def test_an_empty_weight_may_move_freely(backend: str) -> None:
    weight = [torch.zeros(0, 4), torch.ones(2, 2)]
    ops.gated_sgd_(weight, [torch.zeros(0, 4), torch.ones(2, 2)], [None, None], lr=0.5)  # type: ignore[list-item]
    assert torch.equal(weight[1], torch.full((2, 2), 0.5))


@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_of_no_weights_other_lists_are_empty_too(chosen: str) -> None:
    with flexkern.use_backend(chosen):
        given = {
            "weight": [],
            "grad": [torch.ones(2)],
            "alpha": [],
            "lr": 0.1,
            "momentum_buffer": [torch.ones(2)],
        }
        refuses(ops.gated_sgd_, {**given, "momentum": 0.5}, ValueError, "grad has 1 entries but weight has 0")


def test_shared_memory_is_named() -> None:
    arguments = step_arguments()
    arguments["anchor"] = arguments["weight"]
    for chosen in ("auto", "reference"):
        with flexkern.use_backend(chosen):
            refuses(
                ops.metaplastic_sgd_, arguments, ValueError, "(weight|anchor) shares memory .*, (weight|anchor)"
            )


@pytest.mark.parametrize("function", [ops.synapse_step_, ops.metaplastic_sgd_])
def test_an_inference_tensor_is_named(function: Any) -> None:
    arguments = synapse_arguments() if function is ops.synapse_step_ else step_arguments()
    with torch.inference_mode():
        arguments["momentum_buffer"] = torch.zeros(4, 6)
    with pytest.raises(RuntimeError, match=r"^momentum_buffer is an inference tensor"):
        function(**arguments)


def test_the_gated_adapter_names_what_autograd_cannot_keep() -> None:
    with torch.inference_mode():
        down = torch.zeros(2, 4, 3)
    x = torch.ones(1, 1, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^down is an inference tensor"):
        ops.gated_adapter(
            x, down, torch.zeros(2, 3), torch.zeros(2, 3, 4), torch.zeros(2, 4), torch.tensor([0])
        )


def test_the_declaration_words_a_refusal_that_the_checks_have_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new operator whose own checks forget something names the argument all the same."""
    given = make_call("metaplastic_sgd_", torch.float32)
    for change, kind, message in (
        ({"lr": -1.0}, ValueError, "lr must be"),
        ({"grad": [g.half() for g in given.grad]}, TypeError, "grad must be torch.float32, got torch.float16"),
    ):
        odd = type(given)(**{**vars(given), **change})
        with pytest.raises(kind, match=message):
            OPERATORS["metaplastic_sgd_"].run(
                odd, "cpu" if flexkern.backends()["cpu"].available else "reference"
            )
    assert isinstance(OPERATORS["metaplastic_sgd_"], Operator)


# ------------------------------------------------------------------ torch.ops


def test_states_that_a_rule_does_not_need_are_not_looked_at() -> None:
    """Kernels and reference agree on what they do with a state that was given for nothing."""
    results = []
    for on in ("cpu", "reference"):
        if flexkern.backends()[on].available:
            given = make_call("metaplastic_adamw_", torch.float32)
            assert not given.rule.amsgrad
            OPERATORS["metaplastic_adamw_"].on(on)(*given.values())
            results.append(given)
    for given in results:
        fresh = make_call("metaplastic_adamw_", torch.float32)
        assert all(map(same_bits, given.max_exp_avg_sq, fresh.max_exp_avg_sq))
        assert all(torch.allclose(a, b) for a, b in zip(given.weight, results[0].weight, strict=True))


@pytest.mark.parametrize("change", [
    lambda given: given.momentum_buffer.__setitem__(1, torch.zeros(1).expand(33)),
    lambda given: given.momentum_buffer.__setitem__(1, torch.zeros(7)),
    lambda given: given.grad.__setitem__(1, torch.zeros(1, 33)),
    lambda given: given.grad.__setitem__(1, torch.zeros(2, 33)),
])  # fmt: skip
def test_the_reference_writes_all_or_nothing(change: Any) -> None:
    given = make_call("metaplastic_sgd_", torch.float32)
    change(given)
    before = [t.clone() for t in (*given.weight, *given.momentum_buffer)]
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.flexkern.metaplastic_sgd_reference_(*given.values())
    assert all(map(same_bits, (*given.weight, *given.momentum_buffer), before))


def test_a_parameter_beside_a_tensor_has_its_shape() -> None:
    spec = SPECS["synapse_step_"]
    given = make_call("synapse_step_", torch.float32)
    given.anchor = torch.nn.Parameter(given.anchor)
    given.check_tensors()
    assert spec.name == "synapse_step_"


def test_alpha_takes_the_place_of_a_scale_that_is_odd() -> None:
    for chosen in ("auto", "reference"):
        arguments = synapse_arguments() | {"scale": "any", "flexibility": None, "alpha": torch.ones(4, 6)}
        with flexkern.use_backend(chosen):
            ops.synapse_step_(**arguments)
    assert "scale" not in gated(step_arguments())
