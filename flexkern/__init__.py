"""flexkern: fused kernels for brain-inspired continual learning in PyTorch, and the learners built on them."""

from importlib.util import find_spec as _find_spec

# The kernels lie beside this folder in the source tree, and inside it where the package is installed.
if _find_spec("flexkern.triton_kernels") is None:
    raise ImportError(
        f"{__path__[0]} is flexkern's source, which is not installed from here: run Python from another "
        "folder, or install this one editable with `pip install -e .`",
        name="flexkern",
    )

from flexkern.beginning import waits as _waits
from flexkern.version import __version__

if not _waits():
    from flexkern import features, learners, metrics, nn, ops, optim, streams
    from flexkern.backends import BackendError, backends, use_backend
    from flexkern.fields import Field, Purpose

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
