"""Learners on linear layers that several processes train together, on the bundled digits."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.distributed import alone, rank, world_size
from flexkern.learners import MLP_METHODS, load_mlp
from flexkern.learners.base import Learner
from flexkern.streams import Experience, Stream, bundled_digits
from helpers import groups
from helpers.tiny_vit import Decoded

LR = 0.05
CLASSES, EACH, BATCH, EPOCHS = 6, 23, 14, 2  # batches that no number of processes divides
OPTIONS: dict[str, dict[str, Any]] = {
    "ridge": {"random_features": 24},
    "replay": {"memory": 20, "replay_batch": 5},
    "ewc": {"strength": 20.0, "fisher_samples": 30},
}


class Extractor(nn.Module):
    """Three numbers of each row."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 8, 8).float() / 16
        return torch.cat([x.mean(2), x.amax(2), x[:, :, :4].sum(2) / 4], 1)


def _pictures(x: Tensor) -> Decoded:
    return Decoded((x * 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1))


@functools.cache
def stream(kind: str = "floats") -> Stream:
    images, labels = bundled_digits()
    experiences = []
    for number, own in enumerate(((0, 1), (2, 3), (4, 5))):
        rows = torch.cat([(labels == c).nonzero().squeeze(1)[:EACH] for c in own])
        tests = torch.cat([(labels == c).nonzero().squeeze(1)[EACH : EACH + 9] for c in own])
        inputs = [images[of] if kind == "bytes" else images[of] / 255 for of in (rows, tests)]
        experiences.append(
            Experience(f"item {number}", number, inputs[0], labels[rows], inputs[1], labels[tests])
        )
    if kind == "source":
        pictures = [
            [
                Decoded(x.mul(255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1))
                for x in (e.train_inputs, e.test_inputs)
            ]
            for e in experiences
        ]
        experiences = [
            replace(e, train_inputs=train, test_inputs=test)
            for e, (train, test) in zip(experiences, pictures, strict=True)
        ]
    return Stream(experiences, CLASSES)


def make(method: str, kind: str = "floats", **options: Any) -> Any:
    common = {"widths": (24, 16), "lr": LR, "batch_size": BATCH, "seed": 3}
    return MLP_METHODS[method](
        stream(kind).input_shape, CLASSES, **(common | OPTIONS.get(method, {}) | options)
    )


def result(learner: Any, tested: Stream, losses: list[float]) -> dict[str, Any]:
    evaluation = learner.evaluate(tested)
    optimizer = learner._optimizer()
    return {
        "state": {k: v.clone() for k, v in learner._modules().state_dict().items() if isinstance(v, Tensor)},
        "extra": {k: v.clone() for k, v in learner._extra_state().items()},
        "scales": [] if optimizer is None else optimizer.scales(),
        "accuracies": evaluation.accuracies.tolist(),
        "masked": evaluation.masked.tolist(),
        "top": evaluation.top_accuracies.tolist(),
        "confusion": evaluation.confusion.tolist(),
        "losses": losses,
        "logits": learner.logits(tested[0].test_inputs),
        "items": learner.items_learned,
    }


def learn(method: str, *, kind: str = "floats", **options: Any) -> dict[str, Any]:
    learner, losses = make(method, kind, **options), []
    for item in stream(kind):
        learner.learn(item, epochs=EPOCHS, progress=lambda done: losses.append(done.loss))
    return result(learner, stream(kind), losses)


def learn_cached() -> dict[str, Any]:
    """Features are kept in one folder of all processes, in which nothing is computed twice."""
    folder = groups.FOLDER / f"features{world_size()}"
    found = learn("metaplastic", features=Extractor(), features_cache=folder)
    return found | {"kept": len(list(folder.iterdir()))}


def stop_in_item(path: str, method: str) -> Any:
    """The first item, and an epoch of the second one; then the file."""
    learner = make(method)
    learner.learn(stream()[0], epochs=EPOCHS)

    def stop(done: Any) -> None:
        learner.save(path)
        raise InterruptedError

    with contextlib.suppress(InterruptedError):
        learner.learn(stream()[1], epochs=EPOCHS, progress=stop)
    return learner


def go_on(path: str) -> dict[str, Any]:
    learner = load_mlp(path)
    for item in stream().experiences[1:]:
        learner.learn(item, epochs=EPOCHS)
    return result(learner, stream(), [])


def saved(method: str) -> str:
    """A file that several processes have written; only the first one writes."""
    path = groups.FOLDER / f"{method}-by-{world_size()}.safetensors"
    own = path if rank() == 0 else path.with_suffix(f".{rank()}")
    stop_in_item(str(own), method)
    torch.distributed.barrier()
    assert own.exists() == (rank() == 0)
    return str(path)


def resumed(method: str) -> dict[str, Any]:
    """From a file that one process has written."""
    return go_on(str(groups.FOLDER / f"{method}-by-1.safetensors"))


def message(of: Callable[[], Any]) -> str:
    try:
        of()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def own_data() -> str:
    """Each process brings its own share, as with a DistributedSampler."""
    item = stream()[0]
    rows = slice(rank(), None, world_size())
    own = replace(item, train_inputs=item.train_inputs[rows], train_labels=item.train_labels[rows])
    return message(lambda: make("metaplastic").learn(own))


def other_calls() -> str:
    learner = make("metaplastic")
    if rank():
        return message(lambda: learner.learn(stream()[0]))
    return message(lambda: learner.evaluate(stream()))


class Foreign(Learner):
    """A learner that says nothing of processes."""

    family, default_epochs = "mlp", 1

    def _check(self, experience: Experience) -> None: ...

    def _take_up(self, experience: Experience, epochs: int) -> Any:
        raise AssertionError("not to be reached")

    def _modules(self) -> nn.Module:
        return nn.Module()

    def _frozen(self) -> None: ...

    def _check_frozen(self, known: Any, **given: Any) -> Any: ...

    def _check_inputs(self, x: Any, name: str) -> None: ...

    def logits(self, x: Any) -> Tensor:
        return torch.zeros(len(x), 2)

    def _count_classes(self, stream: Any) -> int:
        return 2


def learn_alone() -> dict[str, Any]:
    """Each process has a learner of its own, with another seed, and another number of items."""
    number = rank()
    with alone():
        learner = make("metaplastic", seed=number)
        for item in stream().experiences[: 1 + number]:
            learner.learn(item, epochs=1)
        return result(learner, stream(), [])


RESERVE: dict[str, Any] = {"silent_fraction": 0.5, "threshold": 0.02}
LEARNED: dict[str, Callable[[], dict[str, Any]]] = {
    **{method: partial(learn, method) for method in MLP_METHODS if not method.startswith("test-")},
    "gate step": partial(learn, "metaplastic", gate="step", scale=30.0, momentum=0.5),
    "silent": partial(learn, "metaplastic", **RESERVE),
    "silent, hebbian": partial(learn, "metaplastic", rule="hebbian", insert="hebbian", prune=1e-3, **RESERVE),
    "output gate": partial(learn, "replay", output_gate="frequency"),
    "bfloat16": partial(learn, "metaplastic", precision="bfloat16"),
    "small batches": partial(learn, "metaplastic", batch_size=3),  # some processes have none of them
    "features": partial(learn, "metaplastic", features=Extractor()),
    "features, lda": partial(learn, "lda", features=Extractor()),
    "bytes": partial(learn, "replay", kind="bytes"),
    "source": partial(learn, "joint", kind="source", lr=1e-4),
}
RESUMED = ("metaplastic", "si", "replay")
CASES: dict[str, Callable[[], Any]] = {
    **LEARNED,
    "cached": learn_cached,
    "alone": learn_alone,
    **{f"saved {method}": partial(saved, method) for method in RESUMED},
    **{f"resumed {method}": partial(resumed, method) for method in RESUMED},
    "own data": own_data,
    "other seeds": lambda: message(lambda: make("metaplastic", seed=rank()).learn(stream()[0])),
    "other calls": other_calls,
    "fused": lambda: message(lambda: make("metaplastic", fused_step=True).learn(stream()[0])),
    "foreign": lambda: message(lambda: Foreign(seed=0, device="cpu", configuration={}).learn(stream()[0])),
}
