"""What learners do with features, on features that are there already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flexkern.nn import ExpertHead, LDAHead, PrototypeClassifier, RidgeHead, SynapseGate
from studies.sample_ridge import SampleRidge

__all__ = ["KINDS", "Head"]

KINDS = ("prototype", "simplecil", "ridge", "sample ridge", "lda", "experts")


class Head:
    """A head, and gates if it has adapters.

    Args:
        kind: "prototype" (the paper's, on all subspaces), "simplecil" (prototypes of what is read),
            "ridge" (RanPAC), "sample ridge" (the same of more columns than samples,
            :class:`studies.sample_ridge.SampleRidge`), "lda", or "experts" (on a ridge gate's scores,
            :class:`flexkern.nn.ExpertHead`).
        width: of a subspace.
        reads: numbers that a gate, "simplecil", "ridge" and "lda" read of an image.
        gate: options of :class:`flexkern.nn.SynapseGate`; None: no gate, and E0 alone.
        options: of the head.
        seed: of random projections and gates.
        device: of all of it, and of what it is given.
    """

    def __init__(
        self,
        kind: str,
        width: int,
        reads: int,
        *,
        gate: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        given = dict(options or {})
        self.kind = kind
        for_gate: dict[str, Any] = {"seed": seed, "device": device} | dict(gate or {})
        self.gate = SynapseGate(reads, **for_gate) if gate is not None else None
        self.head: Any
        if kind == "prototype":
            self.head = PrototypeClassifier(width, base=True, device=device, **({"base_weight": 0.1} | given))
        elif kind == "simplecil":
            self.head = PrototypeClassifier(reads, device=device)
            self.head.add_subspace()
        elif kind == "ridge":
            self.head = RidgeHead(reads, **given, seed=seed, device=device)
        elif kind == "sample ridge":
            self.head = SampleRidge(reads, **given, seed=seed, device=device)
        elif kind == "lda":
            self.head = LDAHead(reads, **given, device=device)
        elif kind == "experts":
            self.head = ExpertHead(width, **given, device=device)
        else:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")

    def learn(self, read: Tensor, spaces: Tensor, labels: Tensor) -> None:
        """A task's images: what is read of them, [n, reads], and what they are in all subspaces that there are
        by now, [n, 1 + tasks, width]."""
        if self.kind == "prototype":
            self.head.add_subspace()
            self.head.update(spaces, labels)
        elif self.kind == "simplecil":
            self.head.update(read[:, None], labels)
        elif self.kind == "experts":
            self.head.learn(spaces[:, 0], spaces[:, -1], labels)
        else:
            self.head.update(read, labels)
        if self.gate is not None:
            self.gate.learn(read, labels)

    def logits(self, read: Tensor, spaces: Tensor, task: Tensor) -> Tensor:
        """[n, classes]; ``task``, the true one of each image, is for oracles."""
        if self.gate is None:
            return self.head.logits(read[:, None] if self.kind == "simplecil" else read)
        opened = self.gate(read, task)
        if self.kind == "experts":
            return self.head.logits(self.gate.class_scores(read), spaces, opened)
        return self.head.logits(spaces, torch.cat([opened.new_ones((len(opened), 1)), opened], 1))

    def base(self, read: Tensor) -> Tensor | None:
        """What experts start from, the gate's own class scores [n, classes]; None where there are none."""
        return self.gate.class_scores(read) if self.gate is not None and self.kind == "experts" else None

    def open_per_sample(self, read: Tensor, task: Tensor) -> float:
        """Synapses that open for an image, on average."""
        return 0.0 if self.gate is None else float((self.gate(read, task) > 0).sum(1).double().mean())
