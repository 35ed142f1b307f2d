"""A small real learner (softmax regression on pixels) for class-incremental runs, which may be killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.learners import Progress, checkpoint
from flexkern.metrics import Evaluation, confusion_matrix
from flexkern.runs.incremental.config import (
    Config,
    DataConfig,
    MethodConfig,
    Paper,
    StreamConfig,
)
from flexkern.runs.incremental.run import Learners
from flexkern.streams import Experience

__all__ = ["EPOCHS", "LEARNERS", "Softmax", "configuration", "load", "make", "numbers"]

EPOCHS = 3


class Softmax:
    """Softmax regression on the pixels; ``local`` trains only the rows of the task's classes."""

    def __init__(self, method: str, seed: int, lr: float, epochs: int) -> None:
        if lr <= 0:
            raise ValueError(f"lr must be positive, got {lr}")
        self.method, self.seed, self.lr, self.epochs = method, seed, lr, epochs
        self.weight = torch.zeros(0, 0)
        self.classes_seen = self.tasks_learned = self.epochs_done = 0
        self.report: dict[str, float] = {}

    @property
    def parameters_added(self) -> int:
        return self.weight.numel()

    @property
    def memory_bytes(self) -> int:
        return 4 * self.weight.numel()

    def learn(self, experience: Experience, *, progress: Callable[[Progress], None] | None = None) -> None:
        x = experience.train_inputs.flatten(1).float() / 255
        classes = self.classes_seen + len(experience.class_names)
        if len(self.weight) < classes:
            rows = torch.zeros(classes - len(self.weight), x.shape[1])
            self.weight = torch.cat([self.weight.reshape(-1, x.shape[1]), rows])
        first = self.classes_seen if self.method == "local" else 0
        for epoch in range(self.epochs_done, self.epochs):
            generator = torch.Generator().manual_seed(self.seed * 1000 + self.tasks_learned * 10 + epoch)
            for rows in torch.randperm(len(x), generator=generator).split(16):
                p = (x[rows] @ self.weight[first:].T).softmax(1)
                p[torch.arange(len(rows)), experience.train_labels[rows] - first] -= 1
                self.weight[first:] -= self.lr * p.T @ x[rows] / len(rows)
            self.epochs_done = epoch + 1
            maybe_die(f"learning {self.tasks_learned} {epoch + 1}")
            if progress is not None:
                loss = float((x @ self.weight.T).logsumexp(1).mean())
                progress(Progress(self.tasks_learned, epoch + 1, self.epochs, loss))
        maybe_die(f"end of learning {self.tasks_learned}")
        self.classes_seen, self.epochs_done = classes, 0
        self.tasks_learned += 1

    def predict(self, images: Tensor) -> Tensor:
        return (images.flatten(1).float() / 255 @ self.weight.T).argmax(1)

    def evaluate(self, stream: Any) -> Evaluation:
        maybe_die(f"testing {self.tasks_learned}")
        accuracies, confusion = [], np.zeros((self.classes_seen, self.classes_seen), dtype=np.int64)
        for e in stream:
            answers = self.predict(e.test_inputs)
            accuracies.append(float((answers == e.test_labels).double().mean()))
            confusion += confusion_matrix(e.test_labels.numpy(), answers.numpy(), self.classes_seen)
        self.report = {
            "passes": 1.0 + self.tasks_learned,
            "gate_auroc": float("nan"),
            "seconds_per_image": 1e-3,
        }
        if self.method == "local":
            self.report["open_rate"] = 1 / self.tasks_learned
        return Evaluation(np.array(accuracies), confusion)

    def save(self, path: Path) -> None:
        maybe_die(f"saving {self.tasks_learned} {self.epochs_done}")
        keys = ("method", "seed", "lr", "epochs", "classes_seen", "tasks_learned", "epochs_done")
        checkpoint.write(path, {"weight": self.weight}, {k: getattr(self, k) for k in keys})
        maybe_die(f"saved {self.tasks_learned} {self.epochs_done}")


def make(method: str, backbone: str, *, seed: int, device: torch.device, **options: Any) -> Softmax:
    assert backbone == "small"
    assert device == torch.device("cpu")
    return Softmax(method, seed, **{"lr": 0.5, "epochs": EPOCHS, **options})


def load(path: Path, *, backbone: str, device: torch.device) -> Softmax:
    tensors, record = checkpoint.read(path)
    learner = Softmax(*(record[k] for k in ("method", "seed", "lr", "epochs")))
    learner.weight = tensors["weight"]
    for key in ("classes_seen", "tasks_learned", "epochs_done"):
        setattr(learner, key, record[key])
    return learner


LEARNERS = Learners(("global", "local"), make, load)
POINT = ""


def maybe_die(here: str) -> None:
    if here == POINT:
        os.kill(os.getpid(), signal.SIGKILL)


def configuration(out: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "data": DataConfig(kind="digits", train_per_class=20, test_per_class=10),
        "stream": StreamConfig(increment=3, base=4),
        "methods": (
            MethodConfig("Local rows", "local", {"lr": 0.3}, Paper(90.0, 80.0, "a paper", "vit", 20)),
            MethodConfig("All rows", "global"),
        ),
        "device": "cpu",
        "out": str(out),
    }
    return Config(**(values | changes))


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    """All that must be equal from run to run: everything but seconds, memory and paths."""
    plain = json.loads(json.dumps(results))
    del plain["environments"], plain["configuration"]["out"]
    for summary in plain["summary"].values():
        del summary["cost"], summary["mib"]
    for record in plain["runs"]:
        for task in record["tasks"]:
            del task["cost"]
    return plain
