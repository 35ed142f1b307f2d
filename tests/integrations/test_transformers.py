"""Items end where a transformers.Trainer ends steps, epochs and training, once each, and through resuming."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flexkern.optim import MetaplasticSGD, fuse_into_backward
from helpers.ending_items import Classifier, Remembering, examples, remembering

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from transformers import Trainer, TrainingArguments  # noqa: E402

from flexkern.integrations.transformers import ConsolidateCallback  # noqa: E402


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given = {
        "per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "no", "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "max_grad_norm": 0.0, "logging_steps": 1,
    } | options  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **given)


def trainer(
    folder: Path, model: nn.Module, optimizer: Any, *callbacks: ConsolidateCallback, **options: Any
) -> Trainer:
    return Trainer(
        model,
        arguments(folder, **options),
        train_dataset=examples(),
        optimizers=(optimizer, None),
        callbacks=list(callbacks),
    )


# 24 examples in batches of 4: 6 steps an epoch, 12 in all.
@pytest.mark.parametrize(
    ("every", "ended"),
    [
        ("experience", [12]),
        ("train_end", [12]),
        ("epoch", [6, 12]),
        (5, [5, 10]),
        (["epoch", 3], [3, 6, 9, 12]),
        (("experience", 5), [5, 10, 12]),
    ],
)
def test_when_items_end(every: Any, ended: list[int], tmp_path: Path) -> None:
    model = Classifier()
    optimizer = remembering(model)
    trainer(tmp_path, model, optimizer, ConsolidateCallback(every)).train()
    assert optimizer.ended == ended


def test_several_items_with_one_trainer(tmp_path: Path) -> None:
    """The Trainer counts steps from 0 again, and wraps the optimizer once more."""
    model = Classifier()
    optimizer = remembering(model)
    learning = trainer(tmp_path, model, optimizer, ConsolidateCallback())
    for _ in range(3):
        learning.train()
    assert optimizer.ended == [12, 24, 36]


def test_an_accumulated_step_counts_once(tmp_path: Path) -> None:
    model = Classifier()
    optimizer = remembering(model)
    # 6 batches, 4 for a step: an epoch has 2 steps, of which the second has the 2 batches that are left.
    options = {"gradient_accumulation_steps": 4, "num_train_epochs": 3}
    trainer(tmp_path, model, optimizer, ConsolidateCallback((2, "epoch")), **options).train()
    assert (optimizer.taken, optimizer.ended) == (6, [2, 4, 6])


def test_an_optimizer_that_the_trainer_makes(tmp_path: Path) -> None:
    learning = Trainer(
        Classifier(),
        arguments(tmp_path, num_train_epochs=1),
        train_dataset=examples(),
        optimizer_cls_and_kwargs=(Remembering, {"lr": 0.05, "scale": 10.0}),
        callbacks=[ConsolidateCallback("epoch")],
    )
    learning.train()
    assert learning.optimizer.optimizer.ended == [6]


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize(
    ("every", "at", "ended"),
    [("epoch", 6, [12]), ("epoch", 4, [6, 12]), (5, 6, [10]), (4, 4, [8, 12]), (("epoch", 5), 5, [6, 10, 12])],
)
def test_resuming(every: Any, at: int, ended: list[int], restored: bool, tmp_path: Path) -> None:
    """The one that goes on from a checkpoint ends the items that were to come, and gets the same weights."""

    def run(folder: Path, checkpoint: Path | None) -> tuple[Classifier, Remembering]:
        model = Classifier()
        optimizer = remembering(model, scale=50.0)
        callback = ConsolidateCallback(every)
        options = {
            "save_strategy": "steps",
            "save_steps": at,
            "restore_callback_states_from_checkpoint": restored,
        }
        trainer(folder, model, optimizer, callback, **options).train(resume_from_checkpoint=checkpoint)
        return model, optimizer

    whole, optimizer = run(tmp_path / "whole", None)
    resumed, went_on = run(tmp_path / "resumed", tmp_path / "whole" / f"checkpoint-{at}")
    assert [at + step for step in went_on.ended] == ended
    assert [step for step in optimizer.ended if step > at] == ended
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_without_the_callback(tmp_path: Path) -> None:
    model = Classifier()
    saving = {"save_strategy": "steps", "save_steps": 4}
    trainer(tmp_path, model, remembering(model), **saving).train()
    optimizer = remembering(model)
    learning = trainer(tmp_path, model, optimizer, ConsolidateCallback(6), **saving)
    learning.train(resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert optimizer.ended == [2, 8]
    saved = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    record = saved["stateful_callbacks"]["ConsolidateCallback"]["attributes"]["record"]
    assert record == {"ended_at": 12, "count": 2}


def test_an_optimizer_that_cannot_consolidate(tmp_path: Path) -> None:
    model = Classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learning = trainer(tmp_path, model, torch.optim.AdamW(model.parameters()), ConsolidateCallback())
    with pytest.raises(TypeError, match=r"torch\.optim\.adamw\.AdamW, which has no consolidate.*optimizers=\("):
        learning.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_item_has_ended(tmp_path: Path) -> None:
    model = Classifier()
    learning = trainer(tmp_path, model, remembering(model), ConsolidateCallback(100))
    with pytest.warns(UserWarning, match=r"every=100\): training ended after 12 .* without a consolidate"):
        learning.train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="ConsolidateCallback")
        learning.train()  # once
        stepping = trainer(tmp_path, model, remembering(model, gate="step"), ConsolidateCallback(100))
        stepping.train()  # does without consolidate()
    unmeasured = remembering(model, gate="step", scale="auto")
    with pytest.warns(UserWarning, match="without a consolidate"):
        trainer(tmp_path, model, unmeasured, ConsolidateCallback(100)).train()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_fused_model(accumulated: int, tmp_path: Path) -> None:
    """The whole loop, with the norm of gradients that the Trainer logs; the same weights as without fusing."""
    models = [Classifier(), Classifier()]
    for model, fused in zip(models, (False, True), strict=True):
        optimizer = MetaplasticSGD(model.parameters(), lr=0.05, scale=10.0)
        if fused:
            assert len(fuse_into_backward(model, optimizer, window=accumulated)) == 2
        options = {"gradient_accumulation_steps": accumulated}
        learning = trainer(tmp_path, model, optimizer, ConsolidateCallback("epoch"), **options)
        learning.train()
        norms = [log["grad_norm"] for log in learning.state.log_history if "grad_norm" in log]
        assert len(norms) == 12 // accumulated
        assert all(math.isfinite(norm) and norm > 0 for norm in norms)
    start = Classifier()
    for plain, fused, first in zip(*(m.parameters() for m in (*models, start)), strict=True):
        moved = (plain - first).abs().max()
        assert moved > 1e-3
        # 12 steps of at most 4 + 8 + 4 sums each, in another order, of gradients that moved the weights so far.
        assert (plain - fused).abs().max() <= 2**-24 * 12 * 16 * (1 + moved)


def test_a_fused_model_cannot_be_clipped(tmp_path: Path) -> None:
    model = Classifier()
    optimizer = remembering(model)
    fuse_into_backward(model, optimizer)
    learning = trainer(tmp_path, model, optimizer, ConsolidateCallback(), max_grad_norm=1.0)
    with pytest.raises(RuntimeError, match=r"finite max_norm.*max_grad_norm=0"):
        learning.train()


@pytest.mark.parametrize("every", ["never", "Epoch", 0, -1, (), ("epoch", 0)])
def test_moments_that_there_are_not(every: Any) -> None:
    with pytest.raises(ValueError, match=r"every must be \"experience\" .*number of optimizer steps >= 1"):
        ConsolidateCallback(every)


@pytest.mark.parametrize("every", [True, 2.5, ("epoch", None)])
def test_moments_of_a_wrong_type(every: Any) -> None:
    with pytest.raises(TypeError, match="every must be"):
        ConsolidateCallback(every)
