"""Options of :class:`flexkern.nn.SynapseGate`, checked, with their defaults filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flexkern.nn.gates.calibration import CALIBRATIONS
from flexkern.nn.gates.detectors import DETECTORS
from flexkern.nn.gates.threshold import THRESHOLDS
from flexkern.nn.growing import check_features, check_labels

__all__ = ["ALWAYS_OPEN", "GATES", "GATINGS", "GateOptions", "check_task", "check_true_task"]

GATES = ("mlp", "none", "oracle", *DETECTORS)
GATINGS = ("hard", "soft", "topk")
ALWAYS_OPEN = 30.0
"""Evidence of a gate that is open whatever the sample: sigmoid(30) is 1 in float32."""


@dataclass
class GateOptions:
    """What :class:`flexkern.nn.SynapseGate` documents; raises TypeError or ValueError, naming the argument."""

    width: int
    gate: str
    gating: str
    k: int | None
    fill: bool
    positives: str
    threshold: str
    theta: float
    target: float
    refresh: bool
    first: str
    hidden: int
    epochs: int
    inputs: str
    lr: float
    batch: int
    weight_decay: float
    holdout: float
    calibration: str | None
    neighbours: int
    seed: int

    def __post_init__(self) -> None:
        for name, choices in (
            ("gate", GATES),
            ("gating", GATINGS),
            ("positives", ("data", "gaussian")),
            ("inputs", ("standard", "whitened")),
            ("threshold", THRESHOLDS),
            ("first", ("trained", "open")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name in ("width", "hidden", "epochs", "batch", "neighbours"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("theta", "holdout"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be finite and > 0, got {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")
        if not 0 < self.target < 1:
            raise ValueError(f"target must be a rate in (0, 1), got {self.target}")
        self._check_k()
        if self.calibration is None:
            detector = self.gate in DETECTORS
            self.calibration = "softmax" if self.gate == "ridge" else "platt" if detector else "none"
        if self.calibration not in CALIBRATIONS:
            raise ValueError(f"calibration must be one of {CALIBRATIONS} or None, got {self.calibration!r}")

    def _check_k(self) -> None:
        if self.gating == "topk" and self.k is None:
            self.k = 2
        if self.k is not None and self.gating == "hard":
            raise ValueError(f"k={self.k} limits open synapses with gating 'topk' or 'soft'; gating is 'hard'")
        if self.k is not None and (isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1):
            raise ValueError(f"k must be an integer of at least 1, got {self.k!r}")
        if self.fill and self.gating != "topk":
            raise ValueError(f"fill opens the k best with gating 'topk'; gating is {self.gating!r}")


def check_task(h0: Tensor, labels: Tensor, width: int, first: int, least: int) -> int:
    """How many classes a new task has, if its data is right: class ``first`` and on, at least ``least`` of
    them.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    check_features(h0, width)
    check_labels(labels, len(h0))
    if not len(h0):
        raise ValueError("h0 has no samples; a task needs some")
    if not bool(torch.isfinite(h0).all()):
        raise ValueError("h0 has infinite or NaN elements; look at the images and the pre-trained network")
    seen = labels.unique().tolist()
    if seen != list(range(first, first + len(seen))):
        raise ValueError(
            f"labels must be the next classes, {first}, {first + 1}, ... without a gap, got {seen[:10]}"
            f"{' ...' if len(seen) > 10 else ''}; number classes in the order in which they are learned"
        )
    if len(seen) < least:
        raise ValueError(f"labels must have at least {least} classes a task for this gate, got {len(seen)}")
    if len(h0) <= len(seen):
        raise ValueError(f"h0 has {len(h0)} samples of {len(seen)} classes; some class needs two samples")
    return len(seen)


def check_true_task(task: object, n: int, tasks: int) -> Tensor:
    """``task`` as int64, if it is integers [n] in 0 ... tasks - 1; else ValueError."""
    if not isinstance(task, Tensor):
        raise ValueError(f"task must be int64 [{n}], each sample's true task, got {task!r}")
    if task.dtype not in (torch.int64, torch.int32) or tuple(task.shape) != (n,):
        raise ValueError(f"task must be int64 [{n}], got {task.dtype} {tuple(task.shape)}")
    if n and not 0 <= int(task.min()) <= int(task.max()) < tasks:
        raise ValueError(f"task must be in 0 ... {tasks - 1}, got {int(task.min())} ... {int(task.max())}")
    return task.long()
