"""Features of the frozen network, or of it with an adapter that the first task has trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.learners.vit.adapters import adapter_logits, adapter_options, with_adapters
from flexkern.learners.vit.base import ViTLearner
from flexkern.learners.vit.memory_plan import MemoryPlan
from flexkern.learners.vit.training import CosineHead, Training
from flexkern.nn.adapters.adapted_model import AdaptedModel, Trunk
from flexkern.plain import SEEDS, choice

__all__ = ["FIRST_SESSIONS", "FirstSession"]

FIRST_SESSIONS = ("none", "adapter", "both")


class FirstSession(ViTLearner):
    """A learner whose head reads frozen features, of a network that the first task may adapt.

    First-session adaptation (APER, arXiv 2303.07338; RanPAC, arXiv 2307.02251): an adapter as ArtsyViT's, a
    ReLU bottleneck in parallel to the MLP of each block, is trained on the first experience by the recipe, with
    a cosine head that is thrown away. Then it is frozen, and on for the images of all tasks. So later tasks are
    not trained, their order changes nothing, and the first one's share of the data matters.

    Args:
        first_session: "none": the backbone's own features; "adapter": those with the adapter; "both": one
            behind the other, twice as wide, as APER has them.
        rank, adapter_scale, dropout: of the adapter, see :class:`flexkern.nn.AdapterBank`.
        blocks: how many blocks, the last ones, have an adapter; None: all.
        backbone, recipe, images_per_pass, image_size, normalize, calibration_images, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        backbone: str | os.PathLike[str] | nn.Module = "small",
        *,
        first_session: str = "none",
        rank: int = 64,
        adapter_scale: float = 0.1,
        dropout: float = 0.1,
        blocks: int | None = None,
        **common: Any,
    ) -> None:
        options: dict[str, Any] = {
            "first_session": choice(first_session, "first_session", FIRST_SESSIONS),
            **adapter_options(rank, adapter_scale, dropout, blocks),
        }
        if first_session == "none" and blocks is not None:
            raise ValueError(
                f"blocks is of the adapter of a first session, and there is none; got {blocks!r}: pass "
                'first_session="adapter" or "both", too'
            )
        super().__init__(backbone, **options, **common)
        self._parts = self._known_parts(self.backbone)
        self._both = first_session == "both"
        self.adapted: AdaptedModel | None = None
        self._session_head: CosineHead | None = None
        if first_session != "none":
            self.adapted = with_adapters(
                self.backbone, self._parts, self.width, options, self.device, capacity=1
            )

    @property
    def networks(self) -> int:
        """How many networks' features there are, one behind the other."""
        return 2 if self._both else 1

    def _read(self, read: Callable[..., Tensor], images: Tensor, *more: Any) -> Tensor:
        """What ``read``, a method of the parts, finds, float32 [n, networks * ...]: in E0, with the adapter, or
        both."""
        if self.adapted is None:
            return self._run(read, images, *more)
        found = [self._run(read, images, *more)] if self._both else []
        with self.adapted.tasks(0):
            found.append(self._run(read, images, *more))
        return torch.cat(found, 1)

    # ------------------------------------------------------------------ learning

    def _adapts(self) -> bool:
        """Whether the task that is learned trains the adapter."""
        return self.adapted is not None and not self.tasks_learned

    def _begin(self, classes: int) -> None:
        if self.adapted is not None and self._adapts():
            self.adapted.bank.add_task(generator=self._generator(0))
        super()._begin(classes)

    def _make_room(self, classes: int) -> None:
        make = classes and self._adapts()
        self._session_head = (
            CosineHead(self.width, classes, self._generator(1)).to(self.device) if make else None
        )

    def _generator(self, purpose: int) -> torch.Generator:
        # As ArtsyViT's first task: the same adapter.
        return torch.Generator().manual_seed((self.seed * 1009 * 2 + purpose) % SEEDS)

    def _make_training(self) -> Training | None:
        if self.adapted is None or self._session_head is None:
            return None
        parameters = [*self.adapted.bank.parameters_of(0), *self._session_head.parameters()]
        return self._training_of(parameters, self._training_logits, self.adapted.trunk)

    def _training_logits(self, trunk: Trunk) -> Tensor:
        assert self.adapted is not None
        assert self._session_head is not None
        return adapter_logits(self.adapted, self._session_head, 0, trunk)

    def _end(self, images: Any, labels: Tensor) -> None:
        if self.adapted is not None:
            self.adapted.bank.freeze()
        super()._end(images, labels)

    # ------------------------------------------------------------------ memory

    def _adapters_with(self, tasks: int) -> int:
        return min(1, tasks)

    def _training_plan(self, batch: int, classes: int, tasks: int, size: int, images: int) -> MemoryPlan | None:
        return super()._training_plan(batch, classes, tasks, size, images) if self._adapts() else None

    # ------------------------------------------------------------------ files

    def _with_adapter(self, modules: Mapping[str, nn.Module]) -> nn.ModuleDict:
        """The method's modules, and those of the first session."""
        own: dict[str, nn.Module] = {}
        if self.adapted is not None:
            own["bank"] = self.adapted.bank
        if self._session_head is not None:
            own["session_head"] = self._session_head
        return nn.ModuleDict({**modules, **own})

    def _written_at_end(self) -> nn.Module:
        """Not the adapter: it is trained by then."""
        return nn.ModuleDict({name: module for name, module in self._modules().items() if name != "bank"})

    def _adapters_expected(self) -> int:
        return min(1, super()._adapters_expected())

    @property
    def adapter_parameters(self) -> int:
        """Numbers of the adapter, 0 without one."""
        return 0 if self.adapted is None else self.adapted.bank.parameters_per_task * self.adapted.bank.tasks
