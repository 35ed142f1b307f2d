"""Learners on a vision transformer that several processes train together, on the bundled digits."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from flexkern.distributed import rank, world_size
from flexkern.learners import METHODS, load_learner, make_learner
from flexkern.streams import Experience, Stream, bundled_digits
from helpers import groups, tiny_vit

EACH, EPOCHS = 19, 2
OPTIONS: dict[str, Any] = {"epochs": EPOCHS, "lr": 0.02, "batch_size": 13, "images_per_pass": 8, "seed": 3}
ARTSY: dict[str, Any] = {"rank": 4, "flip": 0.0}
OF_METHOD: dict[str, dict[str, Any]] = {
    "artsy": ARTSY, "ease": ARTSY, "artsy-best": ARTSY | {"layers": 2}, "ranpac": {"features": 16},
    "lda": {"layers": 2},
}  # fmt: skip


@functools.cache
def stream(source: bool = False) -> Stream:
    images, labels = bundled_digits()
    images = images[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
    experiences = []
    for number, own in enumerate(((0, 1), (2, 3))):
        rows = torch.cat([(labels == c).nonzero().squeeze(1)[:EACH] for c in own])
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(number))]
        tests = torch.cat([(labels == c).nonzero().squeeze(1)[EACH : EACH + 7] for c in own])
        of_each = [images[rows], images[tests]]
        train, test = [tiny_vit.Decoded(x) for x in of_each] if source else of_each
        experiences.append(Experience(f"task {number}", number, train, labels[rows], test, labels[tests]))
    return Stream(experiences, 4)


def make(method: str, **options: Any) -> Any:
    return make_learner(method, tiny_vit.backbone(), **(OPTIONS | OF_METHOD.get(method, {}) | options))


def result(learner: Any, losses: list[float], of: Stream) -> dict[str, Any]:
    evaluation = learner.evaluate(of)
    report = {key: value for key, value in learner.report.items() if key != "seconds_per_image"}
    return {
        "state": {k: v.clone() for k, v in learner._modules().state_dict().items() if isinstance(v, Tensor)},
        "accuracies": evaluation.accuracies.tolist(),
        "confusion": evaluation.confusion.tolist(),
        "report": report,
        "losses": losses,
        "temperature": learner.temperature,
        "logits": learner.logits(of[0].test_inputs),
    }


def learn(method: str, *, source: bool = False, **options: Any) -> dict[str, Any]:
    learner, losses, of = make(method, **options), [], stream(source)
    for task in of:
        learner.learn(task, progress=lambda done: losses.append(done.loss))
    return result(learner, losses, of)


def few() -> dict[str, Any]:
    """Pieces of an online stream: as many images as there are processes, and fewer."""
    learner = make("lda")
    task = stream()[0]
    learner.learn(task)
    for rows in (slice(0, 4), slice(4, 5)):
        piece = replace(task, train_inputs=task.train_inputs[rows], train_labels=task.train_labels[rows])
        learner.learn(replace(piece, class_names=()))
    return result(learner, [], Stream([task], 4))


def stop_in_task(path: str) -> None:
    learner = make("artsy")
    learner.learn(stream()[0])

    def stop(done: Any) -> None:
        learner.save(path)
        raise InterruptedError

    with contextlib.suppress(InterruptedError):
        learner.learn(stream()[1], progress=stop)


def go_on(path: str) -> dict[str, Any]:
    learner = load_learner(path, backbone=tiny_vit.backbone())
    learner.learn(stream()[1])
    return result(learner, [], stream())


def saved() -> str:
    path = groups.FOLDER / f"by-{world_size()}.safetensors"
    stop_in_task(str(path))
    torch.distributed.barrier()
    return str(path)


def resumed() -> dict[str, Any]:
    return go_on(str(groups.FOLDER / "by-1.safetensors"))


def refused() -> str:
    learner = make("artsy", rank=4 + rank())
    try:
        learner.learn(stream()[0])
    except RuntimeError as error:
        return str(error)
    return ""


def sharded() -> str:
    """A backbone of whose blocks each process has a part."""
    network = tiny_vit.backbone()
    for block in network.encoder.layer if hasattr(network, "encoder") else network.layers:
        fully_shard(block)
    try:
        make_learner("artsy", network)
    except ValueError as error:
        return str(error)
    return ""


GATES: dict[str, dict[str, Any]] = {
    "ridge": {"gate": {"gate": "ridge", "features": 16, "gating": "soft"}},
    "knn": {"gate": {"gate": "knn"}},
    "mahalanobis": {"gate": {"gate": "mahalanobis", "threshold": "quantile"}},
    "sum": {"combine": "sum"},
    "replay": {"gate": {"gate": "mlp", "negatives": "replay", "threshold": "adaptive"}},
}
LEARNED: dict[str, Callable[[], dict[str, Any]]] = {
    **{method: partial(learn, method) for method in METHODS if not method.startswith("test-")},
    **{f"artsy, {name}": partial(learn, "artsy", **options) for name, options in GATES.items()},
    "first session": partial(learn, "ranpac", first_session="both", rank=4, dropout=0.3),
    "source": partial(learn, "artsy", source=True),
    "small batches": partial(learn, "artsy", batch_size=3, dropout=0.5),
    "recompute": partial(learn, "artsy", dropout=0.5, recompute=True),
    "few": few,
}
CASES: dict[str, Callable[[], Any]] = {
    **LEARNED, "saved": saved, "resumed": resumed, "refused": refused, "sharded": sharded,
}  # fmt: skip
