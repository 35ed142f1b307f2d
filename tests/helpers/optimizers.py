"""Metaplastic optimizers in many configurations, for tests of what every optimizer has to do.

A further optimizer is one more entry of MAKERS: what makes it from parameters, a learning rate and options.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import Parameter

from flexkern import Field, ops
from flexkern.optim import Metaplastic, MetaplasticAdamW, MetaplasticSGD

__all__ = ["ANCHORS", "CASES", "KINDS", "MAKERS", "SHAPES", "Case", "ids", "make_parameters", "same_bits",
           "set_grads", "through_file", "train"]  # fmt: skip

SHAPES = ((6, 5), (5,), (3, 4, 2))  # the second moves freely
ANCHORS = [Field.normal(2, i, std=0.3) for i in range(len(SHAPES))]
LR = 0.05
_OF_SGD = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


def wrapped_sgd(params: Any, lr: Any = LR, **options: Any) -> Metaplastic:
    """torch's SGD in the wrapper; options of groups may be either's."""
    plain = {name: value for name, value in options.items() if name in _OF_SGD}
    own = {name: value for name, value in options.items() if name not in _OF_SGD}
    return Metaplastic(torch.optim.SGD(params, lr, **plain), **own)


KINDS: dict[str, Callable[..., torch.optim.Optimizer]] = {"SGD": MetaplasticSGD, "AdamW": MetaplasticAdamW}
MAKERS = KINDS | {"wrapped": wrapped_sgd}


class Case(NamedTuple):
    """A configuration; ``named``: its parameters come with names."""

    kind: str
    options: dict[str, Any]
    dtype: torch.dtype = torch.float32
    named: bool = False

    def make(self, params: Sequence[Any] | None = None, **more: Any) -> Any:
        """An optimizer of these parameters or groups, or of fresh ones."""
        params = self.parameters() if params is None else params
        if self.named:
            count = itertools.count()
            params = [_named(p, count) for p in params]
        copied = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in self.options.items()}
        return MAKERS[self.kind](params, **{"lr": LR, "scale": 20.0, "seed": 7, **copied, **more})

    def parameters(self) -> list[Parameter]:
        return make_parameters(self.dtype)


def _named(p: Any, count: Iterator[int]) -> Any:
    if isinstance(p, dict):
        return {**p, "params": [_named(q, count) for q in p["params"]]}
    return f"layer{next(count)}", p


_BOTH: dict[str, tuple[dict[str, Any], torch.dtype, bool]] = {
    "item": ({}, torch.float32, False),
    "step": ({"gate": "step"}, torch.float32, False),
    "uphill with decay": ({"maximize": True, "weight_decay": 0.1}, torch.float32, False),
    "bfloat16": ({"gate": "step"}, torch.bfloat16, False),
    "auto": ({"scale": "auto"}, torch.float32, False),
    "tensor lr": ({"lr": torch.tensor(LR)}, torch.float32, False),
    "procedural anchor": ({"gate": "step", "anchor": ANCHORS}, torch.float32, False),
    "named": ({}, torch.float32, True),
}
CASES: dict[str, Case] = {
    f"{kind}, {name}": Case(kind, *given) for kind in MAKERS for name, given in _BOTH.items()
} | {
    "SGD, momentum": Case("SGD", {"momentum": 0.9, "dampening": 0.2}),
    "SGD, nesterov": Case("SGD", {"momentum": 0.9, "nesterov": True, "gate": "step"}),
    "wrapped, momentum": Case("wrapped", {"momentum": 0.9, "nesterov": True}),
    "AdamW, amsgrad": Case("AdamW", {"amsgrad": True, "alpha_dtype": torch.bfloat16}),
}


def ids(case: Case) -> str:
    return next(name for name, known in CASES.items() if known is case)


def make_parameters(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    """Parameters that hold the values of ANCHORS."""
    return [Parameter(ops.materialize(f, s).to(dtype)) for f, s in zip(ANCHORS, SHAPES, strict=True)]


def set_grads(params: Sequence[Any], step: int) -> None:
    """Gradients that depend on the step and on a parameter's place only."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def train(optimizer: Any, params: Sequence[Any], first: int, last: int, item: int = 4) -> None:
    """Steps ``first`` to ``last`` of a stream whose items have ``item`` steps."""
    for step in range(first, last):
        set_grads(params, step)
        optimizer.step()
        if step % item == item - 1:
            optimizer.consolidate()


def same_bits(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
