"""What all learners have in common: they learn item after item, answer, are evaluated, saved and loaded."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

import flexkern.version
from flexkern.distributed import is_lead
from flexkern.files import check_writable
from flexkern.learners import checkpoint, restore, schema
from flexkern.learners.answering import Answering
from flexkern.learners.answers import check_names, joined_names, names_of
from flexkern.learners.kept_bytes import bytes_kept
from flexkern.learners.processes import agree_on_learning
from flexkern.learners.progress import Progress, Watch, check_watch, watched
from flexkern.learners.representation import representation
from flexkern.nn.undo import Undo
from flexkern.plain import SEEDS, whole_number
from flexkern.streams.base import Experience

__all__ = ["Item", "Learner"]

_L = TypeVar("_L", bound="Learner")


class Item(NamedTuple):
    """An experience that a learner has taken up.

    train: runs one epoch, given its number from 0, and returns the mean loss; None where nothing is trained.
    end: after the last epoch; if it raises, all that it did is undone.
    """

    train: Callable[[int], float] | None
    end: Callable[[], None]


class Learner(Answering):
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
    takes: ClassVar[tuple[str, ...]] = ("class-incremental",)
    """The kinds of streams that the method learns, of :data:`flexkern.learners.SCENARIOS`; what its family
    takes, where a method does not say it itself."""
    unsaved_numbers: ClassVar[int] = 1 << 24
    """Numbers of the largest tensor that a constructor makes and a checkpoint does not hold (a projection that
    is drawn from its seed, say). :meth:`load` lets no larger one be made than that, or four times what the
    whole file holds."""

    trains_on_all: ClassVar[bool] = False
    """Whether each item is trained together with all before it, so that its time grows with them."""

    told_anew: ClassVar[tuple[str, ...]] = ()
    """Options that :meth:`load` takes, too, in place of the checkpoint's: where things lie. What is learned and
    answered does not depend on them."""

    def __init__(self, *, seed: int, device: torch.device | str, configuration: dict[str, Any]) -> None:
        _refuse_inference_mode()
        self.seed = whole_number(seed, "seed", least=0, most=SEEDS - 1)
        self.device = torch.device(device)
        self.items_learned = 0
        self.report: dict[str, float] = {}
        """Of the last :meth:`evaluate`: seconds per input, and what the method counts."""
        self.decoded_size = None
        self._names, self._calibration = {}, (0.0, 0)
        self._configuration = configuration | {"seed": self.seed}
        self._frozen_name: str | None = None  # by which the frozen network is found again
        self._epochs_done = 0  # of the item that is being learned
        self._begun: dict[str, Any] | None = None  # its name, as JSON, while it is being learned

    def __repr__(self) -> str:
        if "_configuration" not in vars(self):  # where its constructor has not come to its end
            return object.__repr__(self)
        return representation(self, self._network_beside())

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
    def _take_up(self, experience: Experience, epochs: int) -> Item:
        """Begins an item, and sets ``_begun``; or goes on with it, where ``_begun`` says that it was begun."""

    @abstractmethod
    def _modules(self) -> nn.Module:
        """All modules that learning changes; their state loads into a fresh learner that has resumed."""

    def _why_alone(self) -> str | None:
        """Why this learner cannot learn on several processes, and what to do; None: it can.

        One that can takes its share of each batch, adds gradients, and lets all have all features.
        """
        return "its method does not say how several processes would learn one thing; use one process"

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

    def _load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`_extra_state` gave; tensors are on the learner's device."""

    def _progress(self) -> dict[str, Any]:
        """Where the learner stands, as JSON."""
        return {
            "items_learned": self.items_learned, "epochs_done": self._epochs_done, "begun": self._begun,
            **self._answers_record(),
        }  # fmt: skip

    def _resume(self, progress: dict[str, Any]) -> None:
        """Stands where :meth:`_progress` says; the modules that there are then are loaded next."""
        self.items_learned, self._epochs_done = progress["items_learned"], progress["epochs_done"]
        self._begun = progress["begun"]
        self._take_answers_record(progress)

    def _check_restored(self) -> None:
        """Raises ValueError if what was loaded into the parts does not fit together."""

    @abstractmethod
    def _frozen(self) -> str | None:
        """Fingerprint of the frozen network that is given and not saved; None where there is none."""

    @classmethod
    def _named(cls, frozen_name: str) -> dict[str, Any]:
        """What :meth:`_check_frozen` is given where the caller of :meth:`load` gives nothing."""
        return {}

    @classmethod
    def _name_of_frozen(cls, given: dict[str, Any]) -> str | None:
        """The name in what :meth:`_check_frozen` was given; None if only who made the network has it."""
        return None

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

    def check(self, experience: Experience) -> None:
        """Raises as :meth:`learn` does before it changes anything."""
        _check_kind(experience)
        self._check(experience)

    # However it is called, and so that an interrupt in the middle of a torch.no_grad() does not leave it on.
    @torch.enable_grad()
    def learn(
        self,
        experience: Experience,
        *,
        epochs: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Learns one experience.

        **Stopped.** After an exception out of ``progress`` (to stop early), or when loaded from a checkpoint
        that ``progress`` wrote, call it with the same experience again: it goes on with the next epoch, to the
        bit as if never stopped. The beginning and the end of an item are all or nothing: whatever raises there,
        Ctrl-C too, leaves the learner as it was before, and the same call again ends the item to the same bits.
        After an exception in the middle of an epoch (Ctrl-C, or out of ``watch``) the steps that were taken
        stay, and the same call again begins that epoch anew from there: a sound learner, but not that of a run
        without the stop. Load the last checkpoint for that one.

        **Several processes** (docs/scaling.md) all call it with the same experience: each takes its share of
        each batch, and all have the learner that a single process has, up to rounding. ``progress`` and
        ``watch`` are called on all of them.

        Args:
            experience: a learner with a multi-layer perceptron takes inputs of its shape, floating-point and
                finite, or uint8, with any labels among the classes of the stream; one with a vision transformer
                takes images, uint8 [n, 3, h, w] or float in [0, 1], or a source of images
                (:class:`flexkern.streams.ImageSource`), of new classes, whose labels are from ``classes_seen``
                on without gaps, and, where ``takes`` says so, of known ones. Its ``class_names`` are kept; see
                :attr:`class_names`.
            epochs: passes over the training inputs, at least 1; None: ``default_epochs``.
            progress: called after each epoch.
            watch: called after each batch, for bars of long epochs; see
                :class:`flexkern.learners.BatchProgress`. It may ask the learner, and draw random numbers.

        Raises:
            TypeError, ValueError: if the experience does not fit (sizes, values, too few inputs for what the
                method makes of them), a class has another class's name, or another one was begun and not ended.
                Nothing has been changed then.
            RuntimeError: inside of ``torch.inference_mode()``, where nothing can be learned; if processes that
                learn together do not have the same learner and experience, or the method cannot do it.
        """
        _check_kind(experience)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be callable or None, got {progress!r}")
        check_watch(watch)
        epochs = self.default_epochs if epochs is None else whole_number(epochs, "epochs")
        _refuse_inference_mode()
        self._check(experience)
        check_names(self._names, self._names_of(experience), "experience")
        agree_on_learning(self, experience, epochs)
        # An autocast of the caller's would change the bits; a method that has one says so in its options.
        with torch.autocast(self.device.type, enabled=False):
            self._learn(experience, epochs, progress, watch)

    def _learn(
        self,
        experience: Experience,
        epochs: int,
        progress: Callable[[Progress], None] | None,
        watch: Watch | None,
    ) -> None:
        number = self.items_learned
        beginning = self._undo() if self._begun is None else None
        try:
            with self._undo(), watched(watch, item=number, epochs=epochs):
                item = self._take_up(experience, epochs)
            if item.train is not None:
                beginning = None  # it holds what training replaces
                self._train_item(item.train, epochs, progress, watch)
            self._end_item(item, experience, epochs, watch)
        except BaseException:
            # Where nothing was trained, the beginning and the end are one.
            if beginning is not None and self.items_learned == number:
                beginning.put_back()
            raise

    def _train_item(
        self,
        train: Callable[[int], float],
        epochs: int,
        progress: Callable[[Progress], None] | None,
        watch: Watch | None,
    ) -> None:
        number = self.items_learned
        for epoch in range(self._epochs_done, epochs):
            with watched(watch, item=number, epoch=epoch + 1, epochs=epochs):
                loss = train(epoch)
            self._epochs_done = epoch + 1
            if progress is not None:
                progress(Progress(number, epoch + 1, epochs, loss))

    def _end_item(self, item: Item, experience: Experience, epochs: int, watch: Watch | None) -> None:
        number = self.items_learned
        with self._undo(self._written_at_end()), watched(watch, item=number, epochs=epochs):
            item.end()
            self.items_learned += 1
            self._epochs_done, self._begun = 0, None
            self._ended(experience)

    def _names_of(self, experience: Experience) -> dict[int, str]:
        """Names of the experience's classes, by their numbers."""
        told = names_of(experience, experience.train_labels)
        # Labels that are told are not always the truth; those that are tested are.
        tested = names_of(experience, experience.test_labels)
        by_tested = len(tested) == len(experience.class_names)
        return {c: str(c) for c in told} | tested if by_tested else told

    def _ended(self, experience: Experience) -> None:
        """After an item's end: remembers what answers need. What it does is undone with the end."""
        self._names = joined_names(self._names, self._names_of(experience))
        shape = experience.input_shape
        self.decoded_size = shape[-1] if len(shape) > 1 and shape[-1] == shape[-2] else None

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

    @property
    def memory_bytes(self) -> int:
        """Of everything that is kept now to answer and to learn on, beside the network that was given: weights,
        adapters, sums, statistics, kept inputs, an optimizer's state, and what was solved once from these."""
        optimizer = self._optimizer()
        state = [] if optimizer is None else [list(optimizer.state.values()), optimizer.param_groups]
        return bytes_kept(self._modules(), [self._extra_state(), *state], given=self._network_beside())

    def _network_beside(self) -> nn.Module | None:
        """The frozen network that was given."""
        return None

    # ------------------------------------------------------------------ files

    def configuration(self) -> dict[str, Any]:
        """What the constructor was given, but for frozen networks and the device; JSON."""
        return dict(self._configuration)

    def save(self, path: str | os.PathLike[str], *, notes: dict[str, Any] | None = None) -> None:
        """Writes all that learning depends on, but no frozen network, to one safetensors file.

        The file appears whole or not at all (:func:`flexkern.files.replace_file`). It holds tensors, JSON, and
        sums of both; reading it executes nothing. Of a backbone that was given by its name, or as a folder, it
        has that name, or where the folder is. Of several processes that learn together the first one writes,
        and the others do nothing: all of them may call it, and any number of processes may load it.

        Args:
            path: of the file.
            notes: JSON of the caller's, to be kept in it; :func:`flexkern.learners.checkpoint.read_notes`
                reads it.

        Raises:
            OSError: naming the path, if it cannot be written.
        """
        if not is_lead():
            return
        check_writable(path)
        state, optimizer = self._modules().state_dict(), self._optimizer()
        tensors = {f"model.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
        record: dict[str, Any] = {
            "format": schema.FORMAT,
            "version": flexkern.version.__version__,
            "family": self.family,
            "method": self._method_name(),
            "class": type(self).__name__,  # for people who read the file
            "configuration": self._configuration,
            "frozen": self._frozen(),
            # How many the modules have: what earlier versions did not write may be missing in their files only.
            "progress": self._progress() | {"tensors": len(tensors)},
            "model": {name: value for name, value in state.items() if not isinstance(value, Tensor)},
            "optimizer": None,
        }
        tensors |= {f"extra.{name}": value for name, value in self._extra_state().items()}
        if self._frozen_name is not None:
            record["frozen_name"] = self._frozen_name
        if notes is not None:
            record["notes"] = notes
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
                the same with and without); for a vision transformer ``backbone`` (default: the name or the
                folder that the learner was made with, else "small"; what has a name on the hub is fetched from
                there). Of options that the file does hold it takes those of :attr:`told_anew`.

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


def _check_kind(experience: object) -> None:
    if not isinstance(experience, Experience):
        raise TypeError(f"experience must be a flexkern.streams.Experience, got {type(experience).__name__}")


def _refuse_inference_mode() -> None:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "a learner cannot be made and cannot learn inside of torch.inference_mode(), whose tensors cannot "
            "be trained; leave it, or use torch.no_grad()"
        )
