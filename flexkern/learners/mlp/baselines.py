"""What the metaplastic network is compared with, by name: EWC, SI, a small replay memory and joint training.

All have the conventional network of :class:`flexkern.learners.MetaplasticMLP` (f = 1: plain SGD), its initial
weights, its order of inputs and its training loop. They differ from it only in what they add.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from flexkern.learners import checkpoint
from flexkern.learners.mlp.metaplastic import MetaplasticMLP
from flexkern.learners.mlp.penalties import ElasticMLP, IntelligentMLP
from flexkern.learners.mlp.rehearsal import JointMLP, ReplayMLP

__all__ = ["MLP_METHODS", "load_mlp"]

MLP_METHODS: dict[str, type[MetaplasticMLP]] = {
    "metaplastic": MetaplasticMLP,
    "ewc": ElasticMLP,
    "si": IntelligentMLP,
    "replay": ReplayMLP,
    "joint": JointMLP,
}


def load_mlp(
    path: str | os.PathLike[str], features: nn.Module | None = None, device: torch.device | str = "cpu"
) -> MetaplasticMLP:
    """The learner that ``save`` of any of :data:`MLP_METHODS` wrote; see :meth:`MetaplasticMLP.load`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a checkpoint, or ``features`` is another extractor.
        ImportError: if safetensors is not installed.
    """
    name = checkpoint.read(path)[1].get("learner")
    for kind in MLP_METHODS.values():
        if kind.__name__ == name:
            return kind.load(path, features=features, device=device)
    raise ValueError(f"path: {os.fspath(path)!r} holds {name!r}, which is none of {tuple(MLP_METHODS)}")
