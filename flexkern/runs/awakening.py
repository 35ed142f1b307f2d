"""A layer comes alive: what silent synapses do while a stream is learned, from one run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flexkern import ops
from flexkern.learners import MetaplasticMLP
from flexkern.nn import AdaptiveThreshold, SilentLinear
from flexkern.streams import Stream

__all__ = ["run"]

CELLS = 32  # along each side of a map
# A small weight leaves what the network did as it was: see docs/results/silent_reserve.
# The threshold is a fast one, so that there is something to see.
RESERVE: dict[str, Any] = {"silent_fraction": 0.5, "rule": "rate", "insert": "hebbian", "eta": 1e-3}
THRESHOLD = AdaptiveThreshold(target=2e-3, gain=30.0, start=10.0)


def run(
    stream: Stream, epochs: int, progress: Callable[[str], None] = lambda _: None, **options: Any
) -> dict[str, Any]:
    """A hybrid network with half of its hidden synapses silent learns the stream.

    Args:
        stream: of features.
        epochs: of each item.
        progress: called after each item.
        options: of :class:`flexkern.learners.MetaplasticMLP`; a seed among them.

    Returns:
        silent_fraction, rule and so on; seed; ``functional``: [items + 1][2], share of functional synapses in
        the two hidden layers; ``conversions``: [items]; ``accuracy``: after the stream, [items]; ``maps``: for
        a few items the share of functional synapses of the first hidden layer in blocks of [units][inputs],
        both ordered by how many functional synapses they have at the end.
    """
    learner = MetaplasticMLP(stream.input_shape, stream.classes, threshold=THRESHOLD, **RESERVE, **options)
    layer = learner.model[0]
    assert isinstance(layer, SilentLinear)
    shares, masks = [learner.functional_share()[:2]], [_functional(layer)]
    for item in stream:
        learner.learn(item, epochs=epochs)
        shares.append(learner.functional_share()[:2])
        masks.append(_functional(layer))
        progress(f"reserve, item {item.number + 1} of {len(stream)}")
    units, inputs = masks[-1].sum(1).argsort(stable=True), masks[-1].sum(0).argsort(stable=True)
    last = len(stream)
    shown = sorted({0, 1, last // 2, last})
    return {
        "shows": "share of functional synapses: of both hidden layers after each item ('functional'), and of "
        "the first in blocks of units and inputs ('maps')",
        **RESERVE,
        "seed": learner.seed,
        "target": THRESHOLD.target,
        "functional": [[round(s, 5) for s in of_item] for of_item in shares],
        "conversions": [sum(of_item) for of_item in learner.conversions()],
        "accuracy": [round(float(a), 4) for a in learner.evaluate(stream).accuracies],
        "maps": [{"items_learned": n, "functional": _blocks(masks[n][units][:, inputs])} for n in shown],
    }


def _functional(layer: SilentLinear) -> Tensor:
    """bool [out, in]."""
    return ~ops.unpack_mask(layer.silent, layer.in_features)


def _blocks(mask: Tensor) -> list[list[float]]:
    """Shares of True in at most CELLS x CELLS blocks."""
    sides = min(CELLS, mask.shape[0]), min(CELLS, mask.shape[1])
    means = torch.nn.functional.adaptive_avg_pool2d(mask.float()[None], sides)[0]
    return [[round(v, 3) for v in row] for row in means.tolist()]
