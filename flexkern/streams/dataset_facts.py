"""What data sets of other libraries say of themselves: labels, names, files; nothing here decodes an image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch.utils.data import ConcatDataset, Subset

__all__ = ["IMAGE_KEYS", "LABEL_KEYS", "identity_in", "labels_said", "names_said", "path_of"]

IMAGE_KEYS = ("image", "img")
LABEL_KEYS = ("label", "labels", "fine_label")


def labels_said(dataset: Any) -> list[Any] | None:
    """The labels that a data set says without giving its images, one for each image; None if it says none."""
    if isinstance(dataset, Subset):
        within = labels_said(dataset.dataset)
        return None if within is None else [within[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [labels_said(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts for label in part or []]
    if _is_hugging_face(dataset):
        key = next((k for k in LABEL_KEYS if k in dataset.column_names), None)
        return None if key is None else list(dataset.select_columns([key]).with_format(None)[key][:])
    if getattr(dataset, "target_transform", None) is not None:
        return None
    said: Any = next(
        (x for x in (getattr(dataset, n, None) for n in ("targets", "labels")) if x is not None), None
    )
    if hasattr(said, "tolist"):
        said = said.tolist()
    return said if isinstance(said, list) and all(isinstance(label, int) for label in said) else None


def names_said(dataset: Any) -> list[str]:
    """The classes' names; none if it says none."""
    if isinstance(dataset, Subset):
        return names_said(dataset.dataset)
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if names is None and isinstance(features, Mapping):
        key = next((k for k in LABEL_KEYS if k in features), None)
        names = getattr(features[key], "names", None) if key is not None else None
    return [] if names is None else [str(name) for name in names]


def path_of(dataset: Any, i: int) -> str | None:
    """The file of an image, where the data set has a list of them (``samples``, as torchvision's folders)."""
    if isinstance(dataset, Subset):
        return path_of(dataset.dataset, dataset.indices[i])
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, list) or len(samples) != len(dataset):
        return None
    path = samples[i][0] if isinstance(samples[i], tuple) and samples[i] else None
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else None


def identity_in(dataset: Any, i: int) -> str | None:
    """What decides the pixels of an image, if the data set says it without decoding."""
    if isinstance(dataset, Subset):
        return identity_in(dataset.dataset, int(dataset.indices[i]))
    if _is_hugging_face(dataset):
        fingerprint = getattr(dataset, "_fingerprint", None)
        return None if fingerprint is None else f"{fingerprint} {i}"
    path = path_of(dataset, i)
    if path is None or any(getattr(dataset, n, None) is not None for n in ("transform", "transforms")):
        return None
    status = os.stat(path)
    return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}"


def _is_hugging_face(dataset: Any) -> bool:
    return hasattr(dataset, "column_names") and hasattr(dataset, "select_columns")
