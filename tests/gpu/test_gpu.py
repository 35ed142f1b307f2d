"""The CUDA and Triton kernels on a GPU, against the float64 judge; their fields bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flexkern import Field, ops, reference
from flexkern.fields import Kind, Purpose
from helpers import judge
from helpers.gpu import GPU_FACTOR, gpu_backend, kernel_launches
from helpers.judge import Rule, make_inputs, same_bits

__all__ = ["gpu_backend"]
pytestmark = pytest.mark.gpu

SHAPES = [(), (0,), (1,), (3,), (1023,), (1025,), (33, 65), (1_000_003,)]
RULES = {
    "plain": Rule(),
    "momentum": Rule(momentum=0.9, dampening=0.3, weight_decay=0.1),
    "nesterov": Rule(momentum=0.9, weight_decay=0.1, nesterov=True, maximize=True),
}
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
]
FIELDS = [
    Field.uniform(3, 1),
    Field.uniform(2**64 - 1, 2**32 - 1, low=-0.3, high=0.7, offset=2**34 + 3),
    Field.normal(5, std=0.02),
    Field.normal(5, mean=1.0, std=2.0, offset=1),
    Field.normal_table(5, std=0.02),
    Field.normal_table(5, mean=1.0, std=2.0, offset=1),
    Field.biased_high(7, offset=2),
    Field.biased_low(7),
]


def to_gpu(inputs: judge.Inputs) -> judge.Inputs:
    return judge.Inputs(*(t.cuda() for t in inputs))


def run_step(inputs: judge.Inputs, rule: Rule) -> None:
    low = inputs.weight.dtype is not torch.float32
    ops.metaplastic_sgd_(
        inputs.weight,
        inputs.grad,
        inputs.anchor,
        inputs.flexibility,
        momentum_buffer=inputs.buffer if rule.momentum else None,
        master=inputs.master if low else None,
        **rule._asdict(),
    )


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("dtype", "grad_dtype"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_step(
    gpu_backend: str, shape: tuple[int, ...], dtype: torch.dtype, grad_dtype: torch.dtype, rule: Rule
) -> None:
    before = make_inputs(shape, 11, dtype, grad_dtype)
    after = to_gpu(before)
    run_step(after, rule)
    alpha, bound = judge.judge_gate(before.master, before.anchor, before.flexibility, rule.scale)
    buffer = before.buffer if rule.momentum else None
    expected = judge.judge_step(before.master, before.grad, alpha, GPU_FACTOR * bound, rule, buffer)
    exact = after.weight if dtype is torch.float32 else after.master
    judge.assert_within(exact.cpu(), expected.weight, expected.weight_bound)
    if dtype is not torch.float32:
        assert same_bits(after.weight.cpu(), after.master.to(dtype).cpu())
    if expected.buffer is not None and expected.buffer_bound is not None:
        judge.assert_within(after.buffer.cpu(), expected.buffer, expected.buffer_bound)


@pytest.mark.parametrize("shape", SHAPES)
def test_gate(gpu_backend: str, shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape, 13)
    on_gpu = to_gpu(inputs)
    alpha = ops.metaplastic_gate(on_gpu.master, on_gpu.anchor, on_gpu.flexibility, 20.0)
    expected, bound = judge.judge_gate(inputs.master, inputs.anchor, inputs.flexibility, 20.0)
    judge.assert_within(alpha.cpu(), expected, GPU_FACTOR * bound)


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.kind.name.lower())
@pytest.mark.parametrize("count", [0, 1, 5, 4096, 100_001])
def test_fields_are_the_same_bits(gpu_backend: str, field: Field, count: int) -> None:
    assert same_bits(
        ops.materialize(field, (count,), device="cuda").cpu(), reference.materialize(field, (count,))
    )


@pytest.mark.parametrize("anchor", FIELDS[2:4], ids=lambda f: f.kind.name.lower())
def test_procedural_is_stored(gpu_backend: str, anchor: Field) -> None:
    """Regenerating f and a in the step gives the bits of reading them."""
    f = Field.uniform(1, 4)
    shape = (1_000_003,)
    a_stored, f_stored = (ops.materialize(field, shape, device="cuda") for field in (anchor, f))
    w = a_stored + 0.1
    g = torch.randn(shape, device="cuda")
    procedural, stored = w.clone(), w.clone()
    ops.metaplastic_sgd_(procedural, g, anchor, f, lr=0.1, scale=20.0)
    ops.metaplastic_sgd_(stored, g, a_stored, f_stored, lr=0.1, scale=20.0)
    assert same_bits(procedural, stored)


def mixed_list(
    count: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor | Field], list[Tensor | Field | float]]:
    weights = [torch.randn(17 * i + 1, device="cuda") for i in range(count)]
    grads = [torch.randn_like(w) for w in weights]
    anchors = [w + 0.01 if i % 2 else Field.normal(2, i, std=1.0) for i, w in enumerate(weights)]
    flexibilities = [(torch.rand_like(w), 0.3, Field.uniform(9, i))[i % 3] for i, w in enumerate(weights)]
    return weights, grads, anchors, flexibilities


def test_a_list_is_one_launch(gpu_backend: str) -> None:
    weights, grads, anchors, flexibilities = mixed_list(200)
    alone = [w.clone() for w in weights]

    def step() -> None:
        ops.metaplastic_sgd_(weights, grads, anchors, flexibilities, lr=0.1, scale=20.0)

    step()
    for w, g, a, f in zip(alone, grads, anchors, flexibilities, strict=True):
        ops.metaplastic_sgd_(w, g, a, f, lr=0.1, scale=20.0)
    assert all(same_bits(w, v) for w, v in zip(weights, alone, strict=True))
    assert len(kernel_launches(step)) == 1


def test_unaligned_and_strided(gpu_backend: str) -> None:
    inputs = make_inputs((4099,), 17)
    expected = to_gpu(inputs)
    run_step(expected, Rule())
    padded = judge.Inputs(*(torch.cat([t[:1], t]).cuda()[1:] for t in inputs))  # 4 bytes past an alignment
    run_step(padded, Rule())
    assert same_bits(padded.weight, expected.weight)


def test_numbers_on_the_device(gpu_backend: str) -> None:
    inputs = make_inputs((5000,), 19)
    a, b, c = (to_gpu(inputs) for _ in range(3))
    numbers = {"lr": 0.125, "scale": 20.0}
    on_gpu = {name: torch.tensor([value], device="cuda") for name, value in numbers.items()}
    on_cpu = {name: torch.tensor([value]) for name, value in numbers.items()}
    for operands, rule in ((a, numbers), (b, on_gpu), (c, on_cpu)):
        ops.metaplastic_sgd_(operands.weight, operands.grad, operands.anchor, operands.flexibility, **rule)
    assert same_bits(a.weight, b.weight)
    assert same_bits(a.weight, c.weight)


def test_graph_replays_the_step(gpu_backend: str) -> None:
    inputs = make_inputs((10_000,), 23)
    eager, captured = to_gpu(inputs), to_gpu(inputs)
    lr = torch.tensor([0.125], device="cuda")

    def step(operands: judge.Inputs) -> None:
        ops.metaplastic_sgd_(
            operands.weight, operands.grad, operands.anchor, operands.flexibility, lr=lr, scale=20.0
        )

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(captured)  # warm-up, as torch asks for
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured)
    captured.weight.copy_(inputs.weight)
    for value in (0.125, 0.5):  # the learning rate is read anew by each replay
        lr.fill_(value)
        graph.replay()
        step(eager)
        assert same_bits(captured.weight, eager.weight)


def test_masks(gpu_backend: str) -> None:
    for shape in [(0, 5), (5, 0), (1, 1), (3, 32), (7, 33), (129, 1000)]:
        mask = torch.rand(shape) > 0.5
        words = ops.pack_mask(mask.cuda())
        assert torch.equal(words.cpu(), reference.pack_mask(mask))
        assert torch.equal(ops.unpack_mask(words, shape[1]).cpu(), mask)


def test_large_tensor_indexes_with_64_bits(gpu_backend: str) -> None:
    count = 2**31 + 7
    if torch.cuda.mem_get_info()[0] < 3 * 4 * count:
        pytest.skip("needs 24 GiB of free GPU memory")
    field = Field(Kind.UNIFORM, 3, 0, Purpose.FLEXIBILITY, 0, (0.0, 1.0))
    values = ops.materialize(field, (count,), device="cuda")
    for start in (0, 2**31 - 5, count - 11):
        part = reference.materialize(field.shard(start), (11,))
        assert same_bits(values[start : start + 11].cpu(), part)


def test_bad_calls_change_nothing(gpu_backend: str) -> None:
    inputs = to_gpu(make_inputs((100,), 29))
    before = inputs.weight.clone()
    with pytest.raises(ValueError, match="grad"):
        ops.metaplastic_sgd_(inputs.weight, inputs.grad.cpu(), inputs.anchor, 0.5, lr=0.1, scale=1.0)
    with pytest.raises((ValueError, RuntimeError), match="shares memory"):
        ops.metaplastic_sgd_(inputs.weight, inputs.weight, inputs.anchor, 0.5, lr=0.1, scale=1.0)
    assert same_bits(inputs.weight, before)
