"""synapse_step_ and linear_step_ on a GPU, against the float64 judge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import Field, Purpose, ops
from helpers.gpu import GPU_FACTOR, gpu_backend, kernel_launches
from helpers.judge import Rule, same_bits
from helpers.judge_layer import (
    RULES,
    Batch,
    Layer,
    Opening,
    clone,
    eighths,
    halfway,
    judge_coincidence,
    judge_pass,
    judge_product,
    judge_rate,
    linear_layer,
    make_batch,
    make_layer,
    mask_of,
    same_state,
    step_layer,
)

__all__ = ["gpu_backend"]
pytestmark = pytest.mark.gpu

SHAPES = [(0, 5), (1, 1), (3, 33), (64, 64), (130, 1028), (257, 2049), (3, 100_001)]
OPENINGS = {
    "init": Opening(0.0),
    "hebbian": Opening(0.0, "hebbian", eta=0.3),
    "pruned": Opening(0.0, prune=0.3),
}
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
]
GRID = 1 / 64


def move(tensors: tuple[Tensor, ...], device: str) -> list[Tensor]:
    return [t.to(device, copy=True) for t in tensors]


def on_cpu(done: ops.Conversions) -> ops.Conversions:
    return ops.Conversions(*move(done, "cpu"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
@pytest.mark.parametrize("rule", [RULES["plain"], RULES["nesterov"]], ids=["plain", "nesterov"])
@pytest.mark.parametrize(("dtype", "grad_dtype"), DTYPES)
def test_synapse_step(
    gpu_backend: str,
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    rule: Rule,
    opening: Opening,
    shape: tuple[int, int],
) -> None:
    pre, post = eighths((shape[1],), 1), eighths((shape[0],), 2)
    c = judge_rate(pre, post)
    how = opening._replace(threshold=halfway(c[0], GRID, per_unit=True))
    before = make_layer(shape, 3, dtype, grad_dtype)
    after = Layer(*move(before, "cuda"))
    done = step_layer(after, rule, how._replace(threshold=how.threshold.cuda()), pre.cuda(), post.cuda())  # type: ignore[union-attr]
    judged = judge_pass(before, Layer(*move(after, "cpu")), on_cpu(done), c, rule, how, gate_factor=GPU_FACTOR)
    assert judged.open == 0


@pytest.mark.parametrize("aligned", [True, False])
def test_coincidence_matrix_held_alpha_and_alignment(gpu_backend: str, aligned: bool) -> None:
    before = make_layer((70, 132), 5)
    alpha = torch.rand(70, 132)
    c = eighths((70, 132), 7, 0, 16)
    how = Opening(halfway(c, 1 / 8).item())
    tensors = [*before, alpha, c]
    if not aligned:  # 4 bytes past an alignment
        tensors = [torch.cat([t.flatten()[:1], t.flatten()]).cuda()[1:].view(t.shape) for t in tensors]
    *layer, held, activities = move(tuple(tensors), "cuda")
    after = Layer(*layer)
    done = step_layer(after, Rule(), how, coincidence=activities, alpha=held, flexibility=None, scale=None)
    no_error = torch.zeros_like(c, dtype=torch.float64)
    judged = judge_pass(
        before, Layer(*move(after, "cpu")), on_cpu(done), (c.double(), no_error), Rule(), how, alpha=alpha
    )
    assert judged.converted > 0


def test_procedural_is_stored(gpu_backend: str) -> None:
    """Regenerating f and a gives the bits of reading them, at rows that are no multiple of a Philox block."""
    for columns, offset in ((132, 0), (133, 3)):
        shape = (40, columns)
        anchor = Field.normal(3, std=0.1, purpose=Purpose.ANCHOR, offset=offset)
        f = Field.uniform(4, offset=offset)
        stored = Layer(*move(make_layer(shape, 9), "cuda"))
        stored = stored._replace(
            anchor=ops.materialize(anchor, shape, device="cuda"),
            flexibility=ops.materialize(f, shape, device="cuda"),
        )
        drawn = clone(stored)
        pre, post = eighths((columns,), 1).cuda(), eighths((40,), 2).cuda()
        step_layer(stored, Rule(), Opening(0.5), pre, post)
        step_layer(drawn, Rule(), Opening(0.5), pre, post, anchor=anchor, flexibility=f)
        assert same_state(stored, drawn)


def cpu_bits(layer: Layer) -> Layer:
    return Layer(*move(layer, "cpu"))


@pytest.fixture
def triton_backend() -> object:
    status = flexkern.backends()["triton"]
    if not torch.cuda.is_available() or not status.available:
        pytest.skip(f"triton: {status.reason}")
    with flexkern.use_backend("triton"):
        yield


@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize("size", [0, 1, 64, 200])
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (128, 128), (130, 264), (300, 1000)], ids=str)
@pytest.mark.parametrize("coincidence", ["hebbian", "rate", None])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_linear_step(x_dtype: torch.dtype, coincidence: str | None, shape: tuple[int, int], size: int) -> None:
    exact = size in (1, 64)  # powers of two: decisions are certain
    batch = make_batch(size, shape, 3, x_dtype, exact=exact)
    before = make_layer(shape, 5, silent=0.0 if coincidence is None else 0.5)
    after = Layer(*move(before, "cuda"))
    grad = judge_product(batch.grad_out, batch.x)
    c = judge_coincidence(batch.x, batch.post, coincidence or "hebbian")
    how = Opening(halfway(c[0], GRID / size).item() if size else 0.5)
    done = linear_layer(
        after, Batch(*move(batch, "cuda")), Rule(), how if coincidence else None, coincidence or "hebbian"
    )
    judged = judge_pass(
        before, cpu_bits(after), on_cpu(done), c, Rule(), how, grad=grad, gate_factor=GPU_FACTOR
    )
    if exact and coincidence == "hebbian":
        assert judged.open == 0


@pytest.mark.usefixtures("triton_backend")
def test_tf32_follows_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tf32 allowed, factors are rounded to 11 bits: relative 2^-11 each, and only then."""
    shape = (256, 256)
    batch = Batch(*move(make_batch(512, shape, 3, exact=False), "cuda"))
    layer = Layer(*move(make_layer(shape, 5, silent=0.0), "cuda"))
    exact = batch.grad_out.double().T @ batch.x.double()
    terms = batch.grad_out.double().abs().T @ batch.x.double().abs()

    def error(allow: bool) -> float:
        monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32" if allow else "ieee")
        weight = torch.zeros(shape, device="cuda")
        ops.linear_step_(weight, batch.x, batch.grad_out, layer.anchor, 1.0, lr=1.0, scale=1.0)
        return float(((weight.double() + exact).abs() / terms).max())

    assert error(False) <= 513 * 2**-24
    assert 2**-16 < error(True) <= 2 * 2**-11 * 1.01


@pytest.mark.usefixtures("triton_backend")
def test_linear_step_is_deterministic_and_makes_no_gradient() -> None:
    shape = (1024, 2048)
    batch = Batch(*move(make_batch(256, shape, 3, torch.bfloat16, exact=True), "cuda"))
    first = Layer(*move(make_layer(shape, 5), "cuda"))
    second = clone(first)
    linear_layer(first, batch, Rule(), Opening(0.4))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    linear_layer(second, batch, Rule(), Opening(0.4))
    torch.cuda.synchronize()
    # Activities of x and post, and counts; the gradient would be 8 MB.
    assert torch.cuda.max_memory_allocated() - before < 4 * 2**20
    assert same_state(first, second)
    assert int(mask_of(cpu_bits(first)).sum()) > 0


def test_one_launch_and_a_graph(gpu_backend: str) -> None:
    layer = Layer(*move(make_layer((130, 1028), 5), "cuda"))
    pre, post = eighths((1028,), 1).cuda(), eighths((130,), 2).cuda()
    eager = clone(layer)
    step_layer(clone(layer), Rule(), Opening(0.5), pre, post)  # compiled
    launches = kernel_launches(lambda: step_layer(clone(layer), Rule(), Opening(0.5), pre, post))
    assert len([name for name in launches if "synapse_kernel" in name]) == 1
    step_layer(eager, Rule(), Opening(0.5), pre, post)
    captured = clone(layer)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step_layer(captured, Rule(), Opening(0.5), pre, post)
    for mine, theirs in zip(captured, layer, strict=True):
        mine.copy_(theirs)
    graph.replay()
    assert same_bits(captured.weight, eager.weight)
    assert same_bits(captured.silent, eager.silent)


def shorten(layer: Layer) -> None:
    """State in multiples of 1/64, at most 4, so that nothing rounds in a pass (see test_synapse_random)."""
    for tensor in (layer.weight, layer.buffer):
        tensor.copy_((tensor * 64).round().clamp(-256, 256) / 64)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(5, 70), (40, 132)], ids=str)
def test_long_sequences_are_those_of_float64(gpu_backend: str, shape: tuple[int, int], seed: int) -> None:
    """Dyadic numbers, alpha of 0 or 1: the reference in float64 on the CPU has the same masks and weights."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    weight = torch.where(mask, 0.0, eighths(shape, seed, -8, 8))
    flexibility = eighths(shape, seed + 1, 0, 1) * 8
    zero = torch.zeros(shape)
    start = Layer(
        weight, zero, eighths(shape, seed + 2), flexibility, zero.clone(), weight.clone(), ops.pack_mask(mask)
    )
    mine = Layer(*move(start, "cuda"))
    oracle = Layer(*(t.double().clone() if t.is_floating_point() else t.clone() for t in start))
    converted = 0
    for step in range(40):
        rng = torch.Generator().manual_seed(1000 * seed + step)
        theta, prune, hebbian, kind = (int(torch.randint(n, (), generator=rng)) for n in (160, 64, 2, 3))
        how = Opening(theta / 64, "hebbian" if hebbian else "init", 0.5, prune / 64)
        rule = Rule(0.25, 4.0, 0.25, 0.5, 0.0, bool(step % 2))
        grad, batch = eighths(shape, step, -8, 8), make_batch(4, shape, step, exact=True)
        results = []
        for layer, device, dtype in ((mine, "cuda", torch.float32), (oracle, "cpu", torch.float64)):
            backend = gpu_backend if device == "cuda" else "reference"
            with flexkern.use_backend(backend):
                if kind == 0 and gpu_backend == "triton":
                    at = Batch(*(t.to(device, dtype) for t in batch))
                    results.append(linear_layer(layer, at, rule, how))
                else:
                    pre, post = eighths((shape[1],), step), eighths((shape[0],), step + 1)
                    results.append(
                        step_layer(
                            layer, rule, how, pre.to(device, dtype), post.to(device, dtype),
                            grad=grad.to(device, dtype),
                        )
                    )  # fmt: skip
        done, expected = on_cpu(results[0]), results[1]
        assert torch.equal(mine.silent.cpu(), oracle.silent), step
        assert torch.equal(done.converted, expected.converted), step
        assert torch.equal(done.pruned, expected.pruned), step
        for name in ("weight", "buffer", "anchor"):
            assert torch.equal(getattr(mine, name).cpu().double(), getattr(oracle, name)), (step, name)
        converted += int(done.converted.sum())
        shorten(mine)
        shorten(oracle)
    assert converted > 0
