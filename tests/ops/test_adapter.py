"""gated_adapter on every backend: results and gradients by the float64 judge, dropout, autograd, modules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import flexkern
from flexkern.ops.adapter import BACKWARD, FORWARD, gated_adapter
from flexkern.reference import adapter as reference_adapter
from helpers.judge import same_bits
from helpers.judge_adapter import BANK, Case, assert_near, index_of, judge_backward, judge_forward, make_case

# Triton's interpreter computes masked lanes as well.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INDEXES = ["mixed", "sorted", "one", "none"]
# S, L, d, r, T: empty, one element, odd; longer than a block of the CPU's passes (1024) in d and in r.
EMPTY = [(0, 3, 5, 2, 2), (3, 0, 5, 2, 2), (3, 4, 5, 2, 0), (0, 0, 1, 1, 0)]
SMALL = [(1, 1, 1, 1, 1), (5, 3, 33, 7, 4), (9, 4, 16, 4, 3), (7, 13, 65, 17, 3)]
LONG = [(3, 3, 1030, 3, 2), (2, 2, 5, 1030, 2)]
# Several parts of rows on the CPU, where a part has 3 MB of x.
LARGE = (4, 300, 768, 5, 2)


@pytest.fixture(params=["reference", "cpu", "triton"])
def each_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backends that serve CPU tensors, Triton in its interpreter; inside the test it is what runs."""
    status = flexkern.backends()[request.param]
    if not status.available or (request.param == "triton" and torch.cuda.is_available()):
        pytest.skip(f"{request.param}: {status.reason}")
    with flexkern.use_backend(request.param):
        yield request.param


def skip_if_slow(backend: str, size: tuple[int, ...]) -> None:
    if backend == "triton" and size[0] * size[1] > 20:
        pytest.skip("too many rows for Triton's interpreter; tests/triton has more sizes")


def call(case: Case, **changes: object) -> Tensor:
    """The public function."""
    named = {name: getattr(case, name) for name in ("scale", "residual", "dropout_p", "seed")}
    return gated_adapter(*case[:6], **(named | changes))


def with_gradients(case: Case, grad_out: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The result, and the gradient of everything by name."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in case.tensors().items()}
    out = call(case._replace(**leaves))
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out)
    return out.detach(), dict(zip(leaves, grads, strict=True))


def ones_like_noise(x: Tensor, seed: int = 3) -> Tensor:
    """A gradient to start from."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.dtype)


def check(case: Case, backend: str) -> None:
    """Operators against the judge; then the public function and autograd, which must give their very bits."""
    out, hidden = FORWARD.on(backend)(*case, True)
    judged_out, judged_hidden = judge_forward(case)
    assert (out.dtype, hidden.dtype) == (case.x.dtype,) * 2
    assert_near(out, judged_out)
    assert_near(hidden, judged_hidden)
    without, empty = FORWARD.on(backend)(*case, False)
    assert same_bits(without, out)
    assert empty.shape == (0,)
    assert empty.dtype == case.x.dtype

    grad_out = ones_like_noise(case.x)
    arguments = (grad_out, case.x, hidden, case.down, case.up, case.index, case.scale, case.dropout_p)
    grads = dict(zip(("x", *BANK), BACKWARD.on(backend)(*arguments, True, True), strict=True))
    judged = judge_backward(case, grad_out, hidden)
    for name, grad in grads.items():
        assert grad.dtype == case.x.dtype
        assert_near(grad, judged[name])
    for t in range(len(case.down)):
        if t not in case.index.tolist():
            assert not any(grads[name][t].any() for name in BANK)

    again, through_autograd = with_gradients(case, grad_out)
    assert same_bits(again, out)
    assert same_bits(call(case), out)
    if case.residual is not None:
        grads["residual"] = grad_out
    for name, grad in through_autograd.items():
        assert same_bits(grad, grads[name]), name


# --------------------------------------------------------------------------- shapes, dtypes, indexes


@pytest.mark.parametrize("size", SMALL, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_against_the_judge(
    each_backend: str, dtype: torch.dtype, size: tuple[int, ...], dropout_p: float
) -> None:
    skip_if_slow(each_backend, size)
    check(make_case(size, dtype, dropout_p=dropout_p, seed=sum(size)), each_backend)


@pytest.mark.parametrize("size", EMPTY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_empty(each_backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    check(make_case(size, dtype, dropout_p=0.3), each_backend)


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_indexes(each_backend: str, dtype: torch.dtype, residual: bool, index: str) -> None:
    case = make_case((6, 3, 16, 4, 5), dtype, index=index, residual=residual, scale=-0.1, seed=2)
    check(case, each_backend)
    narrow = case._replace(index=case.index.int())
    assert same_bits(call(narrow), call(case))


@pytest.mark.parametrize("size", [*LONG, LARGE], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_rows_and_many_parts(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    for index in ("one", "mixed"):
        check(make_case(size, dtype, index=index, dropout_p=0.1, scale=0.1, seed=4), backend)


@pytest.mark.parametrize("size", [*SMALL, LARGE], ids=str)
def test_exact_sums(backend: str, size: tuple[int, ...]) -> None:
    # Sums of products of quarters that float32 holds: no rounding anywhere, so the judge's bits.
    case = make_case(size, dropout_p=0.5, scale=0.5, exact=True)
    grad_out = torch.randint(-2, 3, case.x.shape, generator=torch.Generator().manual_seed(5)).float()
    out, grads = with_gradients(case, grad_out)
    with flexkern.use_backend("reference"):
        exact_out, exact_grads = with_gradients(case.exact(), grad_out.double())
    assert same_bits(out.double(), exact_out)
    for name, grad in grads.items():
        assert torch.equal(grad.double(), exact_grads[name]), name


def test_no_adapter_is_the_residual(each_backend: str) -> None:
    case = make_case((4, 3, 5, 2, 3), index="none")
    assert same_bits(call(case), case.residual)
    assert same_bits(call(case, residual=None), torch.zeros_like(case.x))
    assert call(case).data_ptr() != case.residual.data_ptr()


def test_any_order_of_samples(each_backend: str) -> None:
    case = make_case((12, 3, 8, 4, 3), exact=True)
    order = case.index.argsort(stable=True)
    placed = case._replace(x=case.x[order], index=case.index[order], residual=case.residual[order])
    assert same_bits(call(placed), call(case)[order])


@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
def test_strides(each_backend: str, layout: str) -> None:
    case = make_case((3, 4, 6, 2, 3), dropout_p=0.2)

    def lay_out(tensor: Tensor) -> Tensor:
        if layout == "transposed":
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)
        if layout == "expanded":
            return tensor[:1].expand(tensor.shape)
        return torch.stack((tensor, tensor), -1)[..., 0]

    views = case._replace(**{name: lay_out(tensor) for name, tensor in case.tensors().items()})
    views = views._replace(index=torch.stack((case.index, case.index), 1)[:, 0])
    assert not views.x.is_contiguous()
    dense = case._replace(**{name: tensor.contiguous() for name, tensor in views.tensors().items()})
    grad_out = ones_like_noise(case.x)
    (out, grads), (expected, expected_grads) = (with_gradients(c, lay_out(grad_out)) for c in (views, dense))
    assert out.is_contiguous()
    assert same_bits(out, expected)
    assert all(same_bits(grads[name], expected_grads[name]) for name in grads)


def test_nothing_passed_is_written(each_backend: str) -> None:
    case = make_case((5, 3, 8, 4, 3), dropout_p=0.3)
    before = {name: tensor.clone() for name, tensor in case.tensors().items()}
    grad_out = ones_like_noise(case.x)
    with_gradients(case, grad_out)
    assert all(same_bits(tensor, before[name]) for name, tensor in case.tensors().items())
    assert same_bits(grad_out, ones_like_noise(case.x))


def test_same_bits_at_each_call(backend: str) -> None:
    for index in ("one", "mixed"):
        case = make_case(LARGE, index=index, dropout_p=0.1)
        torch.set_num_threads(2)
        (out, grads), (again, grads_again) = (with_gradients(case, ones_like_noise(case.x)) for _ in range(2))
        assert same_bits(out, again)
        assert all(same_bits(grads[name], grads_again[name]) for name in grads)


def test_nan_stays_in_its_row(each_backend: str) -> None:
    case = make_case((3, 4, 6, 3, 2), index="one")
    poisoned = case.x.clone()
    poisoned[1, 2, 3] = torch.nan
    out, clean = call(case._replace(x=poisoned)), call(case)
    assert out[1, 2].isnan().all()
    out[1, 2] = clean[1, 2]
    assert same_bits(out, clean)


# --------------------------------------------------------------------------- dropout


def kept_units(case: Case, backend: str) -> Tensor:
    """Which hidden units come through, where ReLU lets all through."""
    case = case._replace(down_bias=torch.full_like(case.down_bias, 1e3))
    return FORWARD.on(backend)(*case, True)[1] != 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_draws_by_position(each_backend: str, p: float) -> None:
    # The same units for every index, dtype and split of the rows: 7 x 13 x 17 is no multiple of 4.
    case = make_case((7, 13, 8, 17, 3), index="one", dropout_p=p)
    expected = reference_adapter.dropout_mask((7, 13, 17), case.seed, p, case.x.device)
    assert torch.equal(kept_units(case, each_backend), expected)
    low = make_case((7, 13, 8, 17, 3), torch.bfloat16, index="one", dropout_p=p)
    assert torch.equal(kept_units(low, each_backend), expected)
    mixed = case._replace(index=index_of("mixed", 7, 3))
    has_adapter = (mixed.index >= 0).view(-1, 1, 1)
    assert torch.equal(kept_units(mixed, each_backend), expected & has_adapter)


def test_dropout_of_many_parts(backend: str) -> None:
    case = make_case(LARGE, index="mixed", dropout_p=0.3)
    expected = reference_adapter.dropout_mask((4, 300, 5), case.seed, 0.3, case.x.device)
    assert torch.equal(kept_units(case, backend), expected & (case.index >= 0).view(-1, 1, 1))


def test_share_of_kept_units() -> None:
    for p in (0.05, 0.5, 0.8):
        mask = reference_adapter.dropout_mask((200, 1000), torch.tensor([11]), p, torch.device("cpu"))
        # Five standard deviations of the mean of 200,000 independent draws.
        assert abs(mask.double().mean().item() - (1 - p)) < 5 * (p * (1 - p) / 200_000) ** 0.5


def test_seeds(each_backend: str) -> None:
    case = make_case((4, 5, 8, 16, 2), index="one", dropout_p=0.5)
    assert same_bits(call(case, seed=8), call(case, seed=torch.tensor([8])))
    assert same_bits(call(case, seed=8), call(case, seed=torch.tensor(8)))
    assert not same_bits(call(case, seed=8), call(case, seed=9))
    # the upper half of the seeds is negative as int64
    assert same_bits(call(case, seed=2**64 - 3), call(case, seed=torch.tensor([-3])))
    assert not same_bits(call(case, seed=2**64 - 3), call(case, seed=2**32 - 3))


def test_manual_seed_decides(each_backend: str) -> None:
    case = make_case((4, 5, 8, 16, 2), index="one", dropout_p=0.5)
    torch.manual_seed(3)
    first, second = call(case, seed=None), call(case, seed=None)
    assert not same_bits(first, second)
    torch.manual_seed(3)
    assert same_bits(call(case, seed=None), first)


def test_without_dropout_nothing_is_drawn(each_backend: str) -> None:
    case = make_case((4, 5, 8, 16, 2))
    state = torch.get_rng_state()
    assert same_bits(call(case, seed=5), call(case))
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("index", ["mixed", "none"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradcheck(index: str, dropout_p: float) -> None:
    # float64 is the reference's: what the kernels' gradients are judged by.
    case = make_case((4, 3, 5, 3, 3), torch.float64, index=index, dropout_p=dropout_p, scale=0.1)
    leaves = {name: tensor.requires_grad_() for name, tensor in case.tensors().items()}

    def function(*values: Tensor) -> Tensor:
        return call(case._replace(**dict(zip(leaves, values, strict=True))))

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize("wanted", ["x", *BANK, "residual"])
def test_gradient_of_one_alone(each_backend: str, wanted: str) -> None:
    case = make_case((5, 3, 8, 4, 3), dropout_p=0.2)
    grad_out = ones_like_noise(case.x)
    _, expected = with_gradients(case, grad_out)
    alone = case._replace(**{wanted: getattr(case, wanted).clone().requires_grad_()})
    call(alone).backward(grad_out)
    assert same_bits(getattr(alone, wanted).grad, expected[wanted])
    assert all(t.grad is None for name, t in alone.tensors().items() if name != wanted)


def test_second_derivative_is_refused(backend: str) -> None:
    case = make_case((2, 3, 4, 2, 2))
    x = case.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(call(case._replace(x=x)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_change_between_forward_and_backward_is_seen(backend: str) -> None:
    case = make_case((2, 3, 4, 2, 2))
    x, up = case.x.clone().requires_grad_(), case.up.clone()
    out = call(case._replace(x=x, up=up))
    up.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# --------------------------------------------------------------------------- modules


class Adapter(nn.Module):
    """One task's adapter as EASE has it, in separate modules."""

    def __init__(self, case: Case, task: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(*case.down.shape[1:]), nn.Linear(*case.up.shape[1:])
        self.scale = case.scale
        with torch.no_grad():
            for layer, weight, bias in (
                (self.down, case.down, case.down_bias),
                (self.up, case.up, case.up_bias),
            ):
                layer.weight.copy_(weight[task].T)
                layer.bias.copy_(bias[task])

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(torch.relu(self.down(x)))

    def gradients(self) -> dict[str, Tensor]:
        return {
            "down": self.down.weight.grad.T,
            "down_bias": self.down.bias.grad,
            "up": self.up.weight.grad.T,
            "up_bias": self.up.bias.grad,
        }


@pytest.mark.parametrize("size", [(7, 2, 16, 4, 3), (10, 65, 128, 16, 4)], ids=str)
def test_fused_equals_a_loop_over_modules(each_backend: str, size: tuple[int, ...]) -> None:
    # Exact sums: equal to the bit, gradients too, whatever order either adds in.
    skip_if_slow(each_backend, size)
    case = make_case(size, scale=0.5, exact=True)
    grad_out = torch.randint(-2, 3, case.x.shape, generator=torch.Generator().manual_seed(5)).float()
    x = case.x.clone().requires_grad_()
    out = case.residual.clone()
    adapters = [Adapter(case, task) for task in range(len(case.down))]
    for task, adapter in enumerate(adapters):
        own = case.index == task
        out[own] = out[own] + adapter(x[own])
    out.backward(grad_out)

    fused, grads = with_gradients(case, grad_out)
    assert torch.equal(fused, out)
    assert torch.equal(grads["x"], x.grad)
    for task, adapter in enumerate(adapters):
        for name, grad in adapter.gradients().items():
            assert torch.equal(grads[name][task], grad), (name, task)
