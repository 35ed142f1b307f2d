"""An experience, and a stream of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from flexkern.plain import choice, whole_number
from flexkern.streams.image_source import ImageSource
from flexkern.streams.shown import classes_shown, inputs_shown

__all__ = ["SCENARIOS", "Experience", "Stream"]

SCENARIOS = ("class-incremental", "domain-incremental", "blurry", "class-repetition", "online")
"""What a stream may be, and what :attr:`flexkern.learners.Learner.takes` names.

class-incremental: each experience brings classes that are new, and no others.
domain-incremental: all experiences have the same classes, each from another domain.
blurry: an experience has classes of its own, and some images of others', so that classes come before and after.
class-repetition: an experience has some of the classes, new ones or known ones, as they are drawn.
online: an experience is a few images, or a single one, of any classes, and comes once.
"""


@dataclass(frozen=True, eq=False, repr=False)
class Experience:
    """What a learner is shown at one time (an item, a task), and what it is tested on.

    Args:
        name: for tables and pictures, for example "3 8".
        number: position in the stream, from 0.
        train_inputs: [n, ...], any dtype; images may stay uint8 (0..255) until features are taken. Or a source
            of images that are decoded when they are needed.
        train_labels: int64 [n]. They are what the learner is told, not always the truth.
        test_inputs: [m, ...], the shape of one input as in ``train_inputs``.
        test_labels: int64 [m], the truth.
        class_names: of the classes that are learned here, in the order of their labels; empty where there are
            none.

    Raises:
        TypeError: if they are no tensors (inputs: nor a source of images), or names no strings.
        ValueError: if the tensors do not fit together, or the number is negative.
    """

    name: str
    number: int
    # Tensor | ImageSource: as a union, all that computes with a stream of tensors would have to ask which.
    train_inputs: Any
    train_labels: Tensor
    test_inputs: Any
    test_labels: Tensor
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {self.name!r}")
        object.__setattr__(self, "number", whole_number(self.number, "number", least=0))
        names = self.class_names
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"class_names must be strings, got {names!r}")
        for part in ("train", "test"):
            inputs, labels = getattr(self, f"{part}_inputs"), getattr(self, f"{part}_labels")
            if not isinstance(inputs, (Tensor, ImageSource)):
                raise TypeError(
                    f"{part}_inputs must be a tensor or a source of images, got {type(inputs).__name__}; "
                    "flexkern.streams.images_of(dataset, lazy=True) makes one of a data set"
                )
            if not isinstance(labels, Tensor):
                raise TypeError(f"{part}_labels must be a tensor, got {type(labels).__name__}")
            if not len(inputs.shape):
                raise ValueError(f"{part}_inputs must be [n, ...], got a single number")
            if labels.dtype != torch.int64 or labels.shape != inputs.shape[:1]:
                raise ValueError(
                    f"{part}_labels must be int64 with one label per input: got {labels.dtype} "
                    f"{tuple(labels.shape)} for inputs {tuple(inputs.shape)}"
                )
        if self.train_inputs.shape[1:] != self.test_inputs.shape[1:]:
            raise ValueError(
                f"train_inputs and test_inputs must hold inputs of one shape, got "
                f"{tuple(self.train_inputs.shape[1:])} and {tuple(self.test_inputs.shape[1:])}"
            )

    def __repr__(self) -> str:
        return (
            f"<Experience {self.number} {self.name!r}: {len(self.train_labels)} training and "
            f"{len(self.test_labels)} test inputs of {inputs_shown(self.train_inputs)}, "
            f"{classes_shown(self.class_names, self.train_labels)}>"
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch."""
        return tuple(self.train_inputs.shape[1:])


class Stream(Sequence[Experience]):
    """Experiences in the order in which they are learned.

    Args:
        experiences: at least one, all with inputs of one shape, numbered 0, 1, 2, ...
        classes: how many classes the labels of the whole stream name: 0 <= label < classes.
        scenario: what comes again, and what is new in each: "class-incremental" (new classes only),
            "domain-incremental" (the same classes, looking otherwise), "blurry" (new classes, and some images
            of others), "class-repetition" (any classes, again and again) or "online" (one of these, each image
            once, some at a time). For whoever reads it: a learner looks at the labels.

    Raises:
        ValueError: if the stream is empty, or an experience does not fit.
    """

    def __init__(
        self, experiences: Sequence[Experience], classes: int, *, scenario: str = "class-incremental"
    ) -> None:
        if not experiences:
            raise ValueError("experiences must not be empty")
        classes = whole_number(classes, "classes")
        for i, e in enumerate(experiences):
            if not isinstance(e, Experience):
                raise TypeError(f"experiences[{i}] must be an Experience, got {type(e).__name__}")
            if e.number != i:
                raise ValueError(f"experiences must be numbered in order: number {e.number} is at position {i}")
            if e.input_shape != experiences[0].input_shape:
                raise ValueError(
                    f"all inputs of a stream must have one shape: experience {i} has {e.input_shape}, "
                    f"experience 0 has {experiences[0].input_shape}"
                )
            for labels in (e.train_labels, e.test_labels):
                if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
                    raise ValueError(f"labels of experience {i} must be in [0, {classes}), classes = {classes}")
        self.experiences = tuple(experiences)
        self.classes = classes
        self.scenario = choice(scenario, "scenario", SCENARIOS)

    def __repr__(self) -> str:
        train, test = (sum(len(of) for of in all_of) for all_of in zip(
            *((e.train_labels, e.test_labels) for e in self.experiences), strict=True
        ))  # fmt: skip
        return (
            f"<{type(self).__name__} of {len(self)} experiences, {self.scenario}, {self.classes} classes: "
            f"{train} training and {test} test inputs of {inputs_shown(self.experiences[0].train_inputs)}>"
        )

    def with_experiences(self, experiences: Sequence[Experience]) -> Stream:
        """The same kind of stream of as many experiences, with other inputs: of features, for example."""
        return Stream(experiences, self.classes, scenario=self.scenario)

    @overload
    def __getitem__(self, index: int) -> Experience: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Experience]: ...
    def __getitem__(self, index: int | slice) -> Experience | Sequence[Experience]:
        return self.experiences[index]

    def __len__(self) -> int:
        return len(self.experiences)

    def __iter__(self) -> Iterator[Experience]:
        return iter(self.experiences)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch."""
        return self.experiences[0].input_shape

    @property
    def names(self) -> list[str]:
        """The names of the experiences, in order."""
        return [e.name for e in self.experiences]

    @property
    def class_names(self) -> list[str]:
        """The names of all classes: ``stream.class_names[label]`` is that of a label, or its number.

        An experience's ``class_names`` are those of the labels that its test images have (training images may
        be told the wrong ones), or, where there are not as many of these, that its training images have.
        """
        names = [str(c) for c in range(self.classes)]
        for experience in self.experiences:
            for part in (experience.test_labels, experience.train_labels):
                labels = part.unique().tolist()
                if len(labels) == len(experience.class_names):
                    for label, name in zip(labels, experience.class_names, strict=True):
                        names[label] = name or names[label]
                    break
        return names
