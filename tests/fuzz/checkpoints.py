"""Checkpoints that were damaged, or that someone else wrote: refused by path, or a learner that answers."""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import json
import re
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from flexkern.learners import checkpoint, load_learner
from flexkern.learners.mlp.metaplastic import MetaplasticMLP
from flexkern.learners.registry import METHODS, MLP_METHODS
from flexkern.streams import Experience
from fuzz.harness import fuzzer
from helpers import tiny_vit
from helpers.mlp_blobs import blobs

_MOST = 1 << 26  # bytes that reading may allocate at once: a file here has some 10 kB


class _Saved(NamedTuple):
    """A learner's file, once whole and once in parts."""

    name: str
    content: bytes
    tensors: dict[str, torch.Tensor]
    record: dict[str, Any]
    inputs: torch.Tensor
    given: dict[str, Any]


class _StopError(Exception):
    pass


@functools.cache
def _saved() -> list[_Saved]:
    """Files of several learners, in the middle and at the end of an item."""
    stream = blobs(2, per_class=8)
    size, mlps = stream.input_shape, {"widths": (6, 5), "lr": 0.05, "batch_size": 8, "seed": 3}
    silent = {"silent_fraction": 0.4, "threshold": 0.1}
    makers: dict[str, tuple[Callable[[], Any], Any]] = {
        "step": (lambda: MetaplasticMLP(size, stream.classes, gate="step", scale=30.0, **mlps), stream),
        "silent": (lambda: MetaplasticMLP(size, stream.classes, momentum=0.5, **silent, **mlps), stream),
        "ewc": (lambda: MLP_METHODS["ewc"](size, stream.classes, **mlps), stream),
        "si": (lambda: MLP_METHODS["si"](size, stream.classes, **mlps), stream),
        "replay": (lambda: MLP_METHODS["replay"](size, stream.classes, memory=8, **mlps), stream),
    }
    given: dict[str, Any] = {}
    try:
        import transformers
    except ImportError:
        pass
    else:
        sizes = tiny_vit.SIZES | {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
        torch.manual_seed(0)
        network: nn.Module = transformers.ViTModel(transformers.ViTConfig(**sizes), add_pooling_layer=False)
        given = {"backbone": network}
        images = tiny_vit.stream()
        ridge = {"gate": "ridge", "features": 8}
        energy = {"gate": "energy", "epochs": 1}
        for name, method, options in (
            ("simplecil", "simplecil", {}), ("ranpac", "ranpac", {"features": 8}), ("lda", "lda", {}),
            ("finetune", "finetune", {}), ("joint", "joint", {}),
            ("artsy", "artsy", {"rank": 2, "gate": ridge}),
            ("artsy mlp", "artsy", {"rank": 2, "gate": {"gate": "mlp", "hidden": 4, "epochs": 1}}),
            ("artsy energy", "artsy", {"rank": 2, "gate": energy}),
            ("artsy knn", "artsy", {"rank": 2, "gate": {"gate": "knn", "keep": 4}}),
            ("experts", "artsy", {"rank": 2, "head": "experts", "gate": ridge}),
        ):  # fmt: skip

            def make(method: str = method, options: dict[str, Any] = options) -> Any:
                return METHODS[method].make(copy.deepcopy(network), epochs=2, **options)

            makers[name] = (make, images)
    saved = []
    for name, (make, items) in makers.items():
        learner = make()
        _learn(learner, items[0])
        saved.append(_as_saved(name, learner, items, given))
        _learn(learner, items[1], stop=True)
        saved.append(_as_saved(f"{name}, in the middle", learner, items, given))
    return saved


def _learn(learner: Any, item: Experience, *, stop: bool = False) -> None:
    def leave(_: object) -> None:
        raise _StopError

    with contextlib.suppress(_StopError):
        learner.learn(item, epochs=2, progress=leave if stop else None)


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _as_saved(name: str, learner: Any, items: Any, given: dict[str, Any]) -> _Saved:
    path = _folder() / "made"
    learner.save(path)
    tensors, record = checkpoint.read(path)
    inputs = items[0].test_inputs[:2]
    return _Saved(name, path.read_bytes(), tensors, record, inputs, given if learner.family == "vit" else {})


# ------------------------------------------------------------------ damage


def _flip(rng: np.random.Generator, content: bytes) -> bytes:
    """One bit, in the header as often as in the tensors."""
    end = len(content) if rng.random() < 0.5 else 8 + struct.unpack("<Q", content[:8])[0]
    place, changed = int(rng.integers(end)), bytearray(content)
    changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwrite(rng: np.random.Generator, content: bytes) -> bytes:
    start = int(rng.integers(len(content)))
    part = rng.bytes(int(rng.integers(1, 64)))
    return content[:start] + part + content[start + len(part) :]


def _truncate(rng: np.random.Generator, content: bytes) -> bytes:
    return content[: int(rng.integers(len(content)))]


def _append(rng: np.random.Generator, content: bytes) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 64)))


def _cut(rng: np.random.Generator, content: bytes) -> bytes:
    start = int(rng.integers(len(content)))
    return content[:start] + content[start + int(rng.integers(1, 64)) :]


def _header(rng: np.random.Generator, content: bytes) -> bytes:
    """A change in the header's own JSON, with the right length before it."""
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    entry = header[names[int(rng.integers(len(names)))]]
    kind = int(rng.integers(6))
    if kind == 0:
        entry["shape"] = [int(n) for n in rng.choice([0, 1, -1, 7, 2**31, 2**62], int(rng.integers(4)))]
    elif kind == 1:
        entry["dtype"] = str(rng.choice(["F64", "F32", "BF16", "I64", "F8_E4M3", "X", ""]))
    elif kind == 2:
        entry["data_offsets"] = [int(n) for n in rng.choice([-1, 0, 8, 2**40, 2**63, len(data)], 2)]
    elif kind == 3:
        del entry[str(rng.choice(["shape", "dtype", "data_offsets"]))]
    elif kind == 4:
        header[str(rng.choice(["__metadata__", "new", names[0] + "x"]))] = dict(entry)
    else:
        metadata = header["__metadata__"]
        metadata[str(rng.choice(["flexkern", "flexkern.sums", "other"]))] = str(
            rng.choice(["", "{}", "[" * 50000])
        )
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


DAMAGE = (_flip, _flip, _overwrite, _truncate, _append, _cut, _header)


def damaged(rng: np.random.Generator) -> str:
    """Whatever differs from what was written is refused."""
    saved = _saved()[int(rng.integers(len(_saved())))]
    changed = DAMAGE[int(rng.integers(len(DAMAGE)))](rng, saved.content)
    outcome = _load(saved, changed)
    if outcome == "answers":  # the same said in other words, such as spaces in the header
        tensors, record = checkpoint.read(_folder() / "checkpoint")
        assert record == saved.record, saved.name
        assert tensors.keys() == saved.tensors.keys(), saved.name
        for key, value in tensors.items():
            assert value.dtype is saved.tensors[key].dtype, (saved.name, key)
            assert value.numpy().tobytes() == saved.tensors[key].numpy().tobytes(), (saved.name, key)
    return outcome


# ------------------------------------------------------------------ other contents


VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 10**6, 10**9, 2**31, 2**63, 2**64, 10**30, 10**400, -0.5, 0.0, 0.5,
    1e300, "", "x", "auto", "item", "step", "sum", "uniform", "1", [], [1], [10**6, 10**6], [0, 0], ["x"], {},
    {"a": 1},
    {"tensor": True}, [None],
)  # fmt: skip


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something in a record."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(p for key, v in inner for p in _places(v, (*place, key)))]


def _edit_record(rng: np.random.Generator, record: dict[str, Any]) -> None:
    # An image size under the backbone's patch is not refused by the constructor either.
    places = [place for place in _places(record)[1:] if "image_size" not in place]
    *way, key = places[int(rng.integers(len(places)))]
    holder: Any = record
    for step in way:
        holder = holder[step]
    kind = int(rng.integers(5))
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[str(rng.choice(["x", "class", "state", "0", "classes"]))] = holder[key]
    elif kind == 2 and type(holder[key]) in (int, float):
        holder[key] = min(holder[key] * float(rng.choice([-1, 0.5, 2, 1e9])), 1e300) + int(rng.integers(-2, 3))
    else:
        holder[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])


def _edit_tensors(rng: np.random.Generator, tensors: dict[str, torch.Tensor]) -> None:
    names = sorted(tensors)
    name, other = (names[int(n)] for n in rng.integers(len(names), size=2))
    value, kind = tensors[name], int(rng.integers(8))
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[f"{name}{rng.choice(['x', '.0', '_1'])}"] = value
    elif kind == 2:
        tensors[name], tensors[other] = tensors[other], value
    elif kind == 3:
        tensors[name] = value.to(
            rng.choice([torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
        )
    elif kind == 4:
        tensors[name] = torch.cat([value.reshape(-1)] * int(rng.integers(1, 4)))
    elif kind == 5 and value.dim():
        tensors[name] = value.narrow(int(rng.integers(value.dim())), 0, 0)
    elif kind == 6 and value.dim():
        tensors[name] = torch.cat([value, value[:1]])
    elif value.is_floating_point() and value.numel():
        changed = value.clone()
        changed.view(-1)[int(rng.integers(value.numel()))] = float(rng.choice([np.nan, np.inf, -1.0, 1e30]))
        tensors[name] = changed
    else:
        tensors[name] = value + int(rng.choice([-3, -1, 1, 1000]))


def foreign(rng: np.random.Generator) -> str:
    """What someone else put into a file, with the right sums: it fits, or is refused."""
    saved = _saved()[int(rng.integers(len(_saved())))]
    record, tensors = copy.deepcopy(saved.record), dict(saved.tensors)
    for _ in range(int(rng.integers(1, 3))):
        if rng.random() < 0.6:
            _edit_record(rng, record)
        else:
            _edit_tensors(rng, tensors)
        if not record or not tensors:
            break
    checkpoint.write(_folder() / "foreign", tensors, record)
    return _load(saved, (_folder() / "foreign").read_bytes())


@fuzzer("checkpoints", quick=300, full=25_000)
def checkpoints(rng: np.random.Generator) -> str:
    return damaged(rng) if rng.random() < 0.6 else foreign(rng)


# ------------------------------------------------------------------ judging


class _Watch(torch.overrides.TorchFunctionMode):
    """No function of torch makes a large tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not made.is_meta:
            assert made.untyped_storage().nbytes() <= _MOST, (func, tuple(made.shape))
        return made


def _load(saved: _Saved, content: bytes) -> str:
    path = _folder() / "checkpoint"
    path.write_bytes(content)
    generator, dtype = torch.get_rng_state(), torch.get_default_dtype()
    learner = None
    try:
        with warnings.catch_warnings(), _Watch():
            warnings.simplefilter("ignore")
            learner = load_learner(path, **saved.given)
    except ValueError as error:
        if str(path) not in str(error) and not re.match("features|backbone", str(error)):
            raise AssertionError(f"{saved.name}: does not name the path: {error}") from error
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.get_default_dtype() is dtype
    if learner is None:
        return "refused"
    logits = learner.logits(saved.inputs)
    assert logits.shape == (len(saved.inputs), _classes(learner))
    return "answers"


def _classes(learner: Any) -> int:
    return learner.classes if learner.family == "mlp" else learner.classes_seen
