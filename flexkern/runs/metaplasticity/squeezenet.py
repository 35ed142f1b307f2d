"""SqueezeNet 1.1 without its classifier, from an archive of weights that the user names.

The paper's code has AlexNet up to pool5 (6 x 6 x 256 values), and no SqueezeNet: this stands in for it, because
its weights are at hand.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn

from flexkern.streams.archives import Archive

__all__ = ["SqueezeNet"]

# What the ImageNet weights expect: 227 x 227 pixels, 0..255, channels blue, green, red, minus these means.
_SIDE = 227
_MEANS = (103.939, 116.779, 123.68)
_FIRES = tuple(f"fire{i}" for i in range(2, 10))
_POOL_AFTER = ("fire3", "fire5")
_PARTS = (("weight", 4), ("bias", 1))  # of a layer, and their dimensions
_LARGEST = 64 << 20  # bytes of an array; the network's largest has 0.6 MB


class SqueezeNet(nn.Module):
    """Frozen features of grey images, uint8 [n, h, w]: 512 channels, max-pooled to ``grid`` x ``grid``, flat.

    Args:
        path: an ``.npz`` with the float32 weights and biases of conv1 and fire2 .. fire9 (squeeze1x1,
            expand1x1, expand3x3) as ``NAME.weight`` (out, in, height, width) and ``NAME.bias``.
        grid: cells along each side of the last feature map, which is 13 x 13.

    Source: Iandola et al., arXiv 1602.07360.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if weights are missing.
    """

    means: Tensor

    def __init__(self, path: str | os.PathLike[str], grid: int = 6) -> None:
        super().__init__()
        self.grid = grid
        self.convolutions = nn.ModuleDict()
        layers = ["conv1"] + [
            f"{f}.{part}" for f in _FIRES for part in ("squeeze1x1", "expand1x1", "expand3x3")
        ]
        with Archive(path, "SqueezeNet weights") as archive:
            for layer in layers:
                arrays = [self._array(archive, f"{layer}.{name}", ndim) for name, ndim in _PARTS]
                weight, bias = (torch.from_numpy(array) for array in arrays)
                out_channels, in_channels, size, _ = weight.shape
                convolution = nn.Conv2d(
                    in_channels,
                    out_channels,
                    size,
                    stride=2 if layer == "conv1" else 1,
                    padding=1 if layer.endswith("3x3") else 0,
                    dtype=torch.float32,
                )
                convolution.load_state_dict({"weight": weight, "bias": bias})
                self.convolutions[layer.replace(".", "_")] = convolution.requires_grad_(False)
        self.register_buffer("means", torch.tensor(_MEANS, dtype=torch.float32).view(1, 3, 1, 1))

    @staticmethod
    def _array(archive: Archive, name: str, ndim: int) -> np.ndarray:
        if name not in archive:
            raise ValueError(f"path: {archive.path!r} has no {name}")
        found = archive.header(name, _LARGEST)
        if found.dtype.kind != "f" or len(found.shape) != ndim:
            raise ValueError(
                f"path: {name} in {archive.path!r} must be floating-point with {ndim} dimensions, got "
                f"{found.dtype} {found.shape}"
            )
        return np.ascontiguousarray(archive.read(name, _LARGEST), dtype=np.float32)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, 512 * grid * grid]."""
        x = nn.functional.interpolate(
            images.unsqueeze(1).float(), (_SIDE, _SIDE), mode="bilinear", align_corners=False
        )
        x = self._convolve("conv1", x - self.means)
        x = nn.functional.max_pool2d(x, 3, 2)
        for fire in _FIRES:
            x = self._convolve(f"{fire}_squeeze1x1", x)
            x = torch.cat([self._convolve(f"{fire}_expand{size}", x) for size in ("1x1", "3x3")], 1)
            if fire in _POOL_AFTER:
                x = nn.functional.max_pool2d(x, 3, 2)
        return nn.functional.adaptive_max_pool2d(x, self.grid).flatten(1)

    def _convolve(self, name: str, x: Tensor) -> Tensor:
        return self.convolutions[name](x).relu_()
