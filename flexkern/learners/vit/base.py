"""What all learners on a pre-trained vision transformer have in common: images, experiences, answers, files."""

from __future__ import annotations

import hashlib
import inspect
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from flexkern import backbones
from flexkern.learners import checkpoint
from flexkern.learners.progress import Progress
from flexkern.learners.vit.training import Recipe, Training, autocast, test_view
from flexkern.metrics import Evaluation, confusion_matrix
from flexkern.nn.adapters.adapted_model import Parts, parts_of
from flexkern.streams.base import Experience

__all__ = ["ViTLearner"]

_FORMAT = 1


class ViTLearner(ABC):
    """A class-incremental learner on a frozen or trained vision transformer.

    Classes are numbered in the order in which they are learned: an experience brings the classes from
    ``classes_seen`` on, and no others (:func:`flexkern.streams.class_incremental` numbers them so).

    Args:
        backbone: as :func:`flexkern.backbones.load_backbone` takes it.
        recipe: how each task is trained.
        images_per_pass: images (or pairs of an image and a task) that go through the network at once: bounds
            memory.
        image_size: pixels of each side; None asks the backbone.
        seed: of everything that is random.
        device: where to compute.
    """

    method: ClassVar[str]  # the name in METHODS and in tables

    def __init__(
        self,
        backbone: str | os.PathLike[str] | nn.Module = "small",
        *,
        recipe: Recipe | None = None,
        images_per_pass: int = 256,
        image_size: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        if images_per_pass < 1:
            raise ValueError(f"images_per_pass must be at least 1, got {images_per_pass}")
        self.recipe = recipe or self.default_recipe()
        self.images_per_pass, self.seed, self.device = images_per_pass, seed, torch.device(device)
        self.backbone = backbones.load_backbone(backbone).to(self.device).requires_grad_(False)
        attention = getattr(self.backbone, "set_attn_implementation", None)
        if attention is not None and self.device.type == "cpu" and self.recipe.precision == "bfloat16":
            attention(
                "eager"
            )  # torch's fused attention has a slow backward pass in bfloat16 on CPUs: half the speed
        self.image_size = image_size or backbones.image_size(self.backbone)
        self.width = backbones.width_of(self.backbone)
        self.classes_seen = self.tasks_learned = 0
        self.report: dict[str, float] = {}
        self._training: Training | None = None
        self._begun: dict[str, Any] | None = (
            None  # name, first and last class of the task that is being learned
        )
        self._options = {"images_per_pass": images_per_pass, "image_size": image_size, "seed": seed, **options}

    @classmethod
    def default_recipe(cls) -> Recipe:
        """How the method trains where nothing else is said."""
        return Recipe()

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Names of the keyword arguments that the method takes beside backbone, recipe, seed and device."""
        names = [*inspect.signature(cls).parameters, *inspect.signature(ViTLearner).parameters]
        general = ("backbone", "recipe", "seed", "device", "common", "options")
        return tuple(n for n in dict.fromkeys(names) if n not in general)

    # ------------------------------------------------------------------ what a method fills in

    def _reserve(self, classes: int) -> None:  # noqa: B027 - most methods need nothing
        """Makes the modules that exist only while a task of so many classes is learned (0: none is),
        unfilled."""

    def _begin(self, classes: int) -> None:
        """A task begins: adds what it needs, deterministically."""
        self._reserve(classes)

    def _make_training(self) -> Training | None:
        """The training of the task that has begun, from the modules as they are; None where no network is
        trained."""
        return None

    def _epoch(self, training: Training, images: Tensor, labels: Tensor) -> float:
        """One epoch; labels count from the task's first class."""
        return training.epoch(images, labels)

    @abstractmethod
    def _finish(self, images: Tensor, labels: Tensor) -> None:
        """After the training: takes in the images once, as they are tested. Labels are the stream's."""

    @abstractmethod
    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        """[n, classes_seen] for images as they are tested; ``task``, the true one of each, is for oracles
        only."""

    @abstractmethod
    def _modules(self) -> nn.ModuleDict:
        """Everything that a checkpoint must hold; loads into a fresh learner of the same configuration."""

    @property
    @abstractmethod
    def parameters_added(self) -> int:
        """Numbers that learning has added to (or, where it trains the backbone, changed in) the backbone."""

    # ------------------------------------------------------------------ learning

    def learn(self, experience: Experience, *, progress: Callable[[Progress], None] | None = None) -> None:
        """Learns the classes of one experience.

        After an exception out of ``progress``, or when loaded from a checkpoint that ``progress`` wrote, call
        it with
        the same experience again: it goes on with the next epoch.

        Args:
            experience: inputs uint8 [n, 3, h, w] (or float in [0, 1]), labels from ``classes_seen`` on.
            progress: called after each epoch.

        Raises:
            ValueError: if the labels are not the next classes, or another experience was begun and not ended.
        """
        images, labels = experience.train_inputs, experience.train_labels
        classes = self._check(experience)
        if self._begun is None:
            self._begin(classes)
            self._begun = {"name": experience.name, "classes": classes}
            self._training = self._make_training()
        training, epochs = self._training, self.recipe.epochs
        while training is not None and training.epochs_done < epochs:
            loss = self._epoch(training, images, labels - self.classes_seen)
            if progress is not None:
                progress(Progress(self.tasks_learned, training.epochs_done, epochs, loss))
        with torch.no_grad():
            self._finish(images, labels)
        self.classes_seen += classes
        self.tasks_learned += 1
        self._training = self._begun = None
        self._reserve(0)

    def _check(self, experience: Experience) -> int:
        """How many classes the experience brings."""
        if experience.train_inputs.dim() != 4 or experience.train_inputs.shape[1] != 3:
            raise ValueError(
                "experience: inputs must be images [n, 3, height, width], got "
                f"{tuple(experience.train_inputs.shape)}"
            )
        present = experience.train_labels.unique()
        expected = torch.arange(self.classes_seen, self.classes_seen + len(present))
        if not len(present) or not torch.equal(present, expected):
            raise ValueError(
                f"experience: its labels must be the classes from {self.classes_seen} on, numbered in the "
                f"order of learning without gaps, got {present.tolist()}; flexkern.streams.class_incremental "
                "numbers them so"
            )
        if self._begun is not None and self._begun != {"name": experience.name, "classes": len(present)}:
            raise ValueError(
                f"experience: {self._begun['name']!r} was begun and not ended; learn it to its end before "
                f"{experience.name!r}"
            )
        return len(present)

    def _test_batches(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches as they are tested, on the device."""
        for rows in torch.arange(len(images)).split(self.images_per_pass):
            yield test_view(images[rows].to(self.device), self.image_size), labels[rows].to(self.device)

    def _run(self, network: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """A network's float32 answer, computed in the recipe's precision; heads and statistics are float32."""
        with self._network():
            return network(*inputs).float()

    def _network(self) -> torch.autocast:
        return autocast(self.recipe, self.device)

    # ------------------------------------------------------------------ answering

    @torch.no_grad()
    def logits(self, images: Tensor, *, task: Tensor | None = None) -> Tensor:
        """Logits, float32 [n, classes_seen], of images [n, 3, h, w], uint8 or float in [0, 1].

        Args:
            images: as in an experience.
            task: the true task of each, int64 [n]; only ``gate="oracle"`` looks at it.
        """
        parts = []
        for rows in torch.arange(len(images)).split(self.images_per_pass):
            x = test_view(images[rows].to(self.device), self.image_size)
            parts.append(self._logits(x, None if task is None else task[rows].to(self.device)))
        return torch.cat(parts) if parts else torch.zeros((0, self.classes_seen), device=self.device)

    def predict(self, images: Tensor, *, task: Tensor | None = None) -> Tensor:
        """The class of each image, int64 [n], on the learner's device."""
        return self.logits(images, task=task).argmax(1)

    def evaluate(self, stream: Sequence[Experience]) -> Evaluation:
        """Accuracy on the test images of each experience, and the confusion matrix over all of them.

        ``report`` then has what else is worth telling: seconds, and of gated methods how many synapses were
            open.
        """
        self._start_report()
        start, accuracies, images = time.perf_counter(), [], 0
        classes = max(
            [self.classes_seen, *(int(e.test_labels.max()) + 1 for e in stream if len(e.test_labels))]
        )
        confusion = np.zeros((classes, classes), dtype=np.int64)
        for experience in stream:
            task = torch.full((len(experience.test_labels),), experience.number)
            answers = self.predict(experience.test_inputs, task=task).numpy(force=True)
            labels = experience.test_labels.numpy(force=True)
            accuracies.append(float((labels == answers).mean()))
            confusion += confusion_matrix(labels, answers, classes)
            images += len(labels)
        self.report = self._end_report() | {"seconds_per_image": (time.perf_counter() - start) / max(images, 1)}
        return Evaluation(np.array(accuracies), confusion)

    def _start_report(self) -> None:  # noqa: B027 - most methods count nothing
        """Evaluation begins: forget what was counted."""

    def _end_report(self) -> dict[str, float]:
        """What a method has counted over an evaluation."""
        return {"passes": 1.0}

    # ------------------------------------------------------------------ files

    def configuration(self) -> dict[str, Any]:
        """What the constructor was given, but for the backbone and the device; JSON."""
        return {"recipe": asdict(self.recipe), **self._options}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything but the backbone to one safetensors file, whole or not at all (tensors and JSON
        only).

        Raises:
            ImportError: if safetensors is not installed.
        """
        tensors = {f"modules.{name}": value for name, value in self._modules().state_dict().items()}
        record: dict[str, Any] = {
            "format": _FORMAT,
            "learner": type(self).__name__,
            "configuration": self.configuration(),
            "backbone": self._fingerprint(),
            "classes_seen": self.classes_seen,
            "tasks_learned": self.tasks_learned,
            "begun": self._begun,
        }
        if self._training is not None:
            of_training, record["training"] = self._training.state()
            tensors |= of_training
        checkpoint.write(path, tensors, record)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backbone: str | os.PathLike[str] | nn.Module = "small",
        device: torch.device | str = "cpu",
    ) -> Any:
        """The learner that :meth:`save` wrote; on the same device it goes on to the bit as if never stopped.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not such a checkpoint, or the backbone is another one.
        """
        tensors, record = checkpoint.read(path)
        if record.get("learner") != cls.__name__ or record.get("format") != _FORMAT:
            raise ValueError(
                f"path: {os.fspath(path)!r} holds {record.get('learner')!r} in format "
                f"{record.get('format')!r}; this version reads {cls.__name__!r} in format {_FORMAT}"
            )
        configuration = dict(record["configuration"])
        recipe = Recipe(**configuration.pop("recipe"))
        learner = cls(backbone, recipe=recipe, device=device, **configuration)
        if learner._fingerprint() != record["backbone"]:
            raise ValueError(
                "backbone: not the one that this learner was made with (its weights differ); pass the same"
            )
        learner.classes_seen, learner.tasks_learned = record["classes_seen"], record["tasks_learned"]
        learner._begun = record["begun"]
        learner._reserve(learner._begun["classes"] if learner._begun else 0)
        learner._modules().load_state_dict(_under("modules", tensors))
        if learner._begun and (training := learner._make_training()) is not None:
            training.restore(tensors, record["training"])
            learner._training = training
        return learner

    def _fingerprint(self) -> str:
        """Of the backbone as it was loaded: its sizes and a part of its weights."""
        digest = hashlib.sha256()
        for name, value in self._pretrained().items():
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().flatten()[:256].float().cpu().numpy().tobytes())
        return digest.hexdigest()

    @staticmethod
    def _known_parts(network: nn.Module) -> Parts:
        parts = parts_of(network)
        if parts is None:
            raise ValueError(
                f"backbone: {type(network).__name__} is not a vision transformer of a known family (Hugging "
                "Face ViT, DeiT, DINOv2; timm VisionTransformer)"
            )
        return parts

    def _pretrained(self) -> dict[str, Tensor]:
        return self.backbone.state_dict()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
