"""What all learners on a vision transformer have in common: images, classes, training by a recipe."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from flexkern import backbones
from flexkern.backbones.normalise import checked_normalize
from flexkern.backbones.parts import Parts
from flexkern.backbones.sizes import copy_of_structure, fitted
from flexkern.backbones.trial import tried_parts
from flexkern.dtensors import is_sharded
from flexkern.learners import schema
from flexkern.learners.answers import names_of
from flexkern.learners.base import Item
from flexkern.learners.processes import joined, own_rows
from flexkern.learners.progress import unwatched
from flexkern.learners.scenarios import FEW
from flexkern.learners.vit.classes import begun_by, known_classes, new_classes, places
from flexkern.learners.vit.fingerprints import WHOLE, fingerprint, name_of, old_fingerprint
from flexkern.learners.vit.image_passes import Passes
from flexkern.learners.vit.images import check_images
from flexkern.learners.vit.restored import check_parts, check_same
from flexkern.learners.vit.training import Recipe, Training, written
from flexkern.nn.adapters.adapted_model import Trunk
from flexkern.nn.gates.checks import check_true_task
from flexkern.nn.not_learned import NotLearnedError
from flexkern.nn.temperature import fit_log_temperature
from flexkern.plain import flag, nearest, number, whole_number
from flexkern.streams.base import Experience

__all__ = ["ViTLearner", "check_same"]

# What a checkpoint may say: a picture of any size fits into a network that resizes it, and into no memory.
_RANGES = {"image_size": (int, 1, 1 << 14, None), "images_per_pass": (int, 1)}
_NEW_RANGES = {"calibration_images": (int, 0)}  # earlier versions had none
_RECIPE = tuple(field.name for field in fields(Recipe))
_CALIBRATION = 1  # what random numbers are drawn for
_L = TypeVar("_L", bound="ViTLearner")


class ViTLearner(Passes):
    """A continual learner on a frozen or trained vision transformer.

    Classes are numbered in the order in which they are learned: an experience may bring new ones, numbered from
    ``classes_seen`` on (:func:`flexkern.streams.class_incremental` numbers them so), and where the method takes
    them (``takes``) known ones again, alone or beside new ones.

    Args:
        backbone: as :func:`flexkern.backbones.load_backbone` takes it.
        recipe: how each task is trained.
        images_per_pass: images (or pairs of an image and a task) that go through the network at once, at most:
            bounds memory.
        memory_limit: GiB of the device's memory that :meth:`memory_plan` may come to: fewer images, or pairs,
            go through at once where it would be more, and answers change by rounding at most. Batches are
            trained as they are: one that does not fit is refused, and so is a limit without room for an image.
            None: there is none. ``load(path, memory_limit=...)`` takes another one.
        recompute: a backward pass computes each block again from its tokens, which are all that is kept of it
            (activation checkpointing): much less memory, for a third more time. What is learned is the same.
            ``load(path, recompute=...)`` takes another one.
        image_size: pixels of each side; None asks the backbone. Another size than its own is possible where the
            backbone's family can (docs/backbones.md).
        normalize: of images in [0, 1], after augmentation: "auto" as the backbone's training images were
            (:func:`flexkern.backbones.normalisation`; not at all where that is not known), "none", or
            [mean, standard deviation], each of three numbers. A checkpoint has the numbers.
        calibration_images: so many of a task's training images, at most, are answered about when the task ends,
            to fit the temperature of :meth:`probabilities`; 0: none, it stays as it is, and so it does after a
            task of fewer than 16 images: a piece of an online stream says too little. Logits and predictions do
            not depend on it. Methods that train all of the network take none, and stay at 1, and so do those
            whose head has a temperature of images left out (``lda``, ``artsy-best``).
        seed: of everything that is random.
        device: where to compute.
        options: the method's own, for its checkpoints; JSON.

    Raises:
        TypeError: for an option that the method does not have, or of another type.
        ValueError: if an option is outside its range, or the backbone does not say its sizes.
    """

    family = "vit"
    _calibrated: bool = True
    """Whether a temperature is fitted; not where training minimises the cross-entropy of these very logits, or
    they have a temperature already."""

    def __init__(
        self,
        backbone: str | os.PathLike[str] | nn.Module = "small",
        *,
        recipe: Recipe | None = None,
        images_per_pass: int = 256,
        memory_limit: float | None = None,
        recompute: bool = False,
        image_size: int | None = None,
        normalize: str | Sequence[Sequence[float]] = "auto",
        calibration_images: int = 512,
        seed: int = 0,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        images_per_pass = whole_number(images_per_pass, "images_per_pass")
        if memory_limit is not None:
            memory_limit = number(memory_limit, "memory_limit", 0, above=True)
        normalise = checked_normalize(normalize)
        calibration_images = whole_number(calibration_images, "calibration_images", least=0)
        if image_size is not None:
            image_size = whole_number(image_size, "image_size")
        if recipe is not None and not isinstance(recipe, Recipe):
            raise TypeError(f"recipe must be a flexkern.learners.Recipe or None, got {type(recipe).__name__}")
        for name in options:
            if name not in self.options():
                hint = nearest(name, schema.argument_names(type(self)))
                raise TypeError(f"{type(self).__name__} has no argument {name!r}{hint}")
        self.recipe = recipe or self.default_recipe()
        of_recipe = written(self.recipe)
        configuration: dict[str, Any] = {
            "recipe": of_recipe, "images_per_pass": images_per_pass, "image_size": image_size,
            "calibration_images": calibration_images, **options,
            **({} if memory_limit is None else {"memory_limit": memory_limit}),
            **({"recompute": True} if recompute else {}),
        }  # fmt: skip
        super().__init__(seed=seed, device=device, configuration=configuration)
        self._images_per_pass, self.calibration_images = images_per_pass, calibration_images
        self.memory_limit, self._recompute, self._costs = memory_limit, flag(recompute, "recompute"), {}
        self._frozen_name = name_of(backbone)
        network = backbones.load_backbone(backbone)
        if any(map(is_sharded, network.parameters())):
            raise ValueError(
                "backbone: its weights are sharded (fully_shard, parallelize_module). Processes that learn "
                "together make as many passes as their own images need, so each needs it whole: give it "
                'as it was, in bfloat16 where it is large (load_backbone(..., dtype="bfloat16"))'
            )
        if self.recipe.precision == "bfloat16" and any(p.dtype is torch.float16 for p in network.parameters()):
            raise ValueError(
                "precision must be 'float32' for a backbone in float16, which computes in that, got 'bfloat16'"
            )
        if normalise == "auto":
            normalise = backbones.normalisation(network) or "none"
        self._normalise = None if isinstance(normalise, str) else normalise
        numbers = "none" if self._normalise is None else [list(part) for part in self._normalise]
        self._configuration["normalize"] = numbers
        self._network_given = network.to(self.device).requires_grad_(False)  # what a checkpoint knows
        self.image_size = image_size or backbones.image_size(network)
        self.backbone, self._interpolate = fitted(network, self.image_size)
        if self.device.type == "cpu" and self.recipe.precision == "bfloat16":
            self._use_eager_attention()
        self.width = backbones.width_of(self.backbone)
        self.classes_seen = 0
        self._training: Training | None = None

    def _use_eager_attention(self) -> None:
        """On CPUs torch's fused attention has a slow backward pass in bfloat16: half the speed."""
        attention = getattr(self.backbone, "set_attn_implementation", None)
        if attention is None or getattr(self.backbone.config, "_attn_implementation", None) == "eager":
            return
        # A copy with the same weights: another learner may have this backbone, and its attention stays.
        own: Any = copy_of_structure(self.backbone)
        own.set_attn_implementation("eager")
        self.backbone = own

    @classmethod
    def default_recipe(cls) -> Recipe:
        """How the method trains where nothing else is said."""
        return Recipe()

    @property
    def default_epochs(self) -> int:
        """Those of the recipe."""
        return self.recipe.epochs

    @property
    def tasks_learned(self) -> int:
        """Another name of ``items_learned``."""
        return self.items_learned

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Names of the keyword arguments that :meth:`make` takes beside seed and device."""
        general = ("backbone", "recipe", "seed", "device")
        return tuple(n for n in dict.fromkeys((*_RECIPE, *schema.argument_names(cls))) if n not in general)

    @classmethod
    def make(cls: type[_L], backbone: str | os.PathLike[str] | nn.Module = "small", **options: Any) -> _L:
        """A learner with the fields of its recipe given among the constructor's arguments."""
        own = {name: options.pop(name) for name in _RECIPE if name in options}
        made = cls(backbone, recipe=replace(cls.default_recipe(), **own), **options)
        made._check_memory()
        return made

    # ------------------------------------------------------------------ what a method fills in

    def _make_room(self, classes: int) -> None:
        """Makes the modules that exist only while a task of so many classes, known ones among them, is learned
        (0: there is none).

        Their values do not matter: they are trained, or loaded.
        """

    def _begin(self, classes: int) -> None:
        """A task begins: adds what it needs, deterministically."""
        self._make_room(classes)

    def _make_training(self) -> Training | None:
        """Training of the task that has begun, from the modules as they are; None: nothing is trained."""
        return None

    def _epoch(self, training: Training, images: Any, labels: Tensor) -> float:
        """One epoch; labels are those of :meth:`_training_labels`."""
        return training.epoch(images, labels)

    def _training_labels(self, labels: Tensor) -> Tensor:
        """What is trained to tell apart: the task's classes, numbered from 0 in their order."""
        return places(labels)

    def _count_rows(self) -> int:
        """How many classes the heads and statistics have rows for."""
        return self.classes_seen

    @abstractmethod
    def _finish(self, images: Any, labels: Tensor) -> None:
        """After the training: takes in the images once, as they are tested. Labels are the stream's.

        Args:
            images: as the experience has them, a tensor or a :class:`flexkern.streams.ImageSource`;
                :meth:`_test_batches` reads both, and ``own_share`` is what one of several processes reads.
        """

    @abstractmethod
    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        """[n, classes_seen] for images as they are tested; ``task``, the true one of each, is for oracles."""

    @abstractmethod
    def _modules(self) -> nn.ModuleDict:
        """Everything that a checkpoint must hold; loads into a fresh learner of the same configuration."""

    @property
    @abstractmethod
    def parameters_added(self) -> int:
        """Numbers that learning has added to (or, where it trains the backbone, changed in) the backbone."""

    # ------------------------------------------------------------------ learning

    def _why_alone(self) -> None:
        """Each process takes its share of a batch in training, and of the images that are taken in."""

    def _check(self, experience: Experience) -> None:
        self._check_inputs(experience.train_inputs, "experience: its train_inputs")
        begun = begun_by(experience, self.classes_seen, self.takes, type(self).__name__)
        names, classes = len(experience.class_names), begun["classes"]
        if names not in (0, classes):
            raise ValueError(f"experience: it has {names} class_names, and {classes} classes to name")
        self._check_begun(experience, self._begun == begun)
        self._check_memory(experience)

    def _take_up(self, experience: Experience, epochs: int) -> Item:
        images, labels = experience.train_inputs, experience.train_labels
        if self._begun is None:
            self._begun = begun_by(experience, self.classes_seen, self.takes, type(self).__name__)
            self._begin(self._begun["classes"])
        training = self._training_now()
        end = partial(self._end, images, labels)
        if training is None:
            return Item(None, end)
        training.epochs = epochs
        trained_on = self._training_labels(labels)

        def train(epoch: int) -> float:
            training.epochs_done = epoch  # one that was stopped before it was counted is taken again
            return self._epoch(training, images, trained_on)

        return Item(train, end)

    def _names_of(self, experience: Experience) -> dict[int, str]:
        return names_of(experience, experience.train_labels)

    def _check_inputs(self, x: Any, name: str) -> None:
        check_images(x, name)

    def _check_answers(self) -> None:
        if not self.classes_seen:
            name = type(self).__name__
            raise NotLearnedError(f"{name} has not learned a class yet; learn an experience first")

    def _training_of(
        self,
        parameters: Sequence[nn.Parameter],
        logits: Callable[[Any], Tensor],
        trunk: Callable[[Tensor], Trunk] | None = None,
    ) -> Training:
        """Of the task that has begun. ``logits`` and ``trunk`` are methods and no closures: they can be
        pickled, and a copy of the learner trains the copy."""
        seed = [self.seed, self.tasks_learned]
        return Training(
            parameters, logits, self.recipe, size=self.image_size, seed=seed, device=self.device, trunk=trunk
        )

    def _training_now(self) -> Training | None:
        """The training of the task that has begun."""
        if self._begun is not None and self._training is None:
            self._training = self._make_training()
            if self._training is not None:
                self._training.epochs_done = self._epochs_done
        return self._training

    def _end(self, images: Any, labels: Tensor) -> None:
        assert self._begun is not None
        self._item_images = len(labels)
        with torch.no_grad():
            self._finish(images, labels)
        self._item_images = 0
        self.classes_seen += new_classes(self._begun)
        self._training = None
        self._make_room(0)

    def _ended(self, experience: Experience) -> None:
        super()._ended(experience)
        count, most = len(experience.train_labels), self.calibration_images
        if not (most and self._calibrated) or count < FEW:
            return
        rng = np.random.default_rng([self.seed, self.items_learned, _CALIBRATION])
        rows = torch.from_numpy(np.sort(rng.choice(count, min(most, count), replace=False)))
        labels = experience.train_labels[rows.to(experience.train_labels.device)]
        task = torch.full_like(labels, self.items_learned - 1)
        with torch.no_grad(), unwatched():
            nothing = torch.zeros((0, self.classes_seen), dtype=torch.float32, device=self.device)
            each = self._each(experience.train_inputs[own_rows(rows)], own_rows(task), lambda z: z)
            logits = torch.cat(joined(each, nothing))
        found = fit_log_temperature(logits, labels)
        if found is not None:
            mean, images = self._calibration
            total = images + len(rows)
            self._calibration = mean + (found - mean) * len(rows) / total, total

    # ------------------------------------------------------------------ answering

    @torch.no_grad()
    def logits(self, x: Any, *, task: Tensor | None = None) -> Tensor:
        """Logits, float32 [n, classes_seen], of images [n, 3, h, w], uint8 or float in [0, 1].

        Args:
            x: images as in an experience, a tensor or a source; n may be 0.
            task: the true task of each, int64 [n]; only ``gate="oracle"`` looks at it.

        Raises:
            TypeError, ValueError: naming the argument.
            NotLearnedError: before the first experience has been learned to its end.
        """
        self._check_answers()
        self._check_inputs(x, "x")
        if task is not None:
            check_true_task(task, len(x))
        nothing = torch.zeros((0, self.classes_seen), dtype=torch.float32, device=self.device)
        return torch.cat([nothing, *self._each(x, task, lambda z: z)])

    def _size_of_pictures(self) -> int:
        """That of the images that were learned, where they were square; else what :func:`test_view` crops."""
        return self.decoded_size or round(self.image_size * 256 / 224)

    def _count_known(self) -> int:
        return self.classes_seen

    def _test(self, experience: Experience, of: Callable[[Tensor], Any]) -> None:
        task = torch.full((len(experience.test_labels),), experience.number)
        self._each(experience.test_inputs, task, of)

    def _count_classes(self, stream: Sequence[Experience]) -> int:
        """Those learned, and those of the stream that are still to come."""
        return max([self.classes_seen, *(int(e.test_labels.max()) + 1 for e in stream if len(e.test_labels))])

    # ------------------------------------------------------------------ files

    def _optimizer(self) -> torch.optim.Optimizer | None:
        training = self._training_now()
        return None if training is None else training.optimizer

    def _progress(self) -> dict[str, Any]:
        return super()._progress() | {"classes_seen": self.classes_seen}

    def _resume(self, progress: dict[str, Any]) -> None:
        super()._resume(progress)
        self.classes_seen = progress["classes_seen"]
        if self._begun is not None and known_classes(self._begun) > self.classes_seen:
            raise ValueError(
                f"begun.known is {self._begun['known']}, and {self.classes_seen} classes are known"
            )
        self._make_room(self._begun["classes"] if self._begun else 0)

    def _check_restored(self) -> None:
        adapters = self._adapters_expected()
        check_parts(self._modules(), classes=self._count_rows(), tasks=self.items_learned, adapters=adapters)

    def _network_beside(self) -> nn.Module:
        return self._network_given

    def _adapters_expected(self) -> int:
        """Tasks that a bank of adapters has."""
        return self.items_learned + (self._begun is not None)

    def _frozen(self) -> str:
        return fingerprint(self._network_given)

    @classmethod
    def _named(cls, frozen_name: str) -> dict[str, Any]:
        return {"backbone": frozen_name}

    @classmethod
    def _name_of_frozen(cls, given: dict[str, Any]) -> str | None:
        return name_of(given["backbone"]) if "backbone" in given else None

    @classmethod
    def _check_frozen(  # type: ignore[override] # it names what it takes
        cls, known: str | None, *, backbone: str | os.PathLike[str] | nn.Module = "small"
    ) -> dict[str, Any]:
        network = backbones.load_backbone(backbone)
        whole = known is not None and known.startswith(WHOLE)
        if (fingerprint if whole else old_fingerprint)(network) != known:
            raise ValueError(
                "backbone: not the one that this learner was made with (its weights differ); pass the same "
                "as backbone="
            )
        if not whole:
            warnings.warn(
                "backbone: the checkpoint is of an earlier version, which knew the first 256 values of each "
                "tensor only; the others were not compared. Save it again",
                stacklevel=4,
            )
        return {"backbone": network}

    @classmethod
    def _arguments(cls, configuration: dict[str, Any]) -> dict[str, Any]:
        schema.check_configuration(Recipe, configuration["recipe"], "recipe.")
        schema.check_fields(configuration, _RANGES, optional=_NEW_RANGES, others=True)
        # Those of earlier versions took images as they are.
        normalize = configuration.get("normalize", "none")
        return configuration | {"recipe": Recipe(**configuration["recipe"]), "normalize": normalize}

    def _known_parts(self, network: nn.Module) -> Parts:
        """The backbone, or a copy of it, in parts that normalise their images; tried on one image."""
        size = self.image_size
        parts = tried_parts(network, size, interpolate=self._interpolate, normalise=self._normalise)
        return replace(parts, recompute=self._recompute)
