"""Random calls of the public operators with arguments that are in order, each with its judge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fuzz import other_calls
from fuzz.layer_calls import layer
from fuzz.step_calls import Call, displacement, gate, step

__all__ = ["FUNCTIONS", "Call", "draw"]

FUNCTIONS: dict[str, Callable[[np.random.Generator], Call]] = {
    "metaplastic_gate": gate,
    "metaplastic_sgd_": lambda rng: step(rng, "sgd", gated=False),
    "gated_sgd_": lambda rng: step(rng, "sgd", gated=True),
    "metaplastic_adamw_": lambda rng: step(rng, "adamw", gated=False),
    "gated_adamw_": lambda rng: step(rng, "adamw", gated=True),
    "scale_displacement_": lambda rng: displacement(rng, gated=False),
    "gated_displacement_": lambda rng: displacement(rng, gated=True),
    "synapse_step_": lambda rng: layer(rng, linear=False),
    "linear_step_": lambda rng: layer(rng, linear=True),
    "gated_adapter": other_calls.adapter,
    "prototype_logits": other_calls.logits_call,
    "complete_prototypes": other_calls.completion,
    "materialize": other_calls.materialize,
    "flexibility_field": other_calls.field_call,
    "pack_mask": other_calls.pack,
    "unpack_mask": other_calls.unpack,
}
_NAMES = (*FUNCTIONS, "metaplastic_sgd_", "synapse_step_", "linear_step_")


def draw(rng: np.random.Generator) -> Call:
    # Of the CPU only: torch.manual_seed takes 2 ms where there is no GPU.
    torch.default_generator.manual_seed(int(rng.integers(1 << 31)))
    return FUNCTIONS[_NAMES[rng.integers(len(_NAMES))]](rng)
