"""A vision transformer as transformers reads it: nothing is executed, and nothing is made up."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexkern.backbones.normalise import keep_normalisation, read_normalisation
from flexkern.backbones.timm_models import is_timm_folder, read_timm_hub
from flexkern.backbones.wording import refuse_weights, words

__all__ = ["import_transformers", "read_backbone", "read_hub"]

_LIBRARY: dict[str, Any] = {"trust_remote_code": False}
# Models of images and texts, and what is read of them.
_WITH_TEXT = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
_DEEPEST = 1000  # blocks: a configuration that says more would be built for hours
# transformers' verbosity, and what it switches off while it reads, are the whole process's.
_one_at_a_time = threading.RLock()


def import_transformers() -> Any:
    """The module.

    Raises:
        ImportError: if transformers is not installed, saying what to install.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "backbones need transformers, which is not installed: pip install 'flexkern[vit]'",
            name="transformers",
        ) from error
    return transformers


def read_backbone(path: str | os.PathLike[str], *, local: bool) -> nn.Module:
    """The model of a folder, or, where it is not ``local``, of a name on the hub: see ``load_backbone``."""
    transformers, name = import_transformers(), os.fspath(path)
    if local:
        _check_folder(Path(path))
    # Never Python that comes with the weights, which it would ask about on standard input; of a folder nothing
    # that would have to be fetched.
    safe: dict[str, Any] = _LIBRARY | {"local_files_only": local}
    with _one_at_a_time, _quiet(transformers.utils.logging):
        try:
            config = transformers.AutoConfig.from_pretrained(path, **safe)
            reader = transformers.AutoModel
            if config.model_type in _WITH_TEXT:
                _check_pooled(config, name)
                reader = getattr(transformers, _WITH_TEXT[config.model_type])
                config = config.vision_config
            _check_config(config, name)
            options: dict[str, Any] = {}
            if config.model_type in ("vit", "deit"):
                options["add_pooling_layer"] = False  # not part of the features; other families have no option
            _check_depth(config, name)
            with torch.device("meta"):
                empty = _empty(reader, config, options)
            _check_model(empty, name, Path(path) if local else None)
            # Other shapes are looked at below: transformers says no more of them than that there are some.
            model, told = reader.from_pretrained(
                path, config=config, dtype="float32", weights_only=True, ignore_mismatched_sizes=True,
                output_loading_info=True, local_files_only=local, **options,
                **(_LIBRARY if reader is transformers.AutoModel else {}),
            )  # fmt: skip
        except (OSError, ImportError, _RefusedError):
            raise
        except Exception as error:  # whatever transformers stumbles over
            raise ValueError(f"backbone: {name!r} cannot be read: {words(error)}") from error
    # transformers draws random weights for these, and only warns.
    missing = sorted(told["missing_keys"])
    other = sorted(str(key[0] if isinstance(key, tuple) else key) for key in told["mismatched_keys"])
    deeper = sorted(k for k in told["unexpected_keys"] if _is_block(k) and not k.startswith("text_model."))
    faults = (
        (other, "has weights of other shapes for"), (missing, "has no weights for"),
        (deeper, "has more blocks than its config.json says:"),
    )  # fmt: skip
    refuse_weights(name, faults)
    return model.eval()


def read_hub(name: str) -> nn.Module:
    """The model of a name on the hub, in transformers' form or timm's, with how its images were normalised."""
    hub, absent = (importlib.import_module(f"huggingface_hub{part}") for part in ("", ".errors"))
    with contextlib.suppress(OSError):  # transformers says what there is, and what to do
        if is_timm_folder(Path(hub.hf_hub_download(name, "config.json")).parent):
            return read_timm_hub(name)
    model, found = read_backbone(name, local=False), None
    try:
        found = read_normalisation(Path(hub.hf_hub_download(name, "preprocessor_config.json")).parent)
    except absent.LocalEntryNotFoundError:
        warnings.warn(
            f"backbone: the hub cannot be asked how images of {name!r} are normalised, and it is not known "
            "here: they stay in [0, 1]. Pass normalize=, or try again with the network",
            stacklevel=4,
        )
    except absent.EntryNotFoundError:  # there is none
        pass
    keep_normalisation(model, found)
    return model


def _empty(reader: Any, config: Any, options: dict[str, Any]) -> Any:
    if hasattr(reader, "from_config"):
        return reader.from_config(config, **options, **_LIBRARY)
    return reader(config, **options)


class _RefusedError(ValueError):
    """Of this file, with a message that needs no more words."""


def _check_pooled(config: Any, name: str) -> None:
    for architecture in getattr(config, "architectures", None) or ():
        if str(architecture).endswith("ForImageClassification"):
            raise _RefusedError(
                f"backbone: {name!r} is a {architecture}, which does not read what its vision transformer "
                "pools; give the folder of the model that it was trained from"
            )


def _check_folder(folder: Path) -> None:
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"backbone: {os.fspath(folder)!r} has no config.json; give a folder that save_pretrained wrote"
        )
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"backbone: {os.fspath(folder)!r} holds an adapter (adapter_config.json), not a model")
    _json(file)
    for index in folder.glob("*.index.json"):
        shards = _json(index).get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else [None]
        if not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise ValueError(f"backbone: {os.fspath(index)!r} must name files of its own folder")


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"backbone: {os.fspath(file)!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"backbone: {os.fspath(file)!r} must hold a JSON object, got {type(found).__name__}")
    return found


def _check_config(config: Any, name: str) -> None:
    if any(getattr(config, size, None) is None for size in ("hidden_size", "image_size", "patch_size")):
        raise _RefusedError(
            f"backbone: {name!r} is of type {config.model_type!r}, which is no vision transformer"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise _RefusedError(f"backbone: {name!r} is quantized; give one with floating-point weights")
    attention = getattr(config, "_attn_implementation", None)
    if attention is not None and (not isinstance(attention, str) or "/" in attention):
        raise _RefusedError(f"backbone: {name!r} asks for attention from elsewhere, {attention!r}; remove it")


def _check_depth(config: Any, name: str) -> None:
    depth = getattr(config, "num_hidden_layers", 1)
    if not 0 < depth <= _DEEPEST:
        raise _RefusedError(f"backbone: num_hidden_layers of {name!r} must be in [1, {_DEEPEST}], got {depth}")


def _check_model(empty: Any, name: str, folder: Path | None) -> None:
    """Refuses a model without memory that is of another kind, or cannot be in the files: before it has any."""
    if getattr(empty, "main_input_name", None) != "pixel_values":
        raise _RefusedError(
            f"backbone: {name!r} is of type {empty.config.model_type!r}, which is no vision transformer"
        )
    files = [] if folder is None else [f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin")]
    there, said = sum(f.stat().st_size for f in files), sum(p.numel() for p in empty.parameters())
    if files and said > there:  # a weight takes a byte at least
        raise _RefusedError(
            f"backbone: the config.json of {name!r} says {said} weights, and its files have {there} bytes"
        )


def _is_block(key: str) -> bool:
    """Whether a weight that the model does not have is of a block, and not of a head."""
    return re.search(r"\b(layers?|blocks?)\.\d+\.", key) is not None


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
