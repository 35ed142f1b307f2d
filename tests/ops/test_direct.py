"""Calls past torch's dispatcher: ordinary calls make no other, and what they leave to it."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import flexkern
from flexkern import Field, ops
from flexkern.ops import direct, metaplastic, prototype
from helpers.arguments import linear_arguments, step_arguments, synapse_arguments
from helpers.calls import OPERATORS
from helpers.children import run_python
from helpers.judge import same_bits

status = flexkern.backends()["cpu"]
pytestmark = pytest.mark.skipif(not status.available, reason=status.reason)


def adapter() -> dict[str, Any]:
    x = torch.ones(2, 3, 4)
    bank = {"down": torch.ones(1, 4, 2), "down_bias": torch.ones(1, 2)}
    return {
        **bank,
        "x": x,
        "up": torch.ones(1, 2, 4),
        "up_bias": torch.ones(1, 4),
        "index": torch.tensor([0, -1]),
    }


def gate() -> dict[str, Any]:
    return {k: v for k, v in step_arguments().items() if k in ("weight", "anchor", "flexibility", "scale")}


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "step": (ops.metaplastic_sgd_, step_arguments),
    "fields": (
        ops.metaplastic_sgd_,
        lambda: {**step_arguments(), "anchor": Field.normal(1, 2), "flexibility": Field.uniform(1)},
    ),
    "gate": (ops.metaplastic_gate, gate),
    "synapses": (ops.synapse_step_, synapse_arguments),
    "linear": (ops.linear_step_, linear_arguments),
    "adapter": (ops.gated_adapter, adapter),
    "pack": (ops.pack_mask, lambda: {"mask": torch.ones(3, 40, dtype=torch.bool)}),
    "field": (ops.flexibility_field, lambda: {"shape": (3, 4), "seed": 1}),
}


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for v in values for t in tensors(v)]


def test_every_operator_has_one() -> None:
    for operator in OPERATORS.values():
        assert operator.direct is not None, operator.spec.name
        assert (operator.direct_one is not None) == operator.spec.one


@pytest.mark.parametrize("name", CALLS)
def test_an_ordinary_call_does_not_come_to_the_dispatcher(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, arguments = CALLS[name]

    def fail(*_: object) -> None:
        raise AssertionError("the dispatcher")

    for operator in OPERATORS.values():
        monkeypatch.setattr(operator, "compiled", fail)
        monkeypatch.setattr(operator, "compiled_one", fail)
        monkeypatch.setattr(operator, "_calls", dict.fromkeys(operator._calls, fail))
    call(**arguments())


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_a_mode_sees_the_operator(name: str) -> None:
    call, arguments = CALLS[name]
    given, expected = arguments(), arguments()
    with Seen() as seen:
        result = call(**given)
    assert any(n.startswith("flexkern.") for n in seen.names)
    results = tensors(call(**expected))
    assert all(map(same_bits, tensors(result), results))
    assert all(map(same_bits, tensors(given), tensors(expected)))


def test_a_profiler_sees_the_operator() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            ops.metaplastic_sgd_(**step_arguments())
    assert any(event.key.startswith("flexkern::metaplastic_sgd_") for event in profile.key_averages())


def small_step() -> list[Any]:
    weight = torch.ones(4, 6)
    return [weight, torch.ones(4, 6), torch.ones(4, 6), torch.full((4, 6), 0.5), 0.1, 20.0]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.ones(4, 6).as_subclass(type("Own", (Tensor,), {}))),
        (1, torch.ones(4, 6)._neg_view()),
        (1, [torch.ones(4, 6)]),
        (1, None),
        (4, True),
        (4, torch.tensor(0.1)),
        (5, "20"),
        (5, 1 << 2000),
    ],
)
def test_what_is_unusual_changes_nothing(place: int, value: object) -> None:
    step = small_step()
    step[place] = value
    assert metaplastic.SGD.direct_one(*step) is NotImplemented
    assert place == 0 or (step[0] == 1).all()
    assert metaplastic.SGD.direct_one(*step[:3]) is NotImplemented
    assert metaplastic.SGD.direct_one(*small_step(), *[None] * 50) is NotImplemented


def test_an_inference_tensor_is_not_written() -> None:
    step = small_step()
    with torch.inference_mode():
        step[0] = torch.ones(4, 6)
    assert metaplastic.SGD.direct_one(*step) is NotImplemented
    assert (step[0] == 1).all()


def test_autograd_is_told_what_was_written() -> None:
    step = small_step()
    before = [t._version for t in tensors(step)]
    assert metaplastic.SGD.direct_one(*step) is None
    assert [t._version for t in tensors(step)] == [before[0] + 1, *before[1:]]


def test_a_refusal_is_an_error_of_its_own_kind() -> None:
    step = small_step()
    step[1] = torch.ones(6, 4)
    with pytest.raises(RuntimeError, match="flexkern refuses: grad has another shape than weight"):
        metaplastic.SGD.direct_one(*step)
    assert (step[0] == 1).all()


def test_a_transform_of_torch_func_is_left_to_the_dispatcher() -> None:
    masks = torch.arange(24).reshape(2, 3, 4) % 5 == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how slow torch's way is
        words = torch.func.vmap(ops.pack_mask)(masks)
    assert torch.equal(words, torch.stack([ops.pack_mask(mask) for mask in masks]))


def test_small_logits_do_not_depend_on_layout_and_dtype() -> None:
    g = torch.Generator().manual_seed(2)
    features, prototypes = torch.randn(4, 2, 8, generator=g), torch.randn(5, 2, 8, generator=g).bfloat16()
    own = torch.tensor([0, 0, 1, 1, 1])
    logits = ops.prototype_logits(features, prototypes, own)
    spread = features.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(ops.prototype_logits(spread, prototypes.float(), own.int()), logits)
    by_products = ops.prototype_logits(features.clone().requires_grad_(), prototypes, own)
    assert by_products.requires_grad
    torch.testing.assert_close(by_products.detach(), logits, rtol=0, atol=1e-6)


def test_small_logits_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a library product")

    monkeypatch.setattr(prototype, "normalize", fail)
    monkeypatch.setattr(prototype, "_check_prototypes", fail)
    ops.prototype_logits(torch.ones(4, 2, 8), torch.ones(3, 2, 8), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("name", CALLS)
def test_a_call_keeps_hold_of_nothing(name: str) -> None:
    """Neither of what it was given nor of its result: a tensor that something else holds cannot be swapped."""
    call, arguments = CALLS[name]
    given = arguments()
    before = [t._use_count() for t in tensors(given)]
    result = call(**given)
    assert [t._use_count() for t in tensors(given)] == before
    assert all(t._use_count() == before_one for t, before_one in zip(tensors(result), [1] * 9, strict=False))


TRAIN = """
import torch
import flexkern
from flexkern import ops, optim
flexkern.use_backend("cpu")
torch.manual_seed(0)
net = torch.nn.Linear(5, 3)
step = optim.MetaplasticSGD(net.parameters(), lr=0.1, scale=2.0, gate="step")
for _ in range(2):
    net(torch.ones(4, 5)).sum().backward()
    step.step()
layer = linear_arguments()
alpha = ops.metaplastic_gate(net.weight.detach(), torch.zeros(3, 5), 0.5, 3.0)
ops.linear_step_(**layer)
field = ops.flexibility_field((9,), seed=3)
print(*(x.tolist() for x in (net.weight, alpha, layer["weight"], field)))
"""


def test_without_the_module_all_calls_go_through_the_dispatcher() -> None:
    """With the same results; and `flexkern info` says it."""
    without = (
        "import sys\nsys.modules['flexkern._core'] = None\nfrom helpers.arguments import linear_arguments\n"
        f"{TRAIN}\nfrom flexkern.ops import direct\nassert direct.directly('fill_field_', ()) is None\n"
        "from flexkern.__main__ import main\nsys.argv = ['flexkern', 'info']\nmain()"
    )
    child = run_python(without, path=Path(__file__).parent.parent)
    assert child.returncode == 0, child.stderr
    numbers, _, said = child.stdout.partition("\n")
    out = io.StringIO()
    with contextlib.redirect_stdout(out), flexkern.use_backend("cpu"):
        exec(TRAIN, {"linear_arguments": linear_arguments})
    assert numbers == out.getvalue().strip()
    said = " ".join(said.split())
    assert (
        "calls on the CPU go through torch's dispatcher, which takes longer: flexkern._core does not load ("
        in said
    )
    assert "reinstall with `pip install" in said
    assert direct.lacks() is None
