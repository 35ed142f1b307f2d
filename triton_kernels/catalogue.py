"""All that the modules of this package say of their kernels: see :mod:`.variant`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType

import flexkern.triton_kernels as package
from flexkern.triton_kernels.target import copies_tiles, multiplies
from flexkern.triton_kernels.variant import Variant

__all__ = ["CANDIDATES", "all_variants", "candidates", "variants_on"]

# Not kernels, and these import this module.
_TOOLS = ("aot", "catalogue")


def _modules() -> Iterator[ModuleType]:
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in _TOOLS:
            yield importlib.import_module(f"{package.__name__}.{module.name}")


@functools.cache
def all_variants() -> Mapping[str, Variant]:
    """By name, the variants of all kernels.

    Raises:
        ValueError: if two have one name.
    """
    found: dict[str, Variant] = {}
    for module in _modules():
        for variant in module.ahead_of_time() if hasattr(module, "ahead_of_time") else ():
            if variant.name in found:
                raise ValueError(f"{module.__name__}: two variants are called {variant.name!r}")
            found[variant.name] = variant
    return found


def variants_on(architecture: str) -> Mapping[str, Variant]:
    """Those of :func:`all_variants` that are launched there: tf32 only where it can be multiplied, and tensor
    descriptors only where a copy engine takes them."""
    return {
        name: variant
        for name, variant in all_variants().items()
        if variant.constants.get("PRECISION", "ieee") in multiplies(architecture)
        and (not variant.descriptors or copies_tiles(architecture))
    }


# What ``scripts/tune.py`` races: (kernel, variant) of the tuning table to configurations that are worth a try,
# by predicted gain. Each compiles for sm_90 without spills (tests/triton/test_tuning.py).
CANDIDATES: dict[tuple[str, str], list[dict[str, int]]] = {
    key: configurations
    for module in _modules()
    for key, configurations in getattr(module, "CANDIDATES", {}).items()
}


def candidates(kernel: str, variant: str, current: dict[str, int]) -> list[dict[str, int]]:
    """What to race, the present configuration first; that alone where no others are known."""
    return [current, *(c for c in CANDIDATES.get((kernel, variant), []) if c != current)]
