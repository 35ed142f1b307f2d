"""The gated adapter in Triton, forward and backward, against the float64 judge."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from torch import Tensor

from flexkern import ops
from flexkern.ops.adapter import BACKWARD, FORWARD
from flexkern.triton_kernels import adapter, adapter_bank
from flexkern.triton_kernels.adapter_bank import order_kernel, part_kernel, total_kernel
from flexkern.triton_kernels.adapter_pass import backward_kernel, forward_kernel
from flexkern.triton_kernels.product import INTERPRETED
from helpers.judge import same_bits
from helpers.judge_adapter import BANK, Case, assert_near, judge_backward, judge_forward, make_case

# The padding between the sections of partial sums is never written; it is added up and thrown away.
pytestmark = [
    pytest.mark.usefixtures("triton_backend"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

# (S, L, d, r, T): one of each; odd; aligned, with more rows than a tile of 32; fewer samples than tasks, and
# steps of d that do not divide it; a rank over 16 that is no power of two
SIZES = [(1, 1, 1, 1, 1), (5, 3, 37, 5, 3), (5, 9, 72, 16, 2), (3, 5, 70, 8, 6), (4, 2, 9, 20, 2)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on(case: Case, device: torch.device) -> Case:
    return Case(*(v.to(device) if isinstance(v, Tensor) else v for v in case))


def forward(case: Case, keep_hidden: bool = True) -> tuple[Tensor, Tensor]:
    x, down, down_bias, up, up_bias, index, residual, seed, scale, p = case
    return FORWARD.on("triton")(x, down, down_bias, up, up_bias, index, residual, seed, scale, p, keep_hidden)


def backward(case: Case, grad_out: Tensor, hidden: Tensor, x: bool = True, bank: bool = True) -> tuple:
    return BACKWARD.on("triton")(
        grad_out, case.x, hidden, case.down, case.up, case.index, case.scale, case.dropout_p, x, bank
    )


def grad_like(case: Case) -> Tensor:
    return make_case((*case.x.shape, 1, 1), case.x.dtype, seed=99).x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_passes(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    dropout_p, residual = (0.3, True) if size[1] % 2 else (0.0, False)
    case = make_case(size, dtype, dropout_p=dropout_p, residual=residual)
    there = on(case, device)
    out, hidden = (t.cpu() for t in forward(there))
    judged_out, judged_hidden = judge_forward(case)
    assert_near(out, judged_out)
    assert_near(hidden, judged_hidden)
    grad_out = grad_like(case)
    grads = backward(there, grad_out.to(device), hidden.to(device))
    judged = judge_backward(case, grad_out, hidden)
    for name, grad in zip(("x", *BANK), grads, strict=True):
        assert_near(grad.cpu(), judged[name])


@pytest.mark.parametrize(
    ("index", "index_dtype"),
    [("none", torch.int64), ("one", torch.int32), ("sorted", torch.int64), ("mixed", torch.int32)],
    ids=str,
)
def test_indices(index: str, index_dtype: torch.dtype, device: torch.device) -> None:
    """Small multiples of 1/4 are exact in float32, whatever is summed first."""
    case = make_case((7, 6, 16, 4, 3), index=index, exact=True)
    case = case._replace(index=case.index.to(index_dtype))
    there, grad_out = on(case, device), grad_like(case).mul(4).round().clamp(-4, 4) / 4
    out, hidden = forward(there)
    grads = backward(there, grad_out.to(device), hidden)
    expected, expected_hidden = judge_forward(case)
    judged = judge_backward(case, grad_out, hidden.cpu())
    assert torch.equal(out.cpu().double(), expected.value)
    assert torch.equal(hidden.cpu().double(), expected_hidden.value)
    for name, grad in zip(("x", *BANK), grads, strict=True):
        assert torch.equal(grad.cpu().double(), judged[name].value)
    unused = [t for t in range(3) if t not in case.index]
    for grad in grads[1:]:
        assert same_bits(grad[unused].cpu(), torch.zeros_like(grad[unused].cpu()))  # +0, not merely 0


def test_an_index_that_the_bank_does_not_have(device: torch.device) -> None:
    """NaN there, without a look at the index from the host; the others and the gradients are as without it."""
    case = make_case((6, 5, 16, 4, 2), index="sorted", exact=True)
    outside = torch.tensor([0, 2, 1, -2, 2**32 + 1, -1])
    given, without = case._replace(index=outside), case._replace(index=torch.tensor([0, -1, 1, -1, -1, -1]))
    out, hidden = forward(on(given, device))
    expected, expected_hidden = forward(on(without, device))
    lost = torch.tensor([1, 3, 4])
    kept = torch.tensor([0, 2, 5])
    assert out.cpu()[lost].isnan().all()
    assert same_bits(out.cpu()[kept], expected.cpu()[kept])
    assert same_bits(hidden.cpu(), expected_hidden.cpu())
    grad_out = grad_like(case).to(device)
    pairs = zip(
        backward(on(given, device), grad_out, hidden),
        backward(on(without, device), grad_out, hidden),
        strict=True,
    )
    assert all(same_bits(mine.cpu(), other.cpu()) for mine, other in pairs)


@pytest.mark.parametrize(("rank", "seed", "p"), [(8, 0, 0.1), (13, 2**63 + 5, 0.5), (24, 1, 0.25)])
def test_dropout_has_the_bits_of_the_reference(rank: int, seed: int, p: float, device: torch.device) -> None:
    """All units open: what is dropped is where hidden is 0, also past the first 16 units."""
    samples, length = 3, 17
    ones = torch.ones(samples, length, 8, device=device)
    bank = (torch.ones(1, 8, rank), torch.ones(1, rank), torch.ones(1, rank, 8), torch.ones(1, 8))
    index = torch.zeros(samples, dtype=torch.int64)
    drawn = torch.tensor([seed - 2**64 if seed >> 63 else seed])
    arguments = [*bank, index, None, drawn]
    there = [t if t is None else t.to(device) for t in arguments]
    _, hidden = FORWARD.on("triton")(ones, *there, 1.0, p, True)
    _, expected = FORWARD.on("reference")(ones.cpu(), *arguments, 1.0, p, True)
    assert torch.equal(hidden.cpu() > 0, expected > 0)
    assert 0 < (expected > 0).float().mean() < 1


def test_the_same_bits_again_and_at_any_place_in_the_batch(device: torch.device) -> None:
    case = on(make_case((6, 7, 24, 6, 3), dropout_p=0.2), device)
    grad_out = grad_like(case).to(device)
    first, second = forward(case), forward(case)
    assert all(map(same_bits, first, second))
    grads = [backward(case, grad_out, first[1]) for _ in range(2)]
    assert all(map(same_bits, *grads))
    plain = case._replace(seed=None, dropout_p=0.0)
    turned = plain._replace(x=plain.x.flip(0), residual=plain.residual.flip(0), index=plain.index.flip(0))
    assert same_bits(forward(plain)[0].flip(0), forward(turned)[0])


def test_what_is_not_needed(device: torch.device) -> None:
    case = on(make_case((3, 4, 16, 4, 2)), device)
    grad_out = grad_like(case).to(device)
    out, empty = forward(case, keep_hidden=False)
    expected, hidden = forward(case)
    assert same_bits(out, expected)
    assert empty.shape == (0,)
    every = backward(case, grad_out, hidden)
    for need_x, need_bank in ((True, False), (False, True), (False, False)):
        grads = backward(case, grad_out, hidden, need_x, need_bank)
        for grad, whole, needed in zip(grads, every, (need_x, *[need_bank] * 4), strict=True):
            assert same_bits(grad, whole) if needed else grad.shape == (0,)


@pytest.mark.parametrize("size", [(0, 3, 8, 4, 2), (3, 0, 8, 4, 2), (3, 2, 8, 4, 0)], ids=str)
def test_nothing_to_sum(size: tuple[int, ...], device: torch.device) -> None:
    case = on(make_case(size), device)
    out, hidden = forward(case)
    assert same_bits(out, case.residual)
    grads = backward(case, torch.ones_like(case.x), hidden)
    assert [tuple(g.shape) for g in grads] == [tuple(t.shape) for t in (case.x, *case[1:5])]
    assert all((grad == 0).all() for grad in grads)


def test_a_nan_or_infinity_stays_in_its_sample(device: torch.device) -> None:
    case = on(make_case((4, 3, 8, 4, 2), index="one"), device)
    expected = forward(case)[0]
    x = case.x.clone()
    x[1] = torch.nan
    x[2] = torch.inf
    out = forward(case._replace(x=x))[0]
    assert not out[1].isfinite().any()
    assert not out[2].isfinite().all()
    assert same_bits(out[[0, 3]], expected[[0, 3]])


# --------------------------------------------------------------------------- autograd, launches, tiles


def test_the_public_function_with_autograd(device: torch.device) -> None:
    case = make_case((4, 3, 16, 4, 2), dropout_p=0.25)
    there = on(case, device)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in there.tensors().items()}
    x, down, down_bias, up, up_bias, residual = leaves.values()
    grad_out = grad_like(case)
    out = ops.gated_adapter(
        x, down, down_bias, up, up_bias, there.index, scale=case.scale, residual=residual,
        dropout_p=case.dropout_p, seed=there.seed,
    )  # fmt: skip
    out.backward(grad_out.to(device))
    judged_out, _ = judge_forward(case)
    assert_near(out.detach().cpu(), judged_out)
    judged = judge_backward(case, grad_out, forward(there)[1].cpu())
    for name in ("x", *BANK):
        assert_near(leaves[name].grad.cpu(), judged[name])
    assert same_bits(residual.grad.cpu(), grad_out)


def test_one_launch_forward_and_four_backward(device: torch.device, launches: Any) -> None:
    kernels = (forward_kernel, backward_kernel, order_kernel, part_kernel, total_kernel)
    seen = [launches(kernel) for kernel in kernels]
    case = on(make_case((4, 3, 16, 8, 6)), device)
    _, hidden = forward(case)
    assert [len(of_kernel) for of_kernel in seen] == [1, 0, 0, 0, 0]
    backward(case, case.x, hidden)
    assert [len(of_kernel) for of_kernel in seen] == [1] * 5
    assert (seen[0][0]["ALIGNED"], seen[0][0]["ALIGNED_RANK"]) == (True, True)
    shifted = torch.cat([case.x.flatten()[:1], case.x.flatten()])[1:].view(case.x.shape)
    assert same_bits(forward(case._replace(x=shifted))[0], forward(case)[0])
    assert [launch["ALIGNED"] for launch in seen[0]] == [True, False, True]


@pytest.mark.skipif(not INTERPRETED.value, reason="counts the products that the interpreter makes")
def test_work_follows_the_tasks_in_a_tile_and_the_rows_in_use(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d = 64 is one step, so a pass makes two products for each task of each tile of 32 rows."""
    from triton.runtime import interpreter

    made: list[int] = []
    dot = interpreter.InterpreterBuilder.create_dot

    def counted(*args: Any) -> Any:
        made.append(1)
        return dot(*args)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", counted)
    case = make_case((4, 16, 64, 4, 3))  # 2 tiles, of two samples each; one part for the bank's gradients
    # index, tasks in all tiles, steps of up to 32 rows of a task
    for index, tasks, steps in (
        ([2, 2, 2, 2], 2, 2),
        ([0, 0, 1, 2], 3, 3),
        ([1, 2, 1, 2], 4, 2),
        ([-1] * 4, 0, 0),
    ):
        given = case._replace(index=torch.tensor(index))
        made.clear()
        _, hidden = forward(given)
        assert len(made) == 2 * tasks
        made.clear()
        backward(given, case.x, hidden, bank=False)
        assert len(made) == 2 * tasks
        made.clear()
        backward(given, case.x, hidden, x=False)
        assert len(made) == tasks + 2 * steps  # of down and of up


def test_parts_and_pieces_of_many_shapes(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that end inside samples, many pieces in a part, one task over many parts; exact sums."""
    monkeypatch.setattr(adapter_bank, "MIN_STEPS", 1)  # parts of 32 rows
    generator = torch.Generator().manual_seed(4)
    for samples, length, tasks in ((3, 30, 2), (9, 4, 4), (2, 40, 1), (3, 13, 6)):
        case = make_case((samples, length, 5, 3, tasks), exact=True, seed=samples)
        case = case._replace(index=torch.randint(-1, tasks, (samples,), generator=generator))
        grad_out = make_case((samples, length, 5, 1, 1), exact=True, seed=2).x
        _, hidden = forward(on(case, device))
        grads = backward(on(case, device), grad_out.to(device), hidden)
        judged = judge_backward(case, grad_out, hidden.cpu())
        for name, grad in zip(("x", *BANK), grads, strict=True):
            assert torch.equal(grad.cpu().double(), judged[name].value), (samples, name)


def test_operands_that_do_not_fit(device: torch.device) -> None:
    case = on(make_case((2, 3, 8, 4, 2)), device)
    wide = torch.zeros(1, 8, adapter.LARGEST_RANK + 1, device=device)
    for changes, error, message in (
        ({"x": case.x.double()}, TypeError, "x must be one of"),
        ({"up": case.up.half()}, TypeError, "up must be torch.float32"),
        ({"up": case.up.mT.contiguous()}, ValueError, r"up must be \[2, 4, 8\]"),
        ({"down": wide}, ValueError, "rank 513"),
        ({"down_bias": case.down_bias[:1]}, ValueError, r"down_bias must be \[2, 4\]"),
        ({"residual": case.residual[:1]}, ValueError, r"residual must be \[2, 3, 8\]"),
        ({"x": case.x.mT.contiguous().mT}, ValueError, "x must be contiguous"),
        ({"index": case.index[:1]}, ValueError, r"index must be int32 or int64 \[2\]"),
        ({"index": case.index.short()}, ValueError, "index must be int32 or int64"),
        ({"dropout_p": 0.5}, ValueError, "seed must be given"),
        ({"seed": case.index.int(), "dropout_p": 0.5}, ValueError, "seed must be one int64"),
    ):
        with pytest.raises(error, match=message):
            forward(case._replace(**changes))
    hidden = forward(case)[1]
    for given, message in (
        ((case.x[:1], hidden), "grad_out must be"),
        ((case.x, hidden[..., :1]), "hidden must be"),
    ):
        with pytest.raises(ValueError, match=message):
            backward(case, *given)
