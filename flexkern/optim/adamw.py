"""AdamW whose synapses resist being moved from where they started (docs/design.md, Optimizers)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flexkern.fields import Field
from flexkern.optim.by_rule import RuleOptimizer
from flexkern.optim.convert import converted
from flexkern.optim.flexibilities import Flexibility
from flexkern.optim.group_options import check_not_differentiable, plain_number
from flexkern.spec.argument import shown
from flexkern.spec.rules import AdamWRule

__all__ = ["MetaplasticAdamW"]


class MetaplasticAdamW(RuleOptimizer):
    """AdamW in which each weight moves by ``alpha = sech(scale (1 - f) / f |w - a|)^2`` of its step.

    What :class:`flexkern.optim.MetaplasticSGD` is to SGD. The means of the gradient and of its square are made
    from the gradient itself, and alpha scales the step that comes of them, weight decay with it: scaling the
    gradient would be undone by Adam's normalisation, and a stiff weight that decayed would forget. With all
    f = 1 it is :class:`torch.optim.AdamW`::

        optimizer = flexkern.optim.MetaplasticAdamW(model.named_parameters(), lr=1e-3, scale="auto")
        for item in stream:
            for x, y in item:
                optimizer.zero_grad()
                loss_function(model(x), y).backward()
                optimizer.step()
            optimizer.consolidate()

    Args:
        params, lr, scale, flexibility, seed, gate, anchor, flexible_vectors, nonfinite, alpha_dtype, model,
            foreach, fused, differentiable: as in :class:`flexkern.optim.MetaplasticSGD`.
        betas, eps, weight_decay, amsgrad, maximize: as in :class:`torch.optim.AdamW`.
        capturable: accepted: a step can always be captured in a CUDA graph, unless it has to look at values
            (``nonfinite="raise"``, or while ``scale="auto"`` is measured).

    State as in :class:`flexkern.optim.MetaplasticSGD`, with ``exp_avg``, ``exp_avg_sq`` and, with ``amsgrad``,
    ``max_exp_avg_sq`` in float32, and ``step``, a float32 number on the parameter's device.

    Raises:
        TypeError, ValueError: at construction and in :meth:`add_param_group`, naming the argument; nothing
            has been changed then.

    Source: arXiv 2407.07133, section 2, for alpha; that it scales Adam's step is this package's own.
    """

    rule = AdamWRule

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        *,
        scale: float | Tensor | str = "auto",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        maximize: bool = False,
        flexibility: str | Flexibility | list[Flexibility] = "uniform",
        seed: int = 0,
        gate: str = "item",
        anchor: Field | list[Field | None] | None = None,
        flexible_vectors: bool = False,
        nonfinite: str = "skip",
        alpha_dtype: torch.dtype = torch.float32,
        model: nn.Module | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = True,
        differentiable: bool = False,
    ) -> None:
        check_not_differentiable(differentiable)
        defaults = {
            "lr": lr,
            "scale": scale,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "flexibility": flexibility,
            "seed": seed,
            "gate": gate,
            "anchor": anchor,
            "flexible_vectors": flexible_vectors,
            "nonfinite": nonfinite,
            "alpha_dtype": alpha_dtype,
        }
        super().__init__(params, defaults, model)

    def option_defaults(self) -> dict[str, Any]:
        defaults = super().option_defaults()
        return defaults | {"betas": (defaults.pop("beta1"), defaults.pop("beta2"))}

    def check_group(self, group: dict[str, Any]) -> None:
        betas = group["betas"]
        if (
            not isinstance(betas, (tuple, list, np.ndarray))
            or len(list(np.ravel(betas) if isinstance(betas, np.ndarray) else betas)) != 2
        ):
            raise TypeError(f"betas must be a pair of numbers, at least 0 and less than 1, got {shown(betas)}")
        group["betas"] = tuple(plain_number(beta, "betas", "a pair of numbers in [0, 1)") for beta in betas)
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas must be a pair of numbers, at least 0 and less than 1, got {betas}")
        super().check_group(group)

    @classmethod
    def from_optimizer(
        cls, optimizer: Optimizer, *, schedulers: Iterable[LRScheduler] = (), **options: Any
    ) -> MetaplasticAdamW:
        """A MetaplasticAdamW that goes on where a :class:`torch.optim.AdamW` is, with its groups, all their
        settings, its means and its count of steps.

        Args:
            optimizer: the one to take over; it is not changed, and must not step any more.
            schedulers: those of :mod:`torch.optim.lr_scheduler` that drive it; from now on they drive this one.
            options: ``scale`` and any others of this class but those that AdamW has.

        Raises:
            TypeError: if it is not a torch.optim.AdamW.
            ValueError: if schedulers drive it and are not given.
        """
        return converted(cls, torch.optim.AdamW, optimizer, schedulers, options)
