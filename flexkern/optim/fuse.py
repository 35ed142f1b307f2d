"""The optimizer's step inside the backward pass of a model that already exists (docs/design.md, One pass)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from flexkern.distributed import agree, as_lead_has, within
from flexkern.nn.fused.linear import NOT_ALONE, MetaplasticLinear, checked_window
from flexkern.nn.silent.linear import SilentLinear
from flexkern.ops.choices import PRECISIONS
from flexkern.optim.by_rule import RuleOptimizer
from flexkern.optim.sharded import is_sharded
from flexkern.plain import choice

__all__ = ["fuse_into_backward"]

# Subclasses of others may use their weight in ways of their own, so they are left alone.
_CLASSES = (nn.Linear, MetaplasticLinear, SilentLinear)


def fuse_into_backward(
    model: nn.Module,
    optimizer: RuleOptimizer,
    *,
    window: int = 1,
    precision: str = "float32",
    process_group: Any = None,
) -> list[str]:
    """Lets backward step the weights of the model's linear layers, so that their gradients never exist.

    Every ``nn.Linear``, :class:`flexkern.nn.MetaplasticLinear` and :class:`flexkern.nn.SilentLinear` (not
    classes derived from them) whose weight ``optimizer`` owns becomes fused; an ``nn.Linear`` changes its class
    to MetaplasticLinear and stays the same object, with its parameters and hooks. ``optimizer.step()`` skips
    what was stepped, and keeps on stepping everything else; learning rate schedulers, parameter groups,
    ``consolidate()`` and state dictionaries work as before. A layer goes back by ``layer.fused_step = False``.

    Args:
        model: the module to look through.
        optimizer: which is to step its weights. Layers keep a weak reference to it.
        window: number of backward passes that make one step, see :class:`flexkern.nn.MetaplasticLinear`.
        precision: "float32": products in the dtype of the layer's input, or of autocast. "bfloat16": also
            float32 inputs are multiplied in bfloat16, see there; weights and what the step computes with stay
            float32, as do the layer's inputs and outputs. On a processor with AVX512-BF16 the step of a layer
            of 4096 x 4096 with a batch of 256, its product included, then takes half the time
            (docs/tuning.md); without such instructions it takes longer.
        process_group: of the processes that train the model together by DistributedDataParallel, as
            ``torch.distributed.group.WORLD``; None: this process trains it alone. Each step is then taken, on
            all of them, with the inputs and output gradients of all, which are gathered in the backward pass:
            their product is the mean of all gradients, and it is formed by none. Call this on all processes,
            before ``model`` itself is wrapped: the wrapper leaves these weights alone, and here they get the
            values that the first process has. All processes have to use each layer once in each backward pass.
            docs/scaling.md says what that is worth.

    Returns:
        The names of the fused layers, in the model's order.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if there is no such precision, no layer to fuse, a weight to be fused is shared by several
            modules, or several devices, or processes beside those of ``process_group``, train it together.
            Nothing has been changed then.
        RuntimeError: if the processes would fuse different layers. Nothing has been changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, RuleOptimizer):
        raise TypeError(
            "optimizer must be a flexkern.optim.MetaplasticSGD or MetaplasticAdamW, got "
            f"{type(optimizer).__name__}; others need gradients"
        )
    _check_alone(model)
    window = checked_window(window)
    precision = choice(precision, "precision", PRECISIONS)
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    linear = {name: module for name, module in model.named_modules() if type(module) in _CLASSES}
    layers = {name: module for name, module in linear.items() if id(module.weight) in owned}
    if any(is_sharded(layer.weight) for layer in (layers or linear).values()):
        raise ValueError(NOT_ALONE.format("model: a weight is a DTensor (fully_shard, parallelize_module)"))
    if not layers:
        raise ValueError(
            "model: it has no nn.Linear, MetaplasticLinear or SilentLinear whose weight this optimizer owns"
        )
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    for layer in layers.values():
        shared = names[id(layer.weight)]
        if len(shared) > 1:
            raise ValueError(
                f"model: {' and '.join(shared)} are one parameter (weight tying), whose gradient is a sum over "
                "its uses; a fused step would take only one of them. Untie them, or leave this optimizer's "
                "step() as it is"
            )
    processes = _checked_group(process_group)
    if processes is not None:
        _give_to(processes, model, layers, window, precision)
    for layer in layers.values():
        if type(layer) is nn.Linear:
            layer.__class__ = MetaplasticLinear
        assert isinstance(layer, MetaplasticLinear)
        layer.fuse(optimizer, window, precision, processes)
        optimizer.remember_fused(layer, window)
    return list(layers)


def _checked_group(given: object) -> Any:
    """The group, which may be of one process, or None. TypeError, ValueError if it is none."""
    if given is None:
        return None
    if not torch.distributed.is_available() or not isinstance(given, torch.distributed.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup (torch.distributed.group.WORLD after "
            f"init_process_group) or None, got {type(given).__name__}"
        )
    if torch.distributed.get_rank(given) < 0:
        raise ValueError("process_group: this process is not one of it")
    return given


def _give_to(group: Any, model: nn.Module, layers: dict[str, Any], window: int, precision: str) -> None:
    """Layers that a group of processes is to step together: sees that it has the same ones, gives them the
    weights of its first process, and has DistributedDataParallel leave them alone."""
    facts: dict[str, Any] = {"layers": list(layers), "window": window, "precision": precision}
    for name, layer in layers.items():
        facts |= {
            f"shape of {name}.weight": tuple(layer.weight.shape),
            f"dtype of {name}.weight": layer.weight.dtype,
        }
        if isinstance(layer, SilentLinear):
            facts[f"initial field of {name}"] = layer.init.source()
    with within(group):
        agree("fuse_into_backward", facts)
        as_lead_has([layer.weight.detach() for layer in layers.values()])
    # Of a model that is a layer itself the wrapper has two names for the weight.
    weights = {called for name in layers for called in (f"{name}.weight", f"{name}.weight".lstrip("."))}
    ignored: Any = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    wrapper: Any = nn.parallel.DistributedDataParallel
    wrapper._set_params_and_buffers_to_ignore_for_model(model, sorted({*ignored, *weights}))


def _check_alone(model: nn.Module) -> None:
    """Raises ValueError if other processes or devices have gradients for the same weights."""
    for module in model.modules():
        kind = type(module).__name__
        sharing = isinstance(module, nn.parallel.DistributedDataParallel) or (
            isinstance(module, nn.DataParallel) and len(module.device_ids) > 1
        )
        # By its name: FSDP1 takes a second to import, and who uses it has imported it.
        if sharing or any(base.__name__ == "FullyShardedDataParallel" for base in type(module).__mro__):
            raise ValueError(NOT_ALONE.format(f"model: it is, or has in it, a {kind}"))
