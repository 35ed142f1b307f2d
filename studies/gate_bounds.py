"""Two ways to train the whole network on the gate study's streams: task after task, and on all at once.

    python -m studies.gate_bounds --data cifar100.npz --out docs/results/artsy

Streams, images and backbone are those of studies.gate_study. Fine-tuning learns task after task;
joint training learns one task that has all classes, so it is no continual learner. It bounds nothing: with so
few images a head on frozen features does better.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flexkern.environment import environment
from flexkern.files import write_json
from flexkern.learners import FinetuneViT, JointViT, Recipe
from flexkern.streams import Experience, Stream
from studies.gate_study import StudyConfig, streams

__all__ = ["as_one_task", "main", "run"]


def as_one_task(stream: Stream) -> Stream:
    """The whole stream as a single experience."""
    parts = ("train_inputs", "train_labels", "test_inputs", "test_labels")
    whole: dict[str, Any] = {p: torch.cat([getattr(e, p) for e in stream]) for p in parts}
    return Stream([Experience("all", 0, **whole)], stream.classes)


def run(config: StudyConfig, epochs: int, joint_epochs: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Both for each seed."""
    # The whole network at 0.01 falls to chance in so few steps.
    recipe = Recipe(lr=0.003, crop=(config.crop, 1.0), precision="bfloat16")
    runs = []
    for seed, stream in streams(config):
        for name, learner_type, given, count in (
            ("finetune", FinetuneViT, stream, epochs), ("joint", JointViT, as_one_task(stream), joint_epochs),
        ):  # fmt: skip
            start = time.perf_counter()
            learner = learner_type(config.backbone, recipe=replace(recipe, epochs=count), seed=seed)
            after = []
            for item in given:
                learner.learn(item)
                after.append(float(learner.evaluate(given[: item.number + 1]).accuracies.mean()))
            seconds = round(time.perf_counter() - start, 1)
            own = {"average": round(float(np.mean(after)), 4)} if len(after) > 1 else {}
            runs.append({"seed": seed, "method": name, "epochs": count, "last": round(after[-1], 4),
                         **own, "seconds": seconds})  # fmt: skip
            progress(f"seed {seed}: {name}: last {after[-1]:.1%}, {seconds:.0f} s")
    return {
        "experiment": "fine-tuning and joint training on the streams of the gate study",
        "configuration": asdict(replace(config, data=Path(config.data).name)),
        "summary": {
            name: round(float(np.mean([r["last"] for r in runs if r["method"] == name])), 4)
            for name in ("finetune", "joint")
        },
        "runs": runs,
        "versions": environment()["versions"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs both and writes ``bounds.json``."""
    parser = argparse.ArgumentParser(prog="python -m studies.gate_bounds", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("out/artsy"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--joint-epochs", type=int, default=10)
    given = parser.parse_args(arguments)
    config = StudyConfig(data=given.data, seeds=given.seeds)
    results = run(config, given.epochs, given.joint_epochs, lambda line: print(line, flush=True))
    path = given.out / "bounds.json"
    write_json(path, results)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
