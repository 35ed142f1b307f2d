"""Frozen vision transformers: the small one that the package ships, a local folder, or a name on the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["SMALL", "image_size", "load_backbone", "random_backbone", "width_of"]

# Pre-trained by scripts/pretrain_vit.py on CIFAR-10 and the first 50 classes of CIFAR-100; see its
# training.json.
SMALL = Path(__file__).parent / "small"

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


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "backbones need transformers, which is not installed: pip install 'flexkern[vit]'",
            name="transformers",
        ) from error
    return transformers


def load_backbone(source: str | os.PathLike[str] | nn.Module = "small") -> nn.Module:
    """A pre-trained vision transformer, in evaluation mode.

    Args:
        source: "small" (the embedded one: 1.2 M parameters, images of 32 x 32), a folder that transformers'
            ``save_pretrained`` wrote, a name on the Hugging Face hub such as
            "google/vit-base-patch16-224-in21k" (the only case that uses the network), or a module, which is
            returned as it is.

    Raises:
        ImportError: if transformers is not installed.
        OSError: if there is no such folder or model.
    """
    if isinstance(source, nn.Module):
        return source.eval()
    transformers = _transformers()
    path = SMALL if source == "small" else source
    config = transformers.AutoConfig.from_pretrained(path)
    # The pooler is not part of the features; families without one do not know the option.
    options = {"add_pooling_layer": False} if config.model_type in ("vit", "deit") else {}
    with _quiet(transformers.utils.logging):
        return transformers.AutoModel.from_pretrained(path, config=config, dtype="float32", **options).eval()


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without transformers' bar for the weights, and its list of the weights of the head that is left out."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def random_backbone(size: str = "small", **options: Any) -> nn.Module:
    """A ViT with random weights, of a size named in ``SIZES``; ``options`` go to transformers' ViTConfig."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {sorted(SIZES)}, got {size!r}")
    transformers = _transformers()
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
