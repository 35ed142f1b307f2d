"""timm without torchvision, whose builds need another torch: timm's models use three names of it."""

from __future__ import annotations

import enum
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import pytest
from torch import nn


class _Interpolation(enum.Enum):
    NEAREST, BILINEAR, BICUBIC, BOX, HAMMING, LANCZOS = (
        "nearest",
        "bilinear",
        "bicubic",
        "box",
        "hamming",
        "lanczos",
    )


class _Absent:
    """What timm names when it is imported, and its models do not use."""


def import_timm() -> Any:
    """The module; where torchvision is not there, something stands in for it while timm is imported.

    Not longer: transformers would take it for torchvision.
    """
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed (pip install --no-deps timm)", allow_module_level=True)
    if "timm" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("timm")
    before = set(sys.modules)
    try:
        _stand_in()
        return importlib.import_module("timm")
    finally:
        for name in {n for n in sys.modules if n.partition(".")[0] == "torchvision"} - before:
            del sys.modules[name]


def _stand_in() -> None:
    functional = _module("torchvision.transforms.functional", InterpolationMode=_Interpolation)
    transforms = _module("torchvision.transforms", functional=functional, InterpolationMode=_Interpolation)
    misc = _module("torchvision.ops.misc", FrozenBatchNorm2d=nn.BatchNorm2d)
    ops, datasets = _module("torchvision.ops", misc=misc), _module("torchvision.datasets")
    _module("torchvision", transforms=transforms, ops=ops, datasets=datasets)


def _module(name: str, **names: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    module.__dict__.update(names, __getattr__=lambda asked: _absent(name, asked))
    sys.modules[name] = module
    return module


def _absent(module: str, name: str) -> type:
    if name.startswith("__") or module == "torchvision.models":
        raise AttributeError(name)
    return type(name, (_Absent,), {})
