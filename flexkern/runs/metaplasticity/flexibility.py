"""The flexibility distributions of the paper and its supplement, by name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from flexkern.fields import Field

__all__ = ["DISTRIBUTIONS", "flexibility"]

# The paper's hybrid network is uniform on (0, 1); the others are its supplement's. Of a beta distribution the
# two numbers are its parameters.
DISTRIBUTIONS: dict[str, str | float] = {
    "fixed 0.3": 0.3,
    "fixed 0.5": 0.5,
    "fixed 0.8": 0.8,
    "fixed 0.9": 0.9,
    "fixed 1": 1.0,
    "uniform 0 to 0.5": "uniform 0 to 0.5",
    "uniform 0 to 1": "hybrid",
    "biased to flexible": "biased_high",
    "biased to stable": "biased_low",
    "beta 0.5, 0.5": "beta 0.5, 0.5",
    "beta 2, 2": "beta 2, 2",
}
_BETA = 41  # what numpy's generator is for, so that no other use shares its numbers


def flexibility(
    distribution: str | float, sizes: Sequence[int], seed: int, device: torch.device | str = "cpu"
) -> Any:
    """A value for ``network`` of :class:`flexkern.learners.MetaplasticMLP`.

    Args:
        distribution: a value of :data:`DISTRIBUTIONS`, or whatever the learner takes itself.
        sizes: inputs, units of each hidden layer, outputs.
        seed: of the draw; the learner's own.
        device: where the learner is.
    """
    if distribution == "uniform 0 to 0.5":
        return Field.uniform(seed, low=0.0, high=0.5)
    if isinstance(distribution, str) and distribution.startswith("beta "):
        a, b = (float(number) for number in distribution.removeprefix("beta ").split(","))
        values: list[Any] = []
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            draw = np.random.default_rng([_BETA, seed, layer]).beta(a, b, (fan_out, fan_in))
            values += [
                torch.from_numpy(draw.astype(np.float32)),
                1.0,
            ]  # the weight, and its bias, which is free
        return values
    return distribution
