"""The network of the metaplasticity paper: linear layers from procedural weights, with or without a reserve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flexkern import ops
from flexkern.fields import Field, Purpose
from flexkern.nn import SilentLinear

__all__ = ["build", "linear_layers"]


def build(
    sizes: Sequence[int],
    seed: int,
    device: torch.device,
    reserve: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Sequential, list[Field]]:
    """Linear layers with ReLU between them: Glorot-normal weights, zero bias.

    Args:
        sizes: inputs, units of each hidden layer, outputs.
        seed: of the weights; layer number i has stream i.
        device: where the network is.
        reserve: arguments of :class:`flexkern.nn.SilentLinear` (silent, threshold, rule and so on), which the
            hidden layers then are. The output layer never is: each of its units answers to one class, and that
            of a late class must not wait until enough of its own images have made synapses functional.
            Functional synapses have the weights that they have without a reserve.
        dtype: of weights and biases: low-precision ones begin as the roundings of float32 ones.

    Returns:
        The network, and the field that each layer's weight was initialised from.
    """
    layers: list[nn.Module] = []
    fields = []
    pairs = list(itertools.pairwise(sizes))
    for number, (fan_in, fan_out) in enumerate(pairs):
        field = Field.normal(seed, number, std=math.sqrt(2 / (fan_in + fan_out)), purpose=Purpose.ANCHOR)
        hidden = number < len(pairs) - 1
        layer: nn.Linear
        if reserve is not None and hidden:
            layer = SilentLinear(
                fan_in,
                fan_out,
                device=device,
                dtype=dtype,
                seed=seed,
                stream=number,
                init=field,
                **reserve,
            )
        else:
            # skip_init leaves memory as it is: drawing torch's own initial values would move its global
            # generator.
            layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, device=device, dtype=dtype)
            with torch.no_grad():
                layer.weight.copy_(ops.materialize(field, layer.weight.shape, device=device))
        with torch.no_grad():
            layer.bias.zero_()
        fields.append(field)
        layers += [layer, nn.ReLU()] if hidden else [layer]
    return nn.Sequential(*layers), fields


def linear_layers(model: nn.Sequential) -> list[nn.Linear]:
    """The linear layers of such a network, in order."""
    return [layer for layer in model if isinstance(layer, nn.Linear)]
