"""SGD whose synapses resist being moved from where they started (arXiv 2407.07133; docs/design.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flexkern.fields import Field
from flexkern.optim.by_rule import RuleOptimizer
from flexkern.optim.convert import converted
from flexkern.optim.flexibilities import Flexibility
from flexkern.optim.group_options import check_not_differentiable
from flexkern.optim.scale import FirstItem
from flexkern.spec.rules import SgdRule

__all__ = ["MetaplasticSGD"]


class MetaplasticSGD(RuleOptimizer):
    """SGD in which each weight moves by ``alpha = sech(scale (1 - f) / f |w - a|)^2`` of its step.

    A weight w that has moved far from its anchor a (its value at initialisation) holds what was learned and
    gets stiff; a flexible one (f near 1) gets stiff late, a stable one (f near 0) soon. So a network trained
    on a stream of items keeps the early ones, at the cost of plain SGD. Call :meth:`consolidate` where an item
    (task) ends::

        optimizer = flexkern.optim.MetaplasticSGD(model.parameters(), lr=1e-4, scale=4e5)
        for item in stream:
            for x, y in item:
                optimizer.zero_grad()
                loss_function(model(x), y).backward()
                optimizer.step()
            optimizer.consolidate()

    Source: arXiv 2407.07133, section 2; its authors' release has lr 1e-4, momentum 0, batches of 1024, and
    scale 4e5 for streams of 10 items, 2e5 for 30.

    All arguments after ``params`` can be set for each parameter group.

    Args:
        params: parameters, named parameters or groups, as for every torch optimizer. float32, bfloat16,
            float16 or float64. A parameter of fewer than two dimensions (a bias) moves freely, alpha = 1,
            unless ``flexible_vectors``.
        lr: learning rate, a number or a one-element tensor. The value of a tensor is looked at here; what is
            written to it later is taken as it is, so a negative one goes uphill.
        scale: s > 0, a number or a one-element tensor (as ``lr``: a NaN there stops the synapses), or "auto":
            measured over the first item, in which alpha is 1 with either gate, by
            :func:`flexkern.optim.scale.auto_scale`; the first consolidate() sets it. The best scale is
            within a factor of two of it in most streams that were tried, and up to five times larger in some:
            which ones, and what that costs, is said there. The default, since a number fits only the
            network, the learning rate and the data that it was found for.
        flexibility: f in [0, 1], fixed for life. "uniform" (the hybrid network), "biased_high" or "biased_low"
            (the paper's supplement): procedural, drawn from ``seed`` and the parameter's stream and never
            stored. The stream comes from the parameter's name, where ``params`` are named or ``model`` is
            given (the same in DistributedDataParallel, fully_shard, tensor parallelism, or with one optimizer
            per parameter), else from its position among all parameters that were added (in a
            ZeroRedundancyOptimizer: among those of all processes). A number
            for all (1: conventional, 0.3: the paper's stable network). A :class:`flexkern.Field`: as it is
            for a group of one parameter, else with its stream plus the parameter's position in the group. A
            tensor, for a group of one parameter. Or a list with a number, a Field or a tensor for each
            parameter. A tensor is kept, not copied. Set in a group later, it holds from then on.
        seed: of the procedural flexibility; 0 <= seed < 2**64.
        gate: "item" computes alpha once per item, at its first step, and keeps it (as the release does; stores
            one more float32 tensor); "step" computes it anew at each step.
        momentum, dampening, weight_decay, nesterov, maximize: as in :class:`torch.optim.SGD`. alpha scales the
            step, not what enters the momentum buffer.
        anchor: None: a float32 copy of each flexible weight, taken at the first step that has a gradient for
            it, so that moving, casting or loading the model after the optimizer was made does no harm. A
            :class:`flexkern.Field` (streams as for ``flexibility``) or a list of Fields and Nones, for weights
            that were initialised from that field: nothing is stored. It must be the very field; the first step
            compares (and waits for the device), because a wrong anchor silently freezes learning. The weight of
            a :class:`flexkern.nn.SilentLinear` has its layer's field, while it still holds its values.
        flexible_vectors: also parameters of fewer than two dimensions are flexible.
        nonfinite: what a NaN or infinite gradient does: "skip" leaves the synapses that it would spoil as they
            are, "raise" raises before any weight changes, on all processes that share the weights (waits for
            the device), "propagate" lets it through.
        alpha_dtype: how ``gate="item"`` keeps alpha. torch.bfloat16 takes two bytes per weight less and, on the
            CPU, a seventh off the step's time; each step is off by at most 2**-8 of itself. It is kept so by
            float32, bfloat16 and float16 weights on the CPU that have no silent synapses; others keep float32.
            Not for weights that are stepped in backward: their alpha is widened there at each step.

        model: the module whose names the parameters have; for groups and parameters without names.
        foreach, fused: accepted, as all steps are fused over all parameters.
        differentiable: must be False.

    State, for each parameter, with keys and types that stay as they are (torch.distributed.checkpoint asks for
    it); tensors are float32 (float64 for float64 parameters; ``alpha`` as ``alpha_dtype`` says): ``items``, the
    number of the item that it is in; ``flexibility``, a given tensor, a number, or a Field as numbers;
    ``momentum_buffer`` with momentum; ``master``, the exact weight of which a bfloat16 or float16 parameter is
    the rounding (where such a parameter is written from outside, the next step takes what was written); and of
    a flexible one ``anchor`` (or its Field), with ``gate="item"`` ``alpha`` and ``alpha_item``, the item that
    it was taken for. :meth:`state_dict` holds tensors and plain data only.

    ``optimizer.state = defaultdict(dict)`` begins anew, and warns: anchors are taken from the weights as they
    are then; flexibilities stay. An optimizer that cannot be more than plain SGD warns once: no parameter is
    flexible; or 1,000 steps, or its end, came without a call of consolidate() although its gate needs one.

    Parameters may be DTensors (fully_shard, tensor parallelism; docs/integrations.md, Optimizers on several
    processes): each process steps its part, and state is sharded likewise.

    Raises:
        TypeError, ValueError: at construction and in :meth:`add_param_group`, naming the argument; nothing
            has been changed then. So for parameters that FullyShardedDataParallel has flattened.
    """

    rule = SgdRule

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        scale: float | Tensor | str = "auto",
        flexibility: str | Flexibility | list[Flexibility] = "uniform",
        seed: int = 0,
        gate: str = "item",
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        anchor: Field | list[Field | None] | None = None,
        flexible_vectors: bool = False,
        nonfinite: str = "skip",
        alpha_dtype: torch.dtype = torch.float32,
        model: nn.Module | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        check_not_differentiable(differentiable)
        defaults = {
            "lr": lr,
            "scale": scale,
            "flexibility": flexibility,
            "seed": seed,
            "gate": gate,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "anchor": anchor,
            "flexible_vectors": flexible_vectors,
            "nonfinite": nonfinite,
            "alpha_dtype": alpha_dtype,
        }
        super().__init__(params, defaults, model)

    def watch_step(self, first_item: FirstItem, group: dict[str, Any]) -> FirstItem:
        numbers = (group[name] for name in ("momentum", "dampening", "nesterov"))
        return first_item.step(float(group["lr"]), *numbers)

    @classmethod
    def from_optimizer(
        cls, optimizer: Optimizer, *, schedulers: Iterable[LRScheduler] = (), **options: Any
    ) -> MetaplasticSGD:
        """A MetaplasticSGD that goes on where a :class:`torch.optim.SGD` is, with its groups, all their
        settings and its momentum buffers.

        Args:
            optimizer: the one to take over; it is not changed, and must not step any more.
            schedulers: those of :mod:`torch.optim.lr_scheduler` that drive it; from now on they drive this one.
            options: ``scale`` and any others of this class but those that SGD has.

        Raises:
            TypeError: if it is not a torch.optim.SGD.
            ValueError: if schedulers drive it and are not given.
        """
        return converted(cls, torch.optim.SGD, optimizer, schedulers, options)
