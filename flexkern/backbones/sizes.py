"""The sizes of a backbone: of its images, patches and features, and of images that it was not made for."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from flexkern.backbones.families import FAMILIES, family_of, interpolates, vision_part

__all__ = ["copy_of_structure", "fitted", "image_size", "keep_image_size", "patch_size", "width_of"]

# A checkpoint says the size of images too: what one makes of it must not take hours, or all memory.
_MOST_PATCHES = 1 << 14
_KEPT = "flexkern_image_size"  # on a module that is to get images of another size than it was made for


def image_size(model: nn.Module) -> int:
    """Pixels of each side of the images that a backbone expects.

    Raises:
        ValueError: if the module does not say.
    """
    kept = getattr(model, _KEPT, None)
    return int(kept) if kept is not None else _own_size(model)


def _own_size(model: nn.Module) -> int:
    part: Any = vision_part(model)
    size = _first(part, ("config", "image_size"), ("patch_embed", "img_size"))
    if size is None:
        said = getattr(part, "pretrained_cfg", None)  # timm's, where a model takes images of all sizes
        size = said["input_size"][1:] if isinstance(said, dict) and "input_size" in said else None
    if size is None:
        hint = _unknown(part) or "; pass image_size="
        raise ValueError(f"backbone: {type(model).__name__} does not say its image size{hint}")
    return _whole(size)


def patch_size(model: nn.Module) -> int | None:
    """Pixels of each side of a backbone's patches; None if the module does not say."""
    size = _first(vision_part(model), ("config", "patch_size"), ("patch_embed", "patch_size"))
    return None if size is None else _whole(size)


def width_of(model: nn.Module) -> int:
    """Width of a backbone's features.

    Raises:
        ValueError: if the module does not say.
    """
    part = vision_part(model)
    width = _first(part, ("config", "hidden_size"))
    width = getattr(part, "embed_dim", None) if width is None else width
    if width is None:
        raise ValueError(
            f"backbone: {type(model).__name__} does not say the width of its features{_unknown(part)}"
        )
    return int(width)


def keep_image_size(model: nn.Module, size: int) -> None:
    """Lets :func:`image_size` of a module be ``size``."""
    setattr(model, _KEPT, size)


def fitted(model: nn.Module, size: int) -> tuple[nn.Module, bool]:
    """A model for images of ``size`` x ``size`` pixels, and whether its positions are to be interpolated.

    It is the model itself where that takes such images; else a copy, which shares the weights that do not
    depend on the size. A module of no known family is returned as it is.

    Raises:
        ValueError: naming image_size, if the model cannot take such images.
    """
    model = vision_part(model)
    family = family_of(model)
    if family is None:
        return model, False
    try:
        if size == _own_size(model):
            return model, False
    except ValueError:
        pass  # it is tried on one image all the same
    patch = patch_size(model) or 1
    if size % patch or size < patch:
        raise ValueError(
            f"image_size must be a multiple of the backbone's patches of {patch} x {patch} pixels, got {size}"
        )
    if (size // patch) ** 2 > _MOST_PATCHES:
        raise ValueError(
            f"image_size must be at most {patch * 128} for patches of {patch} x {patch} pixels, got {size}"
        )
    if not family.startswith("timm"):
        return model, interpolates(model)
    if getattr(model, "dynamic_img_size", False):
        return model, False
    if not hasattr(model, "set_input_size"):
        raise ValueError(
            f"image_size must be {_own_size(model)}, the only one that {type(model).__name__} of this timm "
            f"takes, got {size}"
        )
    other: Any = copy_of_structure(model)
    try:
        other.set_input_size(img_size=(size, size))
    except Exception as error:
        words = " ".join((str(error) or type(error).__name__).split())
        raise ValueError(f"image_size: {type(model).__name__} cannot take {size}: {words[:200]}") from error
    return other.requires_grad_(False), False


def copy_of_structure(model: nn.Module) -> nn.Module:
    """A copy of a module with the same parameters; all else is its own: settings, buffers, hooks."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def _unknown(part: nn.Module) -> str:
    known = family_of(part) is not None
    return "" if known else f", and is not a vision transformer of a known family ({FAMILIES})"


def _first(model: Any, *places: tuple[str, str]) -> Any:
    found = (getattr(getattr(model, holder, None), name, None) for holder, name in places)
    return next((size for size in found if size is not None), None)


def _whole(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])
