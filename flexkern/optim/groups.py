"""Parameter groups of the metaplastic optimizers: what they may hold, and their plain form for checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from flexkern.fields import Field, Kind, Purpose
from flexkern.nn.fused.stepped_grad import SteppedGrad
from flexkern.ops import checks
from flexkern.ops.checks import exact_dtype
from flexkern.ops.choices import NONFINITE
from flexkern.spec import Rule

__all__ = [
    "STORED",
    "check_grads",
    "check_group",
    "decode_group",
    "encode_group",
    "exact_dtype",
    "is_flexible",
    "is_never_zero",
    "is_unmeasured",
    "resolve_anchors",
    "resolve_flexibilities",
    "scale_in_force",
]

Flexibility = Tensor | Field | float
STORED = "stored"  # stands in a group for a flexibility tensor, which lives in its parameter's state
GATES = ("item", "step")
ALPHA_DTYPES = (torch.float32, torch.bfloat16)
DISTRIBUTIONS: dict[str, Callable[[int, int], Field]] = {
    "uniform": Field.uniform,
    "biased_high": Field.biased_high,
    "biased_low": Field.biased_low,
}


def _number(group: dict[str, Any], name: str, *, positive: bool = False, tensor: bool = False) -> None:
    value = group[name]
    allowed = f"finite number {'> 0' if positive else '>= 0'}"
    if tensor and isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point():
            raise ValueError(
                f"{name} as a tensor must have one floating-point element, got {value.dtype} of shape "
                f"{tuple(value.shape)}"
            )
        value = value.item()
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        other = " or a one-element tensor" if tensor else ""
        raise TypeError(f"{name} must be a {allowed}{other}, got {value!r}")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be a {allowed}, got {value}")


def _switch(group: dict[str, Any], name: str) -> None:
    if not isinstance(group[name], bool):
        raise TypeError(f"{name} must be True or False, got {group[name]!r}")


def check_group(group: dict[str, Any], rule: type[Rule]) -> None:
    """Checks the numbers, switches and parameters of a new group of an optimizer with this rule.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    _number(group, "lr", tensor=True)
    if isinstance(group["scale"], str):
        if group["scale"] != "auto":
            raise ValueError(f"scale must be a number > 0 or 'auto', got {group['scale']!r}")
    else:
        _number(group, "scale", positive=True, tensor=True)
    for f in fields(rule):
        if f.metadata.get("low") is None:
            _switch(group, f.name)
        elif f.metadata["low"] == 0:
            _number(group, f.name)
        else:
            value = group[f.name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{f.name} must be a finite number, got {value!r}")
    try:
        rule.of(group).check()
    except ValueError as error:
        got = ", ".join(f"{f.name} {group[f.name]}" for f in fields(rule))
        raise ValueError(f"{error}, got {got}") from None
    _switch(group, "flexible_vectors")
    for name, allowed in (("gate", GATES), ("nonfinite", NONFINITE)):
        if group[name] not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {group[name]!r}")
    if group["alpha_dtype"] not in ALPHA_DTYPES:
        raise ValueError(f"alpha_dtype must be one of {ALPHA_DTYPES}, got {group['alpha_dtype']!r}")
    for i, p in enumerate(group["params"]):
        if p.dtype not in checks.FLOAT_DTYPES or p.layout is not torch.strided:
            raise TypeError(
                f"params[{i}] must be a dense float32, bfloat16, float16 or float64 tensor, got {p.dtype}, "
                f"{p.layout}"
            )
        checks.check_writable(p, f"params[{i}]")
    if len(set(group["params"])) != len(group["params"]):
        raise ValueError("params holds a parameter twice; a group steps each once, so give each once")


def _per_parameter(value: Sequence[Any], name: str, group: dict[str, Any]) -> list[Any]:
    if len(value) != len(group["params"]):
        raise ValueError(
            f"{name} has {len(value)} entries but its group has {len(group['params'])} parameters; "
            "give one for each"
        )
    return list(value)


def _streams(field: Field, count: int) -> list[Field]:
    """A field for each parameter: each has its own stream, or all would get the same values."""
    return [replace(field, stream=field.stream + i) for i in range(count)]


def _check_flexibility(value: object, name: str, p: Tensor, moves_freely: bool) -> Flexibility:
    if isinstance(value, Field):
        if not value.is_flexibility():
            raise ValueError(
                f"{name} must be a Field with values in [0, 1]: uniform with 0 <= low < high <= 1, biased_high "
                f"or biased_low; got {value}"
            )
        return value
    if isinstance(value, Tensor):
        if moves_freely:
            raise ValueError(
                f"{name} is a tensor, but its parameter has fewer than two dimensions and moves freely; set "
                "flexible_vectors=True to make it flexible, or give 1.0"
            )
        checks.check_matches(value, name, p, (torch.float32, torch.float64), like_name="its parameter")
        if not bool(((value >= 0) & (value <= 1)).all()):
            raise ValueError(f"{name} must hold values in [0, 1] only")
        return value.detach().to(exact_dtype(p))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
        return float(value)
    raise TypeError(f"{name} must be a number, a tensor or a flexkern.Field, got {value!r}")


def resolve_flexibilities(group: dict[str, Any], first: int) -> list[Flexibility]:
    """The group's flexibility as a checked list, one for each parameter.

    Args:
        group: a parameter group.
        first: position in the optimizer of the group's first parameter.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    value, params = group["flexibility"], group["params"]
    values: list[Any]
    if isinstance(value, str):
        if value not in DISTRIBUTIONS:
            raise ValueError(
                f"flexibility must be one of {tuple(DISTRIBUTIONS)}, a number, a tensor or a flexkern.Field, "
                f"got {value!r}"
            )
        values = [DISTRIBUTIONS[value](group["seed"], first + i) for i in range(len(params))]
    elif isinstance(value, Field):
        values = list(_streams(value, len(params)))
    elif isinstance(value, (list, tuple)):
        values = _per_parameter(value, "flexibility", group)
    elif isinstance(value, Tensor) and len(params) != 1:
        raise ValueError(
            f"flexibility is one tensor but its group has {len(params)} parameters; give a list of one for each"
        )
    else:
        values = [value] * len(params)
    return [
        _check_flexibility(v, f"flexibility[{i}]", p, p.dim() < 2 and not group["flexible_vectors"])
        for i, (v, p) in enumerate(zip(values, params, strict=True))
    ]


def resolve_anchors(group: dict[str, Any]) -> list[Field | None]:
    """The group's anchor as a checked list, one for each parameter; None: a copy will be stored."""
    value = group["anchor"]
    if isinstance(value, (list, tuple)):
        anchors = _per_parameter(value, "anchor", group)
    elif isinstance(value, Field):
        anchors = list(_streams(value, len(group["params"])))
    else:
        anchors = [value] * len(group["params"])
    for i, anchor in enumerate(anchors):
        if anchor is not None and not isinstance(anchor, Field):
            raise TypeError(
                f"anchor[{i}] must be None (a copy is taken at the first step) or the flexkern.Field that its "
                f"weight was initialised from, got {type(anchor).__name__}"
            )
    return anchors


def is_never_zero(flexibility: Flexibility) -> bool:
    """Whether f > 0 is sure without looking at a tensor: then alpha is exactly 1 where w = a."""
    if isinstance(flexibility, Tensor):
        return False
    # Procedural values lie inside their interval, whose bounds have been checked.
    return isinstance(flexibility, Field) or flexibility >= torch.finfo(torch.float32).tiny


def is_flexible(group: dict[str, Any], i: int) -> bool:
    """Whether parameter i of the group resists being moved."""
    p = group["params"][i]
    return (p.dim() >= 2 or group["flexible_vectors"]) and group["flexibility"][i] != 1.0


def is_unmeasured(group: dict[str, Any]) -> bool:
    """Whether the group waits for ``scale="auto"``, with a flexible weight for which it matters."""
    if group["scale"] != "auto" or group["measured_scale"] is not None:
        return False
    return any(is_flexible(group, i) for i in range(len(group["params"])))


def scale_in_force(group: dict[str, Any]) -> Any:
    """A number or a float32 tensor; None while "auto" is unmeasured."""
    scale = group["measured_scale"] if group["scale"] == "auto" else group["scale"]
    return scale.to(torch.float32) if isinstance(scale, Tensor) else scale


def _check_stepped(grad: SteppedGrad, i: int, optimizer: object) -> None:
    p = f"parameter {i} of its group, shape {tuple(grad.shape)},"
    if grad.optimizer() is not optimizer:
        raise RuntimeError(
            f"{p} was stepped in backward by another optimizer, which owns it too; give each weight to one "
            "optimizer"
        )
    if grad.batches:
        raise RuntimeError(
            f"{p} has seen {len(grad.batches)} of the {grad.window} micro-batches of its window, so backward "
            "has not stepped it yet; call step() after the last one, or zero_grad() to drop those seen"
        )
    if grad.counted:
        raise RuntimeError(
            f"{p} was stepped once by its backward, and a second step() without another backward cannot step "
            "it again; call zero_grad() and backward() before each step()"
        )


def check_grads(group: dict[str, Any], optimizer: object) -> None:
    """Checks all gradients of a group before a step of ``optimizer``.

    Raises:
        RuntimeError: if one stands for a fused step that does not go with this step.
        TypeError: if one is sparse or of a dtype that does not fit its parameter.
        FloatingPointError: if one is not finite and the group says ``nonfinite="raise"``.
    """
    grads = []
    for i, p in enumerate(group["params"]):
        if p.grad is None:
            continue
        if isinstance(p.grad, SteppedGrad):
            _check_stepped(p.grad, i, optimizer)
            continue
        if p.grad.layout is not torch.strided:
            raise TypeError(
                f"gradient of parameter {i} of its group, shape {tuple(p.shape)}, is sparse ({p.grad.layout}); "
                "this optimizer steps every synapse, so use sparse=False in the layer, or grad.to_dense()"
            )
        # Shape and device are those of the parameter: torch checks them when a gradient is assigned.
        if p.grad.dtype not in (p.dtype, torch.float32):
            raise TypeError(
                f"gradient of parameter {i} of its group must be {p.dtype} or torch.float32, got {p.grad.dtype}"
            )
        grads.append(p.grad)
    if group["nonfinite"] == "raise":
        checks.check_finite(grads)


# --------------------------------------------------------------------------- checkpoints


def _field_to_dict(field: Field) -> dict[str, Any]:
    return {
        "kind": field.kind.name.lower(),
        "seed": field.seed,
        "stream": field.stream,
        "purpose": field.purpose.name.lower(),
        "offset": field.offset,
        "parameters": list(field.parameters),
    }


def _field_from_dict(plain: dict[str, Any]) -> Field:
    kind, purpose = Kind[plain["kind"].upper()], Purpose[plain["purpose"].upper()]
    low, high = plain["parameters"]
    return Field(kind, plain["seed"], plain["stream"], purpose, plain["offset"], (low, high))


def encode_group(group: dict[str, Any]) -> dict[str, Any]:
    """A group with its Fields and dtypes written as plain data."""
    lists = {
        name: [_field_to_dict(v) if isinstance(v, Field) else v for v in group[name]]
        for name in ("flexibility", "anchor")
    }
    return {**group, **lists, "alpha_dtype": str(group["alpha_dtype"]).removeprefix("torch.")}


def decode_group(plain: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`encode_group`.

    Raises:
        ValueError: if the group is not one of these optimizers.
    """
    missing = [name for name in ("scale", "measured_scale", "flexibility", "anchor") if name not in plain]
    if missing:
        raise ValueError(
            f"state_dict is not one of a metaplastic optimizer: its group has no {', '.join(missing)}"
        )
    lists = {
        name: [_field_from_dict(v) if isinstance(v, dict) else v for v in plain[name]]
        for name in ("flexibility", "anchor")
    }
    # Checkpoints of before there was a choice have alpha in float32.
    return {**plain, **lists, "alpha_dtype": getattr(torch, plain.get("alpha_dtype", "float32"))}
