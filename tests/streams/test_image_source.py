"""Sources: a source is what the tensor of its images would be, decoded by workers or not."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flexkern.streams import Experience, ImageSource, poison
from flexkern.streams.augment import random_resized_crop, resize
from flexkern.streams.image_source import batches


class Made(ImageSource):
    """Image i is of colour i; number 13 is broken where ``broken`` says so."""

    def __init__(self, count: int, *, workers: int | None = None, broken: bool = False) -> None:
        super().__init__(4, workers)
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def decode(self, i: int) -> np.ndarray:
        if self.broken and i == 13:
            raise ValueError(f"{self.name(i)}: no image")
        return np.full((4, 4, 3), i, np.uint8)

    def name(self, i: int) -> str:
        return f"made {i}"

    def identity(self, i: int) -> str:
        return str(i)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_tensor(workers: int) -> None:
    source = Made(100, workers=workers)
    rows = torch.randperm(100, generator=torch.Generator().manual_seed(0)).split(16)
    for of_source, of_tensor in zip(batches(source, rows), batches(source.tensor(), rows), strict=True):
        assert torch.equal(of_source, of_tensor)


@pytest.mark.parametrize(
    "index", [slice(3, 50), slice(None, None, -1), [5, 1, 1], torch.tensor([7, -1]), np.arange(0)], ids=str
)
def test_a_part_is_that_of_the_tensor(index: object) -> None:
    source = Made(60)
    every = source.tensor()
    backwards = isinstance(index, slice) and index.step == -1
    expected = every.flip(0) if backwards else every[index]  # type: ignore[index]
    assert torch.equal(source[index].tensor(), expected)
    assert source[index].shape == expected.shape
    again = pickle.loads(pickle.dumps(source[index]))
    assert torch.equal(again.tensor(), expected)


def test_a_part_of_a_part_asks_the_whole() -> None:
    part = Made(60)[10:40][::3][torch.tensor([0, 2])]
    assert [part.name(i) for i in range(2)] == ["made 10", "made 16"]
    assert torch.equal(part[1], torch.full((3, 4, 4), 16, dtype=torch.uint8))


@pytest.mark.parametrize("index", [60, -61, [60], [[1]]])
def test_numbers_that_are_not_there(index: object) -> None:
    with pytest.raises(IndexError, match="60"):
        Made(60)[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_raises_its_own_error(workers: int) -> None:
    source = Made(100, workers=workers, broken=True)
    with pytest.raises(ValueError, match=r"^made 13: no image$") as caught:
        list(batches(source, torch.arange(100).split(10)))
    assert not multiprocessing.active_children(), caught  # the exception is still there


def test_an_experience_takes_sources() -> None:
    labels = torch.zeros(60, dtype=torch.int64)
    experience = Experience("one", 0, Made(60), labels, Made(5), labels[:5])
    assert experience.input_shape == (3, 4, 4)
    with pytest.raises(ValueError, match="one label per input"):
        Experience("one", 0, Made(60), labels, Made(6), labels[:5])
    with pytest.raises(TypeError, match=r"lazy=True"):
        Experience("one", 0, [1, 2], labels, Made(5), labels[:5])


@pytest.mark.parametrize("index", [1.5, "a", None, [0.5], [True, False], (), {"a": 1}], ids=str)
def test_what_is_no_number_of_an_image(index: object) -> None:
    source = Made(60)
    if index == ():
        assert len(source[index]) == 0
        return
    with pytest.raises((IndexError, TypeError), match="number"):
        source[index]


def test_what_a_tensor_has_says_how_to_get_one() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'float'; .*source\.tensor\(\)"):
        Made(60).float()
    with pytest.raises(AttributeError, match=r"has no attribute 'frob'$"):
        _ = Made(60).frob


def test_a_mask_chooses() -> None:
    mask = torch.zeros(60, dtype=torch.bool)
    mask[[3, 59]] = True
    for chosen in (mask, mask.numpy(), mask.tolist()):
        assert [Made(60)[chosen].name(i) for i in range(2)] == ["made 3", "made 59"]


def _of_source() -> Experience:
    labels = torch.arange(60) % 2
    return Experience("one", 1, Made(60), labels, Made(4), labels[:4])


def test_labels_of_a_source_are_attacked_and_its_images_are_not() -> None:
    e = _of_source()
    flipped = poison.flipped_labels(e, 1.0, 3, seed=0)
    assert flipped.train_inputs is e.train_inputs
    assert not (flipped.train_labels[1::2] == 1).any()
    swapped = poison.deranged_labels(e, np.array([1, 0]))
    assert swapped.train_labels.tolist() == [0] * 60
    for attack in (
        lambda: poison.foreign_inputs(e, torch.zeros(9, 3, 4, 4, dtype=torch.uint8), 0.1, seed=0),
        lambda: poison.perturbed_inputs(e, 0.1, seed=0),
    ):
        with pytest.raises(TypeError, match=r"images cannot be changed; pass .*train_inputs\.tensor"):
            attack()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda e: poison.flipped_labels(e, "a", 3, seed=0), "rate must be a share"),
        (lambda e: poison.flipped_labels(e, 0.5, 2.5, seed=0), "classes must be a whole number"),
        (lambda e: poison.flipped_labels(e, 0.5, 3, seed="x"), "seed must be a whole number"),
        (lambda e: resize(e.train_inputs, 4), r"images must be a tensor \(of a source"),
        (lambda e: random_resized_crop(e.train_inputs, 4), r"images must be a tensor \(of a source"),
    ],
)
def test_arguments_of_other_kinds_are_named(attack: Callable[[Experience], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        attack(_of_source())


class CrookedError(Exception):
    """One that pickle cannot make again."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} {where}")


class Failing(Made):
    def decode(self, i: int) -> np.ndarray:
        raise CrookedError("no", "picture")


def test_an_exception_that_does_not_travel_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match=r"^CrookedError: no picture$"):
        list(batches(Failing(100, workers=2), torch.arange(100).split(10)))


_SCRIPT = """
import multiprocessing, os, sys, threading, time
import numpy as np, torch
from flexkern.streams.augment import random_resized_crop, resize
from flexkern.streams.image_source import ImageSource, batches

class Made(ImageSource):
    def __len__(self): return 200
    def decode(self, i):
        if how == "killed" and i == 150: os.kill(os.getpid(), 9)
        if how == "interrupted": time.sleep(0.05)  # 5 seconds in all: long after the signal
        return np.full((4, 4, 3), i, np.uint8)
    def name(self, i): return str(i)
    def identity(self, i): return str(i)

how = sys.argv[1]
if __name__ == "__main__":
    if how in ("spawn", "forkserver", "fork"):
        multiprocessing.set_start_method(how)
    x = torch.randn(300, 300)
    (x @ x).sum().item()  # threads of OpenMP
    rows = torch.arange(200).split(20)
    read = batches(Made(4, workers=2), rows)
    if how == "left":
        next(read)
        del read
    elif how == "interrupted":
        print("ready", flush=True)
        for batch in read: pass
    else:
        assert [int(b[-1, 0, 0, 0]) for b in read] == list(range(19, 200, 20))
    assert not multiprocessing.active_children(), multiprocessing.active_children()
    print("done")
"""


def _children(pid: int) -> list[int]:
    return [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]


def test_work_that_is_left_ends_its_processes() -> None:
    read = batches(Made(100, workers=2), torch.arange(100).split(10))
    next(read)
    assert len(multiprocessing.active_children()) == 2
    read.close()
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "left", "killed", "interrupted", "forkserver", "spawn"])
def test_workers_end_with_the_work(how: str, tmp_path: Path) -> None:
    script = tmp_path / "read.py"
    script.write_text(_SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"}, start_new_session=True,
    )  # fmt: skip
    workers: list[int] = []
    if how == "interrupted":
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while len(workers) < 2:
            time.sleep(0.05)
            workers = _children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, errors = process.communicate(timeout=120)
    if how == "interrupted":
        assert errors.count("Traceback") == 1
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    elif how == "killed":
        assert "RuntimeError: a process that decodes images has ended (killed, or out of memory)" in errors
    else:
        assert (out, errors) == ("done\n", "")
