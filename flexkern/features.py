"""Frozen features: a random convolutional layer, and features taken once for many epochs and many learners."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from flexkern import ops
from flexkern.fields import Field, Purpose
from flexkern.streams.base import Experience, Stream

__all__ = ["RandomConvolutions", "add_tensors", "extract", "extract_from", "fingerprint"]

# Fields of one seed are kept apart by their stream; networks count theirs from 0, so a learner and an extractor
# may have the same seed.
_STREAM = 1 << 24
_T = TypeVar("_T", Experience, Stream)


class RandomConvolutions(nn.Module):
    """One layer of fixed random convolutions, ReLU, and the strongest response in each cell of a grid.

    The kernels are normal, each shifted to mean 0 and scaled to length 1, so that they answer to strokes and
    not to brightness. They are procedural: nothing but the seed decides them, on every device.

    :meth:`calibrate` measures, on images without labels, the mean of each feature and one size for all, and
    from then on features are centred and scaled by them. It matters: what all images have in common acts
    like a bias through which every new item overwrites all earlier ones. On two-digit items it is nine
    tenths of the uncentred features' energy.

    Args:
        channels: number of kernels.
        kernel: their height and width, odd.
        grid: cells along each side of the image; there are ``channels * grid * grid`` features.
        seed: of the kernels; 0 <= seed < 2**64.
        device: where the kernels are.

    Raises:
        ValueError: if an argument is outside its range.
    """

    weight: Tensor
    centre: Tensor
    size: Tensor

    def __init__(
        self,
        channels: int = 32,
        *,
        kernel: int = 5,
        grid: int = 8,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("grid", grid)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 3, got {kernel}")
        field = Field.normal(seed, _STREAM, purpose=Purpose.ANCHOR)
        # Centred and scaled on the CPU in float64: sums have another order on each device.
        weight = ops.materialize(field, (channels, 1, kernel, kernel), device="cpu").double()
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        self.grid = grid
        self.register_buffer("weight", weight.float().to(device))
        self.register_buffer("centre", torch.zeros(channels * grid * grid, dtype=torch.float32, device=device))
        self.register_buffer("size", torch.ones((), dtype=torch.float32, device=device))

    @property
    def out_features(self) -> int:
        """How many features an image has."""
        return self.centre.numel()

    def calibrate(self, images: Tensor) -> RandomConvolutions:
        """Measures centre and size on ``images`` (at least 2) and returns this module.

        After it the features of these images have mean 0 each, and mean square 1 together. It is done once,
        before learning: afterwards it would change what the learner sees, and learned weights would not fit.

        Raises:
            ValueError: if there are too few images or all are alike.
        """
        if len(images) < 2:
            raise ValueError(f"images: at least 2 are needed to measure features, got {len(images)}")
        before = self.centre.clone(), self.size.clone()
        self.centre.zero_()
        self.size.fill_(1)
        try:
            features = extract_from(self, images, device=self.weight.device).double()
            centre = features.mean(0)
            size = (features - centre).square().mean().sqrt()
            if not size.isfinite():
                raise ValueError("images: some are NaN or infinite")
            if not size > 0:
                raise ValueError("images: all have the same features, so there is nothing to scale them by")
        except BaseException:
            self.centre.copy_(before[0])
            self.size.copy_(before[1])
            raise
        self.centre.copy_(centre)
        self.size.copy_(size)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features, float32 [n, channels * grid * grid], of images [n, h, w] or [n, 1, h, w], uint8 or float.

        uint8 is taken as 0..255, float as 0..1.
        """
        if images.ndim == 3:
            images = images.unsqueeze(1)
        if images.ndim != 4 or images.shape[1] != 1:
            raise ValueError(f"images must be [n, h, w] or [n, 1, h, w], got {tuple(images.shape)}")
        x = images.to(self.weight.device, torch.float32)
        if images.dtype == torch.uint8:
            x = x / 255
        x = nn.functional.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)
        x = nn.functional.adaptive_max_pool2d(x.relu(), self.grid).flatten(1)
        return (x - self.centre) / self.size

    def extra_repr(self) -> str:
        channels, _, kernel, _ = self.weight.shape
        return f"{channels}, kernel={kernel}, grid={self.grid}, out_features={self.out_features}"


@torch.no_grad()
def extract_from(
    module: nn.Module, inputs: Tensor, *, batch_size: int = 256, device: torch.device | str | None = None
) -> Tensor:
    """Flat float32 features [n, d] of ``inputs`` [n, ...], taken in batches with the module in eval mode.

    Args:
        module: frozen; takes a batch of inputs as they are in the experience, for example uint8 images.
        inputs: on any device; one batch at a time is moved.
        batch_size: inputs at a time; bounds the memory that the module needs.
        device: where the module is and the features go. Default: the device of ``inputs``.

    Raises:
        ValueError: if batch_size is not positive, or the module does not give one row per input.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    device = inputs.device if device is None else torch.device(device)
    with _in_eval_mode(module):
        parts = [module(batch.to(device)).flatten(1).float() for batch in inputs.split(batch_size)]
    features = torch.cat(parts)
    if len(features) != len(inputs):
        raise ValueError(f"features: the module gives {len(features)} rows for {len(inputs)} inputs")
    return features


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


def extract(
    of: _T, module: nn.Module, *, batch_size: int = 256, device: torch.device | str | None = None
) -> _T:
    """The experience, or the whole stream, with features in place of its inputs.

    So several learners, or several passes over a stream, share features that are computed once.

    Args:
        of: an Experience or a Stream.
        module, batch_size, device: as in :func:`extract_from`.
    """
    if isinstance(of, Stream):
        parts = [extract(e, module, batch_size=batch_size, device=device) for e in of]
        return Stream(parts, of.classes)  # type: ignore[return-value]
    train, test = (
        extract_from(module, x, batch_size=batch_size, device=device) for x in (of.train_inputs, of.test_inputs)
    )
    return dataclasses.replace(of, train_inputs=train, test_inputs=test)


def fingerprint(module: nn.Module | None) -> str | None:
    """SHA-256 of a module's type and all its tensors, whole: whether two extractors give the same features.

    It takes about a second for 600 MB, and is taken anew each time: a kept sum could be of other values.
    """
    if module is None:
        return None
    sha = hashlib.sha256(type(module).__qualname__.encode())
    add_tensors(sha, module)
    return sha.hexdigest()


def add_tensors(sha: Any, module: nn.Module) -> None:
    """Adds names, dtypes, shapes and bytes of all that a module's ``state_dict`` has to a sum of hashlib."""
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):  # what get_extra_state gave
            sha.update(f"{name} {tensor!r}".encode())
            continue
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if math.prod(tensor.shape):
            flat = tensor.detach().cpu().contiguous().view(-1)
            sha.update(flat.view(torch.uint8).numpy().data)
