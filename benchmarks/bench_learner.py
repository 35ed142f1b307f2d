"""A whole item of the paper's classifier, against the same network trained in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from flexkern import ops
from flexkern.benchmarks.case import CPU, GPU, Comparison, Peer, Setting, Work, at_most, case, faster
from flexkern.benchmarks.peers import formula
from flexkern.benchmarks.peers.mlp import Flexible, PlainMLP, PlainSGD, Update, update_by_hand
from flexkern.fields import Field
from flexkern.learners import MetaplasticMLP
from flexkern.streams import Experience

__all__ = ["LR", "SCALE", "Items", "sgd"]

LR, SCALE, SEED, CLASSES = 1e-4, 4e5, 0, 10
BACKENDS = ("cuda", "triton")
STEPS_CHECKED = 4
SGD = "plain SGD, torch.optim.SGD(fused=True)"
AUTOCAST = "the same plain SGD under bfloat16 autocast"
BY_HAND = "the formula in eager PyTorch, in place and by hand"

Rule = Callable[[list[Tensor]], PlainSGD | Flexible]  # makes what moves parameters


class Items:
    """The classifier at one size: learners, their peers with the same state, and an item to learn.

    Args:
        at: full size: 3136-4096-4096-10 and an item of 2,000, as in the authors' release; batches of 256.
        gate: of the learner.
        inputs: of the item, instead.
    """

    def __init__(self, at: Setting, gate: str, inputs: int | None = None) -> None:
        self.at, self.gate = at, gate
        self.features, self.width = at.size(3136, 48), at.size(4096, 64)
        self.batch = at.size(256, 16)
        self.item = self.make_item(inputs or at.size(2000, 56), seed=1)

    def sizes(self) -> str:
        """For titles."""
        layers = f"{self.features}-{self.width}-{self.width}-{CLASSES}"
        return f"{layers}, an item of {len(self.item.train_labels)}, batch {self.batch}, gate={self.gate!r}"

    def make_item(self, inputs: int, seed: int) -> Experience:
        """Random inputs, as features after a ReLU are."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((inputs, self.features), generator=generator).relu().to(self.at.device)
        y = torch.randint(CLASSES, (inputs,), generator=generator).to(self.at.device)
        return Experience(f"item {seed}", 0, x, y, x[:CLASSES], y[:CLASSES])

    def learner(self, **options: Any) -> MetaplasticMLP:
        """Before its first item; ``options`` over what the case says."""
        arguments: dict[str, Any] = {
            "widths": (self.width, self.width), "lr": LR, "scale": SCALE, "gate": self.gate,
            "batch_size": self.batch, "seed": SEED, "device": self.at.device, "fused_step": True,
        }  # fmt: skip
        return MetaplasticMLP((self.features,), CLASSES, **(arguments | options))

    def plain(self, rule: Rule, *, autocast: bool = False) -> PlainMLP:
        """A peer that begins where a learner begins."""
        layers = [m for m in self.learner(fused_step=False).model if isinstance(m, nn.Linear)]
        return PlainMLP(layers, rule, seed=SEED, batch_size=self.batch, autocast=autocast)

    def learns(self, **options: Any) -> Callable[[], None]:
        """A call that teaches one learner the item, again and again."""
        learner = self.learner(**options)
        # With gate="item", alpha is 1 in a learner's first item.
        learner.learn(self.make_item(self.batch, seed=2), epochs=1)
        return partial(learner.learn, self.item, epochs=1)

    def plainly(self, rule: Rule, *, autocast: bool = False) -> Callable[[], float]:
        """The same of a peer."""
        plain, first = self.plain(rule, autocast=autocast), self.make_item(self.batch, seed=2)
        plain.learn(first.train_inputs, first.train_labels)
        return partial(plain.learn, self.item.train_inputs, self.item.train_labels)

    def work(self) -> Work:
        """Products: forward, and two backward but for the first layer's input. Bytes: of the state, fused."""
        f, w = self.features, self.width
        weights, first = f * w + w * w + w * CLASSES, f * w
        steps = -(-len(self.item.train_labels) // self.batch)
        moved = 20 if self.gate == "step" else 16
        return Work(steps * moved * weights, 2 * len(self.item.train_labels) * (3 * weights - first))

    # ------------------------------------------------------------------ agreement

    def _checked(self) -> list[Experience]:
        """Two items of two batches: the second begins with weights that have moved."""
        return [self.make_item(2 * self.batch, seed) for seed in (3, 4)]

    def _learned(self, **options: Any) -> list[Tensor]:
        learner = self.learner(**options)
        for item in self._checked():
            learner.learn(item, epochs=1)
        return [p.detach() for p in learner.model.parameters()]

    def _plainly_learned(self, rule: Rule, *, autocast: bool = False) -> list[Tensor]:
        plain = self.plain(rule, autocast=autocast)
        for item in self._checked():
            plain.learn(item.train_inputs, item.train_labels)
        return [p.detach() for p in plain.params]

    @cached_property
    def _allowance(self) -> tuple[list[Tensor], list[float]]:
        """The weights of ours, and how far (in norm) those of another way to do the same may be from them.

        Gradients are sums of at most 4,096 products, in another order: relative errors of sqrt(4096) ulp at
        most. Each step rounds each weight once, in either. What that changes in |w - a| changes alpha, by at
        most 0.77 (the steepest slope of sech^2) scale (1 - f) / f of it and by at most 1; and 1 - tanh^2
        cancels to a few ulp of 1: both are of a step lr g.
        """
        watched: list[Watched] = []

        def rule(params: list[Tensor]) -> Watched:
            watched.append(Watched(params, *self._state(params), lr=LR, scale=SCALE, gate=self.gate))
            return watched[0]

        before = self.plain(rule).params
        watched.clear()
        after, slack = self._plainly_learned(rule), watched[0].slack
        return self._learned(), [
            _rounding(start.detach(), end, STEPS_CHECKED) + (float(slack[i // 2].norm()) if i % 2 == 0 else 0.0)
            for i, (start, end) in enumerate(zip(before, after, strict=True))
        ]

    def _compare(self, theirs: Sequence[Tensor]) -> None:
        ours, allowed = self._allowance
        for p, q, most in zip(ours, theirs, allowed, strict=True):
            assert float((p - q).norm()) <= most, f"{float((p - q).norm()):.2e} apart, {most:.2e} allowed"

    def agrees(self, rule: Rule) -> None:
        """A peer of the same flexibility has the weights of the learner after two items."""
        self._compare(self._plainly_learned(rule))

    def agrees_with_itself(self, **options: Any) -> None:
        """The learner with other options has the weights of the learner after two items."""
        self._compare(self._learned(**options))

    def agrees_where_free(self) -> None:
        """With f = 1 the learner is plain SGD."""
        before, theirs = self.plain(sgd).params, self._plainly_learned(sgd)
        for start, p, q in zip(before, self._learned(network="conventional"), theirs, strict=True):
            assert bool((q != start).any())
            assert float((p - q).norm()) <= _rounding(start.detach(), q, STEPS_CHECKED)

    def agrees_in_bfloat16(self, *, autocast: bool) -> None:
        """With f = 1 and rounded products the learner takes the steps of plain SGD, to a sixteenth of them.

        Inputs, weights, activations and gradients are rounded to 8 bits each, in both passes of three layers.
        """
        learner = self.learner(network="conventional", precision="bfloat16")
        parameters = list(learner.model.parameters())
        ours = [learner.optimizer.exact(p).clone() for p in parameters]
        for item in self._checked():
            learner.learn(item, epochs=1)
        starts = [p.detach().clone() for p in self.plain(sgd).params]
        ends = self._plainly_learned(sgd, autocast=autocast)
        for p, before, start, end in zip(parameters, ours, starts, ends, strict=True):
            step, theirs = learner.optimizer.exact(p) - before, end - start
            assert float((step - theirs).norm()) <= 2**-4 * float(theirs.norm())

    # ------------------------------------------------------------------ rules of peers

    def flexible(self, update: Update) -> Rule:
        """The flexible update, with the learner's own anchors and flexibility."""
        return lambda params: Flexible(
            params, *self._state(params), lr=LR, scale=SCALE, gate=self.gate, update=update
        )

    def _state(self, params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        weights = params[0::2]
        # Parameter i of the learner, weights and biases alternating, has stream i.
        fields = [Field.uniform(SEED, 2 * i) for i in range(len(weights))]
        drawn = [ops.materialize(f, w.shape, device=w.device) for f, w in zip(fields, weights, strict=True)]
        return [w.detach().clone() for w in weights], drawn


def sgd(params: list[Tensor]) -> PlainSGD:
    return PlainSGD(params, LR)


class Watched(Flexible):
    """Adds up what rounding may change in each weight's steps, see ``Items._allowance``."""

    def __init__(self, params: Sequence[Tensor], anchors: Any, flexibilities: Any, **options: Any) -> None:
        super().__init__(params, anchors, flexibilities, **options)
        self.slack = [torch.zeros_like(w) for w in self._weights]

    @torch.no_grad()
    def step(self) -> None:
        """Moves the parameters, and looks at them before."""
        for w, f, slack in zip(self._weights, self._flexibilities, self.slack, strict=True):
            assert w.grad is not None
            rounded = 2 * STEPS_CHECKED * 2**-24 * w.abs()
            changed = (0.77 * self._scale * (1 - f) / f * rounded).clamp_(max=1) + 8 * 2**-24
            slack += self._lr * w.grad.abs() * changed
        super().step()


def _rounding(start: Tensor, end: Tensor, steps: int) -> float:
    return float(64 * 2**-23 * (end - start).norm() + 2 * steps * 2**-24 * end.norm())


@case("learner/item", devices=(CPU, GPU), backends=BACKENDS, budget=True)
def item_step_gate(at: Setting) -> Comparison:
    items = Items(at, "step")
    formula_rule, by_hand = items.flexible(formula.update), items.flexible(update_by_hand)
    peers = [
        Peer(SGD, items.plainly(sgd), items.agrees_where_free, at_most(1.15 if at.device == GPU else 1.0)),
        Peer(
            "the formula in eager PyTorch", items.plainly(formula_rule), lambda: items.agrees(formula_rule),
            faster(2.0),
        ),
        Peer(BY_HAND, items.plainly(by_hand), lambda: items.agrees(by_hand)),
    ]  # fmt: skip
    return Comparison(
        f"MLP learner, {items.sizes()}{at.suffix()}", items.learns(), peers, items.work(),
        note="with f = 1 the learner's weights are those of plain SGD",
    )  # fmt: skip


@case("learner/bfloat16", devices=(CPU, GPU), backends=BACKENDS, budget=True)
def item_bfloat16(at: Setting) -> Comparison:
    items = Items(at, "step")
    peers = [
        Peer(SGD, items.plainly(sgd), partial(items.agrees_in_bfloat16, autocast=False), faster(3.0)),
        Peer(
            AUTOCAST, items.plainly(sgd, autocast=True), partial(items.agrees_in_bfloat16, autocast=True),
            faster(1.9),
        ),
        Peer("the learner in float32", items.learns(), partial(items.agrees_in_bfloat16, autocast=False)),
    ]  # fmt: skip
    return Comparison(
        f"MLP learner, precision='bfloat16', {items.sizes()}{at.suffix()}", items.learns(precision="bfloat16"),
        peers, items.work(), note="bfloat16 weights, float32 masters: nothing is cast",
    )  # fmt: skip


@case("learner/item-gate", devices=(CPU, GPU), backends=BACKENDS)
def item_item_gate(at: Setting) -> Comparison:
    items = Items(at, "item")
    rule = items.flexible(formula.update)
    peers = [
        Peer(SGD, items.plainly(sgd), items.agrees_where_free),
        Peer("alpha by the formula, then addcmul_", items.plainly(rule), lambda: items.agrees(rule)),
    ]
    return Comparison(f"MLP learner, {items.sizes()}{at.suffix()}", items.learns(), peers, items.work())


@case("learner/cuda-graph", devices=(GPU,), backends=BACKENDS)
def cuda_graph(at: Setting) -> Comparison:
    items = Items(at, "step")
    rule = items.flexible(formula.update)
    peers = [
        Peer("the same without a graph", items.learns(), lambda: items.agrees_with_itself(cuda_graph=True)),
        Peer(SGD, items.plainly(sgd), items.agrees_where_free, at_most(1.15)),
        Peer("the formula in eager PyTorch", items.plainly(rule), lambda: items.agrees(rule), faster(2.0)),
    ]
    title = f"MLP learner in a CUDA graph, {items.sizes()}{at.suffix()}"
    return Comparison(title, items.learns(cuda_graph=True), peers, items.work())
