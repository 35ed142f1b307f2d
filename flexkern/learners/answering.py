"""What all learners have in common when they are asked: classes, names, probabilities, evaluations."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from flexkern.learners.answers import Answer, answers
from flexkern.learners.given import are_pictures, pictures_given
from flexkern.learners.judged import Judged
from flexkern.learners.processes import agree_on_evaluating, tested_here
from flexkern.learners.progress import Watch, check_watch, tell, watched
from flexkern.metrics import Evaluation
from flexkern.nn.gates.checks import check_true_task
from flexkern.plain import flag, whole_number
from flexkern.streams.base import Experience
from flexkern.streams.image_source import ImageSource, batches

__all__ = ["Answering"]

_MOST_CLASSES = 30_000  # of an evaluation: their confusion matrix takes 7 GB
_AT_ONCE = 256  # images of a source, where a method does not say how many
_T = TypeVar("_T")


class Answering(ABC):
    """A learner, as far as it is asked; :class:`flexkern.learners.Learner` learns, too."""

    device: torch.device
    items_learned: int
    report: dict[str, float]
    decoded_size: int | None
    """Pixels of each side of the images of the last experience, where they were square: files are decoded to
    it. None where they were not, and before the first one."""
    _names: dict[int, str]  # of the classes that were learned; a number where they had none
    _calibration: tuple[float, int]  # mean logarithm of the tasks' temperatures, and of how many images

    # ------------------------------------------------------------------ what a method fills in

    @abstractmethod
    def _check_inputs(self, x: Any, name: str) -> None:
        """Raises TypeError or ValueError, naming them, if these are no inputs as the learner takes them."""

    def _check_answers(self) -> None:  # noqa: B027 - most methods answer from the start
        """Raises :class:`flexkern.learners.NotLearnedError` while there is nothing to answer from."""

    @abstractmethod
    def logits(self, x: Any) -> Tensor:
        """Scores of the classes, float32 [n, classes], for inputs [n, ...]; n may be 0.

        Raises:
            TypeError, ValueError: naming ``x``, if they are not inputs as :meth:`learn` takes them.
            NotLearnedError: before the first experience, where the learner has no classes yet.
        """

    @abstractmethod
    def _count_classes(self, stream: Sequence[Experience]) -> int:
        """Rows and columns of the confusion matrix over this stream."""

    def _count_known(self) -> int:
        """How many classes :meth:`logits` has scores of now."""
        return 1 + max(self._names, default=-1)

    def _each(self, x: Any, task: Tensor | None, of: Callable[[Tensor], _T]) -> list[_T]:
        """``of`` the logits of each batch of inputs, which were checked."""
        if task is not None:
            raise TypeError(f"task: {type(self).__name__} asks for no tasks; leave it out")
        if not isinstance(x, ImageSource):
            found = [of(self.logits(x))] if len(x) else []
            tell("answering", len(x), len(x))
            return found
        found, done = [], 0
        with closing(batches(x, torch.arange(len(x)).split(_AT_ONCE) if len(x) else ())) as parts:
            for part in parts:
                found.append(of(self.logits(part)))
                done += len(part)
                tell("answering", done, len(x))
        return found

    def _size_of_pictures(self) -> int | None:
        """Pixels of each side of the square to which pictures are decoded that :meth:`predict` is given; None:
        they are no inputs of this learner.

        Raises:
            TypeError: saying why it takes none, where that needs words.
        """
        return None

    def _of_pictures(self, pictures: ImageSource) -> Any:
        """Inputs, as the learner takes them, of pictures."""
        return pictures

    # ------------------------------------------------------------------ classes

    @property
    def class_names(self) -> list[str]:
        """The name of each class that :meth:`logits` has scores of, in the learner's numbering.

        A class that was learned without a name is called by its number. It is by these numbers, and not by
        those of a data set, that :meth:`predict` answers: ``learner.class_names[i]``.
        """
        return [self._names.get(c, str(c)) for c in range(self._count_known())]

    @property
    def temperature(self) -> float:
        """What logits are divided by before softmax makes :meth:`probabilities` of them.

        A learner on a vision transformer fits it at the end of each task of at least 16 images, on up to
        ``calibration_images`` of them, and takes the mean of its logarithm over tasks and images; 1 before.
        One on a multi-layer perceptron is trained by the cross-entropy of its logits as they are: it stays 1.
        """
        return math.exp(self._calibration[0])

    # ------------------------------------------------------------------ answering

    @overload
    def predict(
        self, x: Any, *, task: Tensor | None = None, names: Literal[False] = False, top: None = None,
        watch: Watch | None = None,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def predict(
        self, x: Any, *, task: Tensor | None = None, names: bool = False, top: int | None = None,
        watch: Watch | None = None,
    ) -> Any: ...  # fmt: skip
    @torch.no_grad()
    def predict(
        self,
        x: Any,
        *,
        task: Tensor | None = None,
        names: bool = False,
        top: int | None = None,
        watch: Watch | None = None,
    ) -> Tensor | list[list[Answer]]:
        """The class of each input, or its likeliest classes with names and probabilities.

        ::

            learner.predict(images)                        # tensor([3, 0, 7]), by the learner's numbering
            learner.predict("photos/", names=True)         # [[Answer("cat", 0.81, 3)], ...]
            learner.predict(["a.jpg", "b.png"], top=5)     # five answers for each, best first

        Numbers count classes in the order in which they were learned, which is not the data set's:
        ``learner.class_names`` names them.

        Args:
            x: inputs as :meth:`learn` takes them, a tensor or a source of images. A learner of images also
                takes pictures: the path of a file, or of a folder (all pictures in it and below, sorted by
                path: :func:`flexkern.learners.picture_files`); a PIL image; an array [h, w], [h, w, 1 | 3 | 4]
                or [n, h, w, 1 | 3 | 4], uint8 or floating-point in [0, 1] (rounded to 256 levels); or a list of
                paths, PIL images and arrays of one image, of any sizes. They are read and cropped as
                :func:`flexkern.streams.image_folder` does it, to squares of ``decoded_size`` pixels.
            task: the true task of each input, int64 [n], for oracles only.
            names: whether to answer with names and probabilities.
            top: how many classes of each, from 1 on, all if there are fewer; with ``names`` alone it is 1.
            watch: called after each batch; see :class:`flexkern.learners.BatchProgress`.

        Returns:
            int64 [n] on the learner's device; with ``names`` or ``top`` for each input a list of
            :class:`flexkern.learners.Answer`, best first.

        Raises:
            TypeError, ValueError: naming the argument, or a file that is no image.
            OSError: if a file cannot be read; FileNotFoundError if there is none.
            NotLearnedError: as :meth:`logits`.
        """
        names = flag(names, "names") or top is not None
        top = 1 if top is None else whole_number(top, "top")
        given = self._given(x, task, watch)
        with watched(watch, item=self.items_learned):
            if not names:
                nothing = torch.zeros(0, dtype=torch.int64, device=self.device)
                return torch.cat([nothing, *self._each(given, task, lambda z: z.argmax(1))])
            known = self.class_names
            found = self._each(given, task, lambda z: answers(self._probabilities(z), top, known))
        return [of_input for batch in found for of_input in batch]

    @torch.no_grad()
    def probabilities(self, x: Any, *, task: Tensor | None = None, watch: Watch | None = None) -> Tensor:
        """How likely each class is, float32 [n, classes]: softmax of :meth:`logits` divided by ``temperature``.

        They compare the classes that were learned, and no others: an image that is of none of them has
        probabilities, too, and they sum to 1. ``temperature`` comes from training images, on which a learner
        does better than on others, so that it is too sure of those; most so where it was trained longest. It
        does not know how far the images that are asked about lie from those it saw.

        Args:
            x, task, watch: as in :meth:`predict`.

        Raises:
            As :meth:`predict`.
        """
        given = self._given(x, task, watch)
        nothing = torch.zeros((0, self._count_known()), dtype=torch.float32, device=self.device)
        with watched(watch, item=self.items_learned):
            return torch.cat([nothing, *self._each(given, task, self._probabilities)])

    def _probabilities(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits.float() / self.temperature, 1)

    def _given(self, x: Any, task: Tensor | None, watch: Watch | None) -> Any:
        """What was asked about, checked: a tensor or a source."""
        check_watch(watch)
        self._check_answers()
        size = self._size_of_pictures() if are_pictures(x) else None
        if size is not None:
            x = self._of_pictures(pictures_given(x, size))
        self._check_inputs(x, "x")
        if task is not None:
            check_true_task(task, len(x))
        return x

    def _test(self, experience: Experience, of: Callable[[Tensor], Any]) -> None:
        """Gives ``of`` the logits of each batch of an experience's test inputs, in order."""
        self._each(experience.test_inputs, None, of)

    def evaluate(self, stream: Sequence[Experience], *, top: int = 5, watch: Watch | None = None) -> Evaluation:
        """Accuracy on the test inputs of each experience, and the confusion matrix over all of them.

        Whatever :class:`flexkern.metrics.Evaluation` has (among the classes of the task only, among the ``top``
        likeliest, class by class) comes from the same logits: inputs pass the network once.

        ``report`` then has what else is worth telling: ``seconds_per_image`` (of one input), and what the
        method counts.

        On several processes (docs/scaling.md) all call it with the same stream; each answers about its share of
        the test inputs, and all have the whole evaluation.

        Args:
            stream: at least one experience, each with at least one test input: without one it has no accuracy.
            top: among how many of the likeliest classes an answer of ``top_accuracies`` is right, from 1 on.
            watch: called after each batch, of all inputs of the stream; see
                :class:`flexkern.learners.BatchProgress`.

        Raises:
            TypeError, ValueError: naming the experience that has no test inputs or does not fit.
            NotLearnedError: as :meth:`logits`.
            RuntimeError: if processes that evaluate together do not have the same learner and stream.
        """
        top = whole_number(top, "top")
        self._check_stream(stream)
        check_watch(watch)
        agree_on_evaluating(self, stream)
        start, inputs = time.perf_counter(), 0
        shares: list[tuple[float, float, float]] = []
        classes, total = self._count_classes(stream), sum(len(e.test_labels) for e in stream)
        confusion = np.zeros((classes, classes), dtype=np.int64)
        with torch.no_grad(), self._counting() as report:
            for experience in stream:
                judged, here = Judged(experience.test_labels, top), tested_here(experience)
                with watched(watch, item=self.items_learned, before=inputs, total=total):
                    if len(here.test_labels):
                        self._test(here, judged)
                judged.join(self.device)
                shares.append(judged.shares())
                confusion += judged.confusion(classes)
                inputs += len(experience.test_labels)
        self.report = report | {"seconds_per_image": (time.perf_counter() - start) / inputs}
        accuracies, masked, among_top = np.array(shares).T
        return Evaluation(accuracies, confusion, masked=masked, top=top, top_accuracies=among_top)

    def _check_stream(self, stream: Sequence[Experience]) -> None:
        """Raises as :meth:`evaluate` says, before anything is computed."""
        if isinstance(stream, Experience) or not isinstance(stream, Sequence):
            hint = "; for one experience pass [experience]" if isinstance(stream, Experience) else ""
            raise TypeError(f"stream must be a sequence of experiences, got {type(stream).__name__}{hint}")
        if not len(stream):
            raise ValueError("stream has no experiences; give at least one")
        self._check_answers()
        for i, experience in enumerate(stream):
            if not isinstance(experience, Experience):
                raise TypeError(f"stream[{i}] must be an Experience, got {type(experience).__name__}")
            where = f"stream[{i}], {experience.name!r}"
            if not len(experience.test_labels):
                raise ValueError(f"{where} has no test inputs, so it has no accuracy; leave it out")
            self._check_inputs(experience.test_inputs, f"test_inputs of {where}")
            self._check_test_labels(experience.test_labels, f"test_labels of {where}")

    def _check_test_labels(self, labels: Tensor, name: str) -> None:
        """Raises ValueError unless a confusion matrix can count these labels: it has classes times classes."""
        if int(labels.min()) < 0:
            raise ValueError(f"{name} must be at least 0, got {int(labels.min())}")
        if int(labels.max()) >= _MOST_CLASSES:
            raise ValueError(f"{name} must be under {_MOST_CLASSES:,}, got {int(labels.max())}")

    @contextmanager
    def _counting(self) -> Iterator[dict[str, float]]:
        """What a method has counted over an evaluation: the dictionary is filled when the block ends."""
        yield {"passes": 1.0}

    # ------------------------------------------------------------------ for checkpoints

    def _answers_record(self) -> dict[str, Any]:
        """What answers need beside the modules, as JSON."""
        last = max(self._names, default=-1)
        return {
            "class_names": [self._names.get(c) for c in range(last + 1)],
            "decoded_size": self.decoded_size,
            "calibration": dict(zip(("log_temperature", "images"), self._calibration, strict=True)),
        }

    def _take_answers_record(self, progress: dict[str, Any]) -> None:
        """Takes back what :meth:`_answers_record` gave; checkpoints of before have none of it."""
        names = progress.get("class_names", [])
        self._names = {c: name for c, name in enumerate(names) if name is not None}
        self.decoded_size = progress.get("decoded_size")
        calibration = progress.get("calibration", {"log_temperature": 0.0, "images": 0})
        self._calibration = calibration["log_temperature"], calibration["images"]
