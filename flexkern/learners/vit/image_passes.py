"""How images go through a learner's network: so many at once, as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexkern.backbones.parts import Parts
from flexkern.distributed import world_size
from flexkern.learners.base import Learner
from flexkern.learners.live_bytes import Cost, cost_of
from flexkern.learners.vit.adapters import adapter_logits, with_adapters
from flexkern.learners.vit.as_tested import as_tested
from flexkern.learners.vit.classes import new_classes
from flexkern.learners.vit.memory_plan import MemoryPlan, PairsCost, bytes_of_heads, bytes_of_modules
from flexkern.learners.vit.training import GIB, CosineHead, Recipe, autocast, undisturbed
from flexkern.nn.adapters.adapted_model import AdaptedModel, Trunk
from flexkern.nn.adapters.bank import AdapterBank
from flexkern.nn.growing import GrowingState
from flexkern.plain import whole_number
from flexkern.streams.base import Experience

__all__ = ["Passes", "Trial"]

_T = TypeVar("_T")


class Trial(NamedTuple):
    """What a task would train: parameters, and what they make of augmented images, or of what ``trunk`` makes
    of them."""

    parameters: list[nn.Parameter]
    logits: Callable[[Any], Tensor]
    trunk: Callable[[Tensor], Trunk] | None = None


class Passes(Learner):
    """A learner whose images go through a vision transformer, so many at once as memory allows.

    Attributes:
        recipe: of training.
        image_size: pixels of each side of the images that the network takes.
        width: of its features.
        backbone: the frozen network.
        memory_limit: in GiB; None: there is none.
    """

    recipe: Recipe
    image_size: int
    width: int
    classes_seen: int
    backbone: nn.Module
    memory_limit: float | None
    told_anew: ClassVar[tuple[str, ...]] = ("memory_limit", "recompute")
    _network_given: nn.Module
    _images_per_pass: int
    _costs: dict[str, Any]
    _item_images = 0
    """How many images the item has whose end takes them in now."""

    # ------------------------------------------------------------------ what a method fills in

    def _known_parts(self, network: nn.Module) -> Parts:
        """The backbone, or a copy of it, in parts."""
        raise NotImplementedError

    def _of_classes(self, scores: Tensor) -> Tensor:
        """[n, classes_seen] of what :meth:`_logits` gives."""
        return scores

    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        """Of images as they are tested."""
        raise NotImplementedError

    def _bank(self) -> AdapterBank | None:
        """The adapters of all tasks."""
        adapted = getattr(self, "adapted", None)
        return None if adapted is None else adapted.bank

    @contextmanager
    def _trial(self) -> Iterator[Trial | None]:
        """What a task trains, for a measurement that leaves the learner as it is; None: nothing."""
        if self._bank() is None:
            yield None
            return
        with self._trial_adapter() as adapted:
            head = CosineHead(self.width, 2, torch.Generator()).to(self.device)
            parameters = [*adapted.bank.parameters_of(0), *head.parameters()]
            yield Trial(parameters, partial(adapter_logits, adapted, head, 0), adapted.trunk)

    def _answering_cost(self) -> Cost | PairsCost:
        """What images take on their way through the network."""
        parts = getattr(self, "_parts", None) or self._known_parts(self.backbone)

        def work(x: Tensor) -> None:
            with torch.no_grad():
                self._run(partial(self._look, parts), x)

        return cost_of(self._blank, work)

    def _look(self, parts: Parts, images: Tensor) -> Tensor:
        """What an answer takes of the network."""
        return parts.features(images)

    def _bytes_of_heads(self, classes: int, tasks: int) -> int:
        """Of heads, gates and statistics once they know so many classes of so many tasks."""
        return bytes_of_heads(self._modules(), classes, tasks)

    def _adapters_with(self, tasks: int) -> int:
        """How many adapters there are after so many tasks, at most."""
        return tasks

    def _bytes_at_end(self, images: int) -> int:
        """What the end of an item keeps of its images while it takes them in."""
        return 0

    # ------------------------------------------------------------------ memory

    def memory_plan(
        self,
        *,
        classes: int | None = None,
        tasks: int | None = None,
        images: int = 0,
        size: int | None = None,
    ) -> MemoryPlan:
        """What the learner takes of its device's memory at its fullest moment, from what it is, and from trials
        with three blank images.

        It is of tensors: what an allocator keeps, what operators take for themselves while they run, and what
        Python and torch themselves take are not in it. Nor is what a head takes while it is solved, nor images
        that a method keeps (``joint``).

        Args:
            classes, tasks: that it knows in the end; None: those it knows, and one task at least.
            images: of a task, the largest.
            size: pixels of each side of the images as they are given; None: those that were learned, or the
                network's own.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        classes = self._classes_now() if classes is None else whole_number(classes, "classes", least=0)
        tasks = max(1, self._tasks_now()) if tasks is None else whole_number(tasks, "tasks")
        images = whole_number(images, "images", least=0)
        size = self.decoded_size or self.image_size if size is None else whole_number(size, "size")
        at_once = self._images_per_pass
        if self.memory_limit is not None:
            at_once = max(1, self._most_at_once(classes, tasks, images, size))
        answering = self._answering_plan(at_once, classes, tasks, images, size)
        training = self._training_plan(self._of_batch(), classes, tasks, size, images)
        return answering if training is None or training.total < answering.total else training

    def _classes_now(self) -> int:
        return self.classes_seen + (new_classes(self._begun) if self._begun is not None else 0)

    def _tasks_now(self) -> int:
        return self.items_learned + (self._begun is not None)

    def _of_batch(self) -> int:
        """Images of a batch that a process trains on."""
        return -(-self.recipe.batch_size // world_size())

    def _kept_bytes(self, classes: int, tasks: int) -> dict[str, int]:
        bank = self._bank()
        networks = [self._network_given, self.backbone, getattr(self, "network", self.backbone)]
        return {
            "parameters": bytes_of_modules(networks),
            "adapters": 0 if bank is None else bank.bytes_with(self._adapters_with(tasks)),
            "statistics": self._bytes_of_heads(classes, tasks),
        }

    def _training_plan(self, batch: int, classes: int, tasks: int, size: int, images: int) -> MemoryPlan | None:
        if "training" not in self._costs:
            self._costs["training"] = self._training_cost()
        known = self._costs["training"]
        if known is None:
            return None
        cost, trained, tokens_of_image = known
        momentum = trained if self.recipe.momentum else 0
        tokens = images * tokens_of_image
        return MemoryPlan(
            "training", activations=max(0, cost.peak(batch) - trained), optimizer=trained + momentum,
            images=self._bytes_of_images(batch, size),
            tokens=tokens if self.recipe.keeps(tokens) else 0,
            **self._kept_bytes(classes, tasks),
        )  # fmt: skip

    def _answering_plan(self, at_once: int, classes: int, tasks: int, images: int, size: int) -> MemoryPlan:
        if "answering" not in self._costs:
            with undisturbed(self.device):
                self._costs["answering"] = self._answering_cost()
        cost = self._costs["answering"]
        activations = cost.peak(at_once)
        if isinstance(cost, PairsCost):  # features in all subspaces
            activations += at_once * (1 + 2 * tasks) * self.width * torch.float32.itemsize
        kept = self._kept_bytes(classes, tasks)
        if any(isinstance(part, GrowingState) for part in self._written_at_end().modules()):
            kept["statistics"] *= 2  # what undoes the end of an item
        kept["statistics"] += self._bytes_at_end(images)
        return MemoryPlan(
            "answering",
            activations=activations,
            optimizer=0,
            images=self._bytes_of_images(at_once, size),
            **kept,
        )

    def _bytes_of_images(self, n: int, size: int) -> int:
        return n * 3 * (size**2 + self.image_size**2 * torch.float32.itemsize)

    def _blank(self, n: int) -> Tensor:
        """So many images as the network takes them."""
        size = (n, 3, self.image_size, self.image_size)
        return torch.zeros(size, dtype=torch.float32, device=self.device)

    def _training_cost(self) -> tuple[Cost, int, int] | None:
        """Of a batch's forward and backward pass, and bytes of what is trained, and of an image's tokens that
        are kept between epochs; None: nothing is trained."""
        with undisturbed(self.device), self._trial() as trial:
            if trial is None:
                return None
            parameters, logits, trunk = trial

            def step(x: Tensor) -> None:
                with torch.enable_grad():
                    with self._autocast():
                        found = logits(x if trunk is None else trunk(x))
                    truth = torch.zeros(len(x), dtype=torch.int64, device=x.device)
                    loss = functional.cross_entropy(found.float(), truth)
                    torch.autograd.grad(loss, parameters, allow_unused=True)

            tokens = 0
            if trunk is not None and not self.recipe.augment:
                with self._autocast():
                    tokens = sum(part.nbytes for part in trunk(self._blank(1)))
            return cost_of(self._blank, step), sum(p.nbytes for p in parameters), tokens

    @contextmanager
    def _trial_adapter(self) -> Iterator[AdaptedModel]:
        """The network with one adapter as a task gets it, in a bank of its own; afterwards it is as it was."""
        options = {name: value for name, value in self.configuration().items() if name != "offload"}
        parts: Any = self._parts  # type: ignore[attr-defined] # of all that have adapters
        adapted = with_adapters(self.backbone, parts, self.width, options, self.device, capacity=1)
        try:
            adapted.bank.add_task(generator=torch.Generator())
            yield adapted
        finally:
            adapted.remove()

    # ------------------------------------------------------------------ a limit

    @property
    def images_per_pass(self) -> int:
        """Images, or pairs of an image and a task, that go through the network at once: what was given, or what
        ``memory_limit`` has room for."""
        if self.memory_limit is None:
            return self._images_per_pass
        now = self._classes_now(), max(1, self._tasks_now()), self._item_images
        if self._costs.get("now") != now:
            size = self.decoded_size or self.image_size
            self._costs["at once"], self._costs["now"] = max(1, self._most_at_once(*now, size)), now
        return self._costs["at once"]

    @images_per_pass.setter
    def images_per_pass(self, images: int) -> None:
        self._images_per_pass = whole_number(images, "images_per_pass")
        self._costs.pop("now", None)

    def _most_at_once(self, classes: int, tasks: int, images: int, size: int) -> int:
        """So many images fit into the limit at once, at most ``images_per_pass`` as it was given; 0: none."""
        return self._most(
            lambda n: self._answering_plan(n, classes, tasks, images, size), self._images_per_pass
        )

    def _most(self, plan: Callable[[int], MemoryPlan], most: int) -> int:
        """The largest n up to ``most`` whose plan is within the limit; 0: there is none."""
        assert self.memory_limit is not None
        fits, over = 0, most + 1
        while fits + 1 < over:
            n = (fits + over) // 2
            if plan(n).total <= self.memory_limit * GIB:
                fits = n
            else:
                over = n
        return fits

    def _check_memory(self, experience: Experience | None = None) -> None:
        """Raises ValueError if the limit has no room for one image, or for a batch of what is to be trained.

        Args:
            experience: that is to be learned; None: the first one, of two classes.
        """
        if self.memory_limit is None:
            return
        more, images, size = 2, 0, self.decoded_size or self.image_size
        if experience is not None:
            more, images = len(experience.train_labels.unique()), len(experience.train_labels)
            size = max(experience.train_inputs.shape[-2:])
        classes, tasks = self.classes_seen + more, self.items_learned + 1
        limit = f"memory_limit is {self.memory_limit:g} GiB, and"
        if not self._most_at_once(classes, tasks, images, size):
            one = self._answering_plan(1, classes, tasks, images, size)
            raise ValueError(f"{limit} one image at a time takes {one}; give more")
        batch = self._of_batch()
        training = self._training_plan(batch, classes, tasks, size, images)
        if training is None or training.total <= self.memory_limit * GIB:
            return

        def plan(n: int) -> MemoryPlan:
            found = self._training_plan(n, classes, tasks, size, images)
            assert found is not None
            return found

        fits = self._most(plan, batch)
        instead = f"; batches of {fits} fit: pass batch_size={fits * world_size()}" if fits else ""
        raise ValueError(
            f"{limit} a batch of {batch} images takes {training}{instead}, or recompute=True, or give more"
        )

    # ------------------------------------------------------------------ passes

    def _test_batches(self, images: Any, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of a tensor or a source as they are tested, on the device; a source's are decoded ahead."""
        with closing(self._views(images, "taking in")) as given:
            for rows, x in given:
                yield x, labels[rows].to(self.device)

    def _views(self, images: Any, doing: str) -> Generator[tuple[slice, Tensor], None, None]:
        return as_tested(images, self.image_size, self.device, at_once=self.images_per_pass, doing=doing)

    def _run(self, network: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """A network's float32 answer, computed in the recipe's precision; heads and statistics are float32."""
        with self._autocast():
            return network(*inputs).float()

    def _autocast(self) -> torch.autocast:
        return autocast(self.recipe, self.device)

    def _each(self, x: Any, task: Tensor | None, of: Callable[[Tensor], _T]) -> list[_T]:
        found = []
        with closing(self._views(x, "answering")) as given:
            for rows, images in given:
                true = None if task is None else task[rows].to(self.device)
                found.append(of(self._of_classes(self._logits(images, true))))
        return found
