"""The images of a class-incremental run, and its stream."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from flexkern.runs.incremental.config import Config, DataConfig
from flexkern.runs.start import path_given
from flexkern.streams import (
    Images,
    ImageSource,
    Stream,
    blurry,
    class_incremental,
    class_repetition,
    core50,
    corrupted_domains,
    digit_domains,
    domain_incremental,
    domainnet,
    image_folders,
    image_pack,
    online,
)
from flexkern.streams.archives import Archive
from flexkern.streams.domain_folders import CORE50_SESSIONS, DOMAINNET
from flexkern.streams.domains import digits_split
from flexkern.streams.labelled import Skipped, resized

__all__ = ["Domains", "check_place", "digest", "digests", "load_images", "make_stream"]

# Bytes of images that are kept in memory where nothing is said. Not what this machine has: images in memory are
# known by their pixels and others by their files, and a run may go on elsewhere.
_KEPT = 2 << 30


class Domains(dict[str, Images]):
    """Training images, or test images, of each domain by its name, where there are several."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that were left out, each once."""
        return tuple(dict.fromkeys(skipped for images in self.values() for skipped in images.skipped))


def check_place(config: DataConfig) -> None:
    """Whether images may be where the configuration says: a look at the place, which reads none.

    Raises:
        ValueError: if there is no path.
        FileNotFoundError: if there is no such archive, or no such folder.
    """
    if config.bundled:
        return
    archive = config.kind in ("pack", "digits")
    if config.path is None:
        what = "archive" if archive else "folder"
        raise ValueError(
            f"data.path: this configuration needs the {what} of the images: give it with --data PATH"
        )
    path = path_given(config.path, "data.path")
    if archive:
        with Archive(path, "image archive"):
            pass
    elif not path.is_dir():
        raise FileNotFoundError(f"data.path: no folder at {config.path!r}")


def load_images(config: DataConfig) -> tuple[Images | Domains, Images | Domains]:
    """Training and test images, each of several domains if the configuration names them.

    Raises:
        ValueError: if the path is missing, or does not hold such images.
        FileNotFoundError: if there is nothing at the path.
    """
    check_place(config)
    path = None if config.path is None else path_given(config.path, "data.path")
    if config.of_domains:
        found = _of_domains(config, path)
        if config.kind not in ("pack", "digits"):
            found = _kept(config, found)
        return tuple(Domains({name: both[i] for name, both in found.items()}) for i in range(2))  # type: ignore
    if config.kind == "digits":
        train, test = digits_split()
    else:
        assert path is not None  # the check has seen to it
        if config.kind == "folder":
            return _kept(config, {"": _of_folder(config, path)})[""]
        train, test = image_pack(path)
    if config.size is None:
        return train, test
    train, test = (resized(images, config.size, "data") for images in (train, test))
    return train, test


def _of_domains(config: DataConfig, path: Path | None) -> dict[str, tuple[Images, Images]]:
    """What is changed or decoded when it is needed."""
    if config.kind == "digits":
        return digit_domains(config.domains or (), mnist_path=None if config.bundled else path, lazy=True)
    assert path is not None
    if config.kind == "pack":
        train, test = image_pack(path)
        if config.size is not None:
            train, test = (resized(images, config.size, "data") for images in (train, test))
        return corrupted_domains(train, test, config.domains or (), lazy=True)
    assert config.size is not None  # the configuration has seen to it
    reading: dict[str, Any] = {
        "size": config.size,
        "broken": config.broken,
        "lazy": config.in_memory is not True,
    }
    if config.kind == "domainnet":
        return domainnet(path, domains=config.domains or DOMAINNET, **reading)
    if config.kind == "core50":
        return core50(path, sessions=config.domains or CORE50_SESSIONS, **reading)
    missing = [name for name in config.domains or () if not (path / name).is_dir()]
    if missing:
        raise FileNotFoundError(f"data.domains: no folder {missing[0]!r} in {config.path!r}")
    return {name: _of_folder(config, path / name) for name in config.domains or ()}


def make_stream(config: Config, train: Images | Domains, test: Images | Domains, seed: int) -> Stream:
    """The stream of the run with that seed; an :class:`flexkern.streams.OnlineStream` if the run is online.

    Raises:
        ValueError: naming the key, if there are not as many classes or images as it says.
    """
    stream = config.stream
    seed = seed if isinstance(stream.seed, str) else stream.seed
    if isinstance(train, Domains) or isinstance(test, Domains):
        made = _stream_of_domains(config, train, test, seed)
    else:
        made = _stream_of_classes(config, train, test, seed)
    return online(made, batch_size=stream.online, seed=seed) if stream.online else made


def _stream_of_domains(config: Config, train: Any, test: Any, seed: int) -> Stream:
    made = domain_incremental(
        {name: (train[name], test[name]) for name in train},
        order="shuffled" if config.stream.shuffle_domains else None,
        seed=seed,
        classes=config.data.classes,
        train_per_class=config.data.train_per_class,
        test_per_class=config.data.test_per_class,
    )
    if config.data.kind not in ("pack", "digits"):
        return made
    # Only what takes part has been changed then, and once.
    kept = [replace(e, train_inputs=e.train_inputs.tensor(), test_inputs=e.test_inputs.tensor()) for e in made]
    return made.with_experiences(kept)


def _stream_of_classes(config: Config, train: Images, test: Images, seed: int) -> Stream:
    stream = config.stream
    if stream.order is None and config.data.classes is None:
        stream.check_classes(len(train.labels.unique()))
    options: dict[str, Any] = {
        "order": stream.order,
        "classes": config.data.classes,
        "seed": seed,
        "train_per_class": config.data.train_per_class,
        "test_per_class": config.data.test_per_class,
    }
    # What each kind needs, the configuration has seen to.
    if stream.kind == "blurry":
        assert stream.tasks is not None
        return blurry(train, test, tasks=stream.tasks, disjoint=stream.disjoint, blur=stream.blur, **options)
    if stream.kind == "class-repetition":
        assert stream.experiences is not None
        return class_repetition(
            train,
            test,
            experiences=stream.experiences,
            classes_per_experience=stream.classes_per_experience,
            probability=stream.probability,
            **options,
        )
    assert stream.increment is not None
    return class_incremental(train, test, increment=stream.increment, base=stream.base, **options)


def digest(stream: Stream) -> str:
    """A fingerprint of all images and labels: a run that goes on must see the same."""
    return digests(stream)[-1]


def digests(stream: Stream) -> list[str]:
    """Fingerprints of the first task, of the first two, and so on: a stream that has become longer begins with
    what it was.

    Images that are decoded when they are needed are known by what their source says of each without decoding it
    (path, bytes, time), those in memory by their pixels.
    """
    blake, found = hashlib.blake2b(digest_size=16), []
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
        found.append(blake.hexdigest())
    return found


def _of_folder(config: DataConfig, path: Path) -> tuple[Images, Images]:
    assert config.size is not None  # the configuration has seen to it
    return image_folders(
        path,
        size=config.size,
        test_share=config.test_share,
        broken=config.broken,
        lazy=config.in_memory is not True,
    )


def _kept(config: DataConfig, found: dict[str, tuple[Images, Images]]) -> dict[str, tuple[Images, Images]]:
    """In memory, where the configuration leaves that open and they are few."""
    parts = {id(part.images): part.images for both in found.values() for part in both}  # tests may be shared
    if config.in_memory != "auto" or sum(images.shape.numel() for images in parts.values()) > _KEPT:
        return found
    pixels = {key: images.tensor() for key, images in parts.items()}
    return {
        name: (
            train._replace(images=pixels[id(train.images)]),
            test._replace(images=pixels[id(test.images)]),
        )
        for name, (train, test) in found.items()
    }
