"""Class-incremental methods by name, for configurations and checkpoints."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from flexkern.learners import checkpoint
from flexkern.learners.vit.artsy import ArtsyViT
from flexkern.learners.vit.base import ViTLearner
from flexkern.learners.vit.baselines import FinetuneViT, JointViT, RanPAC, SimpleCIL
from flexkern.learners.vit.training import Recipe

__all__ = ["METHODS", "load_learner", "make_learner"]

_CLASSES: dict[str, type[ViTLearner]] = {
    "artsy": ArtsyViT, "ease": ArtsyViT, "simplecil": SimpleCIL, "ranpac": RanPAC, "finetune": FinetuneViT,
    "joint": JointViT,
}  # fmt: skip
METHODS = tuple(_CLASSES)
_RECIPE = tuple(f.name for f in fields(Recipe))


def make_learner(
    method: str,
    backbone: str | os.PathLike[str] | nn.Module = "small",
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **options: Any,
) -> ViTLearner:
    """A learner by its name.

    Args:
        method: one of ``METHODS``; "ease" is Artsy without gates (all adapters run, for every image).
        backbone: as :func:`flexkern.backbones.load_backbone` takes it.
        seed, device: of the learner.
        options: fields of :class:`flexkern.learners.Recipe` (epochs, lr, ...) and arguments of the method's
            class.

    Raises:
        ValueError: if the method or an option is not known, or a value is outside its range.
    """
    if method not in _CLASSES:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    kind = _CLASSES[method]
    if method == "ease":
        options = {"gate": {"gate": "none"}, **options}
    known = _RECIPE + kind.options()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"method {method!r} has no option {', '.join(map(repr, unknown))}; it has {sorted(known)}"
        )
    recipe = replace(kind.default_recipe(), **{k: options.pop(k) for k in _RECIPE if k in options})
    return kind(backbone, recipe=recipe, seed=seed, device=device, **options)


def load_learner(
    path: str | os.PathLike[str],
    *,
    backbone: str | os.PathLike[str] | nn.Module = "small",
    device: torch.device | str = "cpu",
) -> ViTLearner:
    """The learner that any method's ``save`` wrote; see :meth:`flexkern.learners.ArtsyViT.load`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a checkpoint, or the backbone is another one.
    """
    name = checkpoint.read(path)[1].get("learner")
    for kind in _CLASSES.values():
        if kind.__name__ == name:
            return kind.load(path, backbone=backbone, device=device)
    raise ValueError(f"path: {os.fspath(path)!r} holds {name!r}, which is none of {METHODS}")
