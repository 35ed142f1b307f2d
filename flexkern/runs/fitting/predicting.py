"""What a learner says of files: the images that are meant, and answers as they come."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch

from flexkern.learners import load_learner, picture_files
from flexkern.learners.checkpoint import read_record
from flexkern.runs.fitting.fit_config import read_size
from flexkern.streams.file_source import FileSource
from flexkern.streams.labelled import Reading
from flexkern.streams.pictures import WHITE

__all__ = ["Answered", "Model", "images_in", "load"]

_FIRST, _AT_ONCE = (
    16,
    256,
)  # files of the first pass, so that the first answers come soon, and of those after it


class Answered(NamedTuple):
    """A file, and the answers, best first; or why there are none."""

    path: str
    answers: Sequence[Any]
    error: str = ""


def images_in(given: Iterable[str], tell: Callable[[str], None]) -> Iterator[str]:
    """The files that are meant: of a folder all images in it, of a pattern (``*.jpg``) all that fit.

    What is not there is passed on: it is an answer of its own that it cannot be read.

    Args:
        given: names.
        tell: told what of a folder is left out.
    """
    for name in given:
        path = os.path.expanduser(name)
        if os.path.isdir(path):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    found = picture_files(path)
                except ValueError:  # it has none
                    found = [path]
            for warning in said:
                tell(str(warning.message).removeprefix("x: "))
            yield from found
        elif not os.path.exists(path) and glob.has_magic(path):
            found = sorted(glob.glob(path, recursive=True))
            yield from (images_in(found, tell) if found else [path])
        else:
            yield path


class Model:
    """A learner that answers about files, which are read as those that it was trained with.

    Args:
        learner: one on a vision transformer that has learned something.
        background: under transparent pixels.
        workers: processes that decode.
    """

    def __init__(self, learner: Any, background: Sequence[int] = WHITE, workers: int | None = None) -> None:
        self.learner = learner
        self.note = ""
        """What who asks it should know."""
        size = learner.decoded_size or read_size(learner.image_size)
        self._reading = Reading.checked(size, background, "raise", True, workers, 0)

    def answered(self, paths: Iterable[str], *, top: int = 1) -> Iterator[Answered]:
        """The answers for each file, in order, as they come.

        Args:
            paths: of the images; they are taken from there as they are needed.
            top: how many classes are named for each.
        """
        files, at_once = iter(paths), _FIRST
        while part := list(islice(files, at_once)):
            yield from self._answers(part, top)
            at_once = _AT_ONCE

    def _answers(self, paths: list[str], top: int) -> Iterator[Answered]:
        try:
            said = self.learner.predict(FileSource("", paths, self._reading), names=True, top=top)
        except (ValueError, OSError) as error:
            if len(paths) == 1:
                yield Answered(paths[0], (), _reason(error, paths[0]))
                return
            # One that cannot be read keeps its neighbours from no answer: it is looked for by halves.
            half = len(paths) // 2
            yield from self._answers(paths[:half], top)
            yield from self._answers(paths[half:], top)
            return
        for path, answers in zip(paths, said, strict=True):
            yield Answered(path, answers)


def _reason(error: Exception, path: str) -> str:
    """What is wrong, with the path once."""
    if os.path.isdir(path):
        return f"{path!r}: a folder with no images"
    if isinstance(error, FileNotFoundError):
        return f"{path!r}: there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return f"{path!r}: {error.strerror}"
    return str(error).removeprefix("path: ")


def load(model: str | os.PathLike[str], *, backbone: str | None, device: torch.device) -> Model:
    """The learner of a file, which must be one on a vision transformer that has learned something.

    Args:
        model: the file.
        backbone: as :func:`flexkern.backbones.load_backbone` takes it; None: what the file names.
        device: where to compute.

    Raises:
        OSError, ValueError: as :func:`flexkern.learners.load_learner`; or naming what it is instead.
    """
    record = read_record(model)
    if record.get("family", "vit") != "vit":
        raise ValueError(f"{os.fspath(model)!r} holds a {record['class']}, which takes no photographs")
    given = {} if backbone is None else {"backbone": backbone}
    try:
        learner = load_learner(model, device=device, **given)
    except (OSError, ValueError) as error:
        if backbone is not None or not str(error).startswith("backbone"):
            raise
        name = record.get("frozen_name", "small")
        raise type(error)(
            f"{error}. The model was made with {name!r}; if that has moved, say where: --backbone"
        ) from error
    if not learner.classes_seen:
        raise ValueError(f"{os.fspath(model)!r} has not learned a task to its end; give the same fit again")
    of_fit = record.get("notes", {}).get("fit", {})
    loaded = Model(learner, of_fit.get("configuration", {}).get("background", WHITE))
    if of_fit and not of_fit["finished"]:
        done, planned = len(of_fit["tasks"]), len(of_fit["planned"])
        loaded.note = (
            f"the fit of {os.fspath(model)!r} has not ended: {done} of {planned} tasks are learned and tested"
        )
    return loaded
