"""Adapters in parallel to the MLPs of a vision transformer, and passes that share what all tasks compute."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from flexkern.backbones.families import FAMILIES, parts_of
from flexkern.backbones.parts import AdapterPoint, Parts, run_block
from flexkern.nn.adapters.bank import AdapterBank
from flexkern.nn.adapters.groups import TaskGroups
from flexkern.nn.adapters.passes import Pass, PassLog, running, running_in
from flexkern.nn.adapters.shared_dropout import AsNow
from flexkern.plain import whole_number

__all__ = ["AdaptedModel", "AdapterPoint", "Parts", "Trunk", "attach_adapters", "parts_of", "pieces_of"]

# On a CPU, samples go through the network in pieces whose widest activation is at most this. glibc maps blocks
# over 32 MB anew each time, and then each page faults: 320 pairs of the small transformer in one batch have 360
# faults per pair, which take 0.65 ms beside 2.3 ms of computing; in pieces there are none.
_PIECE_BYTES = 16 << 20


class Trunk(NamedTuple):
    """What all tasks share: the result of everything before the first adapter.

    x: [N, L, width], what the first adapter reads.
    tokens: [N, L, width], what it adds to: the output of the first block that has one.
    earlier: [N, blocks, 2 * width], what the model would pool after blocks before that one, and the mean of the
        patches' tokens there; of those among the last ones that :meth:`AdaptedModel.trunk` was asked for.
    """

    x: Tensor
    tokens: Tensor
    earlier: Tensor


def attach_adapters(
    model: nn.Module,
    bank: AdapterBank,
    points: Sequence[AdapterPoint] | Parts | None = None,
    *,
    blocks: int | None = None,
) -> AdaptedModel:
    """Puts the bank's adapters in parallel to the MLPs of ``model``'s blocks, and freezes ``model``.

    Args:
        model: of a known family (docs/backbones.md; Hugging Face ViT, DINOv2, ..., timm's vision transformers),
            or any module by ``points``. It is called as before; adapters run inside
            :meth:`AdaptedModel.tasks` only.
        bank: has one layer for each block that gets an adapter.
        points: where the adapters go, for other models; with :class:`Parts`, the shared passes work for those
            too.
        blocks: how many blocks, the last ones, get adapters; None: all, as in the paper. What comes before them
            is one trunk for all tasks, and no backward pass goes through it.

    Raises:
        ValueError: if the model is of no known family and no points are given, there are not so many blocks, or
            the bank has another depth.
    """
    parts = points if isinstance(points, Parts) else parts_of(model) if points is None else None
    if points is None and parts is None:
        raise ValueError(
            f"model: {type(model).__name__} is not a vision transformer of a known family ({FAMILIES}); pass "
            "points=[AdapterPoint(block, norm), ...]"
        )
    places = parts.points if parts is not None else points
    assert places is not None
    assert not isinstance(places, Parts)
    if blocks is not None:
        places = places[len(places) - whole_number(blocks, "blocks", most=len(places)) :]
    if len(places) != bank.layers:
        fewer = f"; for adapters in the last {bank.layers} blocks pass blocks={bank.layers}"
        raise ValueError(
            f"bank has {bank.layers} layers, but there are {len(places)} places for adapters"
            f"{fewer if blocks is None and bank.layers < len(places) else ''}"
        )
    for place in places:
        scale = getattr(place.norm, "weight", None)
        if isinstance(scale, Tensor) and scale.dim() == 1 and len(scale) != bank.width:
            raise ValueError(f"bank has width {bank.width}, and the model's tokens have {len(scale)}")
    return AdaptedModel(model, bank, places, parts)


class AdaptedModel(nn.Module):
    """A frozen model with a bank of adapters; made by :func:`attach_adapters`.

    There are two ways to use it. Call the model (or this module) within ``with adapted.tasks(t):``, where t is
    one task, or the task of each sample. Or, at less cost, call :meth:`trunk` once for a batch of images, and
    then :meth:`features` for any (sample, task) pairs: so the embedding and the blocks up to the first adapter
    run once.

    Activation checkpointing works (of :mod:`torch.utils.checkpoint`, reentrant or not, and of Hugging Face
    models): what a backward pass computes again has the task of the forward pass. A copy (``copy.deepcopy``,
    pickle) has a model and adapters of its own; where ``points`` are :class:`Parts` with functions of yours,
    these must not refer to the model but by a module.
    """

    def __init__(
        self, model: nn.Module, bank: AdapterBank, points: Sequence[AdapterPoint], parts: Parts | None
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.bank = bank
        self._parts = parts
        self._points = list(points)
        self._first = 0 if parts is None else len(parts.points) - len(self._points)  # block with an adapter
        self._log = PassLog()
        self._hooks: list[RemovableHandle] = []
        self._called: list[_Hook] = []
        for layer, point in enumerate(points):
            reader, adder = _Reader(self, layer), _Adder(self, layer)
            self._called += [reader, adder]
            self._hooks.append(point.norm.register_forward_pre_hook(reader))
            self._hooks.append(point.block.register_forward_hook(adder))
        weakref.finalize(self, _remove, self._hooks).atexit = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for (
            hook
        ) in self._called:  # a frozen model that was copied first has hooks that do not know this one yet
            hook.belong_to(self)

    def train(self, mode: bool = True) -> AdaptedModel:
        """Sets the mode of the adapters (dropout); the frozen model stays in ``eval()``."""
        super().train(mode)
        self.model.eval()
        return self

    def remove(self) -> None:
        """Takes the adapters out of the model again, which stays frozen."""
        _remove(self._hooks)

    @contextmanager
    def tasks(self, task: int | Tensor | TaskGroups | None) -> Iterator[None]:
        """In this block the model runs with the adapters of a task.

        Args:
            task: of all samples, or [batch] integers with the task of each, -1 for none; None: no adapters.
        """
        with self._pass(task, reads=task is not None):
            yield

    @contextmanager
    def _pass(self, task: int | Tensor | TaskGroups | None, *, reads: bool) -> Iterator[Pass]:
        task = self.bank.grouped(task)
        compiling = torch.compiler.is_compiling()
        graph_task, start = (-1, 0) if compiling else (torch._C._current_graph_task_id(), _next_node())
        current = Pass(self, task, reads, running.get(), graph_task)
        try:
            try:
                running.set(current)
                yield current
            finally:
                running.set(current.outer)
        finally:
            # Again, for an interrupt in the line that did it: a pass that goes on would be in all others' way.
            running.set(current.outer)
            if not compiling:
                self._log.add(start, _next_node(), task)

    def forward(self, *args: Any, task: int | Tensor | None = None, **kwargs: Any) -> Any:
        """The model's own output, with the adapters of ``task``."""
        with self.tasks(task):
            return self.model(*args, **kwargs)

    # ------------------------------------------------------------------ passes that share

    @property
    def parts(self) -> Parts:
        """The model in parts. RuntimeError if it was given as places for adapters only."""
        return self._known_parts()

    def _known_parts(self) -> Parts:
        if self._parts is None:
            raise RuntimeError("passes that share a trunk need attach_adapters(model, bank, Parts(...))")
        return self._parts

    @torch.no_grad()
    def trunk(self, images: Tensor, *, layers: int = 1) -> Trunk:
        """Runs what comes before the first adapter on images [N, ...], under no_grad: it is not trained.

        Args:
            images: as the model takes them.
            layers: of how many blocks, the last ones, :meth:`features` will be asked for tokens, at most.
        """
        parts = self._known_parts()
        embedded = parts.embed(images)
        arguments = parts.block_arguments(embedded)
        kept = range(len(parts.points) - parts.checked_layers(layers), self._first)
        read, tokens, earlier = [], [], []
        with self._pass(None, reads=True) as current:
            for rows in pieces_of(len(embedded), embedded):
                x, seen = embedded[rows], []
                for i, point in enumerate(parts.points[: self._first + 1]):
                    x = run_block(point.block, x, arguments)
                    if i in kept:
                        seen.append(torch.cat(parts.summary(x, True), 1))
                tokens.append(x)
                read.append(current.inputs.pop(0))
                nothing = x.new_zeros((len(x), 0, 2 * x.shape[2]))
                earlier.append(torch.stack(seen, 1) if seen else nothing)
        return Trunk(_joined(read), _joined(tokens), _joined(earlier))

    def features(
        self,
        trunk: Trunk,
        task: int | Tensor | TaskGroups | None = None,
        sample: Tensor | None = None,
        *,
        mean: bool = False,
        layers: int = 1,
    ) -> Tensor:
        """What the model pools, with the adapters of the tasks, from what :meth:`trunk` returned.

        Args:
            trunk: of N images.
            task: of all pairs, or integers [P], the task of each (-1 for none; sorted is faster), also as
                :meth:`AdapterBank.grouped` of the bank has them; None: no adapters.
            sample: integers [P], the image of each pair; None: pair p is image p.
            mean: append the mean of the patches' tokens.
            layers: of how many blocks, the last ones, as in :meth:`flexkern.backbones.parts.Parts.tokens`.

        Returns:
            [P, layers * width], or [N, layers * width] without ``sample``, block by block; twice as wide with
            ``mean``.

        Raises:
            ValueError: if there are not as many tasks as pairs, or the trunk was made for fewer layers.
        """
        parts = self._known_parts()
        if not isinstance(trunk, Trunk):
            raise TypeError(f"trunk must be what trunk(images) returns, got {type(trunk).__name__}")
        known = len(parts.points) - self._first + trunk.earlier.shape[1]
        if parts.checked_layers(layers) > known:
            raise ValueError(
                f"layers must be at most the {known} that the trunk has kept, got {layers}; pass "
                f"layers={layers} to trunk(), too"
            )
        count = len(trunk.x) if sample is None else len(sample)
        if isinstance(task, Tensor) and tuple(task.shape) != (count,):
            raise ValueError(f"task must have one entry for each of {count} pairs, got {list(task.shape)}")
        task = self.bank.grouped(task)
        if isinstance(task, TaskGroups) and len(task) != count:
            raise ValueError(f"task must have one entry for each of {count} pairs, got {len(task)}")
        if torch.is_grad_enabled():
            return self._piece(parts, trunk, task, sample, slice(0, count), mean, layers)
        pieces = pieces_of(count, trunk.x)
        return _joined([self._piece(parts, trunk, task, sample, rows, mean, layers) for rows in pieces])

    def _piece(
        self,
        parts: Parts,
        trunk: Trunk,
        task: int | Tensor | TaskGroups | None,
        sample: Tensor | None,
        rows: slice,
        mean: bool,
        layers: int,
    ) -> Tensor:
        """The ``rows`` of what :meth:`features` returns."""
        x, tokens, earlier = (p[rows] if sample is None else p.index_select(0, sample[rows]) for p in trunk)
        if isinstance(task, (Tensor, TaskGroups)):
            task = task[rows]
        if x.is_cuda:
            self.bank.prefetch(task)
        arguments = parts.block_arguments(tokens)
        if task is not None:
            tokens = _adapted(self.bank, 0, x, task, tokens)
        first = len(parts.points) - layers
        before = max(0, self._first - first)
        kept = earlier[:, earlier.shape[1] - before :, : (2 if mean else 1) * tokens.shape[2]]
        found = [kept.flatten(1)] if before else []
        if first <= self._first:
            found += parts.summary(tokens, mean)
        with self.tasks(task):
            for i, point in enumerate(parts.points[self._first + 1 :], self._first + 1):
                tokens = parts.run(point.block, tokens, arguments, partial(AsNow, self.bank))
                if i >= first:
                    found += parts.summary(tokens, mean)
        return found[0] if len(found) == 1 else torch.cat(found, 1)


def _remove(hooks: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()
    hooks.clear()


def _next_node() -> int:
    """The number of the next node that autograd makes in this thread."""
    return torch._C._autograd._get_sequence_nr()


class _Hook:
    """A hook of an adapted model in one of its layers. An object and no closure: a copy of the model has hooks
    that are the copy's. A copy of the frozen model alone has hooks that do nothing.

    It does not keep the adapted model alive: the frozen one, which has the hook, may serve others after it.
    """

    def __init__(self, owner: AdaptedModel | None, layer: int) -> None:
        self.layer = layer
        self.belong_to(owner)

    def belong_to(self, owner: AdaptedModel | None) -> None:
        self._owner = None if owner is None else weakref.ref(owner)

    @property
    def owner(self) -> AdaptedModel | None:
        return None if self._owner is None else self._owner()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return type(self)(memo.get(id(self.owner)), self.layer)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (None, self.layer)  # an adapted model that is read makes them its own

    def _pass(self) -> Pass | None:
        owner = self.owner
        return None if owner is None else running_in(owner, owner._log)


class _Reader(_Hook):
    """Keeps what a norm reads, where the pass wants it."""

    def __call__(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        current = self._pass()
        if current is not None and current.reads:
            current.inputs[self.layer] = inputs[0]


class _Adder(_Hook):
    """Adds the adapter's output to a block's, where the pass has a task."""

    def __call__(self, _block: nn.Module, _inputs: Any, output: Any) -> Any:
        current = self._pass()
        if current is None or current.task is None:
            return None
        read = current.inputs.pop(self.layer)
        alone = isinstance(output, Tensor)
        tokens = _adapted(current.owner.bank, self.layer, read, current.task, output if alone else output[0])
        return tokens if alone else (tokens, *output[1:])


def _adapted(bank: AdapterBank, layer: int, read: Tensor, task: Any, tokens: Tensor) -> Tensor:
    """``tokens`` plus the adapters' output, in the dtype that the network computes in.

    Adapters of a network in bfloat16 or float16 are float32, as all that is trained, and so is the sum.
    """
    own = bank.dtype
    device = tokens.device.type
    if tokens.dtype is own or (device != "meta" and torch.is_autocast_enabled(device)):
        return bank(layer, read, task, tokens)
    return bank(layer, read.to(own), task, tokens.to(own)).to(tokens.dtype)


def pieces_of(count: int, tokens: Tensor) -> Iterator[slice]:
    """Splits ``count`` samples with such tokens, [., L, width], into what goes through the network at once."""
    most = max(count, 1)
    if tokens.device.type == "cpu":
        _keep_freed_memory()
        widest = 4 * tokens[:1].numel() * tokens.element_size()  # inside the MLPs, in all known families
        most = max(1, _PIECE_BYTES // max(widest, 1))
    pieces = max(1, math.ceil(count / most))
    bounds = [count * i // pieces for i in range(pieces + 1)]
    return map(slice, bounds[:-1], bounds[1:])


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


@functools.cache
def _keep_freed_memory() -> None:
    """Lets glibc keep up to 64 MB of freed memory; once per process.

    glibc returns freed memory to the system when more than twice the largest block that was freed so far lies
    free (it counts blocks up to 32 MB). In a fresh process that is little: each activation goes back to the
    system when it is freed, and its pages fault when the next one is allocated, 450 faults per image in a batch
    of 64 through the small transformer. Freeing one large block raises the limit, and costs nothing, since no
    page of it is touched. Other C libraries ignore it.
    """
    torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8)
