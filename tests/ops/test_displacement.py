"""The scaled displacement against float64, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import Field, ops
from flexkern.backends import BackendError
from flexkern.ops.displacement import DISPLACEMENT
from helpers import judge
from helpers.arguments import lay_out, refuses
from helpers.judge import SECOND_ORDER, SUBNORMAL, U, assert_within, make_inputs, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

SCALE = 20.0
LOW = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *LOW]
HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # relative, of a rounding
SMALLEST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}
SHAPES = [(), (0,), (1,), (17,), (33, 65), (4097,), (40_001,)]


class Call:
    """w0 and w, a step apart, with anchors, flexibilities and the master of w0."""

    def __init__(self, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> None:
        x = make_inputs(shape, seed, dtype)
        self.before, self.anchor, self.flexibility = x.weight, x.anchor, x.flexibility
        self.weight = (x.weight + 0.1 * x.grad).to(dtype)
        self.master = None if dtype in (torch.float32, torch.float64) else x.master

    def judged(self, alpha: Tensor, alpha_bound: Tensor | float) -> tuple[Tensor, Tensor]:
        """w0 + alpha (w - w0) in float64 and its bound: roundings of w - w0, the product, and the sum."""
        exact = (self.before if self.master is None else self.master).double()
        d = self.weight.double() - self.before.double()
        new = exact + alpha * d
        bound = (alpha_bound * d.abs() + 2 * U * (alpha * d).abs() + U * new.abs()) * SECOND_ORDER + SUBNORMAL
        if self.master is not None:
            # Where alpha may come out as 1, w is taken, without what the master had beside its rounding.
            bound = bound + (alpha + alpha_bound >= 1 - U) * (exact - self.before.double()).abs()
        return new, bound

    def check(self, expected: tuple[Tensor, Tensor], weight: Tensor, master: Tensor | None) -> None:
        exact = weight if master is None else master
        assert_within(exact, *expected)
        if master is not None:
            assert same_bits(weight, master.to(weight.dtype))

    def gate(self, flexibility: Tensor, anchor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        exact = self.before if self.master is None else self.master
        return judge.judge_gate(exact, self.anchor if anchor is None else anchor, flexibility, SCALE)


def copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_computed_gate_against_float64(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    c = Call(shape, 3, dtype)
    w, master = c.weight.clone(), copy(c.master)
    ops.scale_displacement_(w, c.before, c.anchor, c.flexibility, scale=SCALE, master=master)
    c.check(c.judged(*c.gate(c.flexibility)), w, master)


@pytest.mark.parametrize("alpha_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_held_gate_against_float64(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, alpha_dtype: torch.dtype
) -> None:
    c = Call(shape, 4, dtype)
    alpha, w, master = c.flexibility.to(alpha_dtype), c.weight.clone(), copy(c.master)
    ops.gated_displacement_(w, c.before, alpha, master=master)
    c.check(c.judged(alpha.double(), 0.0), w, master)


ANCHORS = [
    None,
    Field.normal(3, 1, offset=5),
    Field.normal_table(3, 1, offset=5),
    Field.uniform(2, low=-1, high=1),
]
FLEXIBILITIES = [None, Field.uniform(1), Field.biased_high(2), 0.3, 1, 0.0, np.float32(0.5), np.int64(1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_sources_in_one_list(backend: str, dtype: torch.dtype) -> None:
    pairs = [(a, f) for a in ANCHORS for f in FLEXIBILITIES]
    calls = [Call(shape, i, dtype) for i, shape in zip(range(len(pairs)), SHAPES * 5, strict=False)]
    weights, masters = [c.weight.clone() for c in calls], [copy(c.master) for c in calls]
    anchors: list[Any] = [c.anchor if a is None else a for c, (a, _) in zip(calls, pairs, strict=True)]
    flexibilities: list[Any] = [
        c.flexibility if f is None else f for c, (_, f) in zip(calls, pairs, strict=True)
    ]
    ops.scale_displacement_(
        weights, [c.before for c in calls], anchors, flexibilities, scale=torch.tensor(SCALE),
        master=None if dtype is torch.float32 else masters,
    )  # fmt: skip
    for c, w, master, a, f in zip(calls, weights, masters, anchors, flexibilities, strict=True):
        drawn_a = ops.materialize(a, w.shape) if isinstance(a, Field) else a
        drawn_f = (
            ops.materialize(f, w.shape) if isinstance(f, Field) else torch.as_tensor(f).float().expand(w.shape)
        )
        c.check(c.judged(*c.gate(drawn_f, drawn_a)), w, master)


def test_float64_is_the_reference_itself() -> None:
    c = Call((50,), 5, torch.float64)
    w = c.weight.clone()
    ops.scale_displacement_(w, c.before, c.anchor, c.flexibility, scale=SCALE)
    alpha = flexkern.reference.gate(c.before, c.anchor, c.flexibility, SCALE)
    torch.testing.assert_close(w, c.before + alpha * (c.weight - c.before), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "unaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_layouts(backend: str, dtype: torch.dtype, layout: str) -> None:
    c = Call((33, 65), 6, dtype)
    dense, master = c.weight.clone(), copy(c.master)
    ops.scale_displacement_(dense, c.before, c.anchor, c.flexibility, scale=SCALE, master=master)
    odd = [
        None if t is None else lay_out(t, layout)
        for t in (c.weight, c.before, c.anchor, c.flexibility, c.master)
    ]
    ops.scale_displacement_(*odd[:4], scale=SCALE, master=odd[4])  # type: ignore[arg-type]
    assert same_bits(odd[0].contiguous(), dense)
    if master is not None:
        assert same_bits(odd[4].contiguous(), master)


# ------------------------------------------------------------------ to the bit

EDGES = [1.0, -0.0, 0.0, 1e30, -3e38, 1e-3, 2.0**-130, -1.5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["alpha", "number", "tensor"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_shut_and_an_open_gate_are_exact(backend: str, value: float, form: str, dtype: torch.dtype) -> None:
    values = EDGES if dtype is not torch.float16 else [v for v in EDGES if abs(v) < 6e4]
    before, weight = torch.cartesian_prod(torch.tensor(values), torch.tensor(values)).to(dtype).T.contiguous()
    wanted = (weight if value == 1 else before).clone()
    number: Any = value if form == "number" else torch.full(weight.shape, value)
    master = None if dtype is torch.float32 else before.float()
    if form == "alpha":
        ops.gated_displacement_(weight, before, number, master=master)
    else:
        ops.scale_displacement_(weight, before, torch.zeros(weight.shape), number, scale=1e30, master=master)
    assert same_bits(weight, wanted)
    assert master is None or same_bits(master, wanted.float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backends_agree_to_the_bit_once_alpha_is_given(dtype: torch.dtype) -> None:
    if not flexkern.backends()["cpu"].available:
        pytest.skip(flexkern.backends()["cpu"].reason)
    results = []
    for name in ("reference", "cpu"):
        c = Call((2500,), 8, dtype)
        with flexkern.use_backend(name):
            ops.gated_displacement_(c.weight, c.before, c.flexibility, master=c.master)
        results.append((c.weight, c.weight if c.master is None else c.master))
    assert all(map(same_bits, *results))


# ------------------------------------------------------------------ the master


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_small_steps_add_up_in_the_master(backend: str, dtype: torch.dtype) -> None:
    # A step of one ulp of the weight, of which alpha lets an eighth pass: after eight of them the weight moves.
    w, alpha = torch.ones(5, dtype=dtype), torch.full((5,), 0.125)
    master = w.float()
    ulp = 2 * HALF_ULP[dtype]
    for _ in range(8):
        before = w.clone()
        w += ulp
        ops.gated_displacement_(w, before, alpha, master=master)
    assert (master == 1 + ulp).all()
    assert (w == 1 + ulp).all()


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_weight_that_was_written_from_outside_is_its_own_master(backend: str, dtype: torch.dtype) -> None:
    before = torch.tensor([1.0, 2.0, -0.0, 3.0], dtype=dtype)
    master = torch.tensor([1.0 + 2.0**-13, 7.0, 0.0, float("nan")])
    weight = torch.tensor([2.0, 3.0, 1.0, 4.0], dtype=dtype)
    ops.gated_displacement_(weight, before, torch.full((4,), 0.5), master=master)
    assert master.tolist() == [1.5 + 2.0**-13, 2.5, 0.5, 3.5]
    assert same_bits(weight, master.to(dtype))


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_the_gate_is_that_of_the_master(backend: str, dtype: torch.dtype) -> None:
    before, master = torch.ones(3, dtype=dtype), torch.full((3,), 1 + 2.0**-13)
    weight = torch.full((3,), 2.0, dtype=dtype)
    ops.scale_displacement_(weight, before, torch.ones(3), 0.5, scale=2.0**13, master=master)
    alpha = 1 / np.cosh(1.0) ** 2
    assert abs(master.double() - (1 + 2.0**-13 + alpha)).max() < 1e-6


# ------------------------------------------------------------------ what is not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nonfinite", ["skip", "propagate", "raise"])
def test_weights_that_are_not_finite(backend: str, nonfinite: str, dtype: torch.dtype, bad: float) -> None:
    c = Call((100,), 9, dtype)
    c.weight[[0, 31, 99]] = bad
    w, master = c.weight.clone(), copy(c.master)
    arguments: dict[str, Any] = {
        "weight": w, "before": c.before, "alpha": c.flexibility, "master": master, "nonfinite": nonfinite,
    }  # fmt: skip
    if nonfinite == "raise":
        refuses(ops.gated_displacement_, arguments, FloatingPointError, r"weight\[0\].*nothing was changed")
        return
    ops.gated_displacement_(**arguments)
    where = ~c.weight.isfinite()
    if nonfinite == "skip":
        assert same_bits(w[where], c.before[where])
        assert master is None or same_bits(master[where], c.master[where])
    else:
        assert not w[where].isfinite().any()
    assert w[~where].isfinite().all()
    assert (w[~where] != c.before[~where]).any()


def test_a_rounding_to_infinity_is_not_finite(backend: str) -> None:
    # An alpha over 1, which no gate gives, so that the master stays finite and its rounding does not.
    before, weight = torch.tensor([[60000.0], [65504.0]], dtype=torch.float16)
    master = torch.tensor([60001.0])
    ops.gated_displacement_(weight, before, torch.tensor([2.0]), master=master)
    assert (weight.item(), master.item()) == (60000.0, 60001.0)


# ------------------------------------------------------------------ arguments


def arguments(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    c = Call((4, 6), 1, dtype)
    named = {name: getattr(c, name) for name in ("weight", "before", "anchor", "flexibility", "master")}
    return {**named, "scale": SCALE}


WRONG = [
    ("weight", 1.0, TypeError, "weight must be a torch.Tensor"),
    ("weight", torch.zeros(1, 6).expand(4, 6), ValueError, "weight is written but its elements overlap"),
    ("before", None, TypeError, "before must be a torch.Tensor"),
    ("before", torch.zeros(4, 6).bfloat16(), TypeError, "before must be torch.float32, got torch.bfloat16"),
    ("before", torch.zeros(6, 4), ValueError, "before must have the shape of weight"),
    ("before", [torch.zeros(4, 6)] * 2, ValueError, "before has 2 entries but weight has 1"),
    ("anchor", 0.5, TypeError, "anchor must be a tensor or a flexkern.Field"),
    ("flexibility", 1.5, ValueError, r"flexibility must be in \[0, 1\]"),
    ("flexibility", True, TypeError, "flexibility must be"),
    ("flexibility", 10**400, ValueError, r"flexibility must be in \[0, 1\]"),
    ("scale", 0.0, ValueError, "scale must be finite and > 0"),
    ("scale", 1e-46, ValueError, "scale must be .* 0 in float32"),
    ("scale", 10**400, ValueError, "scale must be finite"),
    ("scale", 10**5000, ValueError, "scale must be finite"),
    ("scale", "1", TypeError, "scale must be a number"),
    ("scale", torch.ones(2), ValueError, "scale as a tensor must be one float32 element"),
    ("nonfinite", "ignore", ValueError, "nonfinite must be one of"),
]


@pytest.mark.parametrize(
    ("name", "value", "error", "message"), WRONG, ids=[f"{i}-{w[0]}" for i, w in enumerate(WRONG)]
)
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_wrong_arguments(chosen: str, name: str, value: Any, error: type[Exception], message: str) -> None:
    with flexkern.use_backend(chosen):
        refuses(ops.scale_displacement_, {**arguments(), name: value}, error, message)


@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_wrong_alphas_and_masters(chosen: str) -> None:
    low = arguments(torch.bfloat16)
    with flexkern.use_backend(chosen):
        refuses(
            ops.scale_displacement_, {**low, "master": None}, ValueError, "master is needed: a torch.bfloat16"
        )
        wrong = low["master"].double()
        refuses(ops.scale_displacement_, {**low, "master": wrong}, TypeError, "master must be torch.float32")
        held = {name: low[name] for name in ("weight", "before", "master")}
        refuses(ops.gated_displacement_, {**held, "alpha": None}, TypeError, "alpha must be a torch.Tensor")
        half = torch.ones(4, 6).half()
        refuses(ops.gated_displacement_, {**held, "alpha": half}, TypeError, "alpha must be torch.float32 or")
        with pytest.raises((ValueError, RuntimeError), match="shares memory"):
            ops.gated_displacement_(held["weight"], held["weight"], torch.ones(4, 6), master=held["master"])


def test_no_weights(backend: str) -> None:
    ops.scale_displacement_([], [], [], [], scale=1.0)
    ops.gated_displacement_([], [], [])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_schema(backend: str, dtype: torch.dtype) -> None:
    x = arguments(dtype)
    lists = [[x[name]] for name in ("weight", "before", "anchor", "flexibility")]
    masters = None if x["master"] is None else [x["master"]]
    torch.library.opcheck(DISPLACEMENT.on(backend), (*lists, SCALE, None, None, None, masters))


def test_a_gpu_backend_takes_no_bfloat16_alpha() -> None:
    if not flexkern.backends()["triton"].available:
        pytest.skip("no Triton")
    x = arguments()
    with flexkern.use_backend("triton"), pytest.raises(BackendError, match="bfloat16"):
        ops.gated_displacement_(x["weight"], x["before"], torch.ones(4, 6).bfloat16())


def test_under_compile(backend: str) -> None:
    c = Call((40,), 2)
    w = c.weight.clone()
    ops.scale_displacement_(w, c.before, c.anchor, 0.5, scale=SCALE)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(weight: Tensor, before: Tensor, anchor: Tensor) -> Tensor:
        ops.scale_displacement_(weight, before, anchor, 0.5, scale=SCALE)
        return weight + 0

    assert same_bits(step(c.weight, c.before, c.anchor), w)
