"""The images of a class-incremental run, and its stream."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from flexkern.runs.incremental.config import Config, DataConfig
from flexkern.streams import Stream, bundled_digits
from flexkern.streams.augment import as_float, center_crop, resize
from flexkern.streams.class_incremental import class_incremental
from flexkern.streams.packs import Images, image_folders, image_pack

__all__ = ["digest", "load_images", "make_stream"]

_TEST_SHARE = 0.25  # of the bundled digits, which have no test images of their own
_PIECE = 1024  # images that are resized at once


def load_images(config: DataConfig) -> tuple[Images, Images]:
    """Training and test images.

    Raises:
        ValueError: if the path is missing, or does not hold such images.
        FileNotFoundError: if there is nothing at the path.
    """
    if config.kind == "digits":
        train, test = _digits()
    elif config.path is None:
        what = "archive" if config.kind == "pack" else "folder"
        raise ValueError(
            f"data.path: this configuration needs the {what} of the images: give it with --data PATH"
        )
    elif config.kind == "pack":
        train, test = image_pack(config.path)
    else:
        assert config.size is not None  # the configuration has seen to it
        return image_folders(config.path, size=config.size)
    if config.size is None:
        return train, test
    return _resized(train, config.size), _resized(test, config.size)


def make_stream(config: Config, train: Images, test: Images, seed: int) -> Stream:
    """The stream of the run with that seed."""
    stream = config.stream
    return class_incremental(
        train,
        test,
        increment=stream.increment,
        base=stream.base,
        order=stream.order,
        classes=config.data.classes,
        seed=seed if isinstance(stream.seed, str) else stream.seed,
        train_per_class=config.data.train_per_class,
        test_per_class=config.data.test_per_class,
    )


def digest(stream: Stream) -> str:
    """A fingerprint of all images and labels: a run that goes on must see the same."""
    blake = hashlib.blake2b(digest_size=16)
    for experience in stream:
        parts = (
            experience.train_inputs,
            experience.train_labels,
            experience.test_inputs,
            experience.test_labels,
        )
        for part in parts:
            blake.update(f"{tuple(part.shape)}".encode())
            blake.update(part.contiguous().numpy().data)
    return blake.hexdigest()


def _digits() -> tuple[Images, Images]:
    """scikit-learn's digits, a quarter of each for tests, always the same."""
    digits = bundled_digits()
    test = np.zeros(len(digits.labels), dtype=bool)
    for c in range(10):
        rows = np.flatnonzero(digits.labels.numpy() == c)
        test[np.random.default_rng(c).choice(rows, round(_TEST_SHARE * rows.size), replace=False)] = True
    images = digits.images[:, None].expand(-1, 3, -1, -1)
    names = [str(c) for c in range(10)]

    def part(chosen: np.ndarray) -> Images:
        rows = torch.from_numpy(np.flatnonzero(chosen))
        return Images(images[rows], digits.labels[rows], names)

    return part(~test), part(test)


def _resized(images: Images, size: int) -> Images:
    def piece(x: Tensor) -> Tensor:
        return (center_crop(resize(as_float(x), size), size) * 255).round().to(torch.uint8)

    return images._replace(images=torch.cat([piece(x) for x in images.images.split(_PIECE)]))
