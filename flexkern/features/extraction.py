"""Features of inputs, a batch at a time: for a tensor, a source of images, an experience or a whole stream."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from flexkern.features.cache import DTYPES, FeatureCache
from flexkern.features.identity import extractor_key
from flexkern.features.loading import loaded
from flexkern.plain import whole_number
from flexkern.spec.argument import shown
from flexkern.streams.base import Experience, Stream
from flexkern.streams.image_source import ImageSource, identity_of

__all__ = ["extract", "extract_from", "is_kept"]

_T = TypeVar("_T", Experience, Stream)
# How far kept features of an input may be from those of now, as a share of the largest: batches of another size
# and other numbers of threads round otherwise, and half precision keeps 8 bits.
_TOLERANCE = 0.02


@torch.no_grad()
def extract_from(
    module: nn.Module,
    inputs: Tensor | ImageSource,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    cache: str | os.PathLike[str] | FeatureCache | None = None,
    name: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Flat features [n, d] of ``inputs`` [n, ...], taken in batches with the module in eval mode.

    Memory grows with the inputs by their features alone, and with ``cache`` not at all; images of a source are
    decoded by its workers while the module computes.

    Args:
        module: frozen; takes a batch of inputs as they are in the experience, for example uint8 images.
        inputs: on any device, or a source of images; one batch at a time is moved.
        batch_size: inputs at a time; bounds the memory that the module needs.
        device: where the module is and the features go. Default: the device of ``inputs``; for a source, that
            of the module.
        dtype: of the features: float32, or float16 or bfloat16, which take half as much.
        cache: a folder in which features are looked for, and kept, as :class:`FeatureCache` has them. They
            then lie in a file and are mapped into memory, on the CPU, whatever the device.
        name: of these features in the cache, for people.
        progress: called after each batch with the inputs that are done, and all there are; not at all where
            the cache has them.

    Raises:
        TypeError, ValueError: naming the argument; if the module does not give one row per input, or features
            are too large for float16.
        OSError: if the cache cannot be read or written; with ValueError, of an image that cannot be read.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    _check_inputs(inputs)
    batch_size = whole_number(batch_size, "batch_size")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {shown(dtype)}")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable or None, got {shown(progress)}")
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {shown(name)}")
    where = _device_of(module, inputs) if device is None else torch.device(device)
    if cache is not None and not isinstance(cache, FeatureCache):
        cache = FeatureCache(cache)
    with _in_eval_mode(module), contextlib.closing(_taken(module, inputs, batch_size, where, dtype)) as taken:
        told = taken if progress is None else _telling(taken, len(inputs), progress)
        if cache is not None:
            return _cached(cache, module, inputs, where, dtype, name, told)
        first = next(told)
        features = torch.empty((len(inputs), first.shape[1]), dtype=dtype, device=where)
        features[: len(first)] = first
        done = len(first)
        for part in told:
            features[done : done + len(part)] = part
            done += len(part)
    return features


def extract(
    of: _T,
    module: nn.Module,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    cache: str | os.PathLike[str] | FeatureCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> _T:
    """The experience, or the whole stream, with features in place of its inputs.

    So several learners, or several passes over a stream, share features that are computed once. With ``cache``
    they lie in a folder, in a file for the training inputs of each experience and one for its test inputs::

        stream = extract(stream, BackboneFeatures("small"), cache="features")

    Args:
        of: an Experience or a Stream.
        module, batch_size, device, dtype, cache: as in :func:`extract_from`.
        progress: called with the inputs that are done, and how many there are in all that was given.

    Raises:
        TypeError, ValueError, OSError: as :func:`extract_from`.
    """
    if not isinstance(of, (Experience, Stream)):
        raise TypeError(f"of must be an Experience or a Stream, got {type(of).__name__}")
    if cache is not None and not isinstance(cache, FeatureCache):
        cache = FeatureCache(cache)
    experiences = of.experiences if isinstance(of, Stream) else (of,)
    every = sum(len(e.train_labels) + len(e.test_labels) for e in experiences)
    before, extracted = 0, []
    for e in experiences:
        parts: dict[str, Any] = {}
        for part in ("train", "test"):
            inputs = getattr(e, f"{part}_inputs")
            parts[f"{part}_inputs"] = extract_from(
                module, inputs, batch_size=batch_size, device=device, dtype=dtype, cache=cache,
                name=f"{e.name}, {part}", progress=_counting_on(progress, before, every),
            )  # fmt: skip
            before += len(inputs)
        extracted.append(dataclasses.replace(e, **parts))
    return of.with_experiences(extracted) if isinstance(of, Stream) else extracted[0]  # type: ignore[return-value]


def is_kept(
    module: nn.Module,
    inputs: Tensor | ImageSource,
    *,
    cache: FeatureCache,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Whether a cache has what :func:`extract_from` with these arguments would compute."""
    return cache.find(_key(cache, module, inputs, torch.device(device), dtype)) is not None


def _key(
    cache: FeatureCache,
    module: nn.Module,
    inputs: Tensor | ImageSource,
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    of_all = f"{extractor_key(module, cache.sums)} {identity_of(inputs)} {dtype} {device.type}"
    return hashlib.sha256(of_all.encode()).hexdigest()


def _check_inputs(inputs: object) -> None:
    if not isinstance(inputs, (Tensor, ImageSource)):
        raise TypeError(f"inputs must be a tensor or a source of images, got {type(inputs).__name__}")
    if isinstance(inputs, Tensor) and not inputs.dim():
        raise ValueError("inputs must be [n, ...], got a single number")


def _device_of(module: nn.Module, inputs: Tensor | ImageSource) -> torch.device:
    if isinstance(inputs, Tensor):
        return inputs.device
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _counting_on(
    progress: Callable[[int, int], None] | None, before: int, every: int
) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, _: progress(before + done, every)


# ------------------------------------------------------------------ batch by batch


def _taken(
    module: nn.Module, inputs: Tensor | ImageSource, batch_size: int, device: torch.device, dtype: torch.dtype
) -> Generator[Tensor, None, None]:
    """Features of each batch, float32 [b, d]; of no inputs, one batch of none."""
    rows = [slice(i, i + batch_size) for i in range(0, max(len(inputs), 1), batch_size)]
    width = None
    with contextlib.closing(loaded(inputs, rows, device)) as batches:
        for batch in batches:
            given = module(batch)
            if not isinstance(given, Tensor):
                raise TypeError(f"features: the module must give a tensor, got {type(given).__name__}")
            if not given.dim() or len(given) != len(batch):
                count = f"{len(given)} rows" if given.dim() else "a single number"
                raise ValueError(f"features: the module gives {count} for {len(batch)} inputs")
            features = given.reshape(len(given), 1) if given.dim() == 1 else given.flatten(1)
            features = features.float()
            if width is not None and features.shape[1] != width:
                raise ValueError(
                    f"features: the module gives {features.shape[1]} for an input, and gave {width} for others"
                )
            width = features.shape[1]
            if dtype is torch.float16 and bool((features.to(dtype).isinf() & features.isfinite()).any()):
                raise ValueError(
                    f"dtype must be float32 or bfloat16 for these features: they go up to "
                    f"{float(features.abs().max()):g}, and float16 ends at 65504"
                )
            yield features


def _telling(taken: Iterator[Tensor], count: int, progress: Callable[[int, int], None]) -> Iterator[Tensor]:
    done = 0
    for batch in taken:
        yield batch
        done += len(batch)
        progress(done, count)


def _cached(
    cache: FeatureCache,
    module: nn.Module,
    inputs: Tensor | ImageSource,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    taken: Iterator[Tensor],
) -> Tensor:
    key = _key(cache, module, inputs, device, dtype)
    found = cache.find(key)
    if found is None or not _alike(found, module, inputs, device):
        found = cache.put(key, name, len(inputs), taken, dtype)
    return found


def _alike(found: Tensor, module: nn.Module, inputs: Tensor | ImageSource, device: torch.device) -> bool:
    """Whether the module still gives the first input the features that were kept."""
    if not len(found):
        return True
    (now,) = _taken(module, inputs[:1], 1, device, torch.float32)
    kept = found[:1].float()
    if now.shape != kept.shape:
        return False
    largest = now.abs().max() if now.numel() else now.new_zeros(())
    close = (now.cpu() - kept).abs() <= _TOLERANCE * largest.cpu()
    return bool((close | (now.cpu() == kept) | (now.cpu().isnan() & kept.isnan())).all())


# Modes are of a module, not of a thread: the first one that takes features with it switches, the last one back.
_switching = threading.Lock()
_switched: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    with _switching:
        count, training = _switched.get(module, (0, []))
        if count == 0:
            training = [part for part in module.modules() if part.training]
            if training:
                module.eval()
        _switched[module] = count + 1, training
    try:
        yield
    finally:
        with _switching:
            count, training = _switched.pop(module)
            if count > 1:
                _switched[module] = count - 1, training
            else:
                for part in training:
                    part.training = True
