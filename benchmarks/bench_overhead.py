"""What a Python call of each operator costs: tensors so small that there is nothing else to do.

On a GPU, too: its kernels are over before the next call is launched, so that what is timed is the launching.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from flexkern import Field, ops
from flexkern.benchmarks.bench_metaplastic import LR, SCALE
from flexkern.benchmarks.case import CPU, GPU, Comparison, Peer, Setting, at_most, case, under
from flexkern.fields import Purpose
from flexkern.optim import Metaplastic, MetaplasticAdamW, MetaplasticSGD

UNITS, BATCH, RANK = 8, 4, 4
AIM = 8e-6  # seconds, on a CPU
ANOTHER_RULE = "an addition in place is another rule: what a call of torch itself costs"
PLAIN_IS_ANOTHER_RULE = "the plain optimizer is another rule, and the least that a step can cost"
ALL, TRITON = ("cuda", "triton"), ("triton",)

Call = Callable[[], object]
Maker = Callable[[str], Call]


def normal(*shape: int, device: str, std: float = 0.02) -> Tensor:
    return torch.randn(shape, device=device) * std


class Layer:
    """A layer of 8 x 8 and what a step of it needs."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        shape = (UNITS, UNITS)
        self.weight, self.grad = normal(*shape, device=device), normal(*shape, device=device)
        self.anchor = self.weight + 1e-6
        self.flexibility = ops.flexibility_field(shape, seed=0, device=device)
        self.alpha = torch.full(shape, 0.5, device=device)
        self.mask = torch.zeros(shape, dtype=torch.bool, device=device)
        self.words = ops.pack_mask(self.mask)
        self.activity = torch.rand(UNITS, device=device)
        self.x, self.grad_out = normal(BATCH, UNITS, device=device), normal(BATCH, UNITS, device=device)


def stored_step(device: str) -> Call:
    at = Layer(device)
    return lambda: ops.metaplastic_sgd_(at.weight, at.grad, at.anchor, at.flexibility, lr=LR, scale=SCALE)


def procedural_step(device: str) -> Call:
    at, f, a = Layer(device), Field.uniform(1), Field.normal(1, std=0.02, purpose=Purpose.ANCHOR)
    return lambda: ops.metaplastic_sgd_(at.weight, at.grad, a, f, lr=LR, scale=SCALE)


def step_of_eight(device: str) -> Call:
    layers = [Layer(device) for _ in range(8)]
    ws, gs = [at.weight for at in layers], [at.grad for at in layers]
    anchors, fs = [at.anchor for at in layers], [at.flexibility for at in layers]
    return lambda: ops.metaplastic_sgd_(ws, gs, anchors, fs, lr=LR, scale=SCALE)


def gated_step(device: str) -> Call:
    at = Layer(device)
    return lambda: ops.gated_sgd_(at.weight, at.grad, at.alpha, lr=LR)


def gate(device: str) -> Call:
    at = Layer(device)
    return lambda: ops.metaplastic_gate(at.weight, at.anchor, at.flexibility, SCALE)


def synapse_step(device: str) -> Call:
    at = Layer(device)
    return lambda: ops.synapse_step_(
        at.weight, at.grad, at.anchor, at.flexibility, at.words, at.activity, at.activity,
        threshold=1.0, lr=LR, scale=SCALE,
    )  # fmt: skip


def linear_step(device: str) -> Call:
    at = Layer(device)
    return lambda: ops.linear_step_(at.weight, at.x, at.grad_out, at.anchor, at.flexibility, lr=LR, scale=SCALE)


def adapter(device: str) -> Call:
    x = normal(BATCH, UNITS, UNITS, device=device)
    bank = (
        normal(2, UNITS, RANK, device=device), normal(2, RANK, device=device),
        normal(2, RANK, UNITS, device=device), normal(2, UNITS, device=device),
    )  # fmt: skip
    index = torch.arange(BATCH, device=device) * 2 // BATCH

    def call() -> Tensor:
        with torch.no_grad():
            return ops.gated_adapter(x, *bank, index, scale=0.1, residual=x)

    return call


def prototypes(device: str) -> Call:
    features, means = normal(BATCH, 2, UNITS, device=device), normal(4, 2, UNITS, device=device)
    own = torch.tensor([0, 0, 1, 1], device=device)
    return lambda: ops.prototype_logits(features, means, own)


def field(device: str) -> Call:
    return lambda: ops.flexibility_field((UNITS, UNITS), seed=1, device=device)


def pack(device: str) -> Call:
    at = Layer(device)
    return lambda: ops.pack_mask(at.mask)


def unpack(device: str) -> Call:
    at = Layer(device)
    return lambda: ops.unpack_mask(at.words, UNITS)


def build(title: str, make: Maker, single: bool, at: Setting) -> Comparison:
    weight, grad = (normal(UNITS, UNITS, device=at.device) for _ in range(2))
    aim = under(AIM) if single and at.device == CPU else None
    torch_itself = Peer("w.add_(g, alpha=-lr)", lambda: weight.add_(grad, alpha=-LR), ANOTHER_RULE, aim)
    return Comparison(f"a call of {title}{at.suffix()}", make(at.device), [torch_itself], memory=False)


# Name, title, and whether it is one operator on one tensor, of which the aim is spoken.
CALLS: Sequence[tuple[str, str, Maker, tuple[str, ...], bool]] = (
    ("metaplastic_sgd_", "metaplastic_sgd_, 8 x 8", stored_step, ALL, True),
    ("metaplastic_sgd_-fields", "metaplastic_sgd_, 8 x 8, two Fields", procedural_step, ALL, True),
    ("metaplastic_sgd_-8-tensors", "metaplastic_sgd_, a list of 8 tensors", step_of_eight, ALL, False),
    ("gated_sgd_", "gated_sgd_, 8 x 8", gated_step, ALL, True),
    ("metaplastic_gate", "metaplastic_gate, 8 x 8", gate, ALL, True),
    ("synapse_step_", "synapse_step_, 8 x 8", synapse_step, ALL, True),
    ("linear_step_", "linear_step_, batch 4, 8 to 8", linear_step, TRITON, True),
    ("gated_adapter", "gated_adapter, [4, 8, 8], rank 4, no grad", adapter, TRITON, True),
    ("prototype_logits", "prototype_logits, 4 x 4 classes", prototypes, ("auto",), True),
    ("flexibility_field", "flexibility_field, 8 x 8", field, ALL, True),
    ("pack_mask", "pack_mask, 8 x 8", pack, ALL, True),
    ("unpack_mask", "unpack_mask, 8 x 8", unpack, ALL, True),
)
for _name, _title, _make, _backends, _single in CALLS:
    case(f"overhead/{_name}", devices=(CPU, GPU), backends=_backends)(partial(build, _title, _make, _single))


def mlp(device: str) -> list[torch.nn.Parameter]:
    """Weights and biases of three layers of 8 x 8, with gradients."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(UNITS, UNITS, device=device) for _ in range(3)]
    params = [p for layer in layers for p in layer.parameters()]
    for p in params:
        p.grad = torch.randn_like(p) * 0.02
    return params


def build_optimizer(rule: str, gate: str, at: Setting) -> Comparison:
    params, of_peer = mlp(at.device), mlp(at.device)
    ours: MetaplasticSGD | MetaplasticAdamW | Metaplastic
    peers: list[torch.optim.Optimizer]
    if rule == "SGD":
        ours = MetaplasticSGD(params, lr=LR, scale=SCALE, gate=gate)
        peers = [torch.optim.SGD(mlp(at.device), lr=LR), torch.optim.SGD(of_peer, lr=LR, fused=True)]
        title = "MetaplasticSGD.step"
    elif rule == "AdamW":
        ours = MetaplasticAdamW(params, lr=LR, scale=SCALE, gate=gate)
        peers = [torch.optim.AdamW(of_peer, lr=LR, fused=True)]
        title = "MetaplasticAdamW.step"
    else:
        ours = Metaplastic(torch.optim.AdamW(params, lr=LR, fused=True), scale=SCALE, gate=gate)
        peers = [torch.optim.AdamW(of_peer, lr=LR, fused=True)]
        title = "Metaplastic(AdamW(fused=True)).step"
    for _ in range(2):  # a later item, in which alpha is kept
        ours.step()
        ours.consolidate()
    for _ in range(3):
        ours.step()
    goal = at_most(1.5) if at.device == CPU and rule != "displacement" else None
    fused = ["(fused=True)" if peer.defaults["fused"] else "" for peer in peers]
    names = [f"torch.optim.{type(peer).__name__}{of}.step" for peer, of in zip(peers, fused, strict=True)]
    return Comparison(
        f'{title}, MLP of three layers, gate="{gate}"{at.suffix()}',
        ours.step,
        [
            Peer(name, peer.step, PLAIN_IS_ANOTHER_RULE, goal if "fused" in name else None)
            for name, peer in zip(names, peers, strict=True)
        ],
        memory=False,
    )


for _rule, _gate in product(("SGD", "AdamW", "displacement"), ("item", "step")):
    _name = "optimizer" if _rule == "SGD" else _rule.lower()
    case(f"overhead/{_name}-{_gate}", devices=(CPU, GPU), backends=ALL)(partial(build_optimizer, _rule, _gate))
