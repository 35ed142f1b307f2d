"""Experiences of the classes that somebody names."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pytest
import torch

from flexkern.streams import Images, by_tasks

NAMES = ["cat", "dog", "car", "grün"]


def images(per_class: int = 3, classes: int = 4) -> Images:
    labels = torch.arange(classes).repeat(per_class)
    pixels = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return Images(pixels.contiguous(), labels, NAMES)


def test_each_task_has_the_images_of_its_classes_numbered_in_order() -> None:
    first, second = by_tasks(images(), images(2), [["car", "cat"], ["dog"]], first_class=5, first_number=2)
    assert (first.name, first.number, first.class_names) == ("car, cat", 2, ("car", "cat"))
    assert (second.name, second.number, second.class_names) == ("dog", 3, ("dog",))
    assert first.train_labels.tolist() == [5, 5, 5, 6, 6, 6]
    assert first.train_inputs[:, 0, 0, 0].tolist() == [2, 6, 10, 0, 4, 8]
    assert second.train_labels.tolist() == [7, 7, 7]
    assert first.test_labels.tolist() == [5, 5, 6, 6]


def test_a_name_is_found_in_another_spelling_of_unicode() -> None:
    (task,) = by_tasks(images(), images(), [[unicodedata.normalize("NFD", "grün")]])
    assert task.class_names == ("grün",)


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ([["cat"], ["dgo"]], ValueError, r"tasks\[1\]: there is no class 'dgo'; did you mean 'dog'"),
        ([["house"]], ValueError, "no class 'house'; there are 'cat', 'dog', 'car', 'grün'"),
        ([["cat", "cat"]], ValueError, r"tasks\[0\]: class 'cat' is there twice"),
        ([["cat"], ["cat"]], ValueError, r"tasks\[1\]: class 'cat' is there in tasks\[0\] too"),
        ([["cat"], []], ValueError, r"tasks\[1\] names no class"),
        ([], ValueError, "tasks names no task"),
        ("cat", TypeError, "tasks must be a list of lists"),
        (["cat"], TypeError, r"tasks\[0\] must be a list of names"),
        ([[3]], TypeError, r"tasks\[0\] must be names of classes, got 3"),
    ],
)
def test_mistakes_are_named(tasks: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        by_tasks(images(), images(), tasks)


def test_a_class_without_images_and_numbers_of_numpy() -> None:
    with pytest.raises(ValueError, match="test: there are no images of class 'grün'"):
        by_tasks(images(), images(classes=3), [["grün"]])
    with pytest.raises(ValueError, match="first_class must be at least 0"):
        by_tasks(images(), images(), [["cat"]], first_class=-1)
    assert by_tasks(images(), images(), [["cat"]], first_number=np.int64(4))[0].number == 4
