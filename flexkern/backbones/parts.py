"""A vision transformer in parts: what comes before its blocks, the blocks, and how it pools what they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flexkern.plain import whole_number

__all__ = ["AdapterPoint", "Parts", "run_block"]

Numbers = tuple[float, ...]


class AdapterPoint(NamedTuple):
    """Where one adapter sits: it reads the input of ``norm`` and adds to the output of ``block``.

    In a transformer ``norm`` is the one before the block's MLP, so the adapter is parallel to the MLP (EASE).
    """

    block: nn.Module
    norm: nn.Module


@dataclass(frozen=True)
class Parts:
    """A vision transformer in parts: ``pool(norm(blocks(embed(images))))`` are its features.

    All fields may be functions, modules, or objects that are called. A copy of a learner has a model of its own
    only if none of them is a closure over the model.

    Args:
        embed: from images [n, 3, h, w] to tokens [n, L, width].
        points: the blocks, in their order.
        norm: of the tokens after the last block.
        pool: from the tokens after ``norm`` to features [n, width]; None: the first token.
        prefix: how many tokens come before those of the patches: class token, registers, distillation token.
        last: what the model applies to pooled tokens (timm's ``fc_norm``), here to the mean of the patches'
            tokens; ``pool`` has applied it already. None: nothing.
        arguments: from tokens to the keyword arguments of all blocks, such as rotary positions; None: none.
        feature: what ``pool`` takes, in words.
        recompute: a backward pass computes each block again, from its tokens, which are all that is kept of it.
    """

    embed: Callable[[Tensor], Tensor]
    points: Sequence[AdapterPoint]
    norm: nn.Module
    pool: Callable[[Tensor], Tensor] | None = None
    prefix: int = 1
    last: nn.Module | None = None
    arguments: Callable[[Tensor], dict[str, Any]] | None = None
    feature: str = "class token"
    recompute: bool = False

    def run(
        self,
        block: nn.Module,
        tokens: Tensor,
        arguments: dict[str, Any],
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Tensor:
        """The tokens that a block returns. With ``recompute`` a backward pass computes it again, in the context
        that ``context()`` makes now."""
        if not (self.recompute and torch.is_grad_enabled()):
            return run_block(block, tokens, arguments)
        again = context()
        return checkpoint(
            run_block, block, tokens, arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), again)
        )

    def features(self, images: Tensor, *, mean: bool = False) -> Tensor:
        """What the model pools from images, [n, width]; with ``mean``, the patches' mean beside it."""
        tokens = self.embed(images)
        arguments = self.block_arguments(tokens)
        for point in self.points:
            tokens = self.run(point.block, tokens, arguments)
        tokens = self.norm(tokens)
        return torch.cat([self.pooled(tokens), self.mean(tokens)], 1) if mean else self.pooled(tokens)

    def tokens(self, images: Tensor, layers: int = 1) -> Tensor:
        """What the model would pool after each of its last blocks, and the mean of the patches' tokens there.

        Args:
            images: [n, 3, h, w].
            layers: how many blocks, the last ones; the last of them is what the model pools.

        Returns:
            [n, layers * summaries * width]: block by block the pooled tokens, and the patches' mean if that is
            something else (``summaries`` is 2), all after ``norm``.

        Raises:
            ValueError: if there are not so many blocks.
        """
        first = len(self.points) - self.checked_layers(layers)
        tokens = self.embed(images)
        arguments = self.block_arguments(tokens)
        found: list[Tensor] = []
        for i, point in enumerate(self.points):
            tokens = self.run(point.block, tokens, arguments)
            if i >= first:
                found += self.summary(tokens, self.summaries == 2)
        return torch.cat(found, 1)

    def summary(self, tokens: Tensor, mean: bool) -> list[Tensor]:
        """What the model would pool from the tokens after a block, [n, width], and with ``mean`` their mean."""
        tokens = self.norm(tokens)
        # A view of one token would keep all of them, of each block that is read.
        pooled = self.pooled(tokens).contiguous()
        return [pooled, self.mean(tokens)] if mean else [pooled]

    @property
    def summaries(self) -> int:
        """Vectors that :meth:`tokens` gives for each block: 1 where the feature is the mean itself, else 2."""
        return 1 if self.feature.startswith("mean of the patch tokens") else 2

    def checked_layers(self, layers: object, usual: int = 1) -> int:
        """``layers`` as :meth:`tokens` takes it; None: ``usual``, or all where there are fewer.

        Raises:
            TypeError, ValueError: if it is not so.
        """
        if layers is None:
            return min(usual, len(self.points))
        return whole_number(layers, "layers", most=len(self.points))

    def block_arguments(self, tokens: Tensor) -> dict[str, Any]:
        """Keyword arguments of every block, for tokens [n, L, width]; they depend on L only."""
        return {} if self.arguments is None else self.arguments(tokens)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Features [n, width] from the tokens after ``norm``."""
        return tokens[:, 0] if self.pool is None else self.pool(tokens)

    def mean(self, tokens: Tensor) -> Tensor:
        """Mean of the patches' tokens after ``norm``, [n, width]: no class token, registers and the like."""
        mean = tokens[:, self.prefix :].mean(1)
        return mean if self.last is None else self.last(mean)


def run_block(block: nn.Module, tokens: Tensor, arguments: dict[str, Any]) -> Tensor:
    """The tokens that a block returns, alone or as the first of a tuple."""
    output = block(tokens, **arguments)
    return output if isinstance(output, Tensor) else output[0]


# ------------------------------------------------------------------ pieces of Parts: objects, so that they copy


@dataclass(frozen=True)
class Normalised:
    """Images in [0, 1] as a network was trained on them: ``(image - mean) / std``, channel by channel."""

    embed: Callable[[Tensor], Tensor]
    mean: Numbers
    std: Numbers

    def __call__(self, images: Tensor) -> Tensor:
        # By numbers, not tensors: these would have to follow the network from device to device.
        if len({*self.mean}) == len({*self.std}) == 1:
            return self.embed((images - self.mean[0]) / self.std[0])
        channels = zip(images.unbind(1), self.mean, self.std, strict=True)
        return self.embed(torch.stack([(channel - mean) / std for channel, mean, std in channels], 1))


@dataclass(frozen=True)
class InDtype:
    """Images in the dtype of the network's first weights, where autocast does not see to it."""

    embed: Callable[[Tensor], Tensor]
    first: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        return self.embed(images.to(self.first.weight.dtype))  # type: ignore[arg-type]


@dataclass(frozen=True)
class SquareOnly:
    """Images that are square: blocks get positions that are made from the number of tokens."""

    embed: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[-1] != images.shape[-2]:
            raise ValueError(f"images of this backbone must be square, got {tuple(images.shape)}")
        return self.embed(images)


@dataclass(frozen=True)
class Interpolated:
    """Hugging Face embeddings, which fit their positions to images of another size than the model's own."""

    embeddings: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        return self.embeddings(images, interpolate_pos_encoding=True)


@dataclass(frozen=True)
class Then:
    """One function after the other."""

    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@dataclass(frozen=True)
class FirstToken:
    """The first token, then a module."""

    last: nn.Module

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.last(tokens[:, 0])


@dataclass(frozen=True)
class MeanToken:
    """The mean of the tokens from ``prefix`` on."""

    prefix: int

    def __call__(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.prefix :].mean(1)


def grid_side(tokens: Tensor, prefix: int) -> int:
    """Patches of a side of square images.

    Raises:
        ValueError: if there are not as many tokens as a square has patches.
    """
    patches = tokens.shape[1] - prefix
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"images of this backbone must be square, got {patches} patches")
    return side
