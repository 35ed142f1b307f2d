"""How a network's training images were normalised, and which numbers a learner takes for it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from flexkern.backbones.families import family_of, vision_part
from flexkern.plain import number
from flexkern.spec.argument import shown

__all__ = ["Normalisation", "checked_normalize", "keep_normalisation", "normalisation", "read_normalisation"]

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each of three channels, of images in [0, 1]."""

_KEPT = "flexkern_normalisation"  # on a module: copies of it have it too
_FILE = "preprocessor_config.json"
_WHAT = "'auto', 'none', or a mean and a standard deviation, [[r, g, b], [r, g, b]]"


def normalisation(model: nn.Module) -> Normalisation | None:
    """Mean and standard deviation by which a backbone's training images were normalised; None: it is not known.

    They are what :func:`flexkern.backbones.load_backbone` found beside the weights, else timm's
    ``pretrained_cfg`` of the module, else the ``preprocessor_config.json`` of the local folder that
    transformers read the module from.

    Raises:
        ValueError: if the module, or the file, says what cannot be.
    """
    model = vision_part(model)
    if hasattr(model, _KEPT):
        return getattr(model, _KEPT)
    if (family_of(model) or "").startswith("timm"):
        said = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
        if not isinstance(said, dict):  # of timm before 0.9
            said = vars(said)
        mean, std = said.get("mean"), said.get("std")
        return None if mean is None or std is None else _found(mean, std, "pretrained_cfg")
    folder = getattr(model, "name_or_path", None)
    if not isinstance(folder, str) or not folder or not os.path.isdir(folder):
        return None
    return read_normalisation(Path(folder))


def keep_normalisation(model: nn.Module, found: Normalisation | None) -> None:
    """Keeps with a module what was found beside its weights."""
    setattr(model, _KEPT, found)


def read_normalisation(folder: Path) -> Normalisation | None:
    """Of a Hugging Face folder's ``preprocessor_config.json``; None where there is none.

    Raises:
        ValueError: if the file is no JSON object, or does not say the mean and standard deviation of three
            channels.
    """
    file = folder / _FILE
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"backbone: {os.fspath(file)!r} is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"backbone: {os.fspath(file)!r} must hold a JSON object, got {type(said).__name__}")
    where = os.fspath(file)
    # Pixels are 0 ... 255 for a processor, which multiplies them by its factor first: here they are 0 ... 1.
    scale = 255.0
    if said.get("do_rescale", True):
        factor = said.get("rescale_factor", 1 / 255)
        if type(factor) not in (int, float) or not 0 < factor < math.inf:
            raise ValueError(
                f"backbone: {where!r}, rescale_factor must be a number above 0, got {shown(factor)}"
            )
        scale *= factor
    if math.isclose(scale, 1, rel_tol=1e-4):  # written with fewer digits
        scale = 1.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if said.get("do_normalize", True):
        if "image_mean" not in said or "image_std" not in said:
            raise ValueError(
                f"backbone: {where!r} normalises, and does not say image_mean and image_std; add them"
            )
        mean, std = _found(said["image_mean"], said["image_std"], where)
    return tuple(m / scale for m in mean), tuple(s / scale for s in std)


def checked_normalize(value: Any) -> str | Normalisation:
    """The option ``normalize`` of learners.

    Raises:
        TypeError, ValueError: unless it is "auto", "none", or a mean and a standard deviation.
    """
    if isinstance(value, str):
        if value not in ("auto", "none"):
            raise ValueError(f"normalize must be {_WHAT}, got {value!r}")
        return value
    pair = list(value) if isinstance(value, Iterable) else []
    if len(pair) != 2:
        kind = ValueError if isinstance(value, Iterable) else TypeError
        raise kind(f"normalize must be {_WHAT}, got {shown(value)}")
    return _pair(pair[0], pair[1], "normalize")


def _found(mean: Any, std: Any, where: str) -> Normalisation:
    """What a file or a module says: whatever is wrong with it, is a value."""
    try:
        return _pair(mean, std, f"backbone: {where!r}")
    except TypeError as error:
        raise ValueError(str(error)) from None


def _pair(mean: Any, std: Any, where: str) -> Normalisation:
    return _channels(mean, f"{where}, mean"), _channels(std, f"{where}, standard deviation", 0)


def _channels(values: Any, name: str, low: float = -math.inf) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be three numbers, got {shown(values)}")
    given = tuple(values)
    if len(given) != 3:
        raise ValueError(f"{name} must be three numbers, got {shown(given)}")
    return tuple(number(v, name, low, above=math.isfinite(low)) for v in given)
