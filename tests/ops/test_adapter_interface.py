"""gated_adapter's arguments, autocast, torch.compile, opcheck, and which implementation really runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import flexkern
from flexkern.ops.adapter import BACKWARD, FORWARD, LARGEST_TRITON_RANK, gated_adapter
from helpers.arguments import refuses
from helpers.judge import same_bits
from helpers.judge_adapter import Case, make_case

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SIZE = (5, 3, 8, 4, 3)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def arguments(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Keyword arguments that are all in order."""
    return make_case(SIZE, dtype, dropout_p=0.2)._asdict()


def step(case: Case) -> tuple[Tensor, ...]:
    """The result and the gradients of everything."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in case.tensors().items()}
    out = gated_adapter(**case._replace(**leaves)._asdict())
    return out, *torch.autograd.grad(out.float().square().sum(), list(leaves.values()))


# --------------------------------------------------------------------------- wrong arguments

Wrong = tuple[str, object, type[Exception], str]


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


WRONG: list[Wrong] = [
    ("x", [1.0], TypeError, r"x must be a torch.Tensor \[samples, positions, d\], got list"),
    ("x", zeros(5, 8), ValueError, r"x must be \[samples, positions, d\], got shape \[5, 8\]"),
    ("x", zeros(5, 3, 8, dtype=torch.int32), TypeError, r"x must be one of torch.float32, .*, got torch.int32"),
    ("x", zeros(5, 3, 8).to_sparse(), TypeError, r"x must be a dense tensor, got layout torch.sparse_coo"),
    ("x", zeros(5, 3, 0), ValueError, r"d and r must be at least 1, got x \[5, 3, 0\]"),
    ("x", zeros(5, 3, 7), ValueError, r"down must be \[tasks, d, r\] = \[3, 7, 4\], got \[3, 8, 4\]"),
    ("down", None, TypeError, r"down must be a torch.Tensor \[tasks, d, r\], got NoneType"),
    ("down", zeros(8, 4), ValueError, r"down must be \[tasks, d, r\], got shape \[8, 4\]"),
    ("down", zeros(3, 8, 0), ValueError, r"d and r must be at least 1, got .* down \[3, 8, 0\]"),
    (
        "down",
        zeros(3, 8, 4, dtype=torch.float16),
        TypeError,
        r"down must have the dtype of x, torch.float32, got",
    ),
    ("down", zeros(3, 8, 4).to("meta"), ValueError, r"down must be on the device of x, cpu, got meta"),
    ("down_bias", zeros(3, 5), ValueError, r"down_bias must be \[tasks, r\] = \[3, 4\], got \[3, 5\]"),
    ("down_bias", zeros(4), ValueError, r"down_bias must be \[tasks, r\] = \[3, 4\], got \[4\]"),
    ("up", zeros(3, 8, 4), ValueError, r"up must be \[tasks, r, d\] = \[3, 4, 8\], got \[3, 8, 4\]"),
    ("up", 1.0, TypeError, r"up must be a torch.Tensor \[tasks, r, d\], got float"),
    ("up_bias", zeros(2, 8), ValueError, r"up_bias must be \[tasks, d\] = \[3, 8\], got \[2, 8\]"),
    ("residual", zeros(5, 8), ValueError, r"residual must be of the shape of x = \[5, 3, 8\], got \[5, 8\]"),
    ("residual", zeros(5, 3, 8, dtype=torch.bfloat16), TypeError, r"residual must have the dtype of x"),
    ("index", 1, TypeError, r"index must be an int32 or int64 tensor \[samples\], got int"),
    ("index", zeros(5), TypeError, r"index must be int32 or int64, got torch.float32"),
    (
        "index",
        zeros(4, dtype=torch.int64),
        ValueError,
        r"index must have one entry for each of 5 samples, got \[4\]",
    ),
    ("index", zeros(5, dtype=torch.int64).to("meta"), ValueError, r"index must be on the device of x"),
    (
        "index",
        torch.tensor([0, 1, 3, 0, 0]),
        IndexError,
        r"index must be in \[-1, 3\) for a bank of 3 tasks.* 0 to 3",
    ),
    (
        "index",
        torch.tensor([0, -2, 1, 0, 0]),
        IndexError,
        r"index must be in \[-1, 3\) .*, got values from -2 to 1",
    ),
    ("scale", "0.1", TypeError, r"scale must be a number, got str"),
    ("scale", float("inf"), ValueError, r"scale must be finite .*, got inf"),
    ("scale", float("nan"), ValueError, r"scale must be finite .*, got nan"),
    ("dropout_p", 1.0, ValueError, r"dropout_p must be in \[0, 1\), got 1.0"),
    ("dropout_p", -0.1, ValueError, r"dropout_p must be in \[0, 1\), got -0.1"),
    ("dropout_p", True, TypeError, r"dropout_p must be a number, got bool"),
    ("seed", 0.5, TypeError, r"seed must be an int, a one-element int64 tensor or None, got float"),
    ("seed", -1, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
    ("seed", 2**64, ValueError, r"seed must be in \[0, 2\*\*64\)"),
    ("seed", zeros(1), ValueError, r"seed as a tensor must be one int64 element .*, got torch.float32"),
    (
        "seed",
        zeros(2, dtype=torch.int64),
        ValueError,
        r"seed as a tensor must be one int64 element .*shape \[2\]",
    ),
]


@pytest.mark.parametrize(
    ("name", "value", "error", "message"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)]
)
def test_refusals(backend: str, name: str, value: object, error: type[Exception], message: str) -> None:
    refuses(gated_adapter, arguments() | {name: value}, error, message)


def test_a_bank_of_no_tasks(backend: str) -> None:
    given = arguments() | {n: t[:0] for n, t in arguments().items() if n.startswith(("down", "up"))}
    with pytest.raises(IndexError, match=r"index must be in \[-1, 0\) for a bank of 0 tasks"):
        gated_adapter(**given)
    assert same_bits(gated_adapter(**given | {"index": torch.full((5,), -1)}), given["residual"])


def test_kernels_leave_float64_to_the_reference() -> None:
    case = arguments(torch.float64)
    with flexkern.use_backend("auto"):
        assert gated_adapter(**case).dtype is torch.float64
    if flexkern.backends()["cpu"].available:
        with (
            flexkern.use_backend("cpu"),
            pytest.raises(flexkern.BackendError, match="float64 is computed by the"),
        ):
            gated_adapter(**case)


def test_largest_rank_of_triton() -> None:
    adapter = pytest.importorskip("flexkern.triton_kernels.adapter")
    assert adapter.LARGEST_RANK == LARGEST_TRITON_RANK
    if not flexkern.backends()["triton"].available:
        pytest.skip(flexkern.backends()["triton"].reason)
    case = make_case((1, 1, 2, LARGEST_TRITON_RANK + 1, 1))
    with flexkern.use_backend("triton"), pytest.raises(flexkern.BackendError, match="rank 513"):
        gated_adapter(**case._asdict())


# --------------------------------------------------------------------------- the compiled operators

FORWARD_ORDER = ("x", "down", "down_bias", "up", "up_bias", "index", "residual", "seed", "scale", "dropout_p")
DIRECT: list[tuple[str, Callable[[Any], object], str]] = [
    ("x", lambda t: t[0], "x must be"),
    ("x", lambda t: t.double(), "x must be float32, bfloat16 or float16"),
    ("x", lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), "x must be contiguous"),
    ("down", lambda t: t.half(), "down must have the dtype of x"),
    ("down", lambda t: t[:, :-1].contiguous(), "down has the wrong shape"),
    ("down_bias", lambda t: t[:, :-1].contiguous(), "down_bias has the wrong shape"),
    ("up", lambda t: t.transpose(1, 2), "up"),
    ("up_bias", lambda t: t[:-1], "up_bias has the wrong shape"),
    ("index", lambda t: t[:-1], "index must be contiguous, on the CPU, with one entry for each sample"),
    ("index", lambda t: t.float(), "index must be int32 or int64"),
    ("index", lambda t: t + 3, r"index must be in \[-1, 3\), got"),
    ("index", lambda t: t - 5, r"index must be in \[-1, 3\), got"),
    ("residual", lambda t: t[:, :, :-1].contiguous(), "residual has the wrong shape"),
    ("seed", lambda t: None, "seed must be given for dropout"),
    ("seed", lambda t: t.float(), "seed must be one int64 element"),
    ("seed", lambda t: torch.arange(2), "seed must be one int64 element"),
    ("dropout_p", lambda p: 1.0, "dropout_p must be in"),
]


@pytest.fixture
def cpu() -> Iterator[None]:
    status = flexkern.backends()["cpu"]
    if not status.available:
        pytest.skip(status.reason)
    with flexkern.use_backend("cpu"):
        yield


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(
    ("name", "change", "message"), DIRECT, ids=[f"{d[0]}-{i}" for i, d in enumerate(DIRECT)]
)
def test_forward_checks_its_memory(name: str, change: Callable[[Any], object], message: str) -> None:
    given = arguments()
    given[name] = change(given[name])
    with pytest.raises(RuntimeError, match=message):
        FORWARD.on("cpu")(*(given[n] for n in FORWARD_ORDER), True)


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("wrong", range(6))
def test_backward_checks_its_memory(wrong: int) -> None:
    case = make_case(SIZE)
    tensors = [case.x, case.x, zeros(5, 3, 4), case.down, case.up, case.index]
    BACKWARD.on("cpu")(*tensors, 0.1, 0.0, True, True)
    tensors[wrong] = tensors[wrong][1:].contiguous()
    with pytest.raises(RuntimeError, match=r"has the wrong shape|one entry for each sample|index must be in"):
        BACKWARD.on("cpu")(*tensors, 0.1, 0.0, True, True)


# --------------------------------------------------------------------------- autocast


def test_autocast(backend: str) -> None:
    # As casting by hand: results in bfloat16, gradients in the dtype of what was passed.
    case = make_case(SIZE, dropout_p=0.2)
    low = case._replace(**{name: tensor.bfloat16() for name, tensor in case.tensors().items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = step(case)  # backward under autocast, too
    leaves = [tensor.clone().requires_grad_() for tensor in case.tensors().values()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = gated_adapter(**case._replace(**dict(zip(case.tensors(), leaves, strict=True)))._asdict())
    outside = (out, *torch.autograd.grad(out.float().square().sum(), leaves))
    for got in (inside, outside):
        assert got[0].dtype is torch.bfloat16
        for result, expected in zip(got, step(low), strict=True):
            assert same_bits(result.bfloat16(), expected)
        assert all(grad.dtype is torch.float32 for grad in got[1:])


def test_autocast_leaves_float64(backend: str) -> None:
    case = make_case(SIZE, torch.float64)
    with flexkern.use_backend("reference"), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gated_adapter(**case._asdict())
    with flexkern.use_backend("reference"):
        assert same_bits(inside, gated_adapter(**case._asdict()))


def test_autocast_of_mixed_dtypes(backend: str) -> None:
    # Activities come in bfloat16 from layers under autocast, the bank in float32.
    case = make_case(SIZE)
    mixed = case._replace(x=case.x.bfloat16(), residual=case.residual.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gated_adapter(**mixed._asdict()).dtype is torch.bfloat16
    refuses(gated_adapter, mixed._asdict(), TypeError, "down must have the dtype of x, torch.bfloat16, got")


# --------------------------------------------------------------------------- torch.compile and opcheck


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compile_fullgraph(backend: str, compiler: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()

    def function(case: Case) -> Tensor:
        return gated_adapter(**case._asdict())

    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    for samples in (5, 7, 9):  # from the second size on torch traces it as a symbol
        case = make_case((samples, *SIZE[1:]), dtype, dropout_p=0.2)
        leaves = [tensor.clone().requires_grad_() for tensor in case.tensors().values()]
        traced = case._replace(**dict(zip(case.tensors(), leaves, strict=True)))
        for got, expected in ((compiled(traced), function(traced)), (compiled(case), function(case))):
            assert same_bits(got, expected)
        grads = (torch.autograd.grad(f(traced).float().sum(), leaves) for f in (compiled, function))
        assert all(same_bits(got, expected) for got, expected in zip(*grads, strict=True))


def test_compiled_under_autocast_with_drawn_seed(backend: str) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(case: Case) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return gated_adapter(**case._asdict())

    case = make_case(SIZE, dropout_p=0.5)._replace(seed=None)
    torch.manual_seed(1)
    first, second = function(case), function(case)
    assert first.dtype is torch.bfloat16
    assert not same_bits(first, second)
    torch.manual_seed(1)
    assert same_bits(function(case), first)


def test_compiled_program_checks_the_index(backend: str) -> None:
    torch._dynamo.reset()
    case = make_case(SIZE)
    compiled = torch.compile(
        lambda index: gated_adapter(**case._asdict() | {"index": index}), backend="aot_eager"
    )
    assert same_bits(compiled(case.index), gated_adapter(**case._asdict()))
    with pytest.raises((IndexError, RuntimeError), match=r"index must be in \[-1, 3\)"):
        compiled(case.index + 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keep", [True, False])
def test_opcheck(backend: str, dtype: torch.dtype, keep: bool) -> None:
    case = make_case(SIZE, dtype, dropout_p=0.2, residual=keep)
    torch.library.opcheck(FORWARD.on(backend), (*case, keep))
    hidden = FORWARD.on(backend)(*case, True)[1]
    for needs in ((True, keep), (False, True)):
        given = (case.x, case.x, hidden, case.down, case.up, case.index, 0.1, 0.2, *needs)
        torch.library.opcheck(BACKWARD.on(backend), given)


# --------------------------------------------------------------------------- which implementation runs


class Recorder(TorchDispatchMode):
    """The calls of flexkern's operators: name and last two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, object, object]] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func.namespace == "flexkern":
            self.calls.append((func.name().removeprefix("flexkern::"), *args[-2:]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_auto_takes_the_compiled_library(dtype: torch.dtype) -> None:
    status = flexkern.backends()["cpu"]
    if not status.available:
        pytest.skip(status.reason)
    with flexkern.use_backend("auto"), Recorder() as recorder:
        step(make_case(SIZE, dtype))
    names = [name for name, *_ in recorder.calls]
    assert names == ["gated_adapter", "gated_adapter_backward"]
    for name in names:  # kernels of the library, not Python
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"flexkern::{name}", "CPU")
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(
            f"flexkern::{name}", "CompositeExplicitAutograd"
        )


def test_only_what_is_needed_is_asked_for(backend: str) -> None:
    suffix = "" if backend == "cpu" else "_reference"
    forward, backward = f"gated_adapter{suffix}", f"gated_adapter_backward{suffix}"
    case = make_case(SIZE)

    def calls(*wanted: str) -> list[tuple[str, object, object]]:
        leaves = {name: getattr(case, name).clone().requires_grad_() for name in wanted}
        with Recorder() as recorder:
            out = gated_adapter(**case._replace(**leaves)._asdict())
            if wanted:
                out.sum().backward()
        return recorder.calls

    assert calls() == [(forward, 0.0, False)]
    assert calls("x") == [(forward, 0.0, True), (backward, True, False)]
    assert calls("down_bias", "up") == [(forward, 0.0, True), (backward, False, True)]
    assert calls("x", "up_bias") == [(forward, 0.0, True), (backward, True, True)]
    assert calls("residual") == [(forward, 0.0, True)]
    x = case.x.clone().requires_grad_()
    with torch.no_grad(), Recorder() as recorder:
        gated_adapter(**case._replace(x=x)._asdict())
    assert recorder.calls == [(forward, 0.0, False)]
