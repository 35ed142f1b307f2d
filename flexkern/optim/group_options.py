"""What a parameter group of a metaplastic optimizer may hold: numbers, switches and words."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from flexkern.ops import checks
from flexkern.ops.choices import NONFINITE
from flexkern.optim.sharded import check_laid_out
from flexkern.spec import Rule
from flexkern.spec.argument import LARGEST_NUMBER, shown

__all__ = [
    "DEFAULTS",
    "check_group",
    "check_not_differentiable",
    "check_number_tensor",
    "check_parameters",
    "check_synapses",
    "is_auto",
    "plain_number",
    "scale_in_force",
]

GATES = ("item", "step")
ALPHA_DTYPES = (torch.float32, torch.bfloat16)
# Of every metaplastic optimizer, beside its rule's numbers: a saved group that lacks one gets it from here.
DEFAULTS: dict[str, Any] = {
    "flexibility": "uniform",
    "seed": 0,
    "gate": "item",
    "anchor": None,
    "flexible_vectors": False,
    "nonfinite": "skip",
    "alpha_dtype": torch.float32,
}


def plain_number(value: object, name: str, allowed: str = "a finite number") -> float:
    """A number of any kind (of Python or numpy, but no bool) as a float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is too large for float32 kernels, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {allowed}, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or abs(number) > LARGEST_NUMBER:
        got = shown(value) if isinstance(value, int) else repr(number)
        raise ValueError(f"{name} must be {allowed}, and at most {LARGEST_NUMBER:g}, got {got}")
    return number


def check_number_tensor(value: Tensor, name: str) -> None:
    """A tensor that may stand for a number; what it holds is not looked at.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    checks.check_dense(value, name)
    if value.is_meta:
        raise ValueError(f"{name} as a tensor must have a value, got one on the meta device")
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"{name} as a tensor must have one floating-point element, got {value.dtype} of shape "
            f"{tuple(value.shape)}"
        )


def _checked_number(
    group: dict[str, Any], name: str, *, positive: bool = False, signed: bool = False, tensor: bool = False
) -> None:
    """Looks at a number of the group, and makes a plain float of it: numpy's would not be read back from a file
    by ``torch.load(weights_only=True)``. The value of a tensor is looked at now, and not when it changes."""
    value = group[name]
    allowed = "a finite number" if signed else f"a finite number {'> 0' if positive else '>= 0'}"
    if tensor and isinstance(value, Tensor):
        check_number_tensor(value, name)
        number = plain_number(value.item(), name, allowed)
    else:
        number = plain_number(value, name, f"{allowed} or a one-element tensor" if tensor else allowed)
        group[name] = number
    # A positive number that is 0 in float32 would be 0 in the kernels.
    if not signed and (number < 0 or (positive and torch.tensor(number, dtype=torch.float32) == 0)):
        raise ValueError(f"{name} must be {allowed}, got {number}")


def _check_switch(group: dict[str, Any], name: str) -> None:
    group[name] = checks.check_switch(group[name], name)


def check_group(group: dict[str, Any], rule: type[Rule]) -> None:
    """Checks the numbers, switches and parameters of a new group of an optimizer with this rule.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    _checked_number(group, "lr", tensor=True)
    check_synapses(group)
    for f in fields(rule):
        if f.name not in group:  # AdamW has its two betas as one entry
            continue
        if f.metadata.get("low") is None:
            _check_switch(group, f.name)
        else:
            _checked_number(group, f.name, signed=f.metadata["low"] != 0)
    try:
        rule.of(group).check()
    except ValueError as error:
        got = ", ".join(f"{f.name} {group[f.name]}" for f in fields(rule) if f.name in group)
        raise ValueError(f"{error}, got {got}") from None


def check_synapses(group: dict[str, Any]) -> None:
    """Checks what a group has for its synapses, whatever steps them, and its parameters.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    if isinstance(group["scale"], str):
        if group["scale"] != "auto":
            raise ValueError(f"scale must be a number > 0 or 'auto', got {group['scale']!r}")
    else:
        _checked_number(group, "scale", positive=True, tensor=True)
    _check_switch(group, "flexible_vectors")
    group["seed"] = checks.as_integer(group["seed"], "seed")
    if not 0 <= group["seed"] < 1 << 64:
        raise ValueError(f"seed must be in [0, 2**64), got {shown(group['seed'])}")
    for name, allowed in (("gate", GATES), ("nonfinite", NONFINITE)):
        checks.check_word(group[name], name, allowed)
    if not isinstance(group["alpha_dtype"], torch.dtype) or group["alpha_dtype"] not in ALPHA_DTYPES:
        raise ValueError(f"alpha_dtype must be one of {ALPHA_DTYPES}, got {shown(group['alpha_dtype'])}")
    check_parameters(group["params"])


def check_not_differentiable(differentiable: object) -> None:
    """Raises ValueError if steps are to be differentiated through, which in-place kernels cannot be."""
    if differentiable:
        raise ValueError(
            "differentiable must be False: the step is one kernel that writes in place, and has no derivative"
        )


def check_parameters(params: list[Tensor]) -> None:
    """Parameters that can be stepped.

    Raises:
        TypeError, ValueError: naming the one that cannot.
    """
    for i, p in enumerate(params):
        checks.check_dense(p, f"params[{i}]")
        if p.dtype not in checks.FLOAT_DTYPES or p.layout is not torch.strided:
            raise TypeError(
                f"params[{i}] must be a dense float32, bfloat16, float16 or float64 tensor, got {p.dtype}, "
                f"{p.layout}"
            )
        check_laid_out(p, f"params[{i}]")
        checks.check_writable(p, f"params[{i}]")


def is_auto(group: Mapping[str, Any]) -> bool:
    """Whether the group's scale is to be measured, or has been."""
    return isinstance(group["scale"], str)


def scale_in_force(group: Mapping[str, Any]) -> Any:
    """A number or a float32 tensor; None while "auto" is unmeasured."""
    scale = (group["measured_scale"] or None) if is_auto(group) else group["scale"]
    if scale is None or isinstance(scale, float):
        return scale
    return scale.to(torch.float32) if isinstance(scale, Tensor) else plain_number(scale, "scale")
