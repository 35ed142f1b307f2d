"""How Triton kernels are launched: once for a list, in the variant that fits, from a table copied once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from torch import Tensor

from flexkern import Field, ops
from flexkern.backends.tuning import config
from flexkern.ops.metaplastic import GATE, SGD
from flexkern.triton_kernels import metaplastic
from flexkern.triton_kernels.memory import full_tiles
from flexkern.triton_kernels.metaplastic import HELD, MIXED, STORED, gate_kernel, step_kernel
from flexkern.triton_kernels.table import Row, TableCache
from helpers import judge
from helpers.judge import Inputs, make_inputs, same_bits

pytestmark = [
    pytest.mark.usefixtures("triton_backend"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # 0 / 0 in masked lanes
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
]

Watch = Callable[[Any], list[dict[str, Any]]]
TILE = config("sgd", "stored", "interpreter")["tile"]
SIZES = [(3,), (33, 5), (0,), (TILE,), (TILE + 1,), (2,)]


def make_list(device: torch.device, shapes: list[tuple[int, ...]] = SIZES) -> list[list[Tensor]]:
    """[weights, grads, anchors, flexibilities, buffers, masters]"""
    inputs = [make_inputs(shape, i) for i, shape in enumerate(shapes)]
    return [[t.to(device) for t in tensors] for tensors in zip(*inputs, strict=True)]


# --------------------------------------------------------------------------- one launch, the right variant


def test_a_list_is_one_launch_of_the_stored_variant(device: torch.device, launches: Watch) -> None:
    seen = launches(step_kernel)
    weight, grad, anchor, flexibility, *_ = make_list(device)
    ops.metaplastic_sgd_(weight, grad, anchor, flexibility, lr=0.1, scale=20.0)
    (launch,) = seen
    assert launch["SOURCES"] == STORED.value
    assert launch["tensors"] == sum(w.numel() > 0 for w in weight)
    assert not launch["STATES"]


@pytest.mark.parametrize("mixed", ["anchor", "flexibility", "number", "one of many"])
def test_a_list_with_procedural_sources_is_one_launch(
    mixed: str, device: torch.device, launches: Watch
) -> None:
    seen = launches(step_kernel)
    weight, grad, anchor, flexibility, buffer, _ = make_list(device)
    if mixed == "anchor":
        anchor = [Field.normal(1, i) for i in range(len(weight))]
    elif mixed == "flexibility":
        flexibility = [Field.uniform(1, i) for i in range(len(weight))]
    elif mixed == "number":
        flexibility = [0.3] * len(weight)
    else:
        flexibility = [*flexibility[:-1], Field.biased_low(1)]
    ops.metaplastic_sgd_(
        weight, grad, anchor, flexibility, lr=0.1, scale=20.0, momentum=0.9, momentum_buffer=buffer
    )
    (launch,) = seen
    assert launch["SOURCES"] == MIXED.value
    assert launch["STATES"]


def test_a_held_gate_reads_no_sources(device: torch.device, launches: Watch) -> None:
    seen = launches(step_kernel)
    weight, grad, _, alpha, *_ = make_list(device)
    ops.gated_sgd_(weight, grad, alpha, lr=0.1)
    assert [launch["SOURCES"] for launch in seen] == [HELD.value]


def test_sources_that_are_all_stored_take_the_stored_variant(device: torch.device, launches: Watch) -> None:
    seen = launches(step_kernel), launches(gate_kernel)
    x = Inputs(*(t.to(device) for t in make_inputs((10,), 1)))
    stored = [0, 0, 0, 0, 0] * 2
    SGD.on("triton")(
        [x.weight], [x.grad], [x.anchor], [x.flexibility], 0.1, 20.0, None, stored, [0.0] * 4
    )  # fmt: skip
    GATE.on("triton")(x.weight, x.anchor, x.flexibility, 20.0, stored, [0.0] * 4)
    assert [launch["SOURCES"] for of_kernel in seen for launch in of_kernel] == [STORED.value] * 2


def test_more_tensors_than_a_program_compares_at_once(device: torch.device, launches: Watch) -> None:
    """The table is searched in steps of 128 tensors; these are 137, and empty ones between them."""
    seen = launches(step_kernel)
    shapes = [(i % 3,) for i in range(205)]
    shapes[-1] = (TILE + 1,)
    weight, grad, *_ = make_list(device, shapes)
    expected = [w - 0.5 * g for w, g in zip(weight, grad, strict=True)]
    ops.gated_sgd_(weight, grad, None, lr=0.5)
    assert len(seen) == 1
    for w, e in zip(weight, expected, strict=True):
        assert same_bits(w, e)


def test_nothing_to_do_launches_nothing(device: torch.device, launches: Watch) -> None:
    seen = launches(step_kernel), launches(gate_kernel)
    empty = torch.empty(0, 3, device=device)
    ops.metaplastic_sgd_([], [], [], [], lr=0.1, scale=1.0)
    ops.metaplastic_sgd_(empty, empty.clone(), empty.clone(), 0.3, lr=0.1, scale=1.0)
    ops.gated_sgd_([empty, empty.clone()], [empty, empty], None, lr=0.1)
    assert ops.metaplastic_gate(empty, empty, empty, 1.0).shape == (0, 3)
    assert seen == ([], [])


# --------------------------------------------------------------------------- the table


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of each table that is made, from an empty cache on."""
    monkeypatch.setattr(metaplastic, "_tables", TableCache())
    upload, seen = TableCache._upload, []

    def counted(self: TableCache, rows: list[Row], *rest: Any) -> Any:
        seen.append(len(rows))
        return upload(self, rows, *rest)

    monkeypatch.setattr(TableCache, "_upload", counted)
    return seen


def test_repeated_steps_copy_nothing(device: torch.device, uploads: list[int]) -> None:
    weight, grad, anchor, _, buffer, _ = make_list(device)
    flexibility = [Field.uniform(1, i) for i in range(len(weight))]

    def step(seed: int = 1, lr: float | Tensor = 0.1, momentum: float = 0.9) -> None:
        f = [*flexibility[:-1], Field.uniform(seed, 9)]
        ops.metaplastic_sgd_(
            weight, grad, anchor, f, lr=lr, scale=20.0, momentum=momentum, momentum_buffer=buffer
        )

    step()
    step(lr=0.2, momentum=0.5)
    step(lr=torch.tensor(0.2, device=device))
    assert uploads == [5]
    step(seed=2)  # another field
    assert uploads == [5, 5]
    grad[0] = grad[0].clone()  # another address
    step()
    assert uploads == [5, 5, 5]
    step()
    step(seed=1)
    assert uploads == [5, 5, 5]


def test_the_oldest_table_goes_first_but_not_one_that_a_graph_reads(device: torch.device) -> None:
    cache, made = TableCache(limit=2), []

    def get(key: str) -> Any:
        def rows() -> list[Row]:
            made.append(key)
            return [Row(1, [0] * 5, [0] * 8, [0] * 8)]

        return cache.get(key, torch.device("cpu"), rows, TILE)

    for key in "abab":
        get(key)
    assert made == ["a", "b"]
    get("c")  # b is the more recent of the two
    get("b")
    assert made == ["a", "b", "c"]
    get("c").captured = True
    for key in "defc":
        get(key)
    assert made == ["a", "b", "c", "d", "e", "f"]


def test_shared_memory_is_found_also_when_the_table_is_there(device: torch.device) -> None:
    weight, grad = torch.ones(8, device=device), torch.ones(8, device=device)
    for _ in range(2):
        with pytest.raises(ValueError, match="shares memory"):
            SGD.on("triton")([weight], [weight], [grad], [grad], 0.1, 1.0)
    assert (weight == 1).all()


# --------------------------------------------------------------------------- alignment


def test_full_tiles() -> None:
    assert full_tiles([16, 32, 0], 2 * TILE + 1, TILE) == 2
    assert full_tiles([16, 32], 2 * TILE, TILE) == 2
    assert full_tiles([16], TILE - 1, TILE) == 0
    assert full_tiles([16, 36], 2 * TILE, TILE) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("moved", Inputs._fields)
def test_one_tensor_at_an_odd_address(moved: str, dtype: torch.dtype, device: torch.device) -> None:
    """A view may begin anywhere: the result has the same bits, and its neighbours are not touched."""

    def step(x: Inputs) -> None:
        low = dtype is not torch.float32
        ops.metaplastic_sgd_(
            x.weight, x.grad, x.anchor, x.flexibility, lr=0.125, scale=20.0, momentum=0.9,
            momentum_buffer=x.buffer, master=x.master if low else None,
        )  # fmt: skip

    x = make_inputs((2 * TILE + 1,), 3, dtype)
    aligned = Inputs(*(t.to(device, copy=True) for t in x))
    memory = torch.full((2 * TILE + 3,), 7.0, device=device, dtype=getattr(x, moved).dtype)
    view = memory[1:-1].copy_(getattr(x, moved))
    odd = Inputs(*(t.to(device, copy=True) for t in x))._replace(**{moved: view})
    step(aligned)
    step(odd)
    for one, other in zip(aligned, odd, strict=True):
        assert same_bits(one, other)
    assert memory[0] == 7
    assert memory[-1] == 7


# --------------------------------------------------------------------------- operands that do not fit


def raw_step(x: Inputs, **changes: Any) -> None:
    """The dispatcher's entry, which the public functions' checks do not protect."""
    arguments = {
        "weight": [x.weight], "grad": [x.grad], "anchor": [x.anchor], "flexibility": [x.flexibility],
        "lr": 0.1, "scale": 1.0,
        "alpha": [], "sources": [], "parameters": [], "momentum_buffer": [], "master": [],
        "lr_tensor": None, "scale_tensor": None, "weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0,
        "nesterov": False, "maximize": False, "skip_nonfinite": True,
    }  # fmt: skip
    SGD.on("triton")(*(arguments | changes).values())


UNIFORM = [2, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": [torch.ones(6, dtype=torch.float64)]}, TypeError, "weight must be one of"),
        ({"grad": []}, TypeError, "grad must be torch.float32"),
        ({"grad": [torch.ones(6), torch.ones(6)]}, ValueError, "grad has 2 tensors but 1 weights need one"),
        ({"grad": [torch.ones(6, dtype=torch.float16)]}, TypeError, "grad must be torch.float32"),
        ({"grad": [torch.ones(5)]}, ValueError, "grad has 5 elements but weight has 6"),
        ({"weight": [torch.ones(2, 3).t()]}, ValueError, "weight must be contiguous"),
        ({"anchor": []}, ValueError, "anchor has 0 tensors"),
        ({"anchor": [torch.ones(6, dtype=torch.float16)]}, TypeError, "anchor must be torch.float32"),
        ({"flexibility": [torch.ones(7)]}, ValueError, "flexibility has 7 elements"),
        ({"alpha": [torch.ones(7)]}, ValueError, "alpha has 7 elements"),
        ({"momentum_buffer": [torch.ones(7)]}, ValueError, "momentum_buffer must have the shapes of weight"),
        ({"master": [torch.ones(6)]}, ValueError, "master has 1 tensors but 0 weights need one"),
        ({"weight": [torch.ones(6, dtype=torch.bfloat16)]}, ValueError, "master has 0 tensors"),
        ({"sources": UNIFORM * 3, "parameters": [0.0] * 6}, ValueError, "need a row for the"),
        ({"sources": UNIFORM * 2, "parameters": [0.0] * 4}, ValueError, "anchor has 1 tensors but 0 weights"),
        ({"lr_tensor": torch.ones(2)}, ValueError, "lr_tensor must be one float32 element"),
        ({"scale_tensor": torch.ones(1, dtype=torch.float64)}, ValueError, "scale_tensor must be one float32"),
    ],
)
def test_operands_that_do_not_fit(
    changes: dict[str, Any], error: type[Exception], message: str, device: torch.device
) -> None:
    def place(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        return [place(v) for v in value] if isinstance(value, list) else value

    x = Inputs(*(t.to(device) for t in make_inputs((6,), 1)))
    before = x.weight.clone()
    with pytest.raises(error, match=message):
        raw_step(x, **{name: place(value) for name, value in changes.items()})
    assert judge.same_bits(x.weight, before)
