"""The work on which scripts/tune.py races kernels and backends: shapes of the benchmarks, random values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from flexkern import Field, Purpose, ops
from flexkern.ops.adapter import BACKWARD, FORWARD

__all__ = ["BACKEND_CASES", "KERNEL_CASES", "Case", "compiled", "precision"]

LR, SCALE = 1e-6, 20.0  # so that weights stay where they are through thousands of timed steps
# Float32 sums of rounded products in another order: each of up to 1024 terms adds an error of 2^-24 of the
# partial sum, so 2^-14 of the largest; tensor cores cut off some bits more.
SUMS = 1e-3
ROUNDED = 2.0**-7  # and then rounded to bfloat16 twice, each time perhaps to the other neighbour

Made = tuple[Callable[[], object], Callable[[], list[Tensor]]]  # a call, and what it wrote


@dataclass(frozen=True)
class Case:
    """Work for one kernel, or one operator.

    Args:
        kernel, variant: as in the tuning table; of a backend case the operator, and nothing.
        what: the work, in words.
        make: (device, shape, seed) to a call and its results.
        full: shapes that are timed; ``tiny``: a small one.
        compiles: names of the variants in aot.py that the work needs.
        tolerance: of results, against those of another configuration; 0: the same bits.
        sets: how many sets of buffers are rotated, so that the L2 cache of 50 MB does not help.
    """

    kernel: str
    variant: str
    what: str
    make: Callable[[torch.device, Any, int], Made]
    full: Sequence[Any]
    tiny: Any
    compiles: Sequence[str] = ()
    tolerance: float = 0.0
    sets: int = 1

    def result(self, device: torch.device) -> list[Tensor]:
        """What one call gives on the small shape."""
        call, results = self.make(device, self.tiny, 1)
        call()
        return results()

    def calls(self, device: torch.device, shapes: str) -> list[list[Callable[[], object]]]:
        """For each shape a call for each set of buffers."""
        chosen = self.full if shapes == "full" else [self.tiny]
        return [[self.make(device, shape, seed)[0] for seed in range(self.sets)] for shape in chosen]


@contextlib.contextmanager
def precision(variant: str) -> Iterator[None]:
    """tf32 for the variants that have it in their name."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if variant.startswith("tf32") else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def compiled(name: str, configuration: dict[str, int], architecture: str) -> dict[str, Any]:
    """What a variant of aot.py needs in a configuration, and puts its binary into Triton's cache."""
    from flexkern.triton_kernels import aot

    target = next(t for t in aot.TARGETS if aot.architecture_of(t) == architecture)
    return asdict(aot.resources_of(aot.VARIANTS[name].cut(configuration), target))


def _drawer(device: torch.device, seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int, std: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).mul_(std).to(dtype)

    return draw


def _weights(draw: Callable[..., Tensor], *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, anchor and flexibility."""
    w = draw(*shape, std=0.02)
    return w, w + draw(*shape, std=0.01), draw(*shape).sigmoid_()


def _linear(dtype: torch.dtype, silent: bool) -> Callable[..., Made]:
    def make(device: torch.device, shape: tuple[int, int, int], seed: int) -> Made:
        batch, columns, rows = shape
        draw = _drawer(device, seed)
        w, a, f = _weights(draw, rows, columns)
        x, g = draw(batch, columns, dtype=dtype), draw(batch, rows, dtype=dtype)
        words = post = None
        if silent:  # a tenth, in rows of tiles here and there; none is driven hard enough
            asleep = draw(rows, columns) > 1.3
            w.masked_fill_(asleep, 0.0)
            words, post = ops.pack_mask(asleep), draw(batch, rows, dtype=dtype)
        start = w.clone() if w.numel() < 1 << 20 else w
        lr = 1e-3 if start is not w else LR  # so that the check sees the step, and not the weights
        return (
            lambda: ops.linear_step_(w, x, g, a, f, words, post, lr=lr, scale=SCALE, threshold=1e30),
            lambda: [w - start],
        )

    return make


def _adapter(part: str) -> Callable[..., Made]:
    def make(device: torch.device, shape: tuple[int, int, int, int, int], seed: int) -> Made:
        samples, length, d, r, tasks = shape
        draw, half = _drawer(device, seed), torch.bfloat16
        x, residual = (draw(samples, length, d, dtype=half) for _ in range(2))
        down, up = draw(tasks, d, r, std=0.03, dtype=half), draw(tasks, r, d, std=0.1, dtype=half)
        biases = draw(tasks, r, dtype=half), draw(tasks, d, dtype=half)
        index = (torch.arange(samples, device=device) * tasks) // samples
        bank, written = (down, biases[0], up, biases[1], index), []

        def forward() -> None:
            written[:] = FORWARD.on("triton")(x, *bank, residual, None, 0.1, 0.0, False)[:1]

        if part == "forward":
            return forward, lambda: written
        hidden = FORWARD.on("triton")(x, *bank, None, None, 0.1, 0.0, True)[1]
        needs = (part == "backward", part == "bank")

        def backward() -> None:
            got = BACKWARD.on("triton")(residual, x, hidden, down, up, index, 0.1, 0.0, *needs)
            written[:] = got[:1] if part == "backward" else got[1:]

        return backward, lambda: written

    return make


F, A = Field.uniform(1), Field.normal(1, std=0.02, purpose=Purpose.ANCHOR)


def _step(kind: str) -> Callable[..., Made]:
    def make(device: torch.device, count: int, seed: int) -> Made:
        draw = _drawer(device, seed)
        w, a, f = _weights(draw, count)
        g = draw(count)
        calls = {
            "stored": lambda: ops.metaplastic_sgd_(w, g, a, f, lr=LR, scale=SCALE),
            "mixed": lambda: ops.metaplastic_sgd_(w, g, A, F, lr=LR, scale=SCALE),
            "held": lambda: ops.gated_sgd_(w, g, f, lr=LR),
        }
        return calls[kind], lambda: [w]

    return make


def _gate(device: torch.device, count: int, seed: int) -> Made:
    w, a, f = _weights(_drawer(device, seed), count)
    written: list[Tensor] = []

    def call() -> None:
        written[:] = [ops.metaplastic_gate(w, a, f, SCALE)]

    return call, lambda: written


def _fill(device: torch.device, count: int, seed: int) -> Made:
    written: list[Tensor] = []

    def call() -> None:
        written[:] = [ops.materialize(Field.normal(seed), (count,), device=device)]

    return call, lambda: written


def _synapse(kind: str) -> Callable[..., Made]:
    def make(device: torch.device, shape: tuple[int, int], seed: int) -> Made:
        rows, columns = shape
        draw = _drawer(device, seed)
        w, a, f = _weights(draw, rows, columns)
        g, pre, post = draw(rows, columns), draw(columns).relu_(), draw(rows).relu_()
        asleep = draw(rows, columns) > 0.43  # a third
        w.masked_fill_(asleep, 0.0)
        words = ops.pack_mask(asleep)
        sources = (a, f) if kind == "stored" else (A, F)
        # In a check a threshold that some reach; when timed none, as a step converts few.
        theta = 4.0 if w.numel() < 1 << 20 else 1e30
        return (
            lambda: ops.synapse_step_(w, g, *sources, words, pre, post, lr=LR, scale=SCALE, threshold=theta),
            lambda: [w, words],
        )

    return make


def _mask(packs: bool) -> Callable[..., Made]:
    def make(device: torch.device, shape: tuple[int, int], seed: int) -> Made:
        asleep = _drawer(device, seed)(*shape) > 0.43
        words, written = ops.pack_mask(asleep), []

        def call() -> None:
            written[:] = [ops.pack_mask(asleep) if packs else ops.unpack_mask(words, shape[1])]

        return call, lambda: written

    return make


LAYERS, SMALL_LAYER = [(1024, 9216, 4096), (256, 4096, 4096)], (64, 264, 136)
LAYER_WORDS = "linear_step_ (1024, 9216, 4096) and (256, 4096, 4096)"
VIT, SMALL_VIT = [(256, 197, 768, 64, 1)], (4, 20, 96, 64, 2)
VIT_WORDS = "ViT-B/16, 256 images, rank 64"
MILLIONS, SMALL = [1 << 26], 5000
HALF = torch.bfloat16
MATRIX, SMALL_MATRIX = [(8192, 8192)], (64, 136)

# The most important first: the time that is left may not reach the last.
KERNEL_CASES = [
    Case("linear", "half", f"{LAYER_WORDS}, bf16", _linear(HALF, False), LAYERS, SMALL_LAYER,
         ["linear-bf16-stored", "linear-bf16-mixed"], SUMS),
    Case("adapter forward", "half-64", VIT_WORDS, _adapter("forward"), VIT, SMALL_VIT,
         ["adapter-inference-bf16"], ROUNDED, sets=2),
    Case("adapter backward", "half-64", VIT_WORDS, _adapter("backward"), VIT, SMALL_VIT, [], ROUNDED, sets=2),
    Case("adapter bank", "half-64", VIT_WORDS, _adapter("bank"), VIT, SMALL_VIT, ["adapter-parts-bf16"],
         ROUNDED, sets=2),
    Case("sgd", "stored", "64 M float32, stored", _step("stored"), MILLIONS, SMALL, ["sgd-stored-fp32-fp32"]),
    Case("sgd", "mixed", "64 M float32, procedural", _step("mixed"), MILLIONS, SMALL, ["sgd-mixed-fp32-fp32"]),
    Case("sgd", "held", "64 M float32, held alpha", _step("held"), MILLIONS, SMALL, ["sgd-held-fp32-fp32"]),
    Case("synapse", "stored", "8192 x 8192, a third silent", _synapse("stored"), MATRIX, SMALL_MATRIX,
         ["synapse-stored-fp32-rate"]),
    Case("linear", "tf32", f"{LAYER_WORDS}, tf32", _linear(torch.float32, False), LAYERS, SMALL_LAYER,
         ["linear-tf32-stored"], SUMS),
    Case("linear", "half-silent", f"{LAYER_WORDS}, bf16, a tenth silent, Hebbian", _linear(HALF, True), LAYERS,
         SMALL_LAYER, ["linear-bf16-stored-hebbian"], SUMS),
    Case("synapse", "mixed", "8192 x 8192, a third silent, procedural", _synapse("mixed"), MATRIX, SMALL_MATRIX,
         ["synapse-mixed-fp32-rate"]),
    Case("gate", "stored", "64 M float32", _gate, MILLIONS, SMALL, ["gate-stored"]),
    Case("fill", "any", "64 M normal values", _fill, MILLIONS, SMALL, ["fill"]),
]  # fmt: skip
BACKEND_CASES = [
    Case("metaplastic_sgd_", "", "64 M float32, stored", _step("stored"), MILLIONS, SMALL),
    Case("gated_sgd_", "", "64 M float32, held alpha", _step("held"), MILLIONS, SMALL),
    Case("synapse_step_", "", "8192 x 8192, a third silent", _synapse("stored"), MATRIX, SMALL_MATRIX),
    Case("metaplastic_gate", "", "64 M float32", _gate, MILLIONS, SMALL),
    Case("materialize", "", "64 M normal values", _fill, MILLIONS, SMALL),
    Case("pack_mask", "", "8192 x 8192", _mask(True), MATRIX, SMALL_MATRIX),
    Case("unpack_mask", "", "8192 x 8192", _mask(False), MATRIX, SMALL_MATRIX),
]
