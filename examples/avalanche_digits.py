"""Digits, item after item, with Avalanche: what ``consolidate()`` keeps, against plain SGD.

python examples/avalanche_digits.py      (needs flexkern[cli] and avalanche-lib)
"""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils.data import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.training import Naive
from torch import Tensor
from torch.utils.data import TensorDataset

from digits import accuracies, as_input, digits_stream, network, table
from flexkern.integrations.avalanche import ConsolidatePlugin
from flexkern.optim import MetaplasticSGD


def dataset(images: Tensor, labels: Tensor) -> Any:
    """A data set of Avalanche's."""
    attributes = [DataAttribute(labels.tolist(), "targets"), TaskLabels([0] * len(labels))]
    return AvalancheDataset([TensorDataset(as_input(images), labels)], data_attributes=attributes)


def learn(name: str, epochs: int = 4) -> list[float]:
    """Learns all items one after the other; the accuracy of each at the end."""
    stream = digits_stream()
    benchmark = benchmark_from_datasets(
        train=[dataset(item.train_inputs, item.train_labels) for item in stream],
        test=[dataset(item.test_inputs, item.test_labels) for item in stream],
    )
    model = network(stream)
    plugins: list[Any] = []
    if name == "MetaplasticSGD":
        optimizer: torch.optim.Optimizer = MetaplasticSGD(
            model.parameters(), lr=0.002, scale="auto", flexible_vectors=True
        )
        plugins = [ConsolidatePlugin(every="experience")]
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    strategy = Naive(
        model=model, optimizer=optimizer, train_mb_size=32, train_epochs=epochs, plugins=plugins, evaluator=None
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return accuracies(model.eval(), stream)


def main() -> dict[str, list[float]]:
    """Prints the table, and returns it."""
    rows = {name: learn(name) for name in ("SGD", "MetaplasticSGD")}
    table(rows)
    return rows


if __name__ == "__main__":
    main()
