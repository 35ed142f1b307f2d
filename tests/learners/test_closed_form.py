"""Ridge regression and LDA among the perceptron's methods: their heads' answers, in one pass, and refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern.learners import LDAMLP, MLP_METHODS, BatchProgress, RidgeMLP, checkpoint, load_mlp
from flexkern.learners.mlp import base
from flexkern.nn import LDAHead, RidgeHead
from flexkern.streams import Experience
from helpers.learner_state import fingerprint
from helpers.mlp_blobs import CLASSES, CLOSED_FORM, QUICK, SIZE, blobs

STREAM = blobs(3)


def make(method: str, **options: Any) -> Any:
    return MLP_METHODS[method]((SIZE,), CLASSES, **(QUICK.get(method, {}) | {"seed": 3} | options))


def learned(one: Any, stream: Any) -> Any:
    for experience in stream:
        one.learn(experience)
    return one


def only(experience: Experience, rows: Tensor) -> Experience:
    return dataclasses.replace(
        experience, train_inputs=experience.train_inputs[rows], train_labels=experience.train_labels[rows]
    )


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_it_answers_as_its_head(method: str) -> None:
    head: Any = RidgeHead(SIZE, features=24, seed=3) if method == "ridge" else LDAHead(SIZE)
    one, x = make(method), STREAM[0].test_inputs
    assert one.logits(x).tolist() == [[0.0] * CLASSES] * len(x)  # nothing is known: all are as likely
    for number, experience in enumerate(STREAM):
        head.update(experience.train_inputs, experience.train_labels)
        one.learn(experience)
        known = 2 * number + 2
        assert torch.equal(one.logits(x)[:, :known], head.logits(x))
        assert (one.logits(x)[:, known:] == torch.finfo(torch.float32).min).all()
        assert one.probabilities(x)[:, known:].sum() == 0
        assert int(one.predict(x).max()) < known
    assert one.evaluate(STREAM).accuracies.mean() > 0.95


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_the_order_of_items_and_of_their_parts_changes_nothing(method: str) -> None:
    """Classes come again; the whole stream at once is the same."""
    x = torch.cat([e.test_inputs for e in STREAM])
    straight = learned(make(method), STREAM).logits(x)
    backwards = learned(make(method), reversed(list(STREAM))).logits(x)
    halves = [only(e, rows) for rows in (torch.arange(0, 80, 2), torch.arange(1, 80, 2)) for e in STREAM]
    whole = dataclasses.replace(
        STREAM[0],
        train_inputs=torch.cat([e.train_inputs for e in STREAM]),
        train_labels=torch.cat([e.train_labels for e in STREAM]),
    )
    for other in (backwards, learned(make(method), halves).logits(x), learned(make(method), [whole]).logits(x)):
        torch.testing.assert_close(other, straight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_it_is_told_what_all_others_are(method: str) -> None:
    """Labels as they are, wrong ones too: with two classes' names exchanged, it exchanges them."""
    exchanged = dataclasses.replace(STREAM[0], train_labels=1 - STREAM[0].train_labels)
    one, other = learned(make(method), STREAM[:1]), learned(make(method), [exchanged])
    x = STREAM[0].test_inputs
    assert torch.equal(other.predict(x), 1 - one.predict(x))


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_an_item_is_one_pass(method: str) -> None:
    one, told, epochs = make(method), list[BatchProgress](), list[Any]()
    one.learn(STREAM[0], epochs=7, watch=told.append, progress=epochs.append)
    assert told == [BatchProgress("taking in", 0, 0, 7, 80, 80)]
    assert epochs == []
    other = learned(make(method, lr=3.0, momentum=0.5, widths=(2, 3), output_gate="frequency"), STREAM[:1])
    for name, value in one._modules().state_dict().items():
        assert torch.equal(other._modules().state_dict()[name], value)  # what is of a training does nothing
    kept = one.parameters_added
    assert kept == sum(t.numel() for t in one._modules().state_dict().values())
    for experience in blobs(3, per_class=90):
        one.learn(experience)
    assert one.parameters_added - kept == 4 * (
        {"ridge": 24, "lda": SIZE}[method] + 1
    )  # a column and a count for each class


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_stopped_in_the_pass_nothing_was_learned(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RidgeHead, "rows_at_once", 32)
    straight, one = (learned(make(method), STREAM[:1]) for _ in range(2))
    before = fingerprint(one)

    def stop(now: BatchProgress) -> None:
        if now.done == 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.learn(STREAM[1], watch=stop)
    assert fingerprint(one) == before
    for learner in (straight, one):
        learner.learn(STREAM[1])
    assert fingerprint(one) == fingerprint(straight)


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_it_goes_on_from_its_checkpoint(method: str, tmp_path: Path) -> None:
    straight = make(method)
    for number, experience in enumerate(STREAM):
        straight.save(tmp_path / str(number))
        straight.learn(experience)
    for number in range(3):
        again = load_mlp(tmp_path / str(number))
        assert type(again) is type(straight)
        assert fingerprint(learned(again, STREAM[number:])) == fingerprint(straight)
        assert again.configuration() == straight.configuration()


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_memory_of_an_answer_does_not_grow_with_inputs(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = learned(make(method), STREAM)
    x, sizes = STREAM[0].test_inputs.repeat(10, 1), list[int]()
    whole, logits = one.logits(x), type(one.head).logits

    def watched(self: Any, rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return logits(self, rows)

    monkeypatch.setattr(type(one.head), "logits", watched)
    monkeypatch.setattr(base, "_ANSWERED_BYTES", 1)
    torch.testing.assert_close(one.logits(x), whole)
    assert sizes == [256, 256, 256, 32]
    sizes.clear()
    monkeypatch.setattr(base, "_ANSWERED_BYTES", 4 * 500 * (24 if method == "ridge" else SIZE))
    one.logits(x)
    assert sizes == [500, 300]  # of random features, where there are more of them than inputs have values


def test_what_is_refused(tmp_path: Path) -> None:
    for kind, options, message in (
        (RidgeMLP, {"random_features": -1}, "random_features must be at least 0, got -1"),
        (RidgeMLP, {"random_features": 2.5}, "random_features must be"),
        (RidgeMLP, {"ridge": 0}, "ridge must be 'auto' or a finite number > 0"),
        (RidgeMLP, {"ridge": "much"}, "ridge must be 'auto' or a finite number > 0"),
        (RidgeMLP, {"balanced": 1}, "balanced must be"),
        (RidgeMLP, {"feature": 3}, "unexpected keyword argument 'feature'"),
        (LDAMLP, {"shrinkage": 1.5}, "shrinkage must be"),
        (LDAMLP, {"priors": "count"}, "priors must be .*'counts'"),
        (LDAMLP, {"lr": -1}, "lr must be"),
        (LDAMLP, {"widths": 3}, "widths must be"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            kind((SIZE,), CLASSES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_inputs_whose_squares_are_too_large(dtype: torch.dtype) -> None:
    one = learned(make("lda"), STREAM[:1])
    before = fingerprint(one)
    large = dataclasses.replace(STREAM[1], train_inputs=STREAM[1].train_inputs.to(dtype) * 1e14)
    for ask in (one.check, one.learn):
        with pytest.raises(ValueError, match=r"experience: its train_inputs must be within 1\.76e\+13"):
            ask(large)
    assert fingerprint(one) == before

    class Large(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() * 1e14

    one = make("lda", features=Large())
    before = fingerprint(one)
    with pytest.raises(ValueError, match="experience: its features cannot be learned: h0 must be within"):
        one.learn(STREAM[0])
    assert fingerprint(one) == before


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_a_file_that_gives_no_answers(method: str, tmp_path: Path) -> None:
    learned(make(method), STREAM).save(tmp_path / "one")
    tensors, record = checkpoint.read(tmp_path / "one")
    count = tensors["model.head.count"]

    def refused(message: str, **changed: Tensor) -> None:
        checkpoint.write(
            tmp_path / "other", tensors | {f"model.head.{k}": v for k, v in changed.items()}, record
        )
        with pytest.raises(ValueError, match=f"other' does not fit, tensors: .*{message}"):
            load_mlp(tmp_path / "other")

    refused("counts must be >= 0, got -3", count=count.index_fill(0, torch.tensor([1]), -3))
    sums = "cross" if method == "ridge" else "sum"
    more = torch.cat([tensors[f"model.head.{sums}"]] * 2, 1 if method == "ridge" else 0)
    refused("the head has 12 classes, and there are 6", count=torch.cat([count] * 2), **{sums: more})
    square = "gram" if method == "ridge" else "scatter"
    refused("is not finite", **{square: tensors[f"model.head.{square}"] * torch.nan})


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_streams_of_any_classes(method: str) -> None:
    """One class alone, one input alone, a class that is skipped: answers are of those that were told."""
    x = STREAM[0].train_inputs
    for rows, labels in ((1, [4]), (3, [2, 2, 2]), (4, [0, 5, 5, 0])):
        one = make(method)
        y = torch.tensor(labels)
        one.learn(Experience("few", 0, x[:rows], y, x[:rows], y))
        assert set(one.predict(x).tolist()) <= set(labels)
        assert one.probabilities(x).sum(1).sub(1).abs().max() < 1e-5
