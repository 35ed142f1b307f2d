"""A frozen vision transformer with an adapter a task, as EASE runs it (arXiv 2403.12030), in plain PyTorch.

Of flexkern it takes only :func:`flexkern.nn.adapters.adapted_model.parts_of`, which knows how the
transformers of several libraries name their blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.nn import AdapterBank
from flexkern.nn.adapters.adapted_model import parts_of

__all__ = ["Adapter", "Ease"]


class Adapter(nn.Module):
    """One adapter in parallel to an MLP: ``residual + scale * up(dropout(relu(down(x))))``.

    Args:
        width, rank: d and r.
        scale: of its output.
        dropout: of the bottleneck, in training.
    """

    def __init__(self, width: int, rank: int, scale: float = 0.1, dropout: float = 0.1) -> None:
        super().__init__()
        self.scale = scale
        # In place, and one pass for scale and sum: nobody else reads what these overwrite.
        self.down, self.relu, self.dropout = nn.Linear(width, rank), nn.ReLU(inplace=True), nn.Dropout(dropout)
        self.up = nn.Linear(rank, width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """[n, L, d] from two of these."""
        with torch.profiler.record_function("adapter"):
            return torch.add(residual, self.up(self.dropout(self.relu(self.down(x)))), alpha=self.scale)

    @torch.no_grad()
    def take(self, bank: AdapterBank, task: int, layer: int) -> Adapter:
        """Takes the weights that the bank has for one task and block, and returns itself."""
        rows = dict(bank.rows[task].named_parameters())
        self.down.weight.copy_(rows[f"down_{layer}"].T)
        self.down.bias.copy_(rows[f"down_bias_{layer}"])
        self.up.weight.copy_(rows[f"up_{layer}"].T)
        self.up.bias.copy_(rows[f"up_bias_{layer}"])
        return self


class Ease(nn.Module):
    """A network with a bank's adapters as modules of its own; every task is a whole pass of it.

    Args:
        network: a vision transformer. It is taken over: frozen, and with hooks in its blocks.
        bank: adapters of the tasks, in all blocks or the last ones. They are copied.

    Raises:
        ValueError: if the network is of no known family.
    """

    def __init__(self, network: nn.Module, bank: AdapterBank) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        parts = parts_of(self.network)
        if parts is None:
            raise ValueError(f"network: {type(network).__name__} is not a vision transformer of a known family")
        self._parts = parts
        device = next(self.network.parameters()).device
        self.adapters = nn.ModuleList(
            nn.ModuleList(
                Adapter(bank.width, bank.rank, bank.scale, bank.dropout).to(device).take(bank, task, layer)
                for layer in range(bank.layers)
            )
            for task in range(bank.tasks)
        )
        self._running: Any = None  # the adapters of the task whose pass it is
        self._read: Tensor | None = None  # what the MLP of the present block reads, before its norm
        for layer, (block, norm) in enumerate(parts.points[len(parts.points) - bank.layers :]):
            norm.register_forward_pre_hook(self._keep)
            block.register_forward_hook(self._adder(layer))
        self.eval()

    def _keep(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._read = inputs[0]

    def _adder(self, layer: int) -> Callable[..., Any]:
        def add(_block: nn.Module, _inputs: Any, output: Any) -> Any:
            x, self._read = self._read, None
            if self._running is None:
                return None
            if isinstance(output, Tensor):
                return self._running[layer](x, output)
            return (self._running[layer](x, output[0]), *output[1:])

        return add

    def train(self, mode: bool = True) -> Ease:
        """Only adapters train; the frozen network stays as it answers."""
        super().train(mode)
        self.network.eval()
        return self

    def features(self, images: Tensor, task: int | None = None) -> Tensor:
        """The class token of a whole pass, [n, width]; None: without adapters."""
        self._running = None if task is None else self.adapters[task]
        try:
            return self._parts.features(images)
        finally:
            self._running = None

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """T + 1 whole passes: features without adapters, then of each task, [n, 1 + tasks, width]."""
        return torch.stack([self.features(images, t) for t in (None, *range(len(self.adapters)))], 1)
