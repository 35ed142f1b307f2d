"""Features are taken a batch at a time, and are the same from a tensor and from a source of its images."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern.features import RandomConvolutions, extract, extract_from
from flexkern.measure import peak_mb
from helpers.made_images import Flat, Made, made_stream


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 50, 256])
def test_features_of_a_source_are_those_of_its_tensor(workers: int, batch_size: int) -> None:
    if workers and batch_size == 1:
        pytest.skip("the same path as with 50")
    source, module = Made(130, workers=workers), Flat()
    found = extract_from(module, source, batch_size=batch_size)
    assert module.batches == [batch_size] * (130 // batch_size) + [130 % batch_size] * bool(130 % batch_size)
    assert torch.equal(found, extract_from(module, source.tensor(), batch_size=batch_size))
    assert found.dtype is torch.float32
    assert found.shape == (130, 10)


def test_large_batches_are_decoded_in_pieces() -> None:
    class Watched(Made):
        most = 0

        def take(self, rows: Any) -> Tensor:
            Watched.most = max(Watched.most, len(rows))
            return super().take(rows)

    source = Watched(40, size=300)  # 270 KB each
    found = extract_from(Flat(300), source, batch_size=40)
    assert Watched.most * 3 * 300 * 300 <= 4 << 20
    assert torch.equal(found, extract_from(Flat(300), source.tensor(), batch_size=40))


@pytest.mark.parametrize("inputs", [Made(0), torch.zeros(0, 3, 6, 6)], ids=["source", "tensor"])
def test_no_inputs_have_no_features(inputs: Any) -> None:
    assert extract_from(Flat(), inputs).shape == (0, 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_in_half_precision_are_rounded_once(dtype: torch.dtype) -> None:
    source = Made(60)
    assert torch.equal(extract_from(Flat(), source, dtype=dtype), extract_from(Flat(), source).to(dtype))


def test_a_stream_of_features() -> None:
    stream, told = made_stream(), []
    found = extract(stream, Flat(), batch_size=40, progress=lambda *counts: told.append(counts))
    assert found.classes == stream.classes
    for e, of in zip(found, stream, strict=True):
        assert torch.equal(e.train_inputs, extract_from(Flat(), of.train_inputs, batch_size=40))
        assert torch.equal(e.test_inputs, extract_from(Flat(), of.test_inputs, batch_size=40))
        assert (e.name, e.number, e.train_labels is of.train_labels) == (of.name, of.number, True)
    assert told == [(n, 240) for n in (40, 80, 90, 120, 160, 200, 210, 240)]
    one = extract(stream[1], Flat())
    assert torch.equal(one.train_inputs, extract_from(Flat(), stream[1].train_inputs))


class Gives(nn.Module):
    """Whatever a function makes of a batch."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be a whole number, got 2.5"),
        ({"batch_size": "8"}, TypeError, "batch_size must be a whole number, got '8'"),
        ({"dtype": torch.int8}, ValueError, "dtype must be one of torch.float32, .*, got torch.int8"),
        ({"dtype": "float32"}, ValueError, "dtype must be one of torch.float32, .*, got 'float32'"),
        ({"module": len}, TypeError, "module must be a torch.nn.Module, got builtin_function"),
        ({"inputs": [1, 2]}, TypeError, "inputs must be a tensor or a source of images, got list"),
        ({"inputs": torch.tensor(1)}, ValueError, r"inputs must be \[n, ...\], got a single number"),
        ({"progress": 1}, TypeError, "progress must be callable or None, got 1"),
        ({"name": 1}, TypeError, "name must be a string, got 1"),
        ({"cache": 7}, TypeError, "cache must be the path of a folder, got 7"),
        ({"cache": ""}, ValueError, "cache must be the path of a folder, got an empty one"),
        ({"module": Gives(lambda x: (x,))}, TypeError, "features: the module must give a tensor, got tuple"),
        ({"module": Gives(lambda x: x[1:])}, ValueError, "features: the module gives 29 rows for 30 inputs"),
        ({"module": Gives(torch.sum)}, ValueError, "features: the module gives a single number for 30 inputs"),
        (
            {"module": Gives(lambda x: x[..., : len(x) % 5]), "batch_size": 17},
            ValueError, "features: the module gives 54 for an input, and gave 36 for others",
        ),
        (
            {"module": Gives(lambda x: x * 1e3), "dtype": torch.float16},
            ValueError, "dtype must be float32 or bfloat16 for these features: they go up to 2.*, and float",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"module": Flat(), "inputs": Made(30).tensor().float()} | changes
    with pytest.raises(kind, match=f"^{message}"):
        extract_from(arguments.pop("module"), arguments.pop("inputs"), **arguments)


def test_what_no_stream_is_is_named() -> None:
    with pytest.raises(TypeError, match="of must be an Experience or a Stream, got Tensor"):
        extract(torch.zeros(3, 4), Flat())  # type: ignore[type-var]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named_and_modes_are_put_back(workers: int) -> None:
    module = nn.Sequential(Flat(), nn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"^made 77: no image$"):
        extract_from(module, Made(130, workers=workers, broken=77), batch_size=16)
    assert all(part.training for part in module.modules())


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"channels": 0}, ValueError, "channels must be at least 1, got 0"),
        ({"channels": 2.0}, TypeError, "channels must be a whole number, got 2.0"),
        ({"kernel": "5"}, TypeError, "kernel must be a whole number, got '5'"),
        ({"grid": True}, TypeError, "grid must be a whole number, got True"),
        ({"seed": 1.5}, TypeError, "seed must be a whole number, got 1.5"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_numbers_of_random_convolutions(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        RandomConvolutions(**options)


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract_from(Flat(), Made(70, workers=2))


@pytest.mark.parametrize("kept", [True, False], ids=["in a folder", "in memory"])
def test_memory_is_that_of_the_features_or_none(kept: bool, tmp_path: Path) -> None:
    source, numbers = Made(8000, size=2), itertools.count()

    def take() -> None:
        folder = tmp_path / str(next(numbers)) if kept else None
        extract_from(Flat(2, 2048), source, cache=folder)

    extract_from(Flat(2, 2048), source[:300])
    peak = peak_mb(take, "cpu")
    if peak is None:
        pytest.skip("resident memory is read as Linux and the GNU C library tell it")
    # 62.5 MiB of features; 2 for a batch of them, and what allocators keep.
    assert peak < (0 if kept else 62.5) + 25
