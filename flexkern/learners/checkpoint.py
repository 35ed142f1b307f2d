"""Checkpoints: one safetensors file of tensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import os
from typing import Any

from torch import Tensor

from flexkern.files import replace_file

__all__ = ["join_optimizer", "read", "split_optimizer", "write"]

_KEY = "flexkern"  # of the JSON in the file's metadata
_MARK = {"tensor": True}  # stands in the JSON for a tensor of the optimizer's state


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Puts the file in place in one step, by :func:`flexkern.files.replace_file`."""
    # Here and not above, so that a bare checkout on a borrowed machine (scripts/gpu_check.py) works without it.
    from safetensors.torch import save

    content = save(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
        metadata={_KEY: json.dumps(record, allow_nan=False)},
    )
    replace_file(path, content)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and JSON of a checkpoint.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise FileNotFoundError(f"path: no checkpoint at {os.fspath(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"path: {os.fspath(path)!r} is not a checkpoint, or damaged: {error}") from error
    if _KEY not in metadata:
        raise ValueError(f"path: {os.fspath(path)!r} was not written by flexkern")
    return tensors, json.loads(metadata[_KEY])


def split_optimizer(state_dict: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as named tensors and JSON with a mark in place of each tensor."""
    tensors: dict[str, Tensor] = {}

    def split(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return _MARK
        if isinstance(value, dict):
            return {str(k): split(v, f"{name}.{k}") for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [split(v, f"{name}.{i}") for i, v in enumerate(value)]
        return value

    return tensors, split(state_dict, "optimizer")


def join_optimizer(tensors: dict[str, Tensor], record: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`split_optimizer`."""

    def join(value: Any, name: str) -> Any:
        if value == _MARK:
            return tensors[name]
        if isinstance(value, dict):
            return {k: join(v, f"{name}.{k}") for k, v in value.items()}
        if isinstance(value, list):
            return [join(v, f"{name}.{i}") for i, v in enumerate(value)]
        return value

    state_dict = join(record, "optimizer")
    # JSON has only names for keys; an optimizer numbers its parameters.
    return {**state_dict, "state": {int(k): v for k, v in state_dict["state"].items()}}
