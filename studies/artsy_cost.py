"""Inference as tasks come: Artsy with one open synapse per image, and one pass per task.

    python -m studies.artsy_cost --out docs/results/artsy

Random weights: cost does not depend on them. Both run the same adapters through the same kernel, and the peer's
passes are whole ones, as EASE makes them. The benchmarks (``flexkern bench --only growth/tasks``) measure the
same inference against adapters as EASE's authors have them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flexkern.benchmarks.bench_artsy import Inference
from flexkern.benchmarks.case import CPU
from flexkern.benchmarks.timing import quartiles, sample
from flexkern.environment import environment
from flexkern.files import write_json

__all__ = ["main", "measure"]

TASKS = (1, 2, 5, 10, 20, 50)


@torch.no_grad()
def _passes(inference: Inference) -> None:
    for task in (None, *range(inference.tasks)):
        inference.adapted(inference.images, task=task)


def measure(tasks: Sequence[int] = TASKS, *, batch: int = 64, rounds: int = 5) -> dict[str, Any]:
    """Milliseconds per image of both, and the megabytes of all adapters, for each number of tasks."""
    rows = []
    for count in tasks:
        inference = Inference(count, batch=batch)
        artsy = _median(inference.ours, rounds)
        ease = _median(partial(_passes, inference), max(rounds * 2 // (count + 1), 1))
        rows.append(
            {
                "tasks": count,
                "artsy_ms": round(1e3 * artsy / batch, 4),
                "ease_ms": round(1e3 * ease / batch, 4),
                "adapters_mb": round(inference.bank.parameters_per_task * count * 4 / 2**20, 3),
            }
        )
    here = environment()
    return {
        "experiment": "cost of an answer against the number of tasks",
        "batch": batch,
        "rank": inference.bank.rank,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "versions": here["versions"],
        "build": here["build"],
    }


def _median(call: Callable[[], object], rounds: int) -> float:
    sample(call, CPU)
    _, median, _ = quartiles([sample(call, CPU) for _ in range(rounds)])
    return median


def _draw(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    tasks = [r["tasks"] for r in results["rows"]]
    for key, label in (("ease_ms", "one pass per task (EASE)"), ("artsy_ms", "Artsy, one open synapse")):
        left.plot(tasks, [r[key] for r in results["rows"]], "o-", label=label)
    left.set(xlabel="tasks", ylabel="ms per image", xscale="log", yscale="log")
    left.legend(fontsize=8)
    right.plot(tasks, [r["adapters_mb"] for r in results["rows"]], "o-")
    right.set(xlabel="tasks", ylabel="MB of adapters")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes ``cost.json`` and ``cost.png``."""
    parser = argparse.ArgumentParser(prog="python -m studies.artsy_cost", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/artsy"))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    results = measure(rounds=given.rounds)
    write_json(given.out / "cost.json", results)
    _draw(results, given.out / "cost.png")
    print(json.dumps(results["rows"], indent=1))


if __name__ == "__main__":
    main()
