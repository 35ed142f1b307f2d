"""Frozen vision transformers: the small one that the package ships, a local folder, or a name on the hub."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexkern.backbones import sizes
from flexkern.backbones.families import vision_part
from flexkern.backbones.normalise import keep_normalisation, normalisation, read_normalisation
from flexkern.backbones.reading import import_transformers, read_backbone, read_hub
from flexkern.backbones.sizes import image_size, width_of
from flexkern.backbones.timm_models import (
    is_timm_folder,
    is_timm_name,
    read_timm_folder,
    read_timm_hub,
    read_timm_name,
    why_no_timm,
)
from flexkern.plain import choice, whole_number

__all__ = ["SMALL", "image_size", "load_backbone", "normalisation", "random_backbone", "width_of"]

# Pre-trained by scripts/pretrain_vit.py on CIFAR-10 and the first 50 classes of CIFAR-100; see its
# training.json.
SMALL = Path(__file__).parent / "small"

DTYPES = ("float32", "bfloat16", "float16")
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")

# Sizes by name, for networks that are not pre-trained: benchmarks and tests need no weights.
SIZES: dict[str, dict[str, int]] = {
    "vit-b16": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    },
    "vit-l16": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    },
    "small": {
        "hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512,
        "image_size": 32, "patch_size": 4,
    },
}  # fmt: skip


def load_backbone(
    source: str | os.PathLike[str] | nn.Module = "small",
    *,
    image_size: int | None = None,
    dtype: str | torch.dtype | None = None,
) -> nn.Module:
    """A pre-trained vision transformer, in evaluation mode; docs/backbones.md lists the families.

    Nothing that is read is executed: no Python of a folder or the hub (``auto_map`` is ignored), and weights
    are read as safetensors where there are any, else by torch's ``weights_only``. Every weight must be there in
    the shape that the configuration says; weights of a head that is left out may be there too. How its images
    were normalised is kept with it: see :func:`normalisation`.

    Args:
        source: one of these. Only the last three use the network.

            - "small": the embedded one, 1.2 M parameters, images of 32 x 32;
            - a folder that transformers' ``save_pretrained`` or timm's ``save_for_hf`` wrote, also as
              "local-dir:FOLDER";
            - a module: itself, or the vision transformer in it, where it is a classifier or CLIP;
            - "organisation/name" on the Hugging Face hub, such as "google/vit-base-patch16-224-in21k" or
              "timm/vit_base_patch16_224.augreg_in21k". What is no folder here and not of this form is not
              looked for on the hub;
            - "hf-hub:organisation/name": of timm's form;
            - a name of timm's, such as "vit_base_patch16_224.augreg_in21k", where timm is installed.
        image_size: pixels of each side of the images that it is to take; None: its own. A module is not
            changed: what is returned is a copy.
        dtype: "float32", "bfloat16" or "float16"; None: float32, and of a module its own. A module of another
            dtype is copied.

    Raises:
        TypeError: if the source is none of these, or an option is of another type.
        ImportError: if transformers, or timm, is needed and not installed.
        OSError: if there is no such folder or model, or a file is missing in it.
        ValueError: if it is no vision transformer, or damaged, weights are missing or of other shapes, or it
            cannot take images of that size.
    """
    wanted = None if dtype is None else _dtype(dtype)
    if image_size is not None:
        image_size = whole_number(image_size, "image_size")
    model = _read(source).eval()
    if wanted is not None and any(p.dtype is not wanted for p in model.parameters()):
        model = _in_dtype(copy.deepcopy(model) if isinstance(source, nn.Module) else model, wanted)
    if image_size is not None and image_size != sizes.image_size(model):
        fitting, _ = sizes.fitted(model, image_size)
        # Of its own, so that the size is kept with this one only.
        model = sizes.copy_of_structure(model) if fitting is model else fitting
        sizes.keep_image_size(model, image_size)
    return model


def _in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for name, buffer in model.named_buffers():
        # Rotary positions stay exact: models round what they make of them.
        if buffer.is_floating_point() and "rope" not in name:
            buffer.data = buffer.data.to(dtype)
    return model


def _read(source: Any) -> nn.Module:
    if isinstance(source, nn.Module):
        if any(p.is_meta for p in source.parameters()):
            raise ValueError(
                f"backbone: {type(source).__name__} is on the meta device, without weights; load them"
            )
        return vision_part(source)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"backbone must be a name, a folder or a torch.nn.Module, got {type(source).__name__}")
    name = os.fspath(source)
    if source == "small":
        return read_backbone(SMALL, local=True)
    prefix, _, rest = name.partition(":")
    if prefix == "hf-hub" and rest:
        return read_timm_hub(rest)
    folder = os.path.expanduser(rest if prefix == "local-dir" and rest else name)
    if os.path.isdir(folder):
        if is_timm_folder(Path(folder)):
            return read_timm_folder(Path(folder))
        found = read_normalisation(Path(folder))
        model = read_backbone(folder, local=True)
        keep_normalisation(model, found)
        return model
    if os.path.exists(folder):
        raise NotADirectoryError(f"backbone: {folder!r} is a file; give the folder that save_pretrained wrote")
    # Who has the first folder of a path here means a path: the hub is somebody else's.
    on_hub = isinstance(source, str) and _ON_HUB.fullmatch(source) is not None
    if on_hub and not os.path.exists(name.partition("/")[0]):
        if name.startswith("timm/"):
            return read_timm_hub(name)
        return read_hub(name)
    if isinstance(source, str) and is_timm_name(name):
        return read_timm_name(name)
    raise FileNotFoundError(
        f"backbone: there is no folder at {name!r}; give one that save_pretrained wrote, 'small' (the embedded "
        "one), a name on the Hugging Face hub, 'organisation/name', or, where timm is installed, one of timm's"
        + why_no_timm(name)
    )


def _dtype(value: str | torch.dtype) -> torch.dtype:
    if isinstance(value, torch.dtype):
        value = str(value).removeprefix("torch.")
    if not isinstance(value, str):
        raise TypeError(f"dtype must be one of {DTYPES} or a torch.dtype, got {value!r}")
    return getattr(torch, choice(value, "dtype", DTYPES))


def random_backbone(size: str = "small", **options: Any) -> nn.Module:
    """A ViT with random weights, of a size named in ``SIZES``; ``options`` go to transformers' ViTConfig."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {sorted(SIZES)}, got {size!r}")
    transformers = import_transformers()
    config = transformers.ViTConfig(**(SIZES[size] | options))
    return transformers.ViTModel(config, add_pooling_layer=False).eval()
