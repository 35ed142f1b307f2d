"""What a learner says of files: the images that are meant, and answers as they come."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flexkern.learners import load_learner
from flexkern.streams.folders import is_hidden, is_image

__all__ = ["Answered", "answered", "images_in", "load"]

_FIRST, _AT_ONCE = 16, 256  # files of the first pass, so that the first answers come soon, and of those after it


def load(model: str | os.PathLike[str], backbone: str | None, device: torch.device) -> Any:
    """The learner of a file, which must be one on a vision transformer that has learned something.

    Args:
        model: the file.
        backbone: as :func:`flexkern.backbones.load_backbone` takes it; None: what the file names.
        device: where to compute.

    Raises:
        OSError, ValueError: as :func:`flexkern.learners.load_learner`; or naming what it is instead.
    """
    given = {} if backbone is None else {"backbone": backbone}
    learner = load_learner(model, device=device, **given)
    if learner.family != "vit":
        raise ValueError(f"{os.fspath(model)!r} holds {learner.method!r}, a network that takes no photographs")
    if not learner.classes_seen:
        raise ValueError(f"{os.fspath(model)!r} has not learned a task to its end: give the same fit again")
    return learner


class Answered(NamedTuple):
    """A file, and the answers, best first; or why there are none."""

    path: str
    answers: Sequence[Any]
    error: str = ""


def images_in(given: Iterable[str]) -> Iterator[str]:
    """The files that are meant: of a folder all images in it, of a pattern (``*.jpg``) all that fit.

    What is not there is passed on: it is an answer of its own that it cannot be read.
    """
    for name in given:
        path = os.path.expanduser(name)
        if os.path.isdir(path):
            yield from _in_folder(path)
        elif not os.path.exists(path) and glob.has_magic(path):
            found = sorted(glob.glob(path, recursive=True))
            yield from (images_in(found) if found else [path])
        else:
            yield path


def _in_folder(folder: str) -> Iterator[str]:
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [os.path.join(place, name) for name in files if not is_hidden(name) and is_image(Path(name))]
    yield from sorted(found) or [folder]


def answered(learner: Any, paths: Iterable[str], *, top: int = 1) -> Iterator[Answered]:
    """The answers for each file, in order, as they come.

    Args:
        learner: with names and images, see :meth:`flexkern.learners.Learner.predict`.
        paths: of the images; read as they are needed.
        top: how many classes are named for each.
    """
    files, at_once = iter(paths), _FIRST
    while part := list(islice(files, at_once)):
        yield from _answers(learner, part, top)
        at_once = _AT_ONCE


def _answers(learner: Any, paths: list[str], top: int) -> Iterator[Answered]:
    try:
        said = learner.predict(paths, names=True, top=top)
    except (ValueError, OSError) as error:
        if len(paths) == 1:
            yield Answered(paths[0], (), str(error))
            return
        # One that cannot be read keeps its neighbours from no answer: it is looked for by halves.
        half = len(paths) // 2
        yield from _answers(learner, paths[:half], top)
        yield from _answers(learner, paths[half:], top)
        return
    for path, answers in zip(paths, said, strict=True):
        yield Answered(path, answers)
