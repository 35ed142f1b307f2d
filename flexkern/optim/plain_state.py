"""The plain form of an optimizer's groups and state, which ``torch.load(weights_only=True)`` reads."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.fields import Field
from flexkern.nn.silent.layer_of_weight import silent_synapses
from flexkern.ops.checks import LARGEST_NUMBER, check_dense, exact_dtype, is_number
from flexkern.ops.operator import is_tensor
from flexkern.optim import sharded
from flexkern.optim.flexibilities import EACH, field_of, is_each, plain
from flexkern.optim.scale import FirstItem
from flexkern.optim.slot import KEPT, Slot
from flexkern.spec.argument import shown

__all__ = ["check_form", "decoded", "encode_group", "given_for_one", "restored"]

_NUMBERS = ("items", "alpha_item")


def encode_group(group: dict[str, Any]) -> dict[str, Any]:
    """A group with its Fields, dtypes and numbers of numpy written as plain data."""
    values = {name: _without_numpy(plain(value)) for name, value in group.items()}
    return {**values, "alpha_dtype": str(group["alpha_dtype"]).removeprefix("torch.")}


def _without_numpy(value: Any) -> Any:
    if isinstance(value, tuple):  # betas
        return tuple(map(_without_numpy, value))
    return value.item() if isinstance(value, np.generic) else value


def given_for_one(slot: Slot, group: dict[str, Any]) -> dict[str, Any]:
    """What was given for this very parameter, which its group does not say."""
    given = {}
    if is_each(group["flexibility"]):
        given["flexibility"] = plain(slot.flexibility)
    if is_each(group["anchor"]) and slot.anchor is not None:
        given["anchor"] = plain(slot.anchor)
    return given


def check_form(saved: Any) -> None:
    """That it looks like the state_dict of an optimizer; what is in it is looked at where it is read.

    Raises:
        TypeError: if it is no dictionary.
        ValueError: if it is another one.
    """
    if not isinstance(saved, dict):
        raise TypeError(f"state_dict must be a dictionary, got {shown(saved)}")
    state, groups = saved.get("state"), saved.get("param_groups")
    if not isinstance(state, dict) or not isinstance(groups, (list, tuple)):
        raise ValueError(
            "state_dict is not one of an optimizer: it must have a dictionary state and a list param_groups"
        )
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), (list, tuple)):
            raise ValueError(
                "state_dict is not one of an optimizer: each of its param_groups must have a list params"
            )
        for name, value in group.items():
            if isinstance(value, Tensor) and not (is_tensor(value) and value.layout is torch.strided):
                raise ValueError(
                    f"state_dict: {name} of a group must be plain data, got a {type(value).__name__}"
                )
            try:
                deepcopy(value)  # as torch does next: of a nested tensor, or of one with a history, it cannot
            except Exception as error:  # of whatever kind a foreign class raises
                raise ValueError(
                    f"state_dict: {name} of a group must be plain data, got {shown(value)}, which cannot be "
                    "copied"
                ) from error
        for key in group["params"]:
            if not isinstance(key, (int, str)) or not isinstance(state.get(key, {}), dict):
                raise ValueError(f"state_dict: the state of parameter {shown(key)} must be a dictionary")


def decoded(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A state_dict with its groups as the optimizer has them; also one of an earlier version.

    Raises:
        ValueError: if it is not one of these optimizers.
    """
    groups, state = [], dict(saved["state"])
    for group in saved["param_groups"]:
        missing = [name for name in ("scale", "measured_scale") if name not in group]
        if missing:
            raise ValueError(
                f"state_dict is not one of a metaplastic optimizer: its group has no {', '.join(missing)}"
            )
        if "lr" not in group:
            raise ValueError("state_dict is not one of an optimizer: its group has no lr")
        if isinstance(group.get("flexibility"), (list, tuple)):
            try:
                group = _from_lists(group, state)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"state_dict: a group with lists is odd: {error}") from None
        group = {**defaults, **group}
        _check_measured(group)
        dtype = group["alpha_dtype"]
        group |= {
            "flexibility": field_of(group["flexibility"]),
            "anchor": field_of(group["anchor"]),
            "alpha_dtype": getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype,
            "first_item": tuple(FirstItem(*group.get("first_item", ()))),
        }
        groups.append(group)
    return {**saved, "state": state, "param_groups": groups}


def _check_measured(group: dict[str, Any]) -> None:
    first, measured = group.get("first_item", ()), group["measured_scale"]
    is_list = isinstance(first, (tuple, list)) and len(first) <= len(FirstItem())
    if not is_list or not all(
        is_number(v) and abs(v) <= LARGEST_NUMBER and (type(default) is float or isinstance(v, int))
        for v, default in zip(first, FirstItem(), strict=False)
    ):
        raise ValueError(f"state_dict: first_item must be like {tuple(FirstItem())}, got {shown(first)}")
    if measured is not None and not (is_number(measured) and 0 <= measured <= LARGEST_NUMBER):
        raise ValueError(f"state_dict: measured_scale must be a finite number >= 0, got {shown(measured)}")


def restored(p: Tensor, saved: dict[str, Any], written: Sequence[str]) -> dict[str, Any]:
    """The saved state of parameter ``p``, on its device; names in ``written`` as copies, because what steps
    write to must not be shared with the state_dict that was given.

    Raises:
        ValueError: if it does not fit.
    """
    if ("alpha" in saved) != ("alpha_item" in saved):
        there, missing = ("alpha", "alpha_item") if "alpha" in saved else ("alpha_item", "alpha")
        raise ValueError(f"state_dict: the state of a parameter has {there} but no {missing}")
    return {name: _restored(p, name, value, written) for name, value in saved.items()}


def _restored(p: Tensor, name: str, value: Any, written: Sequence[str]) -> Any:
    if name in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"state_dict: {name} must be a number of items, got {value!r}")
        return value
    if not isinstance(value, Tensor):
        field = field_of(value)  # that it is one, if it is a dictionary
        is_source = name in ("anchor", "flexibility")
        is_f = name == "flexibility" and is_number(value) and 0 <= value <= 1
        if name in (*KEPT, "step", "flexibility") and not is_f and not (is_source and isinstance(field, Field)):
            raise ValueError(f"state_dict: {name} must be a tensor like its parameter, got {shown(value)}")
        return value
    try:
        check_dense(value, name)
    except TypeError as error:
        raise ValueError(f"state_dict: {error}") from None
    if value.is_complex() or value.is_quantized or (value.is_meta and not p.is_meta):
        raise ValueError(
            f"state_dict: {name} must be a tensor of real numbers, got {value.dtype} on {value.device}"
        )
    device = sharded.here(p).device
    if name == "step":
        if value.numel() != 1:
            raise ValueError(f"state_dict: step must be one number, got shape {tuple(value.shape)}")
        return value.to(device=device, dtype=torch.float32, copy=True).reshape(())
    if value.shape != p.shape:
        raise ValueError(
            f"state_dict: {name} has shape {tuple(value.shape)} but its parameter has {tuple(p.shape)}"
        )
    copies = name in written or (name == "anchor" and silent_synapses(p) is not None)
    dtype = torch.bfloat16 if name == "alpha" and value.dtype is torch.bfloat16 else exact_dtype(p)
    value = sharded.like_parameter(p, sharded.values_here(p, value))
    return value.to(device=device, dtype=dtype, copy=copies)


# ------------------------------------------------------------------ of earlier versions


def _from_lists(group: dict[str, Any], state: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    """A group whose ``flexibility`` and ``anchor`` are lists, one entry for each parameter; its parameters'
    state, of which keys came and went, is replaced in ``state``."""
    first_item: Any = FirstItem()
    for key, f, anchor in zip(group["params"], group["flexibility"], group["anchor"], strict=True):
        old = dict(state.get(key, {}))
        watched = old.pop("first_item", None)
        if watched is not None:
            first_item = FirstItem(*watched)
        new = {name: value for name, value in old.items() if name not in ("alpha", "anchor", "flexibility")}
        if not isinstance(f, str):
            new["flexibility"] = f
        elif "flexibility" in old:
            new["flexibility"] = old["flexibility"]
        if anchor is not None:
            new["anchor"] = anchor
        if "anchor" in old:
            new |= _begun(old, group)
        elif old:
            new["items"] = 1  # it moves freely, and has had a step
        state[key] = new
    measured = group["measured_scale"] or 0.0
    lists = {"flexibility": EACH, "anchor": EACH, "measured_scale": measured, "first_item": tuple(first_item)}
    return {**group, **lists}


def _begun(old: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    """The state of a flexible parameter after its first step: alpha was None while it is 1, and taken away
    where an item had ended."""
    new = {} if old["anchor"] is None else {"anchor": old["anchor"]}
    alpha = old.get("alpha")
    in_first = ("alpha" in old and alpha is None) or (group["scale"] == "auto" and not group["measured_scale"])
    new["items"] = 1 if in_first else 2
    if alpha is not None:
        new |= {"alpha": alpha, "alpha_item": new["items"]}
    return new
