"""Where a speed-up comes from: the same work in steps from the peer to ours; in each, one thing changes.

Each is a case like others. Its peers are the steps, the usual way first, all timed in one run;
:mod:`flexkern.benchmarks.factors` reads the causes out of its row, and
:mod:`flexkern.benchmarks.profiling` tells where each spends its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flexkern import ops
from flexkern.benchmarks import bench_artsy
from flexkern.benchmarks.bench_artsy import Inference, agree, backbone, described, mixed
from flexkern.benchmarks.bench_artsy_training import Epochs
from flexkern.benchmarks.bench_learner import BY_HAND, Items
from flexkern.benchmarks.case import CPU, GPU, Comparison, Peer, Setting, case
from flexkern.benchmarks.peers import formula
from flexkern.benchmarks.peers.ease import Adapter, Ease
from flexkern.benchmarks.peers.mlp import update_by_hand
from flexkern.nn import attach_adapters
from flexkern.nn.adapters.adapted_model import AdaptedModel

# ---------------------------------------------------------------------- the classifier


def one_pass(w: Tensor, g: Tensor, a: Tensor, f: Tensor, lr: float, scale: float) -> None:
    ops.metaplastic_sgd_(w, g, a, f, lr=lr, scale=scale)


@case("causes/mlp-item", devices=(CPU, GPU), backends=("cuda", "triton"))
def mlp_item(at: Setting) -> Comparison:
    items = Items(at, "step", inputs=at.size(512, 48))
    rules = {
        "the formula in eager PyTorch": items.flexible(formula.update),
        BY_HAND: items.flexible(update_by_hand),
        "one pass, f and anchors stored": items.flexible(one_pass),
    }
    peers = [Peer(name, items.plainly(rule), partial(items.agrees, rule)) for name, rule in rules.items()]
    check = partial(items.agrees_with_itself, fused_step=False)
    peers.append(Peer("the learner, with a gradient in memory", items.learns(fused_step=False), check))
    title = f"MLP learner by causes, {items.sizes()}{at.suffix()}"
    return Comparison(title, items.learns(), peers, items.work(), profile=True)


# ---------------------------------------------------------------------- inference


class ModuleBank(nn.Module):
    """EASE's modules in the place of an :class:`flexkern.nn.AdapterBank`."""

    def __init__(self, adapters: Sequence[Sequence[Adapter]]) -> None:
        super().__init__()
        self.adapters = adapters
        self.layers, self.width = len(adapters[0]), adapters[0][0].up.out_features
        self.dtype = next(adapters[0][0].parameters()).dtype

    def grouped(self, task: int | Tensor) -> int | Tensor:
        """As an adapter bank has it; here nothing is prepared."""
        return task

    def prefetch(self, task: int | Tensor) -> None:
        """Nothing: all modules are where they compute."""

    def forward(self, layer: int, x: Tensor, task: int | Tensor, residual: Tensor) -> Tensor:
        """One task's, or a loop over the runs of tasks of a sorted batch."""
        if isinstance(task, int):
            return self.adapters[task][layer](x, residual)
        tasks, counts = torch.unique_consecutive(task, return_counts=True)
        runs = counts.tolist()
        parts = zip(tasks.tolist(), x.split(runs), residual.split(runs), strict=True)
        return torch.cat([self.adapters[t][layer](part, rest) for t, part, rest in parts])


class Ways:
    """The ways between EASE's passes and :meth:`Inference.ours`, with the same weights."""

    def __init__(self, inference: Inference, at: Setting) -> None:
        self.inference, self.ease = inference, inference.ease()
        size, _ = bench_artsy.shape(at)
        self.adapted: AdaptedModel = attach_adapters(
            backbone(size, at.device),
            ModuleBank(self.ease.adapters),  # type: ignore[arg-type]
        ).eval()
        self._rows = [o.nonzero().squeeze(1) for o in inference.openings.T]

    def _empty(self, h0: Tensor) -> Tensor:
        spaces = h0.new_zeros((len(h0), 1 + self.inference.tasks, h0.shape[1]))
        spaces[:, 0] = h0
        return spaces

    @torch.no_grad()
    def open_only(self) -> Tensor:
        """A whole pass of the images that open a task's synapse, and one of all without adapters."""
        images = self.inference.images
        spaces = self._empty(self.ease.features(images))
        for task, rows in enumerate(self._rows):
            if len(rows):
                spaces[rows, 1 + task] = self.ease.features(images[rows], task)
        return spaces

    @torch.no_grad()
    def shared_trunk(self) -> Tensor:
        """The same from a trunk that runs once."""
        trunk = self.adapted.trunk(self.inference.images)
        spaces = self._empty(self.adapted.features(trunk))
        for task, rows in enumerate(self._rows):
            if len(rows):
                spaces[rows, 1 + task] = self.adapted.features(trunk, task, rows)
        return spaces

    @torch.no_grad()
    def one_batch(self) -> Tensor:
        """All pairs at once, and a loop over tasks where adapters are."""
        trunk = self.adapted.trunk(self.inference.images)
        spaces = self._empty(self.adapted.features(trunk))
        task, image = self.inference.openings.T.nonzero(as_tuple=True)
        spaces[image, 1 + task] = self.adapted.features(trunk, task, image)
        return spaces


@case("causes/artsy-inference", devices=(CPU, GPU), backends=("triton",))
def artsy_inference(at: Setting) -> Comparison:
    inference = bench_artsy.make(at, at.size(10, 3))
    ways_between = Ways(inference, at)
    ways: dict[str, Callable[[], Tensor]] = {
        bench_artsy.ease_name(inference.tasks): partial(inference.passes, ways_between.ease),
        "passes of open synapses only": ways_between.open_only,
        "the same from a common trunk": ways_between.shared_trunk,
        "one batch of pairs, adapters in a loop over tasks": ways_between.one_batch,
    }

    def check(way: Callable[[], Tensor]) -> None:
        agree(inference.ours(), way())

    peers = [Peer(name, mixed(at, way), partial(check, way)) for name, way in ways.items()]
    title = f"Artsy inference by causes, {inference.tasks} tasks, 1 open synapse per image, {described(at)}"
    return Comparison(title, mixed(at, inference.ours), peers, inference.work(), profile=True)


# ---------------------------------------------------------------------- training


class AsWritten(Adapter):
    """An adapter as EASE's authors write it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        with torch.profiler.record_function("adapter"):
            return residual + self.scale * self.up(self.dropout(self.relu(self.down(x))))


class OneOperator(nn.Module):
    """An adapter of a module's weights by :func:`flexkern.ops.gated_adapter`."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.scale, self.p = adapter.scale, adapter.dropout.p
        self.down = nn.Parameter(adapter.down.weight.detach().T.clone())
        self.down_bias = nn.Parameter(adapter.down.bias.detach().clone())
        self.up = nn.Parameter(adapter.up.weight.detach().T.clone())
        self.up_bias = nn.Parameter(adapter.up.bias.detach().clone())

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        bank = self.down[None], self.down_bias[None], self.up[None], self.up_bias[None]
        index = torch.zeros(len(x), dtype=torch.int32, device=x.device)
        p = self.p if self.training else 0.0
        return ops.gated_adapter(x, *bank, index, scale=self.scale, residual=residual, dropout_p=p)


def as_written(ease: Ease) -> None:
    """Puts the authors' modules in the place of those in place."""
    for adapters in ease.adapters:
        for layer, adapter in enumerate(adapters):
            rank, width = adapter.down.weight.shape
            written = AsWritten(width, rank, adapter.scale, adapter.dropout.p).to(adapter.down.weight.device)
            written.load_state_dict(adapter.state_dict())
            adapters[layer] = written


def one_operator(ease: Ease) -> None:
    """Puts the operator in the place of modules."""
    for adapters in ease.adapters:
        for layer, adapter in enumerate(adapters):
            adapters[layer] = OneOperator(adapter)


@case("causes/artsy-training", devices=(CPU, GPU), backends=("triton",))
def artsy_training(at: Setting) -> Comparison:
    epochs = Epochs(at)
    learner = epochs.learner()
    ways = {
        "EASE's, adapters as its authors write them": as_written,
        "adapters as modules in place": None,
        "adapters as one operator": one_operator,
    }
    peers = [
        Peer(name, epochs.again(epochs.plain(learner, way)), partial(epochs.agrees, way))
        for name, way in ways.items()
    ]
    ours = epochs.again(epochs.training(learner))
    return Comparison(f"By causes: {epochs.title()}", ours, peers, epochs.work(), profile=True)
