"""Learners on a multi-layer perceptron learn from sources of images, from files of features, and from tensors
that are converted a batch at a time: the same bits, and memory that does not grow with the data."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern.features import FeatureCache, extract
from flexkern.learners import EWC, MLP_METHODS, load_learner
from flexkern.learners.mlp import base
from flexkern.learners.mlp.base import MLPLearner
from flexkern.learners.mlp.rows import Rows, rows_of
from flexkern.streams import Stream
from helpers.made_images import Flat, Made, made_stream
from helpers.mlp_blobs import CLOSED_FORM, QUICK

METHODS = sorted(name for name, kind in MLP_METHODS.items() if kind.__module__.startswith("flexkern."))
STREAM = made_stream()
OPTIONS: dict[str, Any] = {"widths": (12, 8), "batch_size": 16, "seed": 3}


def in_memory(stream: Stream) -> Stream:
    """The same images as tensors."""
    return Stream(
        [
            dataclasses.replace(e, train_inputs=e.train_inputs.tensor(), test_inputs=e.test_inputs.tensor())
            for e in stream
        ],
        stream.classes,
    )


def make(method: str, **options: Any) -> Any:
    lr = 1e-2 if "features" in options else 1e-4  # images are 0 ... 255
    shape = options.pop("input_shape", STREAM.input_shape)
    return MLP_METHODS[method](shape, 4, **(OPTIONS | {"lr": lr} | QUICK.get(method, {}) | options))


def bits(learner: Any) -> dict[str, bytes]:
    tensors = dict(learner.model.state_dict()) | learner._extra_state()
    return {n: t.numpy().tobytes() for n, t in tensors.items() if isinstance(t, Tensor)}


def learned(learner: Any, stream: Stream) -> tuple[Any, ...]:
    for e in stream:
        learner.learn(e, epochs=2)
    evaluation, last = learner.evaluate(stream), stream[-1].test_inputs
    answers = learner.logits(last), learner.predict(last)
    return bits(learner), evaluation.confusion.tobytes(), *(a.numpy().tobytes() for a in answers)


# ------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("features", [False, True], ids=["pixels", "features"])
@pytest.mark.parametrize("method", METHODS)
def test_a_source_is_learned_as_its_tensor(method: str, features: bool, tmp_path: Path) -> None:
    own = [{"features": Flat()} for _ in range(4)] if features else [{}] * 2
    expected = learned(make(method, **own[0]), in_memory(STREAM))
    assert learned(make(method, **own[1]), STREAM) == expected
    if features:  # computed, and found
        assert learned(make(method, **own[2], features_cache=tmp_path), STREAM) == expected
        assert learned(make(method, **own[3], features_cache=tmp_path), STREAM) == expected
        # Of each part one, to compare: when it is learned, and when it is evaluated. What logits are asked for
        # is in no cache.
        assert own[3]["features"].batches[1:] == [1] * 4 + [30] * 2


def test_workers_decode_the_same() -> None:
    expected = learned(make("replay"), in_memory(STREAM))
    torch.manual_seed(5)
    assert learned(make("replay"), made_stream(workers=2)) == expected
    assert torch.initial_seed() == 5
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # nobody drew from the caller's generator
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("kind", ["uint8", "float16", "bfloat16", "float64", "strided", "mapped"])
@pytest.mark.parametrize("method", METHODS)
def test_tensors_are_converted_batch_by_batch(method: str, kind: str, tmp_path: Path) -> None:
    stream = in_memory(STREAM)
    if kind == "mapped":
        stream = extract(stream, torch.nn.Identity(), cache=tmp_path)
    else:

        def given(x: Tensor) -> Tensor:
            if kind == "strided":
                return (
                    x.float().flip(3).permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2).flip(3)[:, :, :, :6]
                )
            return x if kind == "uint8" else (x / 255).to(getattr(torch, kind))

        stream = Stream(
            [
                dataclasses.replace(e, train_inputs=given(e.train_inputs), test_inputs=given(e.test_inputs))
                for e in stream
            ],
            4,
        )
    plain = Stream(
        [
            dataclasses.replace(
                e, train_inputs=e.train_inputs.float().clone(memory_format=torch.contiguous_format),
                test_inputs=e.test_inputs.float().clone(memory_format=torch.contiguous_format),
            )
            for e in stream
        ],
        4,
    )  # fmt: skip
    shape = stream.input_shape
    assert learned(make(method, input_shape=shape), stream) == learned(make(method, input_shape=shape), plain)


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(CLOSED_FORM)))
def test_an_item_goes_on_to_the_bit(method: str, tmp_path: Path) -> None:
    whole, stopped = (make(method, features=Flat(), features_cache=tmp_path / "cache") for _ in range(2))
    path = tmp_path / "stopped.safetensors"

    class StopError(Exception):
        pass

    def stop(progress: Any) -> None:
        stopped.save(path)
        raise StopError

    for e in STREAM:
        whole.learn(e, epochs=2)
    stopped.learn(STREAM[0], epochs=2)
    with pytest.raises(StopError):
        stopped.learn(STREAM[1], epochs=2, progress=stop)
    again = load_learner(path, features=Flat(), features_cache=tmp_path / "cache")
    assert isinstance(again.features_cache, FeatureCache)
    for learner in (again, stopped, load_learner(path, features=Flat())):
        learner.learn(STREAM[1], epochs=2)
        assert bits(learner) == bits(whole)
    assert "cache" not in str(whole.configuration())


def test_answers_of_many_inputs_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    source, learner = Made(700), make("metaplastic")
    whole = learner.logits(source.tensor())
    monkeypatch.setattr(base, "_ANSWERED_BYTES", 1)  # then 256 at once
    parts = learner.logits(source.tensor())
    # Sums of 108 products of up to 255 / 8, and then of few, in another order.
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-3)
    assert torch.equal(learner.logits(source), parts)
    assert torch.equal(learner.logits(source.tensor().float()), parts)


# ------------------------------------------------------------------ stopped, refused


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", METHODS)
def test_an_image_that_cannot_be_read_stops_an_epoch(method: str, workers: int) -> None:
    learner, whole = make(method), make(method)
    broken = dataclasses.replace(STREAM[0], train_inputs=Made(90, workers=workers, broken=77))
    with pytest.raises(ValueError, match=r"^made 77: no image$"):
        learner.learn(broken, epochs=2)
    assert not multiprocessing.active_children()
    # Sound: the same call begins the epoch anew.
    learner.learn(STREAM[0], epochs=1)
    whole.learn(STREAM[0], epochs=1)
    assert learner.items_learned == 1


def test_a_source_that_does_not_fit_is_refused_before_it_is_read() -> None:
    learner = make("metaplastic")
    other = dataclasses.replace(
        STREAM[0], train_inputs=Made(90, size=5, broken=0), test_inputs=Made(30, size=5, broken=0)
    )
    with pytest.raises(ValueError, match=r"experience: its inputs are \(3, 5, 5\), this learner was made for"):
        learner.learn(other)
    with pytest.raises(ValueError, match=r"x must be \[n, 3, 6, 6\], got \(90, 3, 5, 5\)"):
        learner.logits(other.train_inputs)
    with pytest.raises(ValueError, match=r"test_inputs of stream\[0\], 'item 0' must be \[n, 3, 6, 6\]"):
        learner.evaluate([other])


@pytest.mark.parametrize(
    ("cache", "kind", "message"),
    [
        (7, TypeError, "features_cache must be the path of a folder, a FeatureCache or None, got 7"),
        ("", ValueError, "features_cache must be the path of a folder, a FeatureCache or None, got ''"),
        (True, TypeError, "features_cache must be the path of a folder, a FeatureCache or None, got True"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_cache_that_is_none_is_named(method: str, cache: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make(method, features=Flat(), features_cache=cache)
    with pytest.raises(ValueError, match="features_cache must be None without features"):
        make(method, features_cache="folder")


def test_infinite_features_are_refused_from_a_cache_too(tmp_path: Path) -> None:
    module = Flat()
    module.get_buffer("weight")[0, 0] = float("inf")
    learner = make("metaplastic", features=module, features_cache=tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="features: the extractor gives infinite or NaN"):
            learner.learn(STREAM[0])


# ------------------------------------------------------------------ methods of one's own


class _Keeps(MLPLearner):
    """Written for tensors: what it does with them, rows in a file cannot."""

    seen: list[type]

    def _training_set(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = [type(inputs)]
        return inputs * 2, labels

    def _after_item(self, inputs: Tensor, labels: Tensor) -> None:
        self.seen.append(type(inputs))
        inputs.double().mean(0)


class _OfRows(_Keeps):
    _takes_rows = True

    def _training_set(self, inputs: Any, labels: Tensor) -> tuple[Any, Tensor]:
        self.seen = [type(inputs)]
        return inputs, labels

    def _after_item(self, inputs: Any, labels: Tensor) -> None:
        self.seen.append(type(inputs))
        assert inputs.shape == (90, 108)
        assert inputs[torch.tensor([3, 1])].shape == (2, 108)


class _OfEWC(EWC):
    def _after_item(self, inputs: Any, labels: Tensor) -> None:
        self.seen = [type(inputs)]
        super()._after_item(inputs, labels)


@pytest.mark.parametrize(
    ("kind", "expected"), [(_Keeps, [Tensor] * 2), (_OfRows, [Rows] * 2), (_OfEWC, [Tensor])]
)
def test_hooks_get_what_they_were_written_for(kind: type[MLPLearner], expected: list[type]) -> None:
    learner: Any = kind((3, 6, 6), 4, lr=1e-4, **OPTIONS)
    learner.learn(STREAM[0], epochs=1)
    assert learner.seen == expected
    assert type(pickle.loads(pickle.dumps(learner))) is kind


def test_only_what_costs_little_is_moved_or_copied() -> None:
    device, x = torch.device("cpu"), torch.rand(20, 3, 4)
    rows = rows_of(x, device)
    assert isinstance(rows, Tensor)
    assert rows.data_ptr() == x.data_ptr()
    for other in (x.half(), x.double(), (x * 255).to(torch.uint8), x.transpose(1, 2), Made(20)):
        assert isinstance(rows_of(other, device), Rows)


# ------------------------------------------------------------------ memory

_LITTLE_MEMORY = """
import re, resource, sys
import torch
from flexkern.features import extract_from
from flexkern.learners import MetaplasticMLP, ReplayMLP
from flexkern.streams import Experience
from helpers.made_images import Flat, Made

MIB, COUNT, WIDTH = 1 << 20, 24_576, 1024  # 96 MiB of features, 24 of uint8
torch.set_num_threads(1)
def learn(kind, x, **options):
    y = torch.arange(len(x)) % 3
    # Up to 256 MiB are converted at once where they are answered.
    few = slice(0, 8192 if isinstance(x, torch.Tensor) and x.dtype is torch.uint8 else len(x))
    experience = Experience("one", 0, x, y, x[few], y[few])
    learner = kind(tuple(x.shape[1:]), 3, widths=(8, 8), batch_size=1024, **options)
    learner.learn(experience, epochs=1)
    return learner.evaluate([experience])
for kind in (MetaplasticMLP, ReplayMLP):  # what is imported and taken once
    learn(kind, Made(2000, size=2), features=Flat(2, WIDTH), features_cache=sys.argv[1] + "/small")
    learn(kind, torch.ones((2000, WIDTH), dtype=torch.uint8), lr=1e-4)
data = re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())
as_bytes = torch.randint(0, 255, (COUNT, WIDTH), dtype=torch.uint8)
limit = int(data[1]) * 1024 + (24 + 64) * MIB
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    torch.empty(COUNT, WIDTH).zero_()
except RuntimeError:
    print("no room")
features = extract_from(Flat(2, WIDTH), Made(COUNT, size=2), cache=sys.argv[1])
print(tuple(features.shape))
for kind in (MetaplasticMLP, ReplayMLP):
    learn(kind, features)
    learn(kind, Made(COUNT, size=2), features=Flat(2, WIDTH), features_cache=sys.argv[1])
    learn(kind, as_bytes, lr=1e-4)
print("learned")
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit and how it counts are of Linux")
def test_more_than_there_is_memory_for(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _LITTLE_MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.splitlines() == ["no room", "(24576, 1024)", "learned"], done.stderr
