"""What a learner says that it takes, it learns: streams of new classes, of known ones, and of single images."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern.learners import (
    METHODS,
    MLP_METHODS,
    SCENARIOS,
    Learner,
    checkpoint,
    load_learner,
    make_learner,
    register_method,
    registry,
)
from flexkern.learners.vit.base import ViTLearner
from flexkern.streams import Experience, Stream
from helpers import tiny_vit
from helpers.kinds_of_streams import STREAMS
from helpers.learner_state import fingerprint

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 24}
OPTIONS: dict[str, dict[str, Any]] = {
    "artsy": {"rank": 2, "gate": {"gate": "ridge", "gating": "topk", "k": 1, "fill": True, "features": 32}},
    "ease": {"rank": 2},
    "ranpac": {"features": 32},
    "finetune": {"lr": 0.05},
}
EXPERTS: dict[str, Any] = {
    "rank": 2, "head": "experts", "evidence": "class+mean",
    "gate": {"gate": "ridge", "gating": "topk", "k": 2, "fill": True, "features": 32},
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def _backbone() -> Any:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return tiny_vit.backbone()


@functools.cache
def _stream(kind: str) -> Stream:
    return STREAMS[kind]()


def vit(method: str, **options: Any) -> Any:
    return make_learner(method, _backbone(), **(QUICK | OPTIONS.get(method, {}) | options))


def mlp(method: str) -> Any:
    options = {"scale": 10.0} if method == "metaplastic" else {}
    return MLP_METHODS[method]((3, 16, 16), 4, widths=(8, 6), **options)


def test_the_streams_are_of_their_kinds() -> None:
    """The helper's: else the tests below would look at nothing."""
    for kind, make in STREAMS.items():
        seen, again = 0, 0
        for e in make():
            labels = e.train_labels.unique()
            again += int((labels < seen).sum())
            assert labels[labels >= seen].tolist() == list(range(seen, max(seen, int(labels.max()) + 1)))
            seen = max(seen, int(labels.max()) + 1)
            assert len(e.train_labels) < 16 or kind != "online"
        assert (again > 0) == (kind != "class-incremental"), kind
    assert tuple(STREAMS) == SCENARIOS


def check_learns(one: Any, kind: str, path: Path) -> None:
    """Learns the stream, and is after a checkpoint in the middle of it what it is without."""
    given = _stream(kind)
    other = copy.deepcopy(one)
    for e in given:
        one.check(e)
        one.learn(e)
    classes = 4
    evaluation = one.evaluate(given)
    assert one.items_learned == len(given)
    assert evaluation.confusion.shape == (classes, classes)
    assert evaluation.confusion.sum() == sum(len(e.test_labels) for e in given)
    x = given[0].test_inputs
    likely = one.probabilities(x)
    assert likely.shape == (len(x), classes)
    assert bool(((likely.sum(1) - 1).abs() < 1e-5).all())
    if kind != "class-incremental":
        assert sorted(one.class_names) == [f"class {c}" for c in range(classes)]
        assert one.predict(x, names=True)[0][0].name in one.class_names
    frozen = {"backbone": _backbone()} if one.family == "vit" else {}
    for i, e in enumerate(given):
        other.learn(e)
        if i == len(given) // 2:
            other.save(path)
            other = load_learner(path, **frozen)
    assert fingerprint(other) == fingerprint(one)
    assert torch.equal(other.logits(x), one.logits(x))


@pytest.mark.parametrize("kind", SCENARIOS)
@pytest.mark.parametrize("method", METHODS)
def test_a_transformer_learns_what_it_takes(method: str, kind: str, tmp_path: Path) -> None:
    one = vit(method)
    assert set(one.takes) <= set(SCENARIOS)
    assert one.takes[0] == "class-incremental"
    if kind in one.takes:
        return check_learns(one, kind, tmp_path / "one")
    given, before = _stream(kind), fingerprint(one)
    assert (method, kind) in (("artsy", "online"), ("ease", "online"))
    with pytest.raises(ValueError, match=r"'part 0' cannot be learned: its training set has 1 samples"):
        one.learn(given[0])
    assert fingerprint(one) == before
    return None


@pytest.mark.parametrize("kind", SCENARIOS)
@pytest.mark.parametrize("method", MLP_METHODS)
def test_a_perceptron_learns_what_it_takes(method: str, kind: str, tmp_path: Path) -> None:
    one = mlp(method)
    if kind in one.takes:
        return check_learns(one, kind, tmp_path / "one")
    assert (method, kind) in (("ewc", "online"), ("si", "online"))
    before = fingerprint(one)
    with pytest.raises(ValueError, match=r"'part 0' has 1 inputs, a single step.*penalty.*is 0.*epochs=2"):
        one.learn(_stream(kind)[0], epochs=1)
    assert fingerprint(one) == before
    one.learn(_stream(kind)[0], epochs=2)
    return None


@pytest.mark.parametrize("kind", [k for k in SCENARIOS if k != "online"])
def test_experts_learn_what_they_take(kind: str, tmp_path: Path) -> None:
    check_learns(vit("artsy", **EXPERTS), kind, tmp_path / "one")


# --------------------------------------------------------------------------- rows of a task's own


@pytest.mark.parametrize("options", [OPTIONS["artsy"], EXPERTS, {"rank": 2, "gate": {"gate": "oracle"}}])
def test_each_task_of_artsy_has_rows_of_its_own(options: dict[str, Any]) -> None:
    """A learner of known classes is inside one whose classes are all new; a class has the best of its rows."""
    domains = _stream("domain-incremental")
    apart = [
        dataclasses.replace(
            e, train_labels=e.train_labels + 4 * e.number, test_labels=e.test_labels + 4 * e.number,
            class_names=(),
        )
        for e in domains
    ]  # fmt: skip
    one, rows = (make_learner("artsy", _backbone(), **(QUICK | options)) for _ in range(2))
    for e, of_rows in zip(domains, apart, strict=True):
        one.learn(e)
        rows.learn(of_rows)
    assert (one.classes_seen, rows.classes_seen) == (4, 12)
    assert one._row_classes == (0, 1, 2, 3) * 3
    state, expected = one._modules().state_dict(), rows._modules().state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in state)
    x = domains[1].test_inputs
    task = torch.ones(len(x), dtype=torch.int64)
    of_rows = rows.logits(x, task=task).view(-1, 3, 4)
    joined = of_rows.amax(1) if one.experts is None else of_rows.logsumexp(1)
    torch.testing.assert_close(one.logits(x, task=task), joined, rtol=1e-6, atol=1e-6)
    accuracy = one.evaluate(domains).accuracies.mean()
    assert accuracy > 0.6, accuracy


def test_a_class_incremental_checkpoint_says_nothing_of_rows(tmp_path: Path) -> None:
    one = vit("artsy")
    for e in _stream("class-incremental"):
        one.learn(e)
    one.save(tmp_path / "one")
    assert "row_classes" not in checkpoint.read_record(tmp_path / "one")["progress"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 1, 2, 3, 0, 1], r"has 6 classes, and the record says|classes"),
        ([0, 2, 1, 3] + [0, 1, 2, 3] * 2, "row_classes has class 2 before class 1"),
        ([0, 1, 2, -1] + [0, 1, 2, 3] * 2, "row_classes has class -1"),
        ([0, 1, 2] * 4, "row_classes has 3 classes, and classes_seen is 4"),
        ([0, 1, 2, 3.0] * 3, r"progress.row_classes.3 must be a whole number"),
        ("0123", "progress.row_classes must be a list"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: Any, message: str, tmp_path: Path) -> None:
    tensors, record = _domain_checkpoint(tmp_path)
    record["progress"]["row_classes"] = rows
    checkpoint.write(tmp_path / "bad", tensors, record)
    with pytest.raises(ValueError, match=message):
        load_learner(tmp_path / "bad", backbone=_backbone())


_saved: list[tuple[dict[str, Any], dict[str, Any]]] = []


def _domain_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not _saved:
        one = vit("artsy", epochs=1)
        for e in _stream("domain-incremental"):
            one.learn(e)
        one.save(folder / "one")
        _saved.append(checkpoint.read(folder / "one"))
    tensors, record = _saved[0]
    return tensors, copy.deepcopy(record)


# --------------------------------------------------------------------------- what is refused


def _experience(labels: list[int], names: tuple[str, ...] = ()) -> Experience:
    y = torch.tensor(labels)
    x = torch.full((len(y), 3, 16, 16), 100, dtype=torch.uint8)
    return Experience("these", 1, x, y, x[:1], y[:1], class_names=names)


@pytest.mark.parametrize(
    ("labels", "got"), [([0, 3], r"\[0, 3\]"), ([-1, 0], r"\[-1, 0\]"), ([3], r"\[3\]"), ([], r"\[\]")]
)
def test_labels_with_gaps_are_refused(labels: list[int], got: str) -> None:
    one = vit("simplecil")
    one.learn(_experience([0, 0, 1, 1]))
    before = fingerprint(one)
    y = torch.tensor(labels, dtype=torch.int64)
    x = torch.zeros((len(y), 3, 16, 16), dtype=torch.uint8)
    bad = Experience("bad", 1, x, y, x[:0], y[:0])
    words = rf"labels must be known classes, under 2, or the classes from 2 on.*got {got}"
    with pytest.raises(ValueError, match=words):
        one.learn(bad)
    assert fingerprint(one) == before


def test_a_known_class_keeps_its_name() -> None:
    one = vit("simplecil")
    one.learn(_experience([0, 1], ("cat", "dog")))
    with pytest.raises(ValueError, match="class 1 was learned as 'dog', and is named 'cow' here"):
        one.learn(_experience([1, 2], ("cow", "owl")))
    with pytest.raises(ValueError, match="classes 0 and 2 would both be named 'cat'"):
        one.learn(_experience([1, 2], ("dog", "cat")))
    one.learn(_experience([1, 2], ("dog", "owl")))
    one.learn(_experience([0, 2]))
    assert one.class_names == ["cat", "dog", "owl"]


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))


@pytest.mark.usefixtures("_own_registry")
def test_a_users_method_says_itself_that_it_takes_known_classes() -> None:
    class Own(ViTLearner):
        def __init__(self, backbone: Any = "small", **common: Any) -> None:
            super().__init__(backbone, **common)
            self.learned: list[list[int]] = []

        def _finish(self, images: Any, labels: Tensor) -> None:
            self.learned = [*self.learned, labels.unique().tolist()]

        def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
            return torch.zeros((len(images), self.classes_seen))

        def _modules(self) -> torch.nn.ModuleDict:
            return torch.nn.ModuleDict()

        parameters_added = 0

    @register_method("own")
    class New(Own):
        pass

    @register_method("own again")
    class Again(Own):
        takes = ("class-incremental", "class-repetition")

    assert Learner.takes == New.takes == ("class-incremental",)
    first, second = _experience([0, 1]), _experience([1, 2])
    new, again = make_learner("own", _backbone()), make_learner("own again", _backbone())
    for one in (new, again):
        one.learn(first)
    with pytest.raises(ValueError, match=r"from 2 on.*got \[1, 2\].*New takes class-incremental streams only"):
        new.learn(second)
    again.learn(second)
    assert (again.learned, again.classes_seen) == ([[0, 1], [1, 2]], 3)
