"""Frozen vision transformers: the small one that the package ships, a local folder, or a name on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from torch import nn

from flexkern.backbones.reading import import_transformers, read_backbone

__all__ = ["SMALL", "image_size", "load_backbone", "random_backbone", "width_of"]

# Pre-trained by scripts/pretrain_vit.py on CIFAR-10 and the first 50 classes of CIFAR-100; see its
# training.json.
SMALL = Path(__file__).parent / "small"

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


def load_backbone(source: str | os.PathLike[str] | nn.Module = "small") -> nn.Module:
    """A pre-trained vision transformer, in evaluation mode.

    Nothing that is read is executed: no Python of a folder or the hub (``auto_map`` is ignored), and weights
    are read as safetensors where there are any, else by torch's ``weights_only``. Every weight must be there in
    the shape that the configuration says; weights of a head that is left out may be there too.

    Args:
        source: "small" (the embedded one: 1.2 M parameters, images of 32 x 32), a folder that transformers'
            ``save_pretrained`` wrote, a name on the Hugging Face hub such as
            "google/vit-base-patch16-224-in21k" (the only case that uses the network), or a module, which is
            returned as it is. What is no folder here and not of the form "organisation/name" is not looked for
            on the hub.

    Raises:
        TypeError: if it is none of these.
        ImportError: if transformers is not installed.
        OSError: if there is no such folder or model, or a file is missing in it.
        ValueError: if it is no vision transformer, or damaged, or weights are missing or of other shapes.
    """
    if isinstance(source, nn.Module):
        return source.eval()
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"backbone must be a name, a folder or a torch.nn.Module, got {type(source).__name__}")
    if source == "small":
        return read_backbone(SMALL, local=True)
    folder = os.path.expanduser(os.fspath(source))
    if os.path.isdir(folder):
        return read_backbone(folder, local=True)
    if os.path.exists(folder):
        raise NotADirectoryError(f"backbone: {folder!r} is a file; give the folder that save_pretrained wrote")
    # Who has the first folder of a path here means a path: the hub is somebody else's.
    if not isinstance(source, str) or not _ON_HUB.fullmatch(source) or os.path.exists(source.partition("/")[0]):
        raise FileNotFoundError(
            f"backbone: there is no folder at {os.fspath(source)!r}; give one that save_pretrained wrote, "
            "'small' (the embedded one), or a name on the Hugging Face hub, 'organisation/name'"
        )
    return read_backbone(source, local=False)


def random_backbone(size: str = "small", **options: Any) -> nn.Module:
    """A ViT with random weights, of a size named in ``SIZES``; ``options`` go to transformers' ViTConfig."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {sorted(SIZES)}, got {size!r}")
    transformers = import_transformers()
    config = transformers.ViTConfig(**(SIZES[size] | options))
    return transformers.ViTModel(config, add_pooling_layer=False).eval()


def image_size(model: nn.Module) -> int:
    """Pixels of each side of the images that a backbone expects.

    Raises:
        ValueError: if the module does not say.
    """
    for holder, name in (
        (getattr(model, "config", None), "image_size"),
        (getattr(model, "patch_embed", None), "img_size"),
    ):
        size = getattr(holder, name, None)
        if size is not None:
            return int(size if isinstance(size, int) else size[0])
    raise ValueError(f"backbone: {type(model).__name__} does not say its image size; pass image_size=")


def width_of(model: nn.Module) -> int:
    """Width of a backbone's features.

    Raises:
        ValueError: if the module does not say.
    """
    for holder, name in ((getattr(model, "config", None), "hidden_size"), (model, "embed_dim")):
        width = getattr(holder, name, None)
        if width is not None:
            return int(width)
    raise ValueError(f"backbone: {type(model).__name__} does not say the width of its features")
