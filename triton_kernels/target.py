"""What Triton compiles for, and can multiply, by architecture as the tuning table names it; needs no GPU."""

from __future__ import annotations

import functools

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend

__all__ = ["copies_tiles", "multiplies", "target_of"]


def target_of(architecture: str) -> GPUTarget:
    """What Triton compiles for: "sm_90", "gfx942" and so on.

    Raises:
        ValueError: if it names no NVIDIA or AMD GPU.
    """
    number = architecture.removeprefix("sm_")
    if number != architecture and number.isdecimal():
        return GPUTarget("cuda", int(number), 32)
    if architecture.startswith("gfx") and len(architecture) >= 6 and architecture[3:-2].isdecimal():
        return GPUTarget("hip", architecture, 64 if int(architecture[3:-2]) < 10 else 32)
    raise ValueError(f"architecture must be like 'sm_90' or 'gfx942', got {architecture!r}")


@functools.cache
def multiplies(architecture: str) -> frozenset[str]:
    """In which precisions tl.dot multiplies float32 there: "ieee", and "tf32" where there are units for it."""
    target = target_of(architecture if architecture != "interpreter" else "sm_90")
    # Fusion is said because Triton warns where it is not, and all launches here say the same.
    options = make_backend(target).parse_options({"enable_fp_fusion": False})
    return frozenset(options.allowed_dot_input_precisions)


def copies_tiles(architecture: str) -> bool:
    """Whether a copy engine there moves tiles that tensor descriptors name (TMA); elsewhere threads do."""
    target = target_of(architecture)
    return target.backend == "cuda" and target.arch >= 90
