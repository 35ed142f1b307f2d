"""Digits, item after item, with Lightning: what ``consolidate()`` keeps, against plain SGD.

python examples/lightning_digits.py      (needs flexkern[cli,lightning])
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from digits import accuracies, as_input, digits_stream, network, table
from flexkern.integrations.lightning import ConsolidateCallback
from flexkern.optim import MetaplasticSGD


class Classifier(pl.LightningModule):
    """A network and the optimizer that goes with it from item to item."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.model, self.optimizer = model, optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        x, labels = batch
        return nn.functional.cross_entropy(self.model(x), labels)


def learn(name: str, epochs: int = 4) -> list[float]:
    """Learns all items one after the other; the accuracy of each at the end."""
    stream = digits_stream()
    model = network(stream)
    callbacks: list[Any] = []
    if name == "MetaplasticSGD":
        optimizer: torch.optim.Optimizer = MetaplasticSGD(
            model.parameters(), lr=0.002, scale="auto", flexible_vectors=True
        )
        callbacks = [ConsolidateCallback(every="experience")]  # one fit() is one item
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    learner = Classifier(model, optimizer)
    for item in stream:
        data = TensorDataset(as_input(item.train_inputs), item.train_labels)
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=callbacks, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(learner, DataLoader(data, batch_size=32, shuffle=True))
    return accuracies(model.eval(), stream)


def main() -> dict[str, list[float]]:
    """Prints the table, and returns it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|treespec, LeafSpec).*")
    rows = {name: learn(name) for name in ("SGD", "MetaplasticSGD")}
    table(rows)
    return rows


if __name__ == "__main__":
    main()
