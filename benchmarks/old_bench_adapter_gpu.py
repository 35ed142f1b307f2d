"""The gated adapter on a GPU, for a block of ViT-B/16 in bfloat16, against the modules, plain and compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench_adapter import Adapters, check_agreement
from harness import Row

pytestmark = pytest.mark.gpu

SIZE = (256, 197, 768, 64)  # 256 images; rank 64
ROW_BYTES = SIZE[0] * SIZE[1] * SIZE[2] * 2  # one [S, L, d] in bfloat16, 77 MB: more than the L2 cache
HIDDEN_BYTES = SIZE[0] * SIZE[1] * SIZE[3] * 2
# What must move: forward x, residual and out, in training hidden too; backward to x grad_out, hidden, its
# gradient and grad_x; for the bank x and grad_out again, and hidden and its gradient.
BYTES = {False: 3 * ROW_BYTES, True: 7 * ROW_BYTES + 5 * HIDDEN_BYTES}
# peer / ours, forward and forward + backward
GOALS = {"modules": (2.5, 1.8), "torch.compile of the modules": (1.3, 1.2), "loop over tasks": (2.5, 1.8)}


def make(tasks: int, *, training: bool) -> Adapters:
    with torch.device("cuda"):
        case = Adapters(SIZE, tasks, training=training, dtype=torch.bfloat16)
        check_agreement(case)
    return case


def measure(gpu_race: Callable[..., Row], case: Adapters, peer: str, backend: str, *, training: bool) -> None:
    what = "fwd + bwd" if training else "fwd"
    name = f"gated_adapter {what}, ViT-B/16, 256 images, bf16, T = {len(case.modules)} ({backend})"
    row = Row(name, peer, GOALS[peer][training], at_most=False, bytes_ours=BYTES[training])
    ours, theirs = (case.train_fused, case.train_unfused) if training else (case.fused, case.unfused)
    with torch.set_grad_enabled(training):
        gpu_race(row, ours, theirs)


@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("peer", ["modules", "torch.compile of the modules"])
@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward + backward"])
def test_gpu_one_task(
    gpu_race: Callable[..., Row], gpu_backend: None, backend: str, peer: str, training: bool
) -> None:
    case = make(1, training=training)
    if peer != "modules":
        case.compile()
    measure(gpu_race, case, peer, backend, training=training)


@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("tasks", [10, 50])
@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward + backward"])
def test_gpu_many_tasks(
    gpu_race: Callable[..., Row], gpu_backend: None, backend: str, tasks: int, training: bool
) -> None:
    measure(gpu_race, make(tasks, training=training), "loop over tasks", backend, training=training)
