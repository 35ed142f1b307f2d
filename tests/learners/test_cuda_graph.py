"""Steps from a CUDA graph: the bits of the steps without one, shown with a stand-in for graphs on the CPU.

The stand-in does what a graph does: it records the operators of one step and undoes what they wrote; a replay
runs these operators again, on the same tensors and with the same numbers, and no Python. What a GPU forbids
while it records (looking at values, copying numbers from Python) raises. tests/gpu/test_gpu_graph.py has real
graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flexkern.learners import EWC, SI, MetaplasticMLP, Progress, ReplayMLP
from flexkern.learners.mlp import cuda_graph
from flexkern.nn import AdaptiveThreshold
from flexkern.streams import Stream, two_digit_stream

aten = torch.ops.aten
# They read values on the device (or how many there are), or copy from memory of Python's.
FORBIDDEN = {
    aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.is_nonzero, aten.lift_fresh,
    aten._unique2, aten.unique_dim, aten.allclose,
}  # fmt: skip


class Recording(TorchDispatchMode):
    """The operators of a step, as a CUDA graph holds its kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket in FORBIDDEN:
            raise RuntimeError(f"{func} waits for the device, or copies to it, in a captured step")
        kwargs = kwargs or {}
        declared = func._schema.arguments
        named = dict(zip((d.name for d in declared), args, strict=False)) | kwargs
        for name in (d.name for d in declared if d.alias_info is not None and d.alias_info.is_write):
            for tensor in tree_leaves(named.get(name)):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        for storage, before in self.before.values():
            storage.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if (
                    isinstance(old, Tensor)
                    and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr()
                ):
                    old.copy_(new)


class StandIn:
    """A recorder without a GPU; counts what it is asked for."""

    def __init__(self) -> None:
        self.ran = self.captured = self.replayed = 0

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        self.ran += 1
        return step()

    def capture(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captured += 1
        with Recording() as recording:
            loss = step()
        recording.undo()

        def replay() -> None:
            self.replayed += 1
            recording.replay()

        return replay, loss


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    recorder = StandIn()
    monkeypatch.setattr(cuda_graph, "graph_recorder", lambda device: recorder)
    return recorder


ITEMS, BATCH, STEPS = 3, 16, 8  # 60 inputs of a class: seven whole batches per epoch, and one of 8


@pytest.fixture(scope="module")
def stream() -> Stream:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, 6, 6, generator=generator) > 0.5
    labels = torch.arange(800) % 10
    images = (patterns[labels] + 0.2 * torch.rand(800, 6, 6, generator=generator)).float()
    return two_digit_stream(images, labels, items=ITEMS, train_per_item=60, test_per_item=40, seed=1)


OPTIONS = {"widths": (24, 16), "lr": 0.02, "scale": 30.0, "batch_size": BATCH}


def learn(stream: Stream, kind: type[MetaplasticMLP] = MetaplasticMLP, **options: Any) -> MetaplasticMLP:
    learner = kind(
        stream.input_shape, stream.classes, **({} if kind is not MetaplasticMLP else OPTIONS) | options
    )
    for item in stream:
        learner.learn(item, epochs=2)
    return learner


def state(learner: MetaplasticMLP) -> list[bytes]:
    """All tensors of model and optimizer."""
    tensors = [t for t in learner.model.state_dict().values() if isinstance(t, Tensor)]
    tensors += [t for of in learner.optimizer.state.values() for t in of.values() if isinstance(t, Tensor)]
    return [t.numpy().tobytes() for t in tensors]


RESERVE = {"silent_fraction": 0.3, "threshold": AdaptiveThreshold(target=0.01, gain=30.0, start=0.05)}


@pytest.mark.parametrize("gate", ["step", "item"])
@pytest.mark.parametrize("fused_step", [False, True], ids=["", "fused"])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"momentum": 0.9}, {"network": "conventional"}, {"output_gate": "frequency"}, RESERVE,
        {**RESERVE, "prune": 0.01, "momentum": 0.5},
        {**RESERVE, "rule": "hebbian", "insert": "hebbian", "eta": 0.1},
    ],
    ids=["plain", "momentum", "conventional", "gated", "reserve", "pruned", "hebbian"],
)  # fmt: skip
def test_steps_from_a_graph_have_the_same_bits(
    stream: Stream, stand_in: StandIn, gate: str, fused_step: bool, options: dict[str, Any]
) -> None:
    options = {"gate": gate, "fused_step": fused_step, **options}
    expected = learn(stream, **options)
    got = learn(stream, **options, cuda_graph=True)
    assert state(got) == state(expected)
    assert got.conversions() == expected.conversions()
    if "silent_fraction" in options:
        assert sum(map(sum, got.conversions())) > 0
    # Two steps of each item, and the two smaller batches of its epochs, run without a graph.
    assert (stand_in.captured, stand_in.ran, stand_in.replayed) == (ITEMS, ITEMS * 4, ITEMS * (2 * STEPS - 4))


def test_the_scale_is_measured_without_a_graph(stream: Stream, stand_in: StandIn) -> None:
    expected = learn(stream, scale="auto")
    got = learn(stream, scale="auto", cuda_graph=True)
    assert got.optimizer.scales() == expected.optimizer.scales()
    assert state(got) == state(expected)
    assert stand_in.captured == ITEMS - 1


def test_a_new_learning_rate_is_captured_anew(stream: Stream, stand_in: StandIn) -> None:
    def halve(learner: MetaplasticMLP) -> Callable[[object], None]:
        def after_epoch(_: object) -> None:
            learner.optimizer.param_groups[0]["lr"] /= 2

        return after_epoch

    learners = [
        MetaplasticMLP(stream.input_shape, stream.classes, **OPTIONS, cuda_graph=on) for on in (False, True)
    ]
    for learner in learners:
        learner.learn(stream[0], epochs=2, progress=halve(learner))
    assert state(learners[0]) == state(learners[1])
    assert stand_in.captured == 2


@pytest.mark.parametrize("fused_step", [False, True], ids=["", "fused"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("maximize", True), ("gate", "step"), ("nonfinite", "propagate"), ("momentum", 0.5),
        ("weight_decay", 0.1), ("dampening", 0.5), ("nesterov", True),
    ],
)  # fmt: skip
def test_a_setting_that_changes_in_mid_item_is_recorded_anew(
    stream: Stream, stand_in: StandIn, name: str, value: object, fused_step: bool
) -> None:
    options = {**OPTIONS, "fused_step": fused_step, "gate": "item"}
    if name in ("dampening", "nesterov"):
        options["momentum"] = 0.9
    without, usual, graphed = (
        MetaplasticMLP(stream.input_shape, stream.classes, **options, cuda_graph=on)
        for on in (False, False, True)
    )
    for learner in (without, usual, graphed):
        learner.learn(stream[0], epochs=2)  # after it alpha is not 1 everywhere
    before = stand_in.captured

    def change(learner: MetaplasticMLP) -> Callable[[Progress], None]:
        def after_epoch(now: Progress) -> None:
            if now.epoch == 1:
                learner.optimizer.param_groups[0][name] = value
                if name == "nonfinite":
                    # A gradient that is not finite, in one place of the last layer.
                    with torch.no_grad():
                        learner.model[-1].weight[0, 0] = torch.inf

        return after_epoch

    without.learn(stream[1], epochs=3, progress=change(without))
    graphed.learn(stream[1], epochs=3, progress=change(graphed))
    usual.learn(stream[1], epochs=3)
    assert state(graphed) == state(without)
    assert state(without) != state(usual)  # so the change matters to what a graph holds
    assert stand_in.captured == before + 2


def test_nonfinite_is_looked_for_without_a_graph_from_when_it_is_asked(
    stream: Stream, stand_in: StandIn
) -> None:
    learner = MetaplasticMLP(stream.input_shape, stream.classes, **OPTIONS, cuda_graph=True)
    seen = []

    def look(now: Progress) -> None:
        learner.optimizer.param_groups[0]["nonfinite"] = "raise"
        if now.epoch == 2:
            with torch.no_grad():
                learner.model[-1].bias.fill_(torch.nan)
        seen.append(stand_in.replayed)

    with pytest.raises(FloatingPointError):
        learner.learn(stream[0], epochs=4, progress=look)
    assert seen[0] > 0
    assert seen == [seen[0]] * 2


def test_a_learning_rate_on_a_gpu_is_read_by_replays() -> None:
    """So its value is not looked at; that of one on the CPU is what the step would be captured with."""
    elsewhere = torch.empty(1, device="meta")  # it has no value to look at
    assert cuda_graph._constant(elsewhere) == cuda_graph._constant(elsewhere)
    assert cuda_graph._constant(torch.tensor(0.5)) == 0.5


def test_it_resumes_to_the_bit(stream: Stream, stand_in: StandIn, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    expected = learn(stream)
    first = MetaplasticMLP(stream.input_shape, stream.classes, **OPTIONS, cuda_graph=True)

    def save_and_stop(_: object) -> None:
        first.save(tmp_path / "one")
        raise StopError

    with pytest.raises(StopError):
        first.learn(stream[0], epochs=2, progress=save_and_stop)
    for graph in (True, False):
        resumed = MetaplasticMLP.load(tmp_path / "one", cuda_graph=graph)
        for item in stream:
            resumed.learn(item, epochs=2)
        assert state(resumed) == state(expected)
    first.learn(stream[0], epochs=2)  # the one that was stopped goes on too
    for item in stream[1:]:
        first.learn(item, epochs=2)
    assert state(first) == state(expected)


@pytest.mark.parametrize("kind", [EWC, SI, ReplayMLP])
def test_other_methods(stream: Stream, stand_in: StandIn, kind: type[MetaplasticMLP], tmp_path: Path) -> None:
    options: dict[str, Any] = {"widths": (24, 16), "lr": 0.02, "batch_size": BATCH}
    expected = learn(stream, kind, **options)
    got = learn(stream, kind, **options, cuda_graph=True)
    assert state(got) == state(expected)
    assert all(torch.equal(a, b) for a, b in zip(
        got._extra_state().values(), expected._extra_state().values(), strict=True))  # fmt: skip
    assert stand_in.replayed > 0
    got.save(tmp_path / "one")
    assert state(kind.load(tmp_path / "one")) == state(expected)


class Counting(MetaplasticMLP):
    """Its steps differ in Python: not what a graph can hold."""

    steps = 0

    def _before_step(self) -> None:
        self.steps += 1
        for p in self.model.parameters():
            assert p.grad is not None
            p.grad *= self.steps % 2


def test_hooks_must_say_that_they_can_be_captured(stream: Stream, stand_in: StandIn) -> None:
    with pytest.raises(ValueError, match=r"False for Counting: its _before_step .* _captures_hooks = True"):
        learn(stream, Counting, **OPTIONS, cuda_graph=True)


def test_the_stand_in_replays_no_python(stream: Stream, stand_in: StandIn) -> None:
    """Or the tests above would say nothing."""

    class Says(Counting):
        _captures_hooks = True

    assert state(learn(stream, Says, **OPTIONS, cuda_graph=True)) != state(learn(stream, Says, **OPTIONS))


@pytest.mark.parametrize(
    "look", [lambda p: p.grad.sum().item(), lambda p: torch.tensor(1.0), lambda p: p.nonzero()]
)
def test_the_stand_in_refuses_what_a_gpu_does(
    stream: Stream, stand_in: StandIn, look: Callable[[Any], Any]
) -> None:
    class Looks(MetaplasticMLP):
        _captures_hooks = True

        def _after_step(self) -> None:
            look(next(self.model.parameters()))

    with pytest.raises(RuntimeError, match="in a captured step"):
        learn(stream, Looks, **OPTIONS, cuda_graph=True)


def test_a_cpu_is_refused(stream: Stream, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cuda_graph must be False on cpu"):
        MetaplasticMLP(stream.input_shape, stream.classes, cuda_graph=True)
    learn(stream).save(tmp_path / "one")
    with pytest.raises(ValueError, match="cuda_graph must be False on cpu"):
        MetaplasticMLP.load(tmp_path / "one", cuda_graph=True)
    with pytest.raises(TypeError, match="cuda_graph"):
        MetaplasticMLP(stream.input_shape, stream.classes, cuda_graph=1)  # type: ignore[arg-type]
