"""What is looked at before a run begins, so that one that cannot work ends at once and leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from flexkern.files import check_writable
from flexkern.runs.torchrun import local_device

__all__ = ["check_files", "path_given", "usable_device"]


def path_given(path: str | os.PathLike[str], name: str) -> Path:
    """A path as someone gave it: ``~`` is a home, and nothing at all is no path.

    Raises:
        ValueError: naming it.
    """
    text = os.fspath(path)
    if not text.strip() or "\0" in text:
        raise ValueError(f"{name} must be a path, got {text!r}")
    found = Path(text)
    try:
        return found.expanduser()
    except RuntimeError:  # no such user
        raise ValueError(f"{name}: {text!r} begins with ~ and the name of nobody who has a home here") from None


def check_files(folder: Path, *names: str) -> None:
    """Finds out now, and not after the work, whether these files can be written into a folder, made or not.

    Raises:
        OSError: as :func:`flexkern.files.check_writable`; nothing was changed.
    """
    for name in names:
        check_writable(folder / name, folders=True)


def usable_device(name: str, *, auto: bool = False) -> torch.device:
    """A device that torch computes on here.

    Args:
        name: as torch has it.
        auto: whether "auto" is one too: the GPU, where there is one. Of the processes that ``torchrun`` has
            started each has its own, by "auto" and "cuda".

    Raises:
        ValueError: if there is none of that name, or torch finds it not.
    """
    name = local_device(name)
    if auto and name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allowed = "auto, cpu, cuda" if auto else "cpu, cuda"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be {allowed} or another that torch knows, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {name!r} was asked for, and torch finds no GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name!r} was asked for, and torch finds {torch.cuda.device_count()} GPUs")
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # whatever a backend says that is not there, or that has no values (meta)
        raise ValueError(f"device: torch cannot compute on {name!r} here; use --device cpu") from error
    return device
