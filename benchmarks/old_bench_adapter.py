"""The gated adapter against the modules that it stands for, plain and compiled, and a loop over tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from flexkern.ops.adapter import gated_adapter
from harness import Row

SCALE = 0.1
DROPOUT = 0.1
# (samples, positions, d, rank): the input of a block of ViT-B/16 at a batch of 32, and of the small ViT.
VIT_B = (32, 197, 768, 64)
SMALL = (128, 65, 128, 16)
CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU rows are measured on a CPU machine")
Size = tuple[int, int, int, int]


class Modules(nn.Module):
    """One adapter in parallel to an MLP, as EASE has it."""

    def __init__(self, d: int, rank: int) -> None:
        super().__init__()
        self.down, self.relu, self.dropout = nn.Linear(d, rank), nn.ReLU(), nn.Dropout(DROPOUT)
        self.up = nn.Linear(rank, d)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + SCALE * self.up(self.dropout(self.relu(self.down(x))))


class Adapters:
    """The same weights as a bank and as modules; a batch whose samples are of ``tasks`` tasks, in order."""

    def __init__(self, size: Size, tasks: int, *, training: bool, dtype: torch.dtype = torch.float32) -> None:
        samples, positions, d, rank = size
        torch.manual_seed(tasks)
        self.modules = [Modules(d, rank).to(dtype).train(training) for _ in range(tasks)]
        self.calls: Sequence[Callable[[Tensor, Tensor], Tensor]] = self.modules
        self.x = torch.randn(samples, positions, d, dtype=dtype)
        self.residual = torch.randn_like(self.x)
        self.grad_out = torch.randn_like(self.x)
        self.index = torch.arange(samples) * tasks // samples
        self.counts = torch.bincount(self.index).tolist()
        self.dropout_p = DROPOUT if training else 0.0
        with torch.no_grad():
            self.bank = [
                torch.stack([m.down.weight.T for m in self.modules]),
                torch.stack([m.down.bias for m in self.modules]),
                torch.stack([m.up.weight.T for m in self.modules]),
                torch.stack([m.up.bias for m in self.modules]),
            ]
        self.leaves = [self.x, self.residual]
        for tensor in (*self.leaves, *self.bank):
            tensor.requires_grad_(training)

    def compile(self) -> None:
        """The modules by torch.compile, from here on."""
        self.calls = [torch.compile(module) for module in self.modules]

    def fused(self) -> Tensor:
        return gated_adapter(
            self.x, *self.bank, self.index, scale=SCALE, residual=self.residual, dropout_p=self.dropout_p
        )

    def unfused(self) -> Tensor:
        if len(self.calls) == 1:
            return self.calls[0](self.x, self.residual)
        parts = zip(self.calls, self.x.split(self.counts), self.residual.split(self.counts), strict=True)
        return torch.cat([call(x, residual) for call, x, residual in parts])

    def train_fused(self) -> None:
        self._train(self.fused, self.bank)

    def train_unfused(self) -> None:
        self._train(self.unfused, [p for m in self.modules for p in m.parameters()])

    def _train(self, forward: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
        forward().backward(self.grad_out)
        for tensor in (*self.leaves, *parameters):
            tensor.grad = None


def check_agreement(case: Adapters) -> None:
    """Both ways give the same results without dropout, to the rounding of sums of d and of rank terms."""
    modes = [module.training for module in case.modules]
    p, case.dropout_p = case.dropout_p, 0.0
    for module in case.modules:
        module.eval()
    with torch.no_grad():
        ours, theirs = case.fused(), case.unfused()
    d, rank = case.bank[0].shape[1:]
    unit = 2.0**-24 if case.x.dtype is torch.float32 else 2.0**-8
    # Bounds by the sizes of all terms: |h| <= sum |x| |down| + |bias|, and so on.
    x, down, down_bias = case.x.double().abs(), case.bank[0].double().abs(), case.bank[1].double().abs()
    up, up_bias = case.bank[2].double().abs(), case.bank[3].double().abs()
    for task in range(len(case.modules)):
        own = case.index == task
        hidden = x[own] @ down[task] + down_bias[task]
        terms = SCALE * (hidden @ up[task] + up_bias[task]) + case.residual[own].double().abs()
        roundings = (d + rank) * 2.0**-24 + 8 * unit
        assert bool(((ours[own] - theirs[own]).abs() <= 2 * roundings * terms).all())
    case.dropout_p = p
    for module, mode in zip(case.modules, modes, strict=True):
        module.train(mode)


@CPU_ONLY
@pytest.mark.parametrize("size", [VIT_B, SMALL], ids=str)
@pytest.mark.parametrize("peer", ["modules", "torch.compile of the modules"])
@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward + backward"])
def test_one_task(race: Callable[..., Row], training: bool, peer: str, size: Size) -> None:
    case = Adapters(size, 1, training=training)
    check_agreement(case)
    if peer != "modules":
        case.compile()
    measure(race, case, size, peer, training=training)


@CPU_ONLY
@pytest.mark.parametrize("size", [VIT_B, SMALL], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward + backward"])
def test_ten_tasks(race: Callable[..., Row], training: bool, size: Size) -> None:
    case = Adapters(size, 10, training=training)
    check_agreement(case)
    measure(race, case, size, "loop over tasks", training=training)


@CPU_ONLY
@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward + backward"])
def test_one_task_in_bfloat16(race: Callable[..., Row], training: bool) -> None:
    case = Adapters(VIT_B, 1, training=training, dtype=torch.bfloat16)
    check_agreement(case)
    measure(race, case, VIT_B, "modules", training=training)


def measure(race: Callable[..., Row], case: Adapters, size: Size, peer: str, *, training: bool) -> None:
    what = "fwd + bwd" if training else "fwd"
    where = "ViT-B/16" if size is VIT_B else "small ViT"
    dtype = ", bf16" if case.x.dtype is torch.bfloat16 else ""
    name = f"gated_adapter {what}, {where}, T = {len(case.modules)}{dtype}"
    row = Row(name, peer, GOALS[peer], at_most=False)
    row.note = f"x {list(size[:3])}, rank {size[3]}" + (", with dropout" if training else "")
    ours, theirs = (case.train_fused, case.train_unfused) if training else (case.fused, case.unfused)
    with torch.set_grad_enabled(training):
        race(row, ours, theirs, rounds=40 if size is VIT_B else 200)


# Peer / ours. The products are the same library's in both: what can be won is all that is between them.
GOALS = {"modules": 1.3, "torch.compile of the modules": 1.0, "loop over tasks": 1.3}
