"""linear_step_ by tensor descriptors, on a GPU whose copy engine takes them: its results, and a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from flexkern import ops, use_backend
from flexkern.backends import tuning

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.fixture(autouse=True)
def forced() -> Iterator[None]:
    from flexkern.triton_kernels.linear_tma import PROPOSED
    from flexkern.triton_kernels.target import copies_tiles

    here = tuning.architecture(torch.device("cuda"))
    if not copies_tiles(here):
        pytest.skip(f"{here} has no copy engine for tensor descriptors")
    with use_backend("triton"), tuning.trial("linear", "half", PROPOSED):
        yield


def make(rows: int, columns: int, batch: int) -> tuple[Tensor, Callable[[Tensor], object], Tensor]:
    """A weight, a step of it, and the gradient in float64."""
    generator = torch.Generator("cuda").manual_seed(rows)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    weight, flexibility = draw(rows, columns), draw(rows, columns).sigmoid_()
    anchor = weight + 0.01 * draw(rows, columns)
    x, grad_out = draw(batch, columns).bfloat16(), draw(batch, rows).bfloat16()

    def step(of: Tensor) -> object:
        return ops.linear_step_(of, x, grad_out, anchor, flexibility, lr=0.01, scale=20.0)

    gate = (
        1
        - torch.tanh(
            20.0 * (1 - flexibility.double()) / flexibility.double() * (weight - anchor).double().abs()
        )
        ** 2
    )
    return weight, step, gate * (grad_out.double().T @ x.double())


@pytest.mark.parametrize(("rows", "columns", "batch"), [(8, 8, 1), (264, 136, 65), (1000, 1032, 256)])
def test_results(rows: int, columns: int, batch: int) -> None:
    weight, step, change = make(rows, columns, batch)
    stepped = weight.clone()
    step(stepped)
    error = (stepped.double() - (weight.double() - 0.01 * change)).abs()
    # A sum of ``batch`` products in float32, and the roundings of the gate and of the step.
    assert (error <= 0.01 * batch * 2.0**-18 * change.abs().max() + 2.0**-22 * weight.abs().max()).all()


def test_a_cuda_graph_gives_the_same_bits() -> None:
    """Descriptors are arguments of the launch, so a replay finds them; nothing is allocated for them."""
    weight, step, _ = make(264, 136, 65)
    eager, captured = weight.clone(), weight.clone()
    for _ in range(3):
        step(eager)
    step(weight)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(eager, captured)
