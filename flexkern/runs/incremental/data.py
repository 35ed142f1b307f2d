"""The images of a class-incremental run, and its stream."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flexkern.runs.incremental.config import Config, DataConfig
from flexkern.runs.start import path_given
from flexkern.streams import (
    Images,
    ImageSource,
    Stream,
    blurry,
    bundled_digits,
    class_incremental,
    class_repetition,
    image_folders,
    image_pack,
    online,
)
from flexkern.streams.archives import Archive
from flexkern.streams.labelled import resized

__all__ = ["check_place", "digest", "load_images", "make_stream"]

_TEST_SHARE = 0.25  # of the bundled digits, which have no test images of their own
# Bytes of images that are kept in memory where nothing is said. Not what this machine has: images in memory are
# known by their pixels and others by their files, and a run may go on elsewhere.
_KEPT = 2 << 30


def check_place(config: DataConfig) -> None:
    """Whether images may be where the configuration says: a look at the place, which reads none.

    Raises:
        ValueError: if there is no path.
        FileNotFoundError: if there is no such archive, or no such folder.
    """
    if config.kind == "digits":
        return
    what = "archive" if config.kind == "pack" else "folder"
    if config.path is None:
        raise ValueError(
            f"data.path: this configuration needs the {what} of the images: give it with --data PATH"
        )
    path = path_given(config.path, "data.path")
    if config.kind == "pack":
        with Archive(path, "image archive"):
            pass
    elif not path.is_dir():
        raise FileNotFoundError(f"data.path: no folder at {config.path!r}")


def load_images(config: DataConfig) -> tuple[Images, Images]:
    """Training and test images.

    Raises:
        ValueError: if the path is missing, or does not hold such images.
        FileNotFoundError: if there is nothing at the path.
    """
    check_place(config)
    if config.kind == "digits":
        train, test = _digits()
    else:
        assert config.path is not None  # the check has seen to it, the configuration to the size
        path = path_given(config.path, "data.path")
        if config.kind == "folder":
            return _of_folder(config, path)
        train, test = image_pack(path)
    if config.size is None:
        return train, test
    train, test = (resized(images, config.size, "data") for images in (train, test))
    return train, test


def make_stream(config: Config, train: Images, test: Images, seed: int) -> Stream:
    """The stream of the run with that seed; an :class:`flexkern.streams.OnlineStream` if the run is online.

    Raises:
        ValueError: naming the key, if there are not as many classes or images as it says.
    """
    stream = config.stream
    if stream.order is None and config.data.classes is None:
        stream.check_classes(len(train.labels.unique()))
    seed = seed if isinstance(stream.seed, str) else stream.seed
    options: dict[str, Any] = {
        "order": stream.order,
        "classes": config.data.classes,
        "seed": seed,
        "train_per_class": config.data.train_per_class,
        "test_per_class": config.data.test_per_class,
    }
    if stream.kind == "blurry":
        assert stream.tasks is not None  # the configuration has seen to it, and to what the others need
        made = blurry(train, test, tasks=stream.tasks, disjoint=stream.disjoint, blur=stream.blur, **options)
    elif stream.kind == "class-repetition":
        assert stream.experiences is not None
        made = class_repetition(
            train,
            test,
            experiences=stream.experiences,
            classes_per_experience=stream.classes_per_experience,
            probability=stream.probability,
            **options,
        )
    else:
        assert stream.increment is not None
        made = class_incremental(train, test, increment=stream.increment, base=stream.base, **options)
    return online(made, batch_size=stream.online, seed=seed) if stream.online else made


def digest(stream: Stream) -> str:
    """A fingerprint of all images and labels: a run that goes on must see the same.

    Images that are decoded when they are needed are known by what their source says of each without decoding it
    (path, bytes, time), those in memory by their pixels.
    """
    blake = hashlib.blake2b(digest_size=16)
    for experience in stream:
        parts = (
            experience.train_inputs,
            experience.train_labels,
            experience.test_inputs,
            experience.test_labels,
        )
        for part in parts:
            if isinstance(part, ImageSource):
                blake.update(f"{tuple(part.shape)} {part.size}".encode())
                for i in range(len(part)):
                    blake.update(f"{part.identity(i)}\0".encode(errors="surrogateescape"))
                continue
            blake.update(f"{tuple(part.shape)}".encode())
            blake.update(part.contiguous().numpy().data)
    return blake.hexdigest()


def _of_folder(config: DataConfig, path: Path) -> tuple[Images, Images]:
    assert config.size is not None  # the configuration has seen to it
    train, test = image_folders(
        path,
        size=config.size,
        test_share=config.test_share,
        broken=config.broken,
        lazy=config.in_memory is not True,
    )
    if config.in_memory == "auto" and sum(part.images.shape.numel() for part in (train, test)) <= _KEPT:
        return train._replace(images=train.images.tensor()), test._replace(images=test.images.tensor())
    return train, test


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
