"""flexkern: fused kernels for brain-inspired continual learning in PyTorch, and the learners built on them."""

from flexkern import features, learners, metrics, nn, ops, optim, streams
from flexkern.backends import BackendError, backends, use_backend
from flexkern.fields import Field, Purpose
from flexkern.version import __version__

__all__ = [
    "BackendError",
    "Field",
    "Purpose",
    "__version__",
    "backends",
    "features",
    "learners",
    "metrics",
    "nn",
    "ops",
    "optim",
    "streams",
    "use_backend",
]
