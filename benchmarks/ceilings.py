"""What this machine can do at best, measured: the roof of the roofline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from flexkern.benchmarks.case import CPU, GPU, Setting
from flexkern.benchmarks.timing import race, sample

__all__ = ["Calm", "Ceilings", "measure_ceilings", "tf32"]


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second (read and written) of a copy, and operations per second of the library's matrix product.

    Attributes:
        copy: the faster of a copy into another tensor and an update in place: a CPU reads a line before it
            overwrites it, which a copy counts for nothing.
        product: by dtype; a fused multiply-add counts as two operations.
    """

    copy: float
    product: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def measure_ceilings(setting: Setting) -> Ceilings:
    """Measures both; a few seconds."""
    device = setting.device
    seconds = 1.0 if device == GPU else 3.0  # calls take milliseconds there
    elements = setting.size((1 << 29) if device == GPU else (1 << 26), 1 << 20)
    source, target = (torch.rand(elements, device=device) for _ in range(2))
    times = race([lambda: target.copy_(source), lambda: target.mul_(1.0)], device, seconds=seconds)
    copy = 8 * elements / min(float(torch.tensor(t).median()) for t in times)
    n = setting.size(8192 if device == GPU else 2048, 256)
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if device == GPU:
        names["tf32"] = torch.float32
    product = {}
    for name, dtype in names.items():
        a, b = (torch.rand(n, n, device=device).to(dtype) for _ in range(2))
        with tf32(name == "tf32"):
            (spent,) = race([lambda a=a, b=b: a @ b], device, seconds=seconds)
        product[name] = 2 * n**3 / float(torch.tensor(spent).median())
    return Ceilings(copy, product)


ELEMENTS = 1 << 26  # of a copy: 256 MB, more than a large last-level cache


class Calm:
    """Waits until the machine is as fast as it was at its best.

    Other guests of the same processor take memory's bandwidth for seconds or minutes, which slows a kernel that
    is bound by it more than one that is not.

    Args:
        ceilings: of this machine; if it proves faster later, that counts from there on.
        patience: seconds to wait at most, each time.
    """

    SHARE = 0.85  # of the best copy seen

    def __init__(self, ceilings: Ceilings, patience: float) -> None:
        self._best, self._patience = ceilings.copy, patience
        self._source, self._target = (torch.rand(ELEMENTS) for _ in range(2))

    def wait(self) -> float:
        """The copy's bytes per second when it ended, as a share of the best seen."""
        give_up = time.perf_counter() + self._patience
        while True:
            spent = sorted(sample(lambda: self._target.copy_(self._source), CPU) for _ in range(9))[4]
            copy = 8 * self._source.numel() / spent
            self._best = max(self._best, copy)
            if copy >= self.SHARE * self._best or time.perf_counter() > give_up:
                return copy / self._best
            time.sleep(0.2)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products of float32 on a GPU may take tf32, inside the block."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before
