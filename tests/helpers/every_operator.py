"""The results of every operator on inputs that no generator of the process decides, for tests of bits.

Large enough that several threads share the work (csrc/cpu/work.h), of odd sizes, and with several parts of each
product. As a program, ``python every_operator.py FILE``, it writes them into a file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern import Field, ops

__all__ = ["COVERED", "differing", "results", "ulps", "write"]

STEPS = 70_003  # elements of a weight: 18 units of 4096, the last of which is not whole
ROWS, COLUMNS = 130, 517
# Every public operator is called below; a test compares.
COVERED = frozenset(
    {
        "complete_prototypes", "flexibility_field", "gated_adamw_", "gated_adapter", "gated_displacement_",
        "gated_sgd_", "linear_step_", "materialize", "metaplastic_adamw_", "metaplastic_gate",
        "metaplastic_sgd_", "pack_mask", "prototype_logits", "scale_displacement_", "synapse_step_",
        "unpack_mask",
    }
)  # fmt: skip
# Of products of torch, which differ between numbers of threads: not compared where those differ.
BY_TORCH = ("prototype_logits", "complete_prototypes")
Results = dict[str, Tensor]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, by flexkern's own generator on no backend: the same in every process."""
    values = np.random.RandomState(seed).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32)).to(dtype)


def share(seed: int, *shape: int) -> Tensor:
    """Numbers in (0, 1)."""
    return torch.from_numpy(np.random.RandomState(seed).uniform(0.01, 1, shape).astype(np.float32))


def _weights(dtype: torch.dtype) -> tuple[Tensor, dict[str, Any]]:
    """A weight, and its master where it has one."""
    exact = draw(1, STEPS) * 0.1
    return exact.to(dtype), {} if dtype is torch.float32 else {"master": exact.to(dtype).float()}


def _steps(found: Results, dtype: torch.dtype) -> None:
    anchor, f, g = draw(1, STEPS) * 0.1 + draw(2, STEPS) * 0.01, share(3, STEPS), draw(4, STEPS, dtype=dtype)
    w, master = _weights(dtype)
    buffer = draw(5, STEPS)
    ops.metaplastic_sgd_(
        w, g, anchor, f, lr=0.01, scale=30.0, momentum=0.9, weight_decay=0.01, momentum_buffer=buffer, **master
    )
    found["sgd"], found["sgd.buffer"] = w, buffer
    w, master = _weights(dtype)
    states = {"exp_avg": draw(6, STEPS) * 0.1, "exp_avg_sq": share(7, STEPS), "step": torch.tensor(3.0)}
    ops.metaplastic_adamw_(w, g, anchor, Field.uniform(5), lr=0.01, scale=30.0, **states, **master)
    found["adamw"], found["adamw.square"] = w, states["exp_avg_sq"]
    w, master = _weights(dtype)
    ops.gated_sgd_(w, g, share(8, STEPS), lr=0.01, weight_decay=0.01, **master)
    found["gated_sgd"] = w
    w, master = _weights(dtype)
    states = {"exp_avg": draw(6, STEPS) * 0.1, "exp_avg_sq": share(7, STEPS), "step": torch.tensor(3.0)}
    ops.gated_adamw_(w, g, share(8, STEPS), lr=0.01, **states, **master)
    found["gated_adamw"] = w
    w, master = _weights(dtype)
    after = (w.float() + draw(9, STEPS) * 0.01).to(dtype)
    ops.scale_displacement_(after, w, anchor, f, scale=30.0, **master)
    found["displacement"] = after
    after = (w.float() + draw(9, STEPS) * 0.01).to(dtype)
    ops.gated_displacement_(after, w, share(8, STEPS), **_weights(dtype)[1])
    found["gated_displacement"] = after


def _layers(found: Results) -> None:
    for rule in ("rate", "hebbian"):
        w, anchor = draw(1, ROWS, COLUMNS) * 0.1, draw(2, ROWS, COLUMNS) * 0.1
        silent = ops.pack_mask(share(3, ROWS, COLUMNS) < 0.4)
        w = w.masked_fill(ops.unpack_mask(silent, COLUMNS), 0.0)
        x, dy, y = draw(4, 37, COLUMNS), draw(5, 37, ROWS), draw(6, 37, ROWS)
        f = share(7, ROWS, COLUMNS)
        given: dict[str, Any] = {"threshold": 0.3, "lr": 0.01, "scale": 3.0}
        ops.linear_step_(w, x, dy, anchor, f, silent, y, rule=rule, **given)
        found[f"linear.{rule}"], found[f"linear.{rule}.silent"] = w.clone(), silent.clone()
        pre, post = x.clamp(min=0), y.clamp(min=0)
        met = {"pre": pre[0], "post": post[0]} if rule == "rate" else {"coincidence": share(9, ROWS, COLUMNS)}
        ops.synapse_step_(w, draw(8, ROWS, COLUMNS), anchor, f, silent, **met, **given)
        found[f"synapse.{rule}"], found[f"synapse.{rule}.silent"] = w, silent


def _adapters(found: Results, dtype: torch.dtype) -> None:
    for name, (samples, positions, d, rank, tasks), index in (
        ("one task", (5, 65, 72, 5, 1), [0] * 5), ("mixed", (6, 101, 200, 8, 3), [0, 2, 2, -1, 1, 0]),
    ):  # fmt: skip
        shapes = ((samples, positions, d), (tasks, d, rank), (tasks, rank), (tasks, rank, d), (tasks, d))
        given = [draw(10 + i, *shape, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]
        out = ops.gated_adapter(
            *given,
            torch.tensor(index),
            scale=0.3,
            residual=draw(3, *shapes[0], dtype=dtype),
            dropout_p=0.1,
            seed=4,
        )
        grads = torch.autograd.grad(out, given, draw(4, *shapes[0], dtype=dtype))
        names = ("x", "down", "down_bias", "up", "up_bias")
        found[f"adapter.{name}"] = out.detach()
        found |= {f"adapter.{name}.{n}": grad for n, grad in zip(names, grads, strict=True)}


def _others(found: Results) -> None:
    w = draw(1, STEPS) * 0.1
    found["gate"] = ops.metaplastic_gate(w, w + draw(2, STEPS) * 0.01, share(3, STEPS), 30.0)
    found["flexibility_field"] = ops.flexibility_field((STEPS,), seed=3, offset=5)
    fields = (
        Field.normal(1),
        Field.normal_table(5, offset=1),
        Field.biased_high(2),
        Field.biased_low(3, offset=2),
    )
    for field in fields:
        found[f"field.{field.kind.name}"] = ops.materialize(field, (STEPS,))
    found["pack_mask"] = ops.pack_mask(draw(1, ROWS, COLUMNS) > 0)
    found["unpack_mask"] = ops.unpack_mask(found["pack_mask"], COLUMNS)
    features, prototypes, own = draw(1, 70, 3, 64), draw(2, 30, 3, 64), torch.arange(30) // 10
    found["prototype_logits"] = ops.prototype_logits(features, prototypes, own)
    found["complete_prototypes"] = ops.complete_prototypes(prototypes, own)


def results() -> Results:
    """By a name: everything that the operators return or write."""
    found: Results = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        of_dtype: Results = {}
        _steps(of_dtype, dtype)
        _adapters(of_dtype, dtype)
        found |= {f"{name}, {str(dtype).removeprefix('torch.')}": value for name, value in of_dtype.items()}
    _layers(found)
    _others(found)
    return found


def differing(a: Results, b: Results, *, but: Callable[[str], bool] = lambda _: False) -> list[str]:
    """The names whose results differ in a bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not but(name) and not _same(a[name], b[name])]


def _same(a: Tensor, b: Tensor) -> bool:
    as_bytes = [t.contiguous().view(torch.uint8) if t.dtype is not torch.bool else t for t in (a, b)]
    return a.dtype is b.dtype and torch.equal(*as_bytes)


def ulps(a: Tensor, b: Tensor) -> float:
    """The largest difference in float32, in units of the last place of the larger number of each two."""
    x, y = (t.double().numpy() for t in (a, b))
    largest = np.maximum(np.maximum(np.abs(x), np.abs(y)), 2.0**-126)
    return float((np.abs(x - y) / np.spacing(largest.astype(np.float32))).max())


def write(path: str) -> None:
    torch.save(results(), path)


if __name__ == "__main__":
    write(sys.argv[1])
