"""What an answer costs as tasks come: Artsy with one open synapse an image, and a pass for each task.

    python -m studies.artsy_cost --out docs/results/artsy

Random weights: cost does not depend on them. Both run the same adapters through the same kernel, and the peer's
passes are whole ones, as EASE makes them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexkern.backbones import random_backbone
from flexkern.environment import environment
from flexkern.files import write_json
from flexkern.nn import AdaptedModel, AdapterBank, attach_adapters

__all__ = ["main", "measure"]

TASKS = (1, 2, 5, 10, 20, 50)


def _model(tasks: int, rank: int) -> AdaptedModel:
    model: Any = random_backbone("small")
    bank = AdapterBank(model.config.num_hidden_layers, model.config.hidden_size, rank, capacity=tasks)
    for _ in range(tasks):
        bank.add_task()
    return attach_adapters(model, bank).eval()


@torch.no_grad()
def _artsy(model: AdaptedModel, images: Tensor, task: Tensor) -> None:
    trunk = model.trunk(images)
    model.features(trunk)
    model.features(trunk, task)


@torch.no_grad()
def _ease(model: AdaptedModel, images: Tensor) -> None:
    for task in (None, *range(model.bank.tasks)):
        model(images, task=task)


def _median(call: Callable[[], None], rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(
    tasks: Sequence[int] = TASKS, *, batch: int = 64, rank: int = 16, rounds: int = 5
) -> dict[str, Any]:
    """Milliseconds an image of both, and the megabytes of all adapters, for each number of tasks."""
    torch.manual_seed(0)
    images = torch.rand(batch, 3, 32, 32)
    rows = []
    for count in tasks:
        model = _model(count, rank)
        task = (torch.arange(batch) * count // batch).to(torch.int32)
        artsy = _median(lambda m=model, t=task: _artsy(m, images, t), rounds)  # type: ignore[misc]
        ease = _median(lambda m=model: _ease(m, images), max(rounds * 2 // (count + 1), 1))  # type: ignore[misc]
        rows.append(
            {
                "tasks": count,
                "artsy_ms": round(1e3 * artsy / batch, 4),
                "ease_ms": round(1e3 * ease / batch, 4),
                "adapters_mb": round(model.bank.parameters_per_task * count * 4 / 2**20, 3),
            }
        )
    here = environment()
    return {
        "experiment": "cost of an answer against the number of tasks",
        "batch": batch,
        "rank": rank,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "versions": here["versions"],
        "build": here["build"],
    }


def _draw(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    tasks = [r["tasks"] for r in results["rows"]]
    for key, label in (("ease_ms", "a pass for each task (EASE)"), ("artsy_ms", "Artsy, one open synapse")):
        left.plot(tasks, [r[key] for r in results["rows"]], "o-", label=label)
    left.set(xlabel="tasks", ylabel="ms an image", xscale="log", yscale="log")
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
