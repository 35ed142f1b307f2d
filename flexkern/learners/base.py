"""What all learners have in common: they learn item after item, answer, are evaluated, saved and loaded."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import flexkern.version
from flexkern.files import check_writable
from flexkern.learners import checkpoint, restore, schema
from flexkern.learners.progress import Progress
from flexkern.metrics import Evaluation, confusion_matrix
from flexkern.nn.undo import Undo
from flexkern.plain import SEEDS, whole_number
from flexkern.streams.base import Experience

__all__ = ["Item", "Learner"]

_L = TypeVar("_L", bound="Learner")
_MOST_CLASSES = 30_000  # of an evaluation: their confusion matrix takes 7 GB


class Item(NamedTuple):
    """An experience that a learner has taken up.

    train: runs one epoch, given its number from 0, and returns the mean loss; None where nothing is trained.
    end: after the last epoch; if it raises, all that it did is undone.
    """

    train: Callable[[int], float] | None
    end: Callable[[], None]


class Learner(ABC):
    """Learns a stream one experience after the other, and answers at any time.

    The same seed gives the same bits on the same device, also when a run is saved, loaded and continued.

    What a learner makes (layers, heads, gates, what it keeps) is float32, whatever ``torch.set_default_dtype``
    says, so that its bits do not depend on it either. A backbone or an extractor that is given keeps its own
    dtype.

    A new method usually inherits from :class:`flexkern.learners.mlp.base.MLPLearner` or
    :class:`flexkern.learners.vit.base.ViTLearner`, which fill in most of what is abstract here, and gets its
    name by :func:`flexkern.learners.register_method`.

    Args:
        seed: of everything that is random; 0 <= seed < 2**64.
        device: where to compute.
        configuration: the other arguments of the learner's constructor, as JSON, for its checkpoint.

    Raises:
        TypeError, ValueError: naming the argument.
        RuntimeError: inside of ``torch.inference_mode()``, whose tensors can never be trained.
    """

    family: ClassVar[str]
    """Of the network: "mlp" or "vit"; names of methods are unique within it."""
    method: ClassVar[str]
    """The name that the method was registered by."""
    unsaved_numbers: ClassVar[int] = 1 << 24
    """Numbers of the largest tensor that a constructor makes and a checkpoint does not hold (a projection that
    is drawn from its seed, say). :meth:`load` lets no larger one be made than that, or four times what the
    whole file holds."""

    def __init__(self, *, seed: int, device: torch.device | str, configuration: dict[str, Any]) -> None:
        _refuse_inference_mode()
        self.seed = whole_number(seed, "seed", least=0, most=SEEDS - 1)
        self.device = torch.device(device)
        self.items_learned = 0
        self.report: dict[str, float] = {}
        """Of the last :meth:`evaluate`: seconds per input, and what the method counts."""
        self._configuration = configuration | {"seed": self.seed}
        self._epochs_done = 0  # of the item that is being learned
        self._begun: dict[str, Any] | None = None  # its name, as JSON, while it is being learned

    # ------------------------------------------------------------------ what a method fills in

    @property
    @abstractmethod
    def default_epochs(self) -> int:
        """Epochs of an item where :meth:`learn` is not told."""

    @abstractmethod
    def _check(self, experience: Experience) -> None:
        """Raises TypeError or ValueError if the experience does not fit; changes nothing.

        What the end of the item would refuse is refused here, before its first epoch.
        """

    @abstractmethod
    def _check_inputs(self, x: Tensor, name: str) -> None:
        """Raises TypeError or ValueError, naming them, if these are no inputs as the learner takes them."""

    def _check_answers(self) -> None:  # noqa: B027 - most methods answer from the start
        """Raises :class:`flexkern.learners.NotLearnedError` while there is nothing to answer from."""

    @abstractmethod
    def _take_up(self, experience: Experience, epochs: int) -> Item:
        """Begins an item, and sets ``_begun``; or goes on with it, where ``_begun`` says that it was begun."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Scores of the classes, float32 [n, classes], for inputs [n, ...]; n may be 0.

        Raises:
            TypeError, ValueError: naming ``x``, if they are not inputs as :meth:`learn` takes them.
            NotLearnedError: before the first experience, where the learner has no classes yet.
        """

    @abstractmethod
    def _count_classes(self, stream: Sequence[Experience]) -> int:
        """Rows and columns of the confusion matrix over this stream."""

    @abstractmethod
    def _modules(self) -> nn.Module:
        """All modules that learning changes; their state loads into a fresh learner that has resumed."""

    def _written_at_end(self) -> nn.Module:
        """The modules into whose tensors an item's end writes: they are copied while it runs.

        All, if a method does not know better. Tensors that are in no module an end has to replace, not to write
        into; then it is undone if it fails.
        """
        return self._modules()

    def _optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer whose state a checkpoint needs now."""
        return None

    def _extra_state(self) -> dict[str, Tensor]:
        """Tensors that learning depends on besides modules and optimizer, for the checkpoint."""
        return {}

    def _load_extra_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - most methods have none
        """Takes back what :meth:`_extra_state` gave; tensors are on the learner's device."""

    def _progress(self) -> dict[str, Any]:
        """Where the learner stands, as JSON."""
        return {
            "items_learned": self.items_learned, "epochs_done": self._epochs_done, "begun": self._begun,
        }  # fmt: skip

    def _resume(self, progress: dict[str, Any]) -> None:
        """Stands where :meth:`_progress` says; the modules that there are then are loaded next."""
        self.items_learned, self._epochs_done = progress["items_learned"], progress["epochs_done"]
        self._begun = progress["begun"]

    def _check_restored(self) -> None:  # noqa: B027 - a method may have nothing to compare
        """Raises ValueError if what was loaded into the parts does not fit together."""

    @abstractmethod
    def _frozen(self) -> str | None:
        """Fingerprint of the frozen network that is given and not saved; None where there is none."""

    @classmethod
    @abstractmethod
    def _check_frozen(cls, known: str | None, **given: Any) -> dict[str, Any]:
        """What :meth:`load` was given, as the constructor's arguments.

        Raises:
            ValueError: if it does not have the fingerprint ``known``, the one in the checkpoint.
        """

    @classmethod
    def _arguments(cls, configuration: dict[str, Any]) -> dict[str, Any]:
        """The constructor's arguments for what a checkpoint holds as the configuration."""
        return configuration

    # ------------------------------------------------------------------ learning

    # However it is called, and so that an interrupt in the middle of a torch.no_grad() does not leave it on.
    @torch.enable_grad()
    def learn(
        self,
        experience: Experience,
        *,
        epochs: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Learns one experience.

        **Stopped.** After an exception out of ``progress`` (to stop early), or when loaded from a checkpoint
        that ``progress`` wrote, call it with the same experience again: it goes on with the next epoch, to the
        bit as if never stopped. The beginning and the end of an item are all or nothing: whatever raises there,
        Ctrl-C too, leaves the learner as it was before, and the same call again ends the item to the same bits.
        After an exception in the middle of an epoch (Ctrl-C) the steps that were taken stay, and the same call
        again begins that epoch anew from there: a sound learner, but not that of a run without the stop. Load
        the last checkpoint for that one.

        Args:
            experience: a learner with a multi-layer perceptron takes inputs of its shape, floating-point and
                finite, or uint8, with any labels among the classes of the stream; one with a vision transformer
                takes images, uint8 [n, 3, h, w] or float in [0, 1], with labels from ``classes_seen`` on.
            epochs: passes over the training inputs, at least 1; None: ``default_epochs``.
            progress: called after each epoch.

        Raises:
            TypeError, ValueError: if the experience does not fit (sizes, values, too few inputs for what the
                method makes of them), or another one was begun and not ended. Nothing has been changed then.
            RuntimeError: inside of ``torch.inference_mode()``, where nothing can be learned.
        """
        if not isinstance(experience, Experience):
            raise TypeError(
                f"experience must be a flexkern.streams.Experience, got {type(experience).__name__}"
            )
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be callable or None, got {progress!r}")
        epochs = self.default_epochs if epochs is None else whole_number(epochs, "epochs")
        _refuse_inference_mode()
        self._check(experience)
        # An autocast of the caller's would change the bits; a method that has one says so in its options.
        with torch.autocast(self.device.type, enabled=False):
            self._learn(experience, epochs, progress)

    def _learn(self, experience: Experience, epochs: int, progress: Callable[[Progress], None] | None) -> None:
        with self._undo():
            item = self._take_up(experience, epochs)
        if item.train is not None:
            for epoch in range(self._epochs_done, epochs):
                loss = item.train(epoch)
                self._epochs_done = epoch + 1
                if progress is not None:
                    progress(Progress(self.items_learned, epoch + 1, epochs, loss))
        with self._undo(self._written_at_end()):
            item.end()
            self.items_learned += 1
            self._epochs_done, self._begun = 0, None

    def _undo(self, written: nn.Module | None = None) -> Undo:
        """What puts the learner back if a block fails that writes into the tensors of ``written`` only."""
        optimizer = self._optimizer()
        objects: list[Any] = [self, *self._modules().modules()]
        containers: list[Any] = []
        if optimizer is not None:
            objects.append(optimizer)
            containers += [*optimizer.param_groups, *optimizer.state.values()]
        return Undo(*objects, containers=containers, written=() if written is None else written.modules())

    def _check_begun(self, experience: Experience, same: bool, detail: str = "") -> None:
        """Refuses another experience than the one that was begun; ``detail``: how far that is."""
        if self._begun is not None and not same:
            name = self._begun["name"]
            raise ValueError(
                f"experience: {name!r} was begun{detail} and not ended; learn it to its end before "
                f"{experience.name!r}"
            )

    # ------------------------------------------------------------------ answering

    def predict(self, x: Tensor) -> Tensor:
        """The class of each input, int64 [n], on the learner's device. Raises as :meth:`logits`."""
        return self.logits(x).argmax(1)

    def _answers(self, experience: Experience) -> Tensor:
        """Predictions for the test inputs of an experience."""
        return self.predict(experience.test_inputs)

    def evaluate(self, stream: Sequence[Experience]) -> Evaluation:
        """Accuracy on the test inputs of each experience, and the confusion matrix over all of them.

        ``report`` then has what else is worth telling: ``seconds_per_image`` (of one input), and what the
        method counts.

        Args:
            stream: at least one experience, each with at least one test input: without one it has no accuracy.

        Raises:
            TypeError, ValueError: naming the experience that has no test inputs or does not fit.
            NotLearnedError: as :meth:`logits`.
        """
        self._check_stream(stream)
        start, accuracies, inputs = time.perf_counter(), [], 0
        classes = self._count_classes(stream)
        confusion = np.zeros((classes, classes), dtype=np.int64)
        with self._counting() as report:
            for experience in stream:
                labels = experience.test_labels.numpy(force=True)
                answers = self._answers(experience).numpy(force=True)
                accuracies.append(float((labels == answers).mean()))
                confusion += confusion_matrix(labels, answers, classes)
                inputs += len(labels)
        self.report = report | {"seconds_per_image": (time.perf_counter() - start) / inputs}
        return Evaluation(np.array(accuracies), confusion)

    def _check_stream(self, stream: Sequence[Experience]) -> None:
        """Raises as :meth:`evaluate` says, before anything is computed."""
        if isinstance(stream, Experience) or not isinstance(stream, Sequence):
            hint = "; for one experience pass [experience]" if isinstance(stream, Experience) else ""
            raise TypeError(f"stream must be a sequence of experiences, got {type(stream).__name__}{hint}")
        if not len(stream):
            raise ValueError("stream has no experiences; give at least one")
        self._check_answers()
        for i, experience in enumerate(stream):
            if not isinstance(experience, Experience):
                raise TypeError(f"stream[{i}] must be an Experience, got {type(experience).__name__}")
            where = f"stream[{i}], {experience.name!r}"
            if not len(experience.test_labels):
                raise ValueError(f"{where} has no test inputs, so it has no accuracy; leave it out")
            self._check_inputs(experience.test_inputs, f"test_inputs of {where}")
            self._check_test_labels(experience.test_labels, f"test_labels of {where}")

    def _check_test_labels(self, labels: Tensor, name: str) -> None:
        """Raises ValueError unless a confusion matrix can count these labels: it has classes times classes."""
        if int(labels.min()) < 0:
            raise ValueError(f"{name} must be at least 0, got {int(labels.min())}")
        if int(labels.max()) >= _MOST_CLASSES:
            raise ValueError(f"{name} must be under {_MOST_CLASSES:,}, got {int(labels.max())}")

    @contextmanager
    def _counting(self) -> Iterator[dict[str, float]]:
        """What a method has counted over an evaluation: the dictionary is filled when the block ends."""
        yield {"passes": 1.0}

    # ------------------------------------------------------------------ files

    def configuration(self) -> dict[str, Any]:
        """What the constructor was given, but for frozen networks and the device; JSON."""
        return dict(self._configuration)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all that learning depends on, but no frozen network, to one safetensors file.

        The file appears whole or not at all (:func:`flexkern.files.replace_file`). It holds tensors, JSON, and
        sums of both; reading it executes nothing.

        Raises:
            OSError: naming the path, if it cannot be written.
        """
        check_writable(path)
        state, optimizer = self._modules().state_dict(), self._optimizer()
        tensors = {f"model.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
        tensors |= {f"extra.{name}": value for name, value in self._extra_state().items()}
        record: dict[str, Any] = {
            "format": schema.FORMAT,
            "version": flexkern.version.__version__,
            "family": self.family,
            "method": self._method_name(),
            "class": type(self).__name__,  # for people who read the file
            "configuration": self._configuration,
            "frozen": self._frozen(),
            "progress": self._progress(),
            "model": {name: value for name, value in state.items() if not isinstance(value, Tensor)},
            "optimizer": None,
        }
        if optimizer is not None:
            of_optimizer, record["optimizer"] = checkpoint.split_optimizer(optimizer.state_dict())
            tensors |= of_optimizer
        checkpoint.write(path, tensors, record)

    @classmethod
    def load(
        cls: type[_L], path: str | os.PathLike[str], *, device: torch.device | str = "cpu", **given: Any
    ) -> _L:
        """The learner that :meth:`save` wrote; on the same device it goes on to the bit as if never stopped.

        Args:
            path: of the checkpoint; one that an earlier version wrote is read too.
            device: where to compute.
            given: what the file does not hold. For a multi-layer perceptron ``features``, the extractor that
                the learner was made with, if it had one, ``features_cache`` and ``cuda_graph`` (the bits are
                the same with and without); for a vision transformer ``backbone`` (default: "small").

        All is looked at before anything is made from it: sums, the record's fields, and sizes. A file of an
        earlier version carries no sum, which a warning says.

        Raises:
            FileNotFoundError: if there is no such file; another OSError if it cannot be read.
            ValueError: naming the path, if it is not such a checkpoint, damaged, or of a later version; or if
                features or backbone are others.
        """
        return restore.restored(cls, path, device, given)

    @classmethod
    def _method_name(cls) -> str:
        """The name that it was registered by; of a class that was not, its own."""
        return vars(cls).get("method", cls.__name__)


def _refuse_inference_mode() -> None:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "a learner cannot be made and cannot learn inside of torch.inference_mode(), whose tensors cannot "
            "be trained; leave it, or use torch.no_grad()"
        )
