"""One input at a time, or a few: what learns by running sums takes them in any order, each at the cost of one
operation on the sums, and what is measured over an item waits for enough of them."""

from __future__ import annotations

import copy
import functools
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern.learners import MetaplasticMLP, load_learner, make_learner
from flexkern.nn import LDAHead
from flexkern.nn.undo import Undo
from flexkern.streams import Experience
from helpers import tiny_vit
from helpers.kinds_of_streams import as_they_come
from helpers.learner_state import fingerprint, interrupted, lines_of
from helpers.mlp_blobs import CLASSES, SIZE, blobs

SUMS = ("simplecil", "ranpac", "lda")

pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def _backbone() -> Any:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return tiny_vit.backbone()


# What lda selects, and its temperature, depend on what it was asked when: here one candidate answers.
OPTIONS: dict[str, dict[str, Any]] = {"ranpac": {"features": 32}, "lda": {"layers": 2, "shrinkage": "oas"}}


def vit(method: str, **options: Any) -> Any:
    return make_learner(method, _backbone(), **(OPTIONS.get(method, {}) | options))


def raw(one: Any, images: Tensor) -> Tensor:
    """Logits, before a temperature that was fitted to some of the images."""
    logits = one.logits(images)
    return logits * one.head.temperature if one.method == "lda" else logits


def _experience(labels: list[int]) -> Experience:
    y = torch.tensor(labels)
    x = torch.full((len(y), 3, 16, 16), 100, dtype=torch.uint8)
    return Experience("these", 1, x, y, x[:1], y[:1])


def test_running_sums_do_not_depend_on_the_order() -> None:
    """One image at a time, a few, many, all at once, in any order: the same answers, to float32's rounding."""
    given = tiny_vit.stream(4)
    x, y = (torch.cat([getattr(e, f"train_{part}") for e in given]) for part in ("inputs", "labels"))
    x, y, tests = x[::3], y[::3], torch.cat([e.test_inputs for e in given])
    for method in SUMS:
        expected: Tensor | None = None
        for n, size in enumerate((len(x), 1, 5, 30)):
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(n))
            stream = as_they_come([(x[rows], y[rows]) for rows in order.split(size)])
            one = vit(method, calibration_images=0)
            for e in stream:
                one.learn(e)
            columns = [one.class_names.index(f"class {c}") for c in range(4)]
            logits = raw(one, tests)[:, columns]
            expected = logits if expected is None else expected
            error = float((logits - expected).abs().max() / expected.abs().max())
            assert error < 1e-5, (method, size, error)
            assert torch.equal(logits.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("method", SUMS)
def test_a_known_class_adds_to_its_sums(method: str) -> None:
    """A class in two experiences is the class in one."""
    given = tiny_vit.stream(4)
    x, y = (torch.cat([getattr(e, f"train_{part}") for e in given]) for part in ("inputs", "labels"))
    parts = torch.arange(len(y)).split(len(y) // 4)
    apart, whole = vit(method, calibration_images=0), vit(method, calibration_images=0)
    for e in as_they_come([(x[rows], y[rows]) for rows in parts]):
        apart.learn(e)
    for e in as_they_come([(x, y)]):
        whole.learn(e)
    tests = given[1].test_inputs
    torch.testing.assert_close(raw(apart, tests), raw(whole, tests), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", SUMS)
def test_an_image_costs_no_solving(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no copy of the largest sums, and no temperature: what is asked for is made when it is asked for."""
    one = vit(method)
    for e in tiny_vit.stream(4):
        one.learn(e)
    before = one.temperature
    solved = []
    head = one.prototypes if method == "simplecil" else one.head
    solve = {"simplecil": "complete", "ranpac": "_solve", "lda": "_solve"}[method]
    solver = LDAHead if method == "lda" else type(head)
    real = getattr(solver, solve)
    monkeypatch.setattr(solver, solve, lambda self: (solved.append(self), real(self))[1])
    largest = None if method == "simplecil" else one._largest()
    for i in range(5):
        one.learn(_experience([i % 4]))
    assert not solved
    assert one.temperature == before
    assert largest is None or one._largest() is largest
    assert len(one.predict(_experience([0]).train_inputs)) == 1
    assert len(solved) == 1


@pytest.mark.parametrize("method", SUMS)
def test_an_image_is_all_or_nothing(method: str, tmp_path: Path) -> None:
    """Interrupted at each line of flexkern, from the checks to the last."""
    image = _experience([1])
    learner = vit(method)
    learner.learn(tiny_vit.stream(4)[0])
    path = tmp_path / "one"
    learner.save(path)
    straight, lines = load_learner(path, backbone=_backbone()), list[int]()
    with lines_of(lines):
        straight.learn(image)
    before, after = fingerprint(learner), fingerprint(straight)
    assert before != after
    outcomes = []
    for line in [*range(0, lines[0] - 8, 1 + lines[0] // 20), *range(lines[0] - 8, lines[0])]:
        stopped, where = copy.deepcopy(learner), ""
        try:
            with interrupted(line, KeyboardInterrupt):
                stopped.learn(image)
        except KeyboardInterrupt as raised:
            where = str(raised)
        outcomes.append(fingerprint(stopped) == after)
        if not outcomes[-1]:
            assert fingerprint(stopped) == before, where
            stopped.learn(image)
            assert fingerprint(stopped) == after, where
    assert outcomes.count(False) > len(outcomes) // 2


def test_an_image_of_nothing_but_zeros_is_not_learned() -> None:
    one = vit("ranpac")
    one._run = lambda network, *inputs: torch.zeros((len(inputs[0]), one.width))
    before = fingerprint(one)
    with pytest.raises(RuntimeError, match="the features are all 0"):
        one.learn(_experience([0]))
    assert fingerprint(one) == before


@pytest.mark.parametrize(("method", "options"), [("lda", {"shrinkage": 0.0}), ("ranpac", {"ridge": 1e-300})])
def test_what_gives_no_answers_is_not_learned(method: str, options: dict[str, Any]) -> None:
    """A ridge or a shrinkage that is too small is found out when an image is learned, not when one is asked."""
    one = vit(method, **options)
    x = tiny_vit.stream(2)[0]
    one_by_one = (
        Experience(
            str(i), i, x.train_inputs[i : i + 1], torch.tensor([0]), x.test_inputs[:0], x.test_labels[:0]
        )
        for i in range(6)
    )
    with pytest.raises(RuntimeError, match=r"singular|not positive definite"):
        deque(map(one.learn, one_by_one))
    if one.classes_seen:
        assert bool(one.logits(x.test_inputs).isfinite().all())


@pytest.mark.parametrize("method", SUMS)
def test_a_temperature_needs_sixteen_images(method: str) -> None:
    one = vit(method)
    # That of lda is its head's, of images left out.
    temperature = (lambda: one.head.temperature) if method == "lda" else (lambda: one.temperature)
    one.learn(_experience([0, 1] * 7 + [0]))
    assert temperature() == 1.0
    one.learn(tiny_vit.stream(2)[0])
    fitted = temperature()
    assert fitted != 1.0
    one.learn(_experience([0, 1]))
    assert temperature() == fitted


def test_a_failure_leaves_nothing_begun() -> None:
    """Where nothing is trained: another experience may come next."""
    one = vit("simplecil")
    one._finish = lambda *_: (_ for _ in ()).throw(MemoryError)
    with pytest.raises(MemoryError):
        one.learn(_experience([0]))
    del one._finish
    assert one._begun is None
    one.learn(tiny_vit.stream(2)[0])


# --------------------------------------------------------------------------- perceptrons


def _inputs(count: int) -> tuple[Tensor, Tensor]:
    given = blobs(3)
    x, y = (torch.cat([getattr(e, f"train_{part}") for e in given]) for part in ("inputs", "labels"))
    rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:count]
    return x[rows], y[rows]


def _part(i: int, x: Tensor, y: Tensor) -> Experience:
    return Experience(f"part {i}", i, x, y, x[:0], y[:0])


def test_a_scale_is_measured_over_as_many_small_items_as_it_needs(tmp_path: Path) -> None:
    """Until there were 20 steps all synapses move freely, as in a first item; through a checkpoint, too."""
    x, y = _inputs(30)
    one = MetaplasticMLP((SIZE,), CLASSES, widths=(8, 6), lr=0.05)
    plain = MetaplasticMLP((SIZE,), CLASSES, widths=(8, 6), lr=0.05, network="conventional")
    for i in range(20):
        assert one.optimizer.scales() == [None]
        for learner in (one, plain):
            learner.learn(_part(i, x[i : i + 1], y[i : i + 1]), epochs=1)
        assert torch.equal(one.logits(x), plain.logits(x))
        if i == 9:
            one.save(tmp_path / "one")
            one = MetaplasticMLP.load(tmp_path / "one")
    (scale,) = one.optimizer.scales()
    assert scale is not None
    assert scale > 0
    for learner in (one, plain):
        learner.learn(_part(20, x[20:21], y[20:21]), epochs=1)
    assert not torch.equal(one.logits(x), plain.logits(x))


def test_a_scale_is_measured_over_one_item_of_sixteen_inputs() -> None:
    x, y = _inputs(16)
    one = MetaplasticMLP((SIZE,), CLASSES, widths=(8, 6), lr=0.05)
    one.learn(_part(0, x, y), epochs=1)
    assert one.optimizer.scales() != [None]


# --------------------------------------------------------------------------- undoing


def test_what_is_written_last_is_not_copied() -> None:
    """Before it is written everything is put back; after it the block is done."""
    tensor, box = torch.zeros(3), _Box()

    def block(value: int, by: int) -> None:
        with Undo(box, last=tensor):
            box.value = value
            if by:
                tensor.add_(by)
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        block(1, 0)
    assert not hasattr(box, "value")
    with pytest.raises(OSError, match="no space"):
        block(2, 1)
    assert box.value == 2
    assert tensor.tolist() == [1, 1, 1]


class _Box:
    value: int
