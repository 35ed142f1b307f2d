"""The gated adapter against the modules that it stands for, plain and compiled, and a loop over tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flexkern import ops
from flexkern.benchmarks import workloads
from flexkern.benchmarks.case import (
    CPU,
    GPU,
    Comparison,
    Goal,
    Peer,
    Setting,
    Work,
    at_most,
    case,
    faster,
)
from flexkern.benchmarks.peers.adapters import (
    EaseAdapter,
    grouped,
    has_grouped_product,
    loop_over_tasks,
    lora,
)
from flexkern.ops.adapter import BACKWARD, FORWARD

SCALE = 0.1
DROPOUT = 0.1
PEFT, COMPILED = "LoRA of peft", "torch.compile of the modules"
GROUPED = "torch's grouped product"
FLAT = 1.15  # times the time with one task that many may take
ANOTHER_RULE = "LoRA is another rule: no ReLU, no biases"
# Speed-up that is wanted in forward, and in forward with backward; on a CPU and on a GPU. The products are the
# same library's in ours and the peers on a CPU: what can be won there is all that is between them.
GOALS: dict[str, dict[str, tuple[float, float]]] = {
    "modules": {CPU: (1.3, 1.3), GPU: (2.5, 1.8)},
    COMPILED: {CPU: (1.0, 1.0), GPU: (1.3, 1.2)},
    "loop over tasks": {CPU: (1.3, 1.3), GPU: (2.5, 1.8)},
    GROUPED: {GPU: (1.5, 1.3)},
}
TRAINED = ("x", "residual", "down", "down_bias", "up", "up_bias")
Forward = Callable[[], Tensor]


@dataclass(frozen=True)
class Size:
    """The input of a block of a transformer: [samples, positions, d], and the adapter's rank."""

    name: str
    samples: int
    positions: int
    d: int
    rank: int


VIT_B = Size("ViT-B/16", 32, 197, 768, 64)
VIT_B_256 = Size("ViT-B/16, 256 images", 256, 197, 768, 64)
SMALL = Size("small ViT", 128, 65, 128, 16)
QUICK = Size("quick size", 20, 5, 32, 8)


class Adapters:
    """The same weights as a bank and as modules; a batch whose samples are of ``tasks`` tasks, in order."""

    def __init__(self, size: Size, tasks: int, dtype: torch.dtype, device: str, *, training: bool) -> None:
        torch.manual_seed(tasks)
        self.modules = [EaseAdapter(size.d, size.rank, scale=SCALE, dropout=DROPOUT) for _ in range(tasks)]
        for module in self.modules:
            module.to(device, dtype).train(training)
        self.compiled = torch.compile(self.modules[0])
        shape = (size.samples, size.positions, size.d)
        inputs = [torch.randn(shape, dtype=dtype, device=device) for _ in range(3)]
        self.x, self.residual, self.grad_out = inputs
        self.index = torch.arange(size.samples, device=device) * tasks // size.samples
        counts = torch.bincount(self.index, minlength=tasks)
        self.counts = counts.tolist()
        self.ends = (counts * size.positions).cumsum(0).to(torch.int32)
        self.training = training
        self.dropout_p = DROPOUT if training else 0.0
        with torch.no_grad():
            self.bank = (
                torch.stack([m.down.weight.T for m in self.modules]),
                torch.stack([m.down.bias for m in self.modules]),
                torch.stack([m.up.weight.T for m in self.modules]),
                torch.stack([m.up.bias for m in self.modules]),
            )
        self.lora = lora(size.d, size.rank, tasks, scale=SCALE, dropout=DROPOUT)
        if self.lora is not None:
            self.lora.to(device, dtype).train(training)
        self.names = [str(t) for t in self.index.tolist()]
        self.inputs = inputs[:2]
        for tensor in (*self.inputs, *self.bank):
            tensor.requires_grad_(training)

    def fused(self) -> Tensor:
        return ops.gated_adapter(
            self.x, *self.bank, self.index, scale=SCALE, residual=self.residual, dropout_p=self.dropout_p
        )

    def unfused(self) -> Tensor:
        return loop_over_tasks(self.modules, self.counts, self.x, self.residual)

    def unfused_compiled(self) -> Tensor:
        return self.compiled(self.x, self.residual)

    def grouped(self) -> Tensor:
        p = self.dropout_p
        return grouped(self.bank, self.index, self.ends, self.x, self.residual, scale=SCALE, p=p)

    def peft(self) -> Tensor:
        assert self.lora is not None
        if len(self.modules) == 1:
            return self.lora(self.x, self.residual)
        return self.lora(self.x, self.residual, adapter_names=self.names)

    def weights(self, forward: Forward) -> list[Tensor]:
        """What is trained by a way forward."""
        if forward in (self.fused, self.grouped):
            return [*self.bank]
        modules = [self.lora] if forward == self.peft else self.modules
        return [p for m in modules if m is not None for p in m.parameters() if p.requires_grad]

    def call(self, forward: Forward) -> Callable[[], object]:
        """``forward``, with the backward pass if this is training."""
        if not self.training:
            return partial(_without_grad, forward)
        return partial(_train, forward, self.grad_out, [*self.inputs, *self.weights(forward)])

    def gradients(self, forward: Forward) -> list[Tensor]:
        """Of x, the residual, and the four tensors of the bank, whichever way they are kept."""
        weights = self.weights(forward)
        grads = torch.autograd.grad(forward(), [*self.inputs, *weights], self.grad_out)
        if forward in (self.fused, self.grouped):
            return list(grads)
        of = dict(zip(weights, grads[2:], strict=True))
        return [
            *grads[:2],
            torch.stack([of[m.down.weight].T for m in self.modules]),
            torch.stack([of[m.down.bias] for m in self.modules]),
            torch.stack([of[m.up.weight].T for m in self.modules]),
            torch.stack([of[m.up.bias] for m in self.modules]),
        ]


def _without_grad(forward: Forward) -> Tensor:
    with torch.no_grad():
        return forward()


def _train(forward: Forward, grad_out: Tensor, leaves: Sequence[Tensor]) -> None:
    forward().backward(grad_out)
    for tensor in leaves:
        tensor.grad = None


def check_agreement(adapters: Adapters, peer: Forward) -> None:
    """Both ways give the same results without dropout, and in training the same gradients."""
    p, adapters.dropout_p = adapters.dropout_p, 0.0
    for module in adapters.modules:
        module.eval()
    with torch.no_grad():
        pairs = [(adapters.fused(), peer())]
    if adapters.training:
        pairs += zip(adapters.gradients(adapters.fused), adapters.gradients(peer), strict=True)
    whats = ["the result", *(f"the gradient of {name}" for name in TRAINED)]
    for what, (ours, theirs), bound in zip(whats, pairs, bounds(adapters), strict=False):
        assert bool(((ours.double() - theirs.double()).abs() <= bound).all()), what
    adapters.dropout_p = p
    for module in adapters.modules:
        module.train(adapters.training)


@torch.no_grad()
def bounds(adapters: Adapters) -> list[Tensor]:
    """How far two computations of the result, and of each gradient, may be apart, in float64.

    Counted from sizes of terms: a sum of n products in float32 is off by at most n 2^-24 of the sum of their
    sizes, a rounding to the dtype by its unit; twice, as two are compared. A hidden unit so near 0 that
    rounding decides whether the ReLU is open may be open in one of the two only: its whole gradient counts.
    """
    unit = 2.0**-24 if adapters.x.dtype is torch.float32 else 2.0**-8
    d, rank = adapters.bank[0].shape[1:]

    def error(terms: int, roundings: int = 8) -> float:
        return 2 * (terms * 2.0**-24 + roundings * unit)

    out = torch.empty_like(adapters.x, dtype=torch.float64)
    grad_x = torch.empty_like(out)
    bank = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in adapters.bank]
    for task in range(len(adapters.modules)):
        own = adapters.index == task
        x, grad_out = (t[own].flatten(0, 1).double() for t in (adapters.x, adapters.grad_out))
        down, down_bias, up, up_bias = (tensor[task].double() for tensor in adapters.bank)
        size_x, size_down, size_up, size_g = x.abs(), down.abs(), up.abs(), SCALE * grad_out.abs()
        hidden = size_x @ size_down + down_bias.abs()
        undecided = (x @ down + down_bias).abs() <= error(d) * hidden
        shape = (-1, *adapters.x.shape[1:])
        terms = SCALE * (hidden @ size_up + up_bias.abs()) + adapters.residual[own].flatten(0, 1).double().abs()
        out[own] = (error(d + rank) * terms).view(shape)
        back = size_g @ size_up.T  # of the hidden units' gradients
        doubt = error(d) * back + undecided * back
        n = len(x)
        grad_x[own] = (doubt @ size_down.T + error(rank) * (back @ size_down.T)).view(shape)
        bank[0][task] = size_x.T @ doubt + error(n) * (size_x.T @ back)
        bank[1][task] = doubt.sum(0) + error(n) * back.sum(0)
        bank[2][task] = error(n + d) * (hidden.T @ size_g)
        bank[3][task] = error(n) * size_g.sum(0)
    return [out, grad_x, torch.zeros_like(out), *bank]


def work(size: Size, tasks: int, dtype: torch.dtype, *, training: bool) -> Work:
    """Forward: x, residual and out, in training hidden too. Backward: to x, grad_out, hidden, its gradient and
    grad_x; to the bank x and grad_out again, and hidden and its gradient. Two products, and four of the same
    size backward."""
    rows = size.samples * size.positions
    bank = tasks * (2 * size.d * size.rank + size.d + size.rank)
    elements = rows * (7 * size.d + 5 * size.rank) + 3 * bank if training else 3 * rows * size.d + bank
    operations = (12 if training else 4) * rows * size.d * size.rank
    name = "bfloat16" if dtype is torch.bfloat16 else "float32"
    return Work(dtype.itemsize * elements, operations, name)


def goal(peer: str, at: Setting, dtype: torch.dtype, *, training: bool) -> Goal | None:
    if at.device == CPU and dtype is torch.bfloat16 and peer == COMPILED:
        return None  # the products are all there is, and the library's in both
    return faster(GOALS[peer][at.device][training])


def build(size: Size, tasks: int, dtype: torch.dtype, training: bool, at: Setting) -> Comparison:
    if at.device == GPU and size is VIT_B:
        size = VIT_B_256
    shape = QUICK if at.quick else size
    adapters = Adapters(shape, tasks, dtype, at.device, training=training)

    def peer(name: str, forward: Forward) -> Peer:
        check = partial(check_agreement, adapters, forward)
        return Peer(name, adapters.call(forward), check, goal(name, at, dtype, training=training))

    if tasks == 1:
        peers = [
            peer("modules", adapters.unfused),
            peer(COMPILED, adapters.unfused_compiled),
        ]
    else:
        peers = [peer("loop over tasks", adapters.unfused)]
    if at.device == GPU:
        if has_grouped_product():
            peers.append(peer(GROUPED, adapters.grouped))
        if tasks > 1:
            one = Adapters(shape, 1, dtype, at.device, training=training)
            peers.append(Peer("the same with T = 1", one.call(one.fused), "other adapters", at_most(FLAT)))
    notes = [f"x {[shape.samples, shape.positions, shape.d]}, rank {shape.rank}"]
    if training:
        notes.append("with dropout")
    if tasks == 1 or not training:  # peft mixes tasks in a batch in inference only
        if adapters.lora is None:
            notes.append("peft is not installed: no LoRA beside it")
        else:
            peers.append(Peer(PEFT, adapters.call(adapters.peft), ANOTHER_RULE))
    what = "forward and backward" if training else "forward"
    arithmetic = ", bf16" if dtype is torch.bfloat16 else ""
    return Comparison(
        f"gated_adapter {what}, {shape.name}, T = {tasks}{arithmetic}{at.suffix()}",
        adapters.call(adapters.fused),
        peers,
        work(shape, tasks, dtype, training=training),
        note=", ".join(notes),
    )


def register(name: str, size: Size, tasks: int, dtype: torch.dtype, devices: tuple[str, ...]) -> None:
    for what in ("forward", "train"):
        full = f"adapter/{name}-{tasks}-{'task' if tasks == 1 else 'tasks'}-{what}"
        registered = case(full, devices=devices, backends=("triton",), budget=size is VIT_B)
        registered(partial(build, size, tasks, dtype, what == "train"))


for _tasks in (1, 10):
    register("vit-b", VIT_B, _tasks, torch.float32, (CPU,))
    register("small", SMALL, _tasks, torch.float32, (CPU,))
register("vit-b-bf16", VIT_B, 1, torch.bfloat16, (CPU, GPU))
for _tasks in (10, 100):
    register("vit-b-bf16", VIT_B, _tasks, torch.bfloat16, (GPU,))


# ---------------------------------------------------------------------- for the tuner


def _tuned(part: str) -> workloads.Maker:
    def make(device: torch.device, shape: tuple[int, int, int, int, int], seed: int) -> workloads.Made:
        samples, length, d, r, tasks = shape
        draw, half = workloads.drawer(device, seed), torch.bfloat16
        x, residual = (draw(samples, length, d, dtype=half) for _ in range(2))
        down, up = draw(tasks, d, r, std=0.03, dtype=half), draw(tasks, r, d, std=0.1, dtype=half)
        biases = draw(tasks, r, dtype=half), draw(tasks, d, dtype=half)
        index = (torch.arange(samples, device=device) * tasks) // samples
        bank = (down, biases[0], up, biases[1], index)
        written: list[Tensor] = []
        backend = FORWARD.choose(x)
        scale = 1.0  # what the adapters add is as large as the residual, so that a check sees it

        def forward() -> None:
            written[:] = FORWARD.on(backend)(x, *bank, residual, None, scale, 0.0, False)[:1]

        if part == "forward":
            return forward, lambda: written
        hidden = FORWARD.on(backend)(x, *bank, None, None, scale, 0.0, True)[1]
        needs = (part == "backward", part == "bank")

        def backward() -> None:
            got = BACKWARD.on(backend)(residual, x, hidden, down, up, index, scale, 0.0, *needs)
            written[:] = got[:1] if part == "backward" else got[1:]

        return backward, lambda: written

    return make


for _place, (_part, _compiles) in enumerate(
    {"forward": ["adapter-inference-bf16"], "backward": [], "bank": ["adapter-parts-bf16"]}.items(), 2
):
    workloads.register(
        workloads.Workload(f"adapter {_part}", "half-64", "ViT-B/16, 256 images, rank 64", _tuned(_part),
                    [(256, 197, 768, 64, 1)], (4, 20, 96, 64, 2), _compiles, workloads.ROUNDED,
                    workloads.ROUNDED, 2, _place)
    )  # fmt: skip
