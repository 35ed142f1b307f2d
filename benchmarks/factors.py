"""What changes from step to step of the ``causes/`` cases, and how much each change is worth."""

from __future__ import annotations

from typing import Any

__all__ = ["CAUSES", "split"]

# What changes from each step to the next; the last leads to ours.
CAUSES = {
    "causes/mlp-item": (
        "formula by hand, in place",
        "one pass over the weights (metaplastic_sgd_)",
        "flexibility drawn, not read; on a GPU anchors too",
        "step inside the backward product, no gradient in memory",
    ),
    "causes/artsy-inference": (
        "silent synapses cost nothing",
        "what comes before the first adapter, once per image",
        "all (image, task) pairs as one batch",
        "adapters of all tasks as one operator (gated_adapter)",
    ),
    "causes/artsy-training": (
        "ReLU in place, scale and sum in one",
        "an adapter as one operator (gated_adapter)",
        "the learner's own loop: no autograd before the first adapter, a bank",
    ),
}


def split(row: dict[str, Any]) -> list[tuple[str, float]]:
    """The causes of a speed-up and their factors, whose product is the speed-up over the first step.

    Args:
        row: of a ``causes/`` case, as :func:`flexkern.benchmarks.run.measure_case` returns it.

    Raises:
        ValueError: if it is no row of such a case, or has no figures.
    """
    causes = CAUSES.get(row.get("case", ""))
    if causes is None or "peers" not in row:
        raise ValueError(f"row: not the figures of a case by causes ({', '.join(CAUSES)}): {row.get('case')!r}")
    speedups = [peer["speedup"] for peer in row["peers"]] + [1.0]
    if len(speedups) != len(causes) + 1:
        raise ValueError(f"row: {row['case']} has {len(speedups) - 1} steps, but {len(causes)} causes")
    return [(cause, speedups[i] / speedups[i + 1]) for i, cause in enumerate(causes)]
