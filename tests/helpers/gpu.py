"""What the tests on a GPU share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import flexkern

__all__ = ["GPU_FACTOR", "gpu_backend", "kernel_launches"]

# Against the CPU kernels that judge.py counts for, a GPU's exp2 is 2 ulp off instead of 1.5 and its quick
# division 2 instead of 1, and Triton's exp rounds its argument once more: no count more than doubles.
GPU_FACTOR = 2.0


@pytest.fixture(params=["cuda", "triton"])
def gpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    status = flexkern.backends()[request.param]
    if not torch.cuda.is_available() or not status.available:
        pytest.skip(f"{request.param}: {status.reason}")
    with flexkern.use_backend(request.param):
        yield request.param


def kernel_launches(call: object) -> list[str]:
    if os.environ.get("FLEXKERN_NO_PROFILER"):  # set by scripts/gpu_check.py: what comes before was run
        pytest.skip("torch.profiler cannot run beside compute-sanitizer")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()  # type: ignore[operator]
        torch.cuda.synchronize()
    # Those on the device: the calls that launch them, and the wait, are events too.
    on_device = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [name for name in on_device if "memcpy" not in name.lower()]
