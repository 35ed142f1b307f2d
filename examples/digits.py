"""What the examples share: the bundled digits as a stream of items, a network, and the table at the end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flexkern.streams import Stream, bundled_digits, two_digit_stream


def digits_stream(items: int = 5) -> Stream:
    """Images of two digits side by side: an item is one pair of digits, among images of the other pairs."""
    return two_digit_stream(*bundled_digits(), items=items, train_per_item=300, test_per_item=100, seed=0)


def as_input(images: Tensor) -> Tensor:
    """uint8 images [n, height, width] as numbers from 0 to 1."""
    return images.to(torch.float32) / 255


def network(stream: Stream) -> nn.Sequential:
    """A small classifier, always with the same weights."""
    torch.manual_seed(0)
    pixels = stream[0].train_inputs[0].numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, stream.classes))


@torch.no_grad()
def accuracies(predict: Callable[[Tensor], Tensor], stream: Stream) -> list[float]:
    """Accuracy on the test part of each item, after the last was learned."""
    return [
        (predict(as_input(item.test_inputs)).argmax(-1) == item.test_labels).float().mean().item()
        for item in stream
    ]


def table(rows: dict[str, list[float]]) -> None:
    """Prints accuracy after the whole stream: a row for each optimizer, a column for each item."""
    items = len(next(iter(rows.values())))
    print(
        f"{'accuracy after the last item':30}"
        + "".join(f"{f'item {i + 1}':>8}" for i in range(items))
        + "    mean"
    )
    for name, values in rows.items():
        print(f"{name:30}" + "".join(f"{v:8.2f}" for v in values) + f"{sum(values) / items:8.2f}")
