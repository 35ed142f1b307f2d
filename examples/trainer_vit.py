"""Digits, item after item, with a small vision transformer and transformers.Trainer, against plain SGD.

python examples/trainer_vit.py      (needs flexkern[cli,transformers])

It shows how the parts go together. Do not expect much of its table: in seconds a transformer with random
weights learns little more than which item is the present one, and there is little that could be kept.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from digits import accuracies, as_input, digits_stream, table
from flexkern.integrations.transformers import ConsolidateCallback
from flexkern.optim import MetaplasticSGD
from flexkern.streams import Experience


class Images(Dataset):
    """An item's training images, as the model's forward() names its arguments."""

    def __init__(self, item: Experience) -> None:
        self.images, self.labels = as_input(item.train_inputs).unsqueeze(1), item.train_labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[i], "labels": self.labels[i]}


def learn(name: str, folder: str, epochs: int = 2) -> list[float]:
    """Learns all items one after the other; the accuracy of each at the end."""
    stream = digits_stream()
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=stream.input_shape[-1], patch_size=4, num_channels=1, hidden_size=64, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=128,
    )  # fmt: skip
    config.num_labels = stream.classes
    model = ViTForImageClassification(config)
    callbacks: list[Any] = []
    if name == "MetaplasticSGD":
        optimizer: torch.optim.Optimizer = MetaplasticSGD(model.parameters(), lr=0.02, scale="auto")
        callbacks = [ConsolidateCallback(every="experience")]  # one train() is one item
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    arguments = TrainingArguments(
        folder, num_train_epochs=epochs, per_device_train_batch_size=32, lr_scheduler_type="constant",
        use_cpu=True, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, seed=0,
    )  # fmt: skip
    # The optimizer is given, and not made by the Trainer, so that it goes on from item to item.
    trainer = Trainer(model, arguments, optimizers=(optimizer, None), callbacks=callbacks)
    for item in stream:
        trainer.train_dataset = Images(item)
        trainer.train()
    model.eval()
    return accuracies(lambda images: model(images.unsqueeze(1)).logits, stream)


def main() -> dict[str, list[float]]:
    """Prints the table, and returns it."""
    with tempfile.TemporaryDirectory() as folder:
        rows = {name: learn(name, folder) for name in ("SGD", "MetaplasticSGD")}
    table(rows)
    return rows


if __name__ == "__main__":
    main()
