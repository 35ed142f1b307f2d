"""One method on one stream with one backbone and one seed: a unit, whose result is a JSON file of its own."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.backbones import image_size, load_backbone
from flexkern.files import write_json
from flexkern.learners import make_learner
from flexkern.learners.vit.fingerprints import fingerprint
from flexkern.nn.task_scores import group_logsumexp, group_max
from flexkern.streams import Stream
from studies.gate_bounds import as_one_task
from studies.heads import Head
from studies.method_study.features import Spaces, Tokens, adapter_spaces, frozen_tokens
from studies.method_study.methods import Method, learner_options
from studies.method_study.settings import Setting, key_for
from studies.method_study.streams import STREAMS
from studies.sample_ridge import SampleRidge

__all__ = ["Bench", "from_features", "from_learner", "unit"]

Logits = Callable[[int, Tensor], Tensor]  # of a task's test images, told that task: [n, classes so far]


@dataclass
class Bench:
    """What all methods of a stream, a backbone and a seed share; made when it is first asked for.

    Args:
        name: of the stream, one of ``STREAMS``.
        path: of its data.
        seed: of everything random.
        backbone: as :func:`flexkern.backbones.load_backbone` takes it.
        setting: of the stream.
        device: where to compute.
        kept: folder for features and results; None: nothing is kept.
        progress: called with lines.
    """

    name: str
    path: str
    seed: int
    backbone: Any
    setting: Setting
    device: str = "cpu"
    kept: Path | None = None
    progress: Callable[[str], None] = lambda _: None

    @cached_property
    def stream(self) -> Stream:
        """Its images."""
        size = image_size(load_backbone(self.backbone))
        return STREAMS[self.name].make(self.path, self.seed, size, self.setting)

    @cached_property
    def key(self) -> dict[str, Any]:
        """What a result depends on, beside the method and the names of folders."""
        key = {"backbone": fingerprint(load_backbone(self.backbone)), "setting": asdict(self.setting)}
        return json.loads(json.dumps(key))  # as a file gives it back

    @cached_property
    def tokens(self) -> Tokens:
        """Of the frozen backbone."""
        path = self.kept / "tokens.safetensors" if self.kept else None
        return frozen_tokens(self.stream, self.backbone, self.setting, self.device, path, self.key)

    @cached_property
    def spaces(self) -> Spaces:
        """Of the adapters; trains them."""
        path = self.kept / "spaces.safetensors" if self.kept else None
        return adapter_spaces(
            self.stream, self.seed, self.backbone, self.setting, self.device, path, self.key, self.say
        )

    def say(self, line: str) -> None:
        """A line of progress."""
        self.progress(f"{self.name}, {Path(str(self.backbone)).name}, seed {self.seed}: {line}")


def unit(bench: Bench, method: Method, *, again: bool = False) -> dict[str, Any]:
    """The result of a method, from the file that keeps it or made now.

    Returns:
        Plain numbers: ``matrix`` (row: after a task, column: on a task), ``average`` and ``last`` accuracy,
        ``told`` (last accuracy where only the true task's classes may be answered), ``task_right`` (share of
        answers that name a class of the right task), ``open_per_sample``, ``bytes`` of a checkpoint,
        ``seconds``; of experts also ``base_last``, the last accuracy of the scores that they start from.
    """
    path = bench.kept / f"{method.name}.json" if bench.kept else None
    if path is not None and path.exists() and not again:
        found, whole = json.loads(path.read_text()), bool(method.whole_network)
        if key_for(found["key"], whole) == key_for(bench.key, whole):
            return found
    began = time.perf_counter()
    result = from_learner(bench, method) if method.head is None else from_features(bench, method)
    found = {"key": bench.key, "seconds": round(time.perf_counter() - began, 1), **result}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    bench.say(f"{method.name}: last {found['last']:.1%}, told the task {found['told']:.1%}")
    return found


def from_features(bench: Bench, method: Method) -> dict[str, Any]:
    """A head that goes through the stream on stored features, task after task, as its learner does."""
    tokens, stream = bench.tokens, bench.stream
    if method.layers:
        train, test = tokens.of(method.layers)
    elif method.mean:
        train, test = tokens.of(1)
    else:
        train, test = tokens.features()
    spaces_train, spaces_test = ([x[:, None] for x in part] for part in tokens.features())
    if method.adapted:
        spaces_train, spaces_test = bench.spaces.train, bench.spaces.test
    if method.first_session != "none":
        first = 0 if method.first_session == "both" else 1
        train, test = ([x[:, first:2].flatten(1) for x in part] for part in (spaces_train, spaces_test))
    device = bench.device
    kind = method.head or ""
    if kind == "ridge" and method.head_options["features"] > sum(map(len, train)):
        kind = "sample ridge"  # the same answers, sooner
    head = Head(
        kind, tokens.width, train[0].shape[1], gate=method.gate, options=method.head_options,
        seed=bench.seed, device=device,
    )  # fmt: skip
    scores = Scores(stream)
    class_of_row = torch.zeros(0, dtype=torch.int64)
    for item in stream:
        t, labels = item.number, item.train_labels
        if method.gate is not None:  # each task has rows of its own, as in flexkern.learners.vit.rows
            own, place = labels.unique(return_inverse=True)
            labels = len(class_of_row) + place
            class_of_row = torch.cat([class_of_row, own])
        head.learn(train[t].to(device), spaces_train[t].to(device), labels.to(device))

        def logits(number: int, task: Tensor, t: int = t, rows: Tensor = class_of_row) -> Tensor:
            known = spaces_test[number][:, : t + 2] if method.adapted else spaces_test[number]
            found = head.logits(test[number].to(device), known.to(device), task.to(device)).cpu()
            return found if method.gate is None else _of_classes(method, found, rows)

        scores.add(t, logits)
    read = torch.cat(test).to(device)
    task = torch.cat([torch.full((len(x),), t) for t, x in enumerate(test)]).to(device)
    parts: list[torch.nn.Module] = [p for p in (head.head, head.gate) if p is not None]
    found = scores.result() | {
        "open_per_sample": round(head.open_per_sample(read, task), 4),
        "bytes": sum(size_of(p) for p in parts) + _adapter_bytes(bench, method),
        "tokens": tokens.digest(),
    }
    base = head.base(read)
    if base is not None:
        base = _of_classes(method, base.cpu(), class_of_row)
        labels = torch.cat([item.test_labels for item in stream])
        found["base_last"] = round(float((base.argmax(1) == labels).double().mean()), 4)
    return found


def _of_classes(method: Method, scores: Tensor, class_of_row: Tensor) -> Tensor:
    """Of a class that came in several tasks: its best row, or of experts' probabilities the sum."""
    join = group_logsumexp if method.head == "experts" else group_max
    return join(scores, class_of_row, int(class_of_row.max()) + 1)


def _adapter_bytes(bench: Bench, method: Method) -> int:
    if not method.adapted:
        return 0
    options: dict[str, Any] = {"rank": bench.setting.rank, "precision": bench.setting.precision}
    one = make_learner("ease", bench.backbone, **options).bank.parameters_per_task
    return 4 * one * (len(bench.stream) if method.gate is not None else 1)


def size_of(part: torch.nn.Module) -> int:
    """Bytes of the state that a learner with this part keeps."""
    if isinstance(part, SampleRidge):
        return part.bytes
    return sum(x.numel() * x.element_size() for x in part.state_dict().values())


def from_learner(bench: Bench, method: Method) -> dict[str, Any]:
    """The learner itself, trained task after task."""
    stream = bench.stream
    options = {"seed": bench.seed, "device": bench.device, **learner_options(method, bench.setting)}
    learner = make_learner(method.learner, bench.backbone, **options)

    def logits(number: int, task: Tensor) -> Tensor:
        return learner.logits(stream[number].test_inputs, task=task).cpu()

    scores = Scores(stream)
    for item in as_one_task(stream) if method.at_once else stream:
        learner.learn(item)
        t = len(stream) - 1 if method.at_once else item.number
        scores.add(t, logits)
        bench.say(f"{method.name}: task {t + 1} of {len(stream)}: {scores.after[-1]:.1%}")
    learner.evaluate(stream)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "learner.safetensors"
        learner.save(path)
        size = path.stat().st_size
    return scores.result() | {
        "open_per_sample": round(learner.report.get("open_per_sample", 0.0), 4),
        "bytes": size,
    }


class Scores:
    """Accuracies over a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.matrix: list[list[float]] = []
        self.after: list[float] = []
        self.told = self.task_right = 0.0

    def add(self, last: int, logits: Logits) -> None:
        """After task ``last``: on the test images of all tasks up to it."""
        right, told, task_right = [], [], []
        row = []
        for item in self.stream[: last + 1]:
            labels = item.test_labels
            task = torch.full_like(labels, item.number)
            z = logits(item.number, task).cpu()
            answers = z.argmax(1)
            own = item.train_labels.unique()
            hits = (answers == labels).double()
            row.append(float(hits.mean()))
            right.append(hits)
            told.append((own[z[:, own].argmax(1)] == labels).double())
            task_right.append(torch.isin(answers, own).double())
        self.matrix.append([round(a, 4) for a in row])
        self.after.append(float(torch.cat(right).mean()))
        self.told, self.task_right = (float(torch.cat(x).mean()) for x in (told, task_right))

    def result(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "matrix": self.matrix,
            "average": round(float(np.mean(self.after)), 4),
            "last": round(self.after[-1], 4),
            "told": round(self.told, 4),
            "task_right": round(self.task_right, 4),
        }
