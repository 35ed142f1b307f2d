"""Items end where a Lightning Trainer ends steps, epochs and fits, once each, and through resuming."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from flexkern.optim import MetaplasticSGD, fuse_into_backward
from helpers.ending_items import Classifier, examples, remembering

lightning = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.utilities import grad_norm  # noqa: E402

from flexkern.integrations.lightning import ConsolidateCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),  # of Lightning itself
]


@pytest.fixture(autouse=True)
def is_quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Learner(lightning.LightningModule):
    def __init__(self, *optimizers: Any, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = Classifier() if model is None else model
        self.given = list(optimizers) or [remembering(self.model)]

    def configure_optimizers(self) -> Any:
        return self.given

    def training_step(self, batch: dict[str, torch.Tensor], number: int) -> torch.Tensor:
        return self.model(**batch)["loss"]


class ByHand(Learner):
    """Two optimizers that take turns in one batch, by manual optimization."""

    def __init__(self) -> None:
        model = Classifier()
        first, second = (remembering(model.layers[i]) for i in (0, 2))
        super().__init__(first, second, model=model)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, torch.Tensor], number: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.model(**batch)["loss"])
        for optimizer in self.optimizers():
            optimizer.step()


def fit(
    learner: Learner,
    folder: Path,
    *callbacks: Any,
    checkpoint: str | None = None,
    data: Any = None,
    **options: Any,
) -> None:
    given = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given |= {
        "accelerator": "cpu",
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    }
    trainer = lightning.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(given | options))
    trainer.fit(learner, DataLoader(data or examples(), batch_size=4), ckpt_path=checkpoint)


@pytest.mark.parametrize(
    ("every", "ended"),
    [
        ("experience", [12]),
        ("epoch", [6, 12]),
        (5, [5, 10]),
        (("epoch", 3), [3, 6, 9, 12]),
        (("train_end", 5), [5, 10, 12]),
    ],
)
def test_when_items_end(every: Any, ended: list[int], tmp_path: Path) -> None:
    learner = Learner()
    fit(learner, tmp_path, ConsolidateCallback(every))
    assert learner.given[0].ended == ended


def test_an_accumulated_step_counts_once(tmp_path: Path) -> None:
    learner = Learner()
    fit(learner, tmp_path, ConsolidateCallback((2, "epoch")), accumulate_grad_batches=4, max_epochs=3)
    assert (learner.given[0].taken, learner.given[0].ended) == (6, [2, 4, 6])


def test_an_epoch_that_is_cut_short(tmp_path: Path) -> None:
    learner = Learner()
    fit(learner, tmp_path, ConsolidateCallback("epoch"), limit_train_batches=4, max_steps=6)
    assert learner.given[0].ended == [4, 6]


def test_several_optimizers(tmp_path: Path) -> None:
    """Each batch has two steps: multiples of 3 are passed over, and of 6 steps a batch is the third."""
    learner = ByHand()
    fit(learner, tmp_path, ConsolidateCallback((3, "epoch")), max_epochs=1)
    for optimizer in learner.given:
        assert (optimizer.taken, optimizer.ended) == (6, [2, 3, 5, 6])


def test_one_of_them_is_plain(tmp_path: Path) -> None:
    learner = ByHand()
    learner.given[1] = torch.optim.SGD(learner.model.layers[2].parameters(), 0.05)
    fit(learner, tmp_path, ConsolidateCallback(), max_epochs=1)
    assert learner.given[0].ended == [6]


@pytest.mark.parametrize(
    ("every", "at", "ended"),
    [("epoch", 6, [12]), ("epoch", 4, [6, 12]), (5, 6, [10]), (4, 4, [8, 12]), (("epoch", 5), 5, [6, 10, 12])],
)
def test_resuming(every: Any, at: int, ended: list[int], tmp_path: Path) -> None:
    def run(checkpoint: str | None) -> Learner:
        learner = Learner(model=(model := Classifier()))
        learner.given = [remembering(model, scale=50.0)]
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=at, save_top_k=-1)
        # All batches are one: Lightning does not skip those of a resumed epoch that a plain loader has given.
        data = examples(4) * 6
        fit(learner, tmp_path, ConsolidateCallback(every), saving, checkpoint=checkpoint, data=data)
        return learner

    whole = run(None)
    resumed = run(str(tmp_path / f"step={at}.ckpt"))
    assert [at + step for step in resumed.given[0].ended] == ended
    assert [step for step in whole.given[0].ended if step > at] == ended
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_an_optimizer_that_cannot_consolidate(tmp_path: Path) -> None:
    model = Classifier()
    learner = Learner(torch.optim.Adam(model.parameters()), model=model)
    with pytest.raises(TypeError, match=r"torch\.optim\.adam\.Adam, which has no .*configure_optimizers\(\)"):
        fit(learner, tmp_path, ConsolidateCallback())
    learner.given = []
    with pytest.raises(TypeError, match=r"has no consolidate\(\)"):
        fit(learner, tmp_path, ConsolidateCallback())


def test_no_item_has_ended(tmp_path: Path) -> None:
    callback = ConsolidateCallback(100)
    with pytest.warns(UserWarning, match=r"every=100\): training ended after 12 .* without a consolidate"):
        fit(Learner(), tmp_path, callback)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="ConsolidateCallback")
        fit(Learner(), tmp_path, callback)  # once


class Fused(Learner):
    """Logs gradient norms as Lightning's documentation shows, where ``logs`` is set."""

    logs = False

    def __init__(self) -> None:
        super().__init__()
        fuse_into_backward(self.model, self.given[0])

    def on_before_optimizer_step(self, optimizer: MetaplasticSGD) -> None:
        if self.logs:
            grad_norm(self.model, 2)


def test_a_fused_model(tmp_path: Path) -> None:
    plain, fused, start = Learner(), Fused(), Classifier()
    for learner in (plain, fused):
        fit(learner, tmp_path, ConsolidateCallback("epoch"))
    models = (plain.model, fused.model, start)
    for weight, other, first in zip(*(m.parameters() for m in models), strict=True):
        moved = (weight - first).abs().max()
        assert moved > 1e-3
        # 12 steps of at most 4 + 8 + 4 sums each, in another order, of gradients that moved the weights so far.
        assert (weight - other).abs().max() <= 2**-24 * 12 * 16 * (1 + moved)


def test_what_a_fused_model_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a gradient that does not exist"):
        fit(Fused(), tmp_path, gradient_clip_val=0.5)
    with pytest.raises(RuntimeError, match="a gradient that does not exist"):
        fit(Fused(), tmp_path, gradient_clip_val=0.5, gradient_clip_algorithm="value")
    learner = Fused()
    learner.logs = True  # Lightning's grad_norm asks each gradient alone
    with pytest.raises(RuntimeError, match="a gradient that does not exist"):
        fit(learner, tmp_path)
