"""Optimizers of synapses that resist being moved, and the step that is fused into the backward pass."""

from flexkern.optim.adamw import MetaplasticAdamW
from flexkern.optim.fuse import fuse_into_backward
from flexkern.optim.metaplastic import Metaplastic
from flexkern.optim.sgd import MetaplasticSGD

__all__ = ["Metaplastic", "MetaplasticAdamW", "MetaplasticSGD", "fuse_into_backward"]
