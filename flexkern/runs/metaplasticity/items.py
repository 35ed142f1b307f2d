"""Items as features: composed once, passed through the frozen extractor once, kept in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.features import RandomConvolutions, extract_from, fingerprint
from flexkern.learners import checkpoint
from flexkern.runs.metaplasticity.protocol import DIGITS, RANDOM, Protocol
from flexkern.runs.metaplasticity.squeezenet import SqueezeNet
from flexkern.streams import TwoDigitItems, bundled_digits, mnist, two_digit_items

__all__ = ["cached", "check_items", "load_items", "two_digit_images"]

_FORMAT = 1


def load_items(
    protocol: Protocol,
    seed: int,
    cache: Path,
    *,
    items: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> TwoDigitItems:
    """The items of one seed, as float32 features on the CPU.

    Args:
        protocol: data, features and sizes.
        seed: of the items and, where they are random, of the convolutions.
        cache: folder for computed features, one file for each seed and setting.
        items: how many; default: those of the protocol. More of them begin with the same.
        progress: told what is being computed.

    Raises:
        ValueError, FileNotFoundError: if data or weights are not what they should be.
    """
    images = two_digit_images(
        protocol.data,
        items=protocol.items if items is None else items,
        train_per_item=protocol.train_per_item,
        test_per_item=protocol.test_per_item,
        seed=seed,
    )
    extractor = _extractor(protocol, seed, images)

    def make() -> dict[str, Tensor]:
        progress(f"seed {seed}: features of {len(images)} items")
        features = images.map(lambda x: extract_from(extractor, x, batch_size=64, device=protocol.device).cpu())
        return {"train": torch.stack(features.train), "test": torch.stack(features.tests)}

    stored = cached(cache, extractor, [*images.train, *images.tests], make)
    return TwoDigitItems(images.names, list(stored["train"]), list(stored["test"]), seed)


def check_items(protocol: Protocol, *, items: int) -> None:
    """Whether there can be such items: puts together what takes a moment, and makes no features.

    Raises:
        ValueError, FileNotFoundError: if data or weights are not what they should be.
    """
    two_digit_images(
        protocol.data,
        items=items,
        train_per_item=protocol.train_per_item,
        test_per_item=protocol.test_per_item,
        seed=protocol.first_seed,
    )
    if protocol.features != RANDOM:
        SqueezeNet(protocol.features)


def two_digit_images(
    data: str, *, items: int, train_per_item: int, test_per_item: int, seed: int
) -> TwoDigitItems:
    """Items as images.

    Args:
        data: "digits" or the path of an MNIST archive, as :class:`Protocol` has it.
        items, train_per_item, test_per_item, seed: of :func:`flexkern.streams.two_digit_items`.
    """
    sizes: dict[str, Any] = {
        "items": items, "train_per_item": train_per_item, "test_per_item": test_per_item, "seed": seed
    }  # fmt: skip
    if data == DIGITS:
        return two_digit_items(*bundled_digits(), **sizes)
    train, test = mnist(data)
    return two_digit_items(*train, test_images=test.images, test_labels=test.labels, **sizes)


def cached(
    cache: Path, extractor: nn.Module, images: Sequence[Tensor], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What ``make`` gives, from a file of the cache if the same extractor has seen the same images before."""
    sha = hashlib.sha256(f"{_FORMAT} {fingerprint(extractor)}".encode())
    for part in images:
        sha.update(f"{part.dtype} {tuple(part.shape)}".encode())
        sha.update(part.contiguous().numpy().tobytes())
    key = sha.hexdigest()
    path = cache / f"features_{key[:16]}.safetensors"
    if not path.exists():
        made = make()
        cache.mkdir(parents=True, exist_ok=True)
        checkpoint.write(path, made, {"key": key})
    stored, record = checkpoint.read(path)
    if record["key"] != key:
        raise ValueError(f"cache: {path} holds other features; remove it")
    return stored


def _extractor(protocol: Protocol, seed: int, images: TwoDigitItems) -> nn.Module:
    if protocol.features != RANDOM:
        return SqueezeNet(protocol.features).to(protocol.device)
    # Measured on unlabelled images of the first item: nothing is known of the stream before it begins.
    return RandomConvolutions(seed=seed, device=protocol.device).calibrate(images.train[0])
