"""Items as features: composed once, passed through the frozen extractor once, kept in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from flexkern.features import FeatureCache, RandomConvolutions, extract_from
from flexkern.runs.metaplasticity.protocol import DIGITS, RANDOM, Protocol
from flexkern.runs.metaplasticity.squeezenet import SqueezeNet
from flexkern.streams import TwoDigitItems, bundled_digits, mnist, two_digit_items

__all__ = ["Raw", "check_items", "load_items", "raw_items", "two_digit_images"]


class Raw(NamedTuple):
    """Items as images, what makes features of them, and of how many images."""

    items: Any
    extractor: nn.Module
    images: int


def load_items(
    protocol: Protocol,
    seed: int,
    cache: Path,
    *,
    items: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> TwoDigitItems:
    """The items of one seed, as float32 features on the CPU, which lie in files.

    Args:
        protocol: data, features and sizes.
        seed: of the items and, where they are random, of the convolutions.
        cache: folder for computed features, two files for each item, as :class:`FeatureCache` has them.
        items: how many; default: those of the protocol. More of them begin with the same.
        progress: told what is being computed.

    Raises:
        ValueError, FileNotFoundError: if data or weights are not what they should be.
    """
    (images, extractor, _), kept = raw_items(protocol, seed, items=items), FeatureCache(cache)

    def features(x: Tensor, name: str) -> Tensor:
        return extract_from(
            extractor, x, batch_size=64, device=protocol.device, cache=kept, name=f"seed {seed}, {name}",
            progress=lambda *_: progress(f"seed {seed}: features of {len(images)} items"),
        )  # fmt: skip

    train = [features(x, f"{n}, train") for n, x in zip(images.names, images.train, strict=True)]
    tests = [features(x, f"{n}, test") for n, x in zip(images.names, images.tests, strict=True)]
    return TwoDigitItems(images.names, train, tests, seed, protocol.as_released)


def raw_items(protocol: Protocol, seed: int, *, items: int | None = None) -> Raw:
    """The items of one seed before their features are made; arguments as of :func:`load_items`."""
    images = two_digit_images(
        protocol.data,
        items=protocol.items if items is None else items,
        train_per_item=protocol.train_per_item,
        test_per_item=protocol.test_per_item,
        seed=seed,
        as_released=protocol.as_released,
    )
    return Raw(images, _extractor(protocol, seed, images), sum(map(len, (*images.train, *images.tests))))


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
        seed=protocol.seeds[0],
        as_released=protocol.as_released,
    )
    if protocol.features != RANDOM:
        SqueezeNet(protocol.features)


def two_digit_images(
    data: str, *, items: int, train_per_item: int, test_per_item: int, seed: int, as_released: bool = False
) -> TwoDigitItems:
    """Items as images.

    Args:
        data: "digits" or the path of an MNIST archive, as :class:`Protocol` has it.
        items, train_per_item, test_per_item, seed, as_released: of :func:`flexkern.streams.two_digit_items`.
    """
    sizes: dict[str, Any] = {
        "items": items, "train_per_item": train_per_item, "test_per_item": test_per_item, "seed": seed,
        "as_released": as_released,
    }  # fmt: skip
    if data == DIGITS:
        return two_digit_items(*bundled_digits(), **sizes)
    train, test = mnist(data)
    return two_digit_items(*train, test_images=test.images, test_labels=test.labels, **sizes)


def _extractor(protocol: Protocol, seed: int, images: TwoDigitItems) -> nn.Module:
    if protocol.features != RANDOM:
        return SqueezeNet(protocol.features).to(protocol.device)
    # Measured on unlabelled images of the first item: nothing is known of the stream before it begins.
    return RandomConvolutions(seed=seed, device=protocol.device).calibrate(images.train[0])
