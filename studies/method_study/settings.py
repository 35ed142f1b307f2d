"""Sizes and recipes of the method study: the reduced ones, which a CPU runs, and the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flexkern.learners import Recipe

__all__ = ["PAPER", "REDUCED", "Setting", "key_for", "setting_for"]

_WHOLE_NETWORK = ("finetune_epochs", "joint_epochs", "finetune_lr", "joint_lr")


@dataclass(frozen=True)
class Setting:
    """Of one stream.

    Args:
        classes, increment: how many classes there are, and how many a task brings.
        train_per_class, test_per_class: images; None: all.
        first_class: of CIFAR-100.
        rank, adapter_scale, epochs, lr: of adapters and their training.
        finetune_epochs, joint_epochs, finetune_lr, joint_lr: where all of the network is trained.
        crop, flip: of training images.
        precision: of all passes through the network.
    """

    classes: int
    increment: int
    train_per_class: int | None
    test_per_class: int | None
    first_class: int = 50
    rank: int = 16
    adapter_scale: float = 1.0
    epochs: int = 8
    lr: float = 0.2
    finetune_epochs: int = 3
    joint_epochs: int = 8
    finetune_lr: float = 0.003
    joint_lr: float = 0.01
    crop: tuple[float, float] = (0.35, 1.0)
    flip: float = 0.5
    precision: str = "bfloat16"

    @property
    def recipe(self) -> Recipe:
        """How adapters are trained."""
        return Recipe(epochs=self.epochs, lr=self.lr, crop=self.crop, flip=self.flip, precision=self.precision)

    def whole_network(self, kind: str) -> Recipe:
        """How all of the network is trained, for "finetune" or "joint"."""
        epochs, lr = (getattr(self, f"{kind}_{what}") for what in ("epochs", "lr"))
        return replace(self.recipe, epochs=epochs, lr=lr)


# Mirrored or cut in half, a character or a number is another one.
_WRITTEN = {"crop": (0.7, 1.0), "flip": 0.0, "epochs": 12, "finetune_epochs": 5, "joint_epochs": 20}

REDUCED: Mapping[str, Setting] = {
    "cifar100": Setting(50, 5, 100, 40),
    "characters": Setting(100, 10, 10, 10, **_WRITTEN),  # type: ignore[arg-type]
    "numbers": Setting(50, 5, 20, 20, **_WRITTEN),  # type: ignore[arg-type]
    "looks": Setting(20, 20, 25, 20),
    "digits": Setting(10, 10, 40, 20, **_WRITTEN),  # type: ignore[arg-type]
}
"""Little data and short training, with larger steps than EASE's, which hardly move an adapter in so few."""


def setting_for(setting: Mapping[str, Any], whole_network: bool) -> dict[str, Any]:
    """Of a setting's fields, those that matter; some do only where all of the network is trained."""
    return {k: v for k, v in setting.items() if whole_network or k not in _WHOLE_NETWORK}


def key_for(key: Mapping[str, Any], whole_network: bool) -> dict[str, Any]:
    """Of what a kept result depends on, what matters."""
    return {**key, "setting": setting_for(key["setting"], whole_network)}


_EASE = {"rank": 64, "adapter_scale": 0.1, "epochs": 20, "lr": 0.025, "joint_lr": 0.003, "precision": "float32"}

PAPER: Mapping[str, Setting] = {
    "cifar100": Setting(100, 10, None, None, 0, **_EASE, crop=(0.05, 1.0), joint_epochs=20, finetune_epochs=20),  # type: ignore[arg-type]
    "characters": replace(REDUCED["characters"], classes=200, **_EASE),  # type: ignore[arg-type]
    "numbers": replace(REDUCED["numbers"], classes=100, train_per_class=500, test_per_class=100, **_EASE),  # type: ignore[arg-type]
    "looks": replace(REDUCED["looks"], train_per_class=100, test_per_class=20, **_EASE),  # type: ignore[arg-type]
    "digits": replace(REDUCED["digits"], train_per_class=100, test_per_class=40, **_EASE),  # type: ignore[arg-type]
}
"""All of CIFAR-100 as B0-Inc10 by EASE's recipe, for ViT-B/16 on a GPU; the other streams by that recipe."""
