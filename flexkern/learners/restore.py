"""A learner from its checkpoint: one step after the other, each of which says what of the file does not fit."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.learners import checkpoint, schema
from flexkern.learners.budget import Budget
from flexkern.learners.old_records import translated
from flexkern.nn.growing import GrowingState

__all__ = ["names", "restored"]

# What constructors and loaders raise for values that do not fit them; no OSError, and no lack of memory.
_UNFIT = (
    TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, AssertionError, RuntimeError,
    RecursionError,
)  # fmt: skip


def names(record: dict[str, Any]) -> dict[str, Any]:
    """Format, family, method and class of a record, also of one of an earlier version.

    Raises:
        ValueError: naming the field.
    """
    schema.check_format(record)
    for name in ("learner", "family", "method", "class"):
        if not isinstance(record.get(name, ""), str):
            raise ValueError(f"{name} must be a string, got {type(record[name]).__name__}")
    if record.get("format") in range(schema.OLDEST, schema.FORMAT + 1):
        schema.check_record(record)
    return translated({}, record)[1]


def restored(cls: Any, path: str | os.PathLike[str], device: torch.device | str, given: dict[str, Any]) -> Any:
    """What :meth:`flexkern.learners.Learner.load` of the class ``cls`` returns."""
    with torch.inference_mode(False):  # a learner that is loaded to answer may learn again
        return _restored(cls, path, device, given)


def _restored(cls: Any, path: str | os.PathLike[str], device: torch.device | str, given: dict[str, Any]) -> Any:
    tensors, record = checkpoint.read(path)
    with checkpoint.naming(path):
        named = names(record)
    readable = range(schema.OLDEST, schema.FORMAT + 1)
    method = named.get("family"), named.get("method")
    if named.get("format") not in readable or method != (cls.family, cls._method_name()):
        raise ValueError(
            f"path: {os.fspath(path)!r} holds {named.get('class')!r} in format "
            f"{named.get('format')!r}; this version reads {cls.__name__!r} in formats "
            f"{schema.OLDEST} to {schema.FORMAT}"
        )
    tensors, record = translated(tensors, record)
    configuration = record["configuration"]
    with checkpoint.naming(path):
        schema.check_configuration(cls, configuration)
    anew = {name: given[name] for name in cls.told_anew if name in given}
    given = {name: value for name, value in given.items() if name not in anew}
    # A device that is not there is no fault of the file, nor is a network that was given.
    made_on = torch.empty(0, device=device).device
    name = record.get("frozen_name")
    given = ({} if name is None else cls._named(name)) | given
    networks = cls._check_frozen(record["frozen"], **given)
    most = max(cls.unsaved_numbers, 4 * sum(t.numel() for t in tensors.values()))
    # What a constructor draws from torch's generator is written over, and the generator is the caller's.
    with torch.random.fork_rng([made_on] if made_on.type == "cuda" else []), Budget(most):
        with _fitting(path, "configuration", configuration):
            learner = cls(**(cls._arguments(configuration) | anew), device=device, **networks)
        if not anew:
            learner._configuration = configuration
        learner._frozen_name = cls._name_of_frozen(given) or name
        with _fitting(path, "progress"):
            learner._resume(record["progress"])
            last, known = max(learner._names, default=-1), learner._count_known()
            if last >= known:
                raise ValueError(f"class_names has a name of class {last}, and there are {known} classes")
        with _fitting(path, "tensors"):
            _load_modules(learner._modules(), tensors, record["model"], record["progress"].get("tensors"))
            _load_extra(learner, _under("extra.", tensors))
            others = [k for k in tensors if not k.startswith(("model.", "optimizer.", "extra."))]
            if others:
                raise ValueError(f"{min(others)!r} is of no part of a learner")
            learner._check_restored()
        with _fitting(path, "optimizer"):
            _load_optimizer(learner._optimizer(), tensors, record["optimizer"])
    return learner


@contextlib.contextmanager
def _fitting(
    path: str | os.PathLike[str], part: str, configuration: dict[str, Any] | None = None
) -> Iterator[None]:
    """What does not fit is a ValueError that names the path, and the part of the file."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _UNFIT as error:
        reason = str(error) if isinstance(error, (TypeError, ValueError, RuntimeError)) else repr(error)
        raise ValueError(f"path: {os.fspath(path)!r} does not fit, {part}: {reason}") from error


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


# ------------------------------------------------------------------ its parts


def _load_modules(
    modules: nn.Module, tensors: dict[str, Tensor], plain: dict[str, Any], count: int | None
) -> None:
    saved = _under("model.", tensors)
    before = modules.state_dict()
    for name, value in saved.items():
        known = before.get(name)
        if isinstance(known, Tensor) and not _same_dtype(value, known):
            raise ValueError(f"model.{name} is {value.dtype}, and must be {known.dtype}")
    modules.load_state_dict(saved | plain)
    if count not in (None, len(saved)):
        raise ValueError(f"the model has {len(saved)} tensors, and the record says {count}")
    for prefix, module in modules.named_modules():
        if isinstance(module, GrowingState):
            for name, sums in module.named_buffers(recurse=False):
                # Thresholds may be infinite: open always, or never.
                bad = sums.isnan() if sums.dtype is torch.float32 else ~sums.isfinite()
                if bool(bad.any()):
                    raise ValueError(f"model.{prefix}.{name} is not finite")
    after = modules.state_dict()
    for name, value in saved.items():
        now = after[name]
        # What was cast or cut to fit would not be what was saved.
        if not _same_dtype(value, now) or (value.shape != now.shape and not name.endswith("_extra_state")):
            raise ValueError(
                f"model.{name} is {value.dtype} {list(value.shape)}, and must be {now.dtype} {list(now.shape)}"
            )


def _same_dtype(saved: Tensor, now: Tensor) -> bool:
    # Flags were bools once, which no average can be made of.
    return saved.dtype is now.dtype or (saved.dtype, now.dtype) == (torch.bool, torch.int64)


def _load_optimizer(
    optimizer: torch.optim.Optimizer | None, tensors: dict[str, Tensor], record: dict[str, Any] | None
) -> None:
    if optimizer is None or record is None:
        if (optimizer is None) != (record is None):
            raise ValueError(
                "its state is there, and none is used now" if optimizer is None else "no state of it"
            )
        if any(name.startswith("optimizer.") for name in tensors):
            raise ValueError("its tensors are there, and its state is not")
        return
    saved, own = checkpoint.join_optimizer(tensors, record), optimizer.state_dict()
    groups, own_groups = saved["param_groups"], own["param_groups"]
    if [g["params"] for g in groups] != [g["params"] for g in own_groups]:
        raise ValueError(f"param_groups must have the parameters {[g['params'] for g in own_groups]}")
    # flexkern's own look at their options themselves, torch's take whatever they are given.
    lax = type(optimizer).__module__.startswith("torch.")
    for n, (group, own_group) in enumerate(zip(groups, own_groups, strict=True)):
        for name, value in group.items():
            if lax and name in own_group:
                _check_option(f"param_groups.{n}.{name}", value, own_group[name])
    parameters = dict(enumerate(p for g in optimizer.param_groups for p in g["params"]))
    for key, state in saved["state"].items():
        if key not in parameters:
            raise ValueError(f"state.{key}: there are {len(parameters)} parameters")
        shape = parameters[key].shape
        for name, value in state.items():
            one = isinstance(value, Tensor) and (value.dim() == 0 or (name == "step" and value.numel() == 1))
            if isinstance(value, Tensor) and value.shape != shape and not one:
                raise ValueError(
                    f"state.{key}.{name} is {list(value.shape)}, and its parameter is {list(shape)}"
                )
    optimizer.load_state_dict(saved)
    for key, state in saved["state"].items():
        loaded = optimizer.state.get(parameters[key], {})
        for name, value in state.items():
            now = loaded.get(name)
            if isinstance(value, Tensor) and isinstance(now, Tensor) and value.dtype is not now.dtype:
                raise ValueError(f"state.{key}.{name} is {value.dtype}, and must be {now.dtype}")


def _check_option(name: str, value: Any, own: Any) -> None:
    """An option of an optimizer must be of the kind that it has in one that was just made."""
    if isinstance(own, bool):
        fits = isinstance(value, (bool, type(None)))
    elif isinstance(own, (int, float)):
        fits = type(value) in (int, float) and math.isfinite(value) and (value >= 0 or own < 0)
    else:
        return
    if not fits:
        raise ValueError(f"{name} must be like {own!r}, got {value!r}")


def _load_extra(learner: Any, saved: dict[str, Tensor]) -> None:
    learner._load_extra_state({name: value.to(learner.device) for name, value in saved.items()})
    now = learner._extra_state()
    for name in sorted(saved.keys() | now.keys()):
        if name not in saved or name not in now:
            raise ValueError(f"extra.{name} is {'missing' if name in now else 'of no part of this learner'}")
        if saved[name].dtype is not now[name].dtype or saved[name].shape != now[name].shape:
            raise ValueError(
                f"extra.{name} is {saved[name].dtype} {list(saved[name].shape)}, and must be {now[name].dtype} "
                f"{list(now[name].shape)}"
            )
