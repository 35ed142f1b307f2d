"""From a plain torch optimizer to a metaplastic one, in the middle of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flexkern.ops.checks import exact_dtype
from flexkern.optim.by_rule import RuleOptimizer

__all__ = ["converted"]

_O = TypeVar("_O", bound=RuleOptimizer)
# What a torch optimizer has for its own kernels.
_OF_KERNELS = ("foreach", "fused", "differentiable", "capturable", "decoupled_weight_decay")


def converted(
    cls: type[_O],
    kind: type[Optimizer],
    optimizer: Optimizer,
    schedulers: Iterable[Any],
    options: dict[str, Any],
) -> _O:
    """An optimizer of ``cls`` with the groups and the state of ``optimizer``, which is of ``kind``."""
    if not isinstance(optimizer, kind):
        raise TypeError(
            f"optimizer must be a torch.optim.{kind.__name__}, got {type(optimizer).__name__}; "
            "flexkern.optim.Metaplastic(optimizer, ...) takes any"
        )
    if kind is torch.optim.AdamW and not all(
        g.get("decoupled_weight_decay", True) for g in optimizer.param_groups
    ):
        raise ValueError("optimizer has decoupled_weight_decay=False, which is Adam and not AdamW")
    if not isinstance(schedulers, Iterable):
        raise TypeError(
            f"schedulers must be a list of learning rate schedulers, got {type(schedulers).__name__}"
        )
    schedulers = list(_with_inner(schedulers))
    if any(scheduler.optimizer is not optimizer for scheduler in schedulers):
        raise ValueError("schedulers must be those of optimizer, but one of them drives another optimizer")
    if not schedulers and hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        raise ValueError(
            "optimizer is driven by a learning rate scheduler, which would go on driving it and not the new "
            "one; pass schedulers=[...]"
        )
    groups = [_group(group) for group in optimizer.param_groups]
    new = cls(groups, **{"lr": groups[0]["lr"], **options})
    for group in new.param_groups:
        needed = cls.rule.of(group).needs()
        for p in group["params"]:
            state = {k: v for k, v in optimizer.state.get(p, {}).items() if v is not None}
            if all(name in state for name in needed) and state:
                new.state[p] |= {name: state[name].detach().to(exact_dtype(p), copy=True) for name in needed}
                if cls.rule.COUNTS_STEPS:
                    step = torch.as_tensor(state["step"], dtype=torch.float32)
                    new.state[p]["step"] = step.detach().to(p.device, copy=True).reshape(())
    if schedulers:
        _Mark(new)
        vars(new)["_opt_called"] = getattr(optimizer, "_opt_called", False)
    for scheduler in schedulers:
        scheduler.optimizer = new
    return new


def _group(group: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in group.items() if name not in _OF_KERNELS}
    if "param_names" in kept:
        kept["params"] = list(zip(kept.pop("param_names"), kept["params"], strict=True))
    return kept | {"lr": kept["lr"].clone() if isinstance(kept["lr"], Tensor) else kept["lr"]}


def _with_inner(schedulers: Iterable[Any]) -> Iterator[Any]:
    """The schedulers, and those that they are made of (SequentialLR, ChainedScheduler)."""
    for scheduler in schedulers:
        if not isinstance(getattr(scheduler, "optimizer", None), Optimizer):
            raise TypeError(f"schedulers must be of torch.optim.lr_scheduler, got {type(scheduler).__name__}")
        yield scheduler
        yield from _with_inner(getattr(scheduler, "_schedulers", ()))


class _Mark(LRScheduler):
    """Changes no learning rate. Schedulers ask whether the optimizer has stepped, by a mark on its step that a
    scheduler's constructor leaves."""

    def get_lr(self) -> list[Any]:
        return [group["lr"] for group in self.optimizer.param_groups]
