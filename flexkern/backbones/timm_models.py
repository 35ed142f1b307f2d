"""A vision transformer as timm makes it: by its name, from a folder, or from the hub; nothing is executed."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.backbones.families import FAMILIES, family_of
from flexkern.backbones.normalise import normalisation
from flexkern.backbones.wording import refuse_weights, words
from flexkern.plain import nearest

__all__ = [
    "import_timm",
    "is_timm_folder",
    "is_timm_name",
    "read_timm_folder",
    "read_timm_hub",
    "read_timm_name",
    "why_no_timm",
]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)?")
_DEEPEST = 1000  # blocks: a configuration that says more would be built for hours
# Arguments of timm's create_model, and of what it calls, that are no size or kind of the network.
_NOT_OF_A_NETWORK = (
    "pretrained", "checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only",
    "pruned", "device", "dtype", "model_name",
)  # fmt: skip
# Weights that are of the features, whatever a model's head is.
_OF_FEATURES = re.compile(
    r"(blocks|norm|fc_norm|norm_pre|attn_pool|patch_embed|cls_token|reg_token|dist_token|pos_embed)\b"
)


def import_timm() -> Any:
    """The module.

    Raises:
        ImportError: if timm, or torchvision, which it needs, is not installed, saying what to install.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        lacks = "timm" if error.name in (None, "timm") else f"timm, which needs {error.name.split('.')[0]},"
        raise ImportError(
            f"this backbone needs {lacks} which is not installed: pip install timm torchvision", name=error.name
        ) from error


def is_timm_folder(folder: Path) -> bool:
    """Whether timm wrote the config.json of a folder."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False  # who reads it next says what is wrong
    ours = {"architecture", "pretrained_cfg"}
    return isinstance(said, dict) and not ours.isdisjoint(said) and "model_type" not in said


def is_timm_name(name: str) -> bool:
    """Whether timm, if it is installed, has a network of this name."""
    if not _NAME.fullmatch(name) or find_spec("timm") is None:
        return False
    try:
        return bool(import_timm().is_model(name.partition(".")[0]))
    except ImportError:
        return False


def why_no_timm(name: str) -> str:
    """What to install, where a name might be one of timm's and timm cannot say; else nothing."""
    if not _NAME.fullmatch(name) or "_" not in name:
        return ""
    try:
        import_timm()
    except ImportError as error:
        return f" ({error})"
    return ""


def read_timm_name(name: str) -> nn.Module:
    """The pre-trained network of a name, such as "vit_base_patch16_224.augreg_in21k"; uses the network.

    Raises:
        OSError: if its weights cannot be fetched.
        ValueError: if timm has no weights by that name.
    """
    timm = import_timm()
    model_name = name.partition(".")[0]
    try:
        with torch.device("meta"):
            _check_family(timm.create_model(model_name, pretrained=False), name)
        model = timm.create_model(name, pretrained=True)
    except (OSError, ValueError):
        raise
    except Exception as error:
        hint = nearest(name, timm.list_pretrained(f"{model_name}*"))
        raise ValueError(f"backbone: {name!r} cannot be read: {words(error)}{hint}") from error
    return model.eval()


def read_timm_hub(name: str) -> nn.Module:
    """The network of "organisation/name", or "organisation/name@revision", on the Hugging Face hub.

    Raises:
        OSError: if it, or its weights, cannot be fetched.
        ValueError: as :func:`read_timm_folder`.
    """
    hub, absent = (importlib.import_module(f"huggingface_hub{part}") for part in ("", ".errors"))
    repository, _, revision = name.partition("@")
    where = {"repo_id": repository, "revision": revision or None}
    folder = Path(hub.hf_hub_download(filename="config.json", **where)).parent
    for file in _WEIGHTS[:2]:
        try:
            hub.hf_hub_download(filename=file, **where)
        except absent.EntryNotFoundError:
            continue
        return read_timm_folder(folder, name)
    raise FileNotFoundError(f"backbone: {name!r} has neither {_WEIGHTS[0]} nor {_WEIGHTS[1]} on the hub")


def read_timm_folder(folder: Path, name: str | None = None) -> nn.Module:
    """The network of a folder that timm's ``save_for_hf`` or ``push_to_hf_hub`` wrote.

    Raises:
        ImportError: if timm is not installed.
        OSError: if a file is missing.
        ValueError: if it is no vision transformer, or damaged, or weights are missing or of other shapes.
    """
    name = os.fspath(folder) if name is None else name
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    file = next((folder / w for w in _WEIGHTS if (folder / w).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"backbone: {name!r} has no weights: none of {', '.join(_WEIGHTS)}")
    architecture, arguments = _network(said, name)
    timm = import_timm()
    if not timm.is_model(architecture):
        raise ValueError(f"backbone: {name!r} has architecture {architecture!r}, which this timm does not have")
    try:
        with torch.device("meta"):
            _check_family(timm.create_model(architecture), name)  # without arguments, which others do not have
            empty = timm.create_model(architecture, **arguments)
    except _RefusedError:
        raise
    except Exception as error:
        raise ValueError(f"backbone: {name!r} cannot be read: {words(error)}") from error
    needed, there = sum(p.numel() for p in empty.parameters()), file.stat().st_size
    if needed > there:  # a weight takes a byte at least
        raise ValueError(
            f"backbone: the config.json of {name!r} says {needed} weights, and {file.name} has {there} bytes"
        )
    try:
        model = timm.create_model(architecture, **arguments)
        state = _converted(_state(file), model)
    except Exception as error:
        raise ValueError(f"backbone: {name!r} cannot be read: {words(error)}") from error
    _load(model, state, name)
    normalisation(model)  # raises if it is none
    return model.eval()


def _network(said: dict[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """Name of the architecture, and the arguments by which timm makes it, without a classifier."""
    cfg = said.get(
        "pretrained_cfg", {k: v for k, v in said.items() if k not in ("architecture", "num_features")}
    )
    arguments = said.get("model_args", {})
    for what, value in (("pretrained_cfg", cfg), ("model_args", arguments)):
        if not isinstance(value, dict):
            raise ValueError(f"backbone: {what} in the config.json of {name!r} must be an object")
    if not isinstance(said.get("architecture"), str):
        raise ValueError(f"backbone: the config.json of {name!r} must have an architecture, a string")
    for key in arguments:
        if key in _NOT_OF_A_NETWORK or key.startswith("pretrained"):
            raise ValueError(f"backbone: model_args in the config.json of {name!r} must not have {key!r}")
    depth = arguments.get("depth", 1)
    if not (isinstance(depth, int) and 0 < depth <= _DEEPEST):
        raise ValueError(
            f"backbone: depth in the config.json of {name!r} must be in [1, {_DEEPEST}], got {depth}"
        )
    arguments = dict(arguments)
    pool = said.get("global_pool")
    if isinstance(pool, str) and pool:  # written from the network, where earlier versions wrote no model_args
        arguments.setdefault("global_pool", pool)
    return said["architecture"], arguments | {
        "num_classes": 0,
        "pretrained": False,
        "pretrained_cfg": dict(cfg),
    }


class _RefusedError(ValueError):
    """Of this file, with a message that needs no more words."""


def _check_family(empty: nn.Module, name: str) -> None:
    if family_of(empty) is None:
        raise _RefusedError(
            f"backbone: {name!r} is timm's {type(empty).__name__}, which is not supported; supported are "
            f"{FAMILIES}"
        )


def _state(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return importlib.import_module("safetensors.torch").load_file(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file.name} holds more than weights, or is damaged") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{file.name} must hold a dictionary of tensors")
    return state


def _converted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights by timm's own names; files of the networks' authors have others."""
    if all(key in state for key in model.state_dict()):
        return state
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return state if convert is None else convert(dict(state), model)
    except (KeyError, AttributeError):
        return state  # it lacks more than names: that is said next


def _load(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    own = model.state_dict()
    other = sorted(k for k, v in state.items() if k in own and v.shape != own[k].shape)
    missing = sorted(k for k in own if k not in state)
    more = sorted(k for k in state if k not in own and _OF_FEATURES.match(k))
    faults = (
        (other, "has weights of other shapes for"), (missing, "has no weights for"),
        (more, "has weights that its config.json has no place for:"),
    )  # fmt: skip
    refuse_weights(name, faults)
    model.load_state_dict({k: v for k, v in state.items() if k in own})
