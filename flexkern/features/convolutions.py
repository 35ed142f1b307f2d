"""One layer of fixed random convolutions: features that need no pre-training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexkern import ops
from flexkern.features.extraction import extract_from
from flexkern.fields import Field, Purpose
from flexkern.plain import SEEDS, whole_number

__all__ = ["RandomConvolutions"]

# Fields of one seed are kept apart by their stream; networks count theirs from 0, so a learner and an extractor
# may have the same seed.
_STREAM = 1 << 24


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
        TypeError, ValueError: naming the argument.
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
        channels, grid = whole_number(channels, "channels"), whole_number(grid, "grid")
        kernel, seed = whole_number(kernel, "kernel"), whole_number(seed, "seed", least=0, most=SEEDS - 1)
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
            TypeError: if they are no tensor.
            ValueError: if there are too few images or all are alike.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor [n, h, w], got {type(images).__name__}")
        if not images.ndim or len(images) < 2:
            raise ValueError(
                f"images: at least 2 are needed to measure features, got {len(images) if images.ndim else 1}"
            )
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
