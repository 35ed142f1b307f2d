"""What all learners on a multi-layer perceptron have in common: the network, and how it is trained."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from flexkern.distributed import sum_, world_size
from flexkern.features import FeatureCache, extract_from, fingerprint
from flexkern.learners.base import Item, Learner
from flexkern.learners.mlp.cuda_graph import Step, check_cuda_graph, graphed_steps
from flexkern.learners.mlp.extracting import features_together
from flexkern.learners.mlp.inputs import check_cache, check_inputs, grey, is_finite, size_of_pictures
from flexkern.learners.mlp.network import build
from flexkern.learners.mlp.output_gate import OUTPUT_GATES, class_gates, gated
from flexkern.learners.mlp.rows import Rows, read, rows_of
from flexkern.learners.processes import add_gradients, own_rows
from flexkern.learners.progress import tell
from flexkern.learners.scenarios import SCENARIOS
from flexkern.ops.choices import PRECISIONS
from flexkern.optim import MetaplasticSGD
from flexkern.plain import choice, number, sizes, whole_number
from flexkern.streams.base import Experience
from flexkern.streams.image_source import ImageSource

__all__ = ["MLPLearner"]

_T = TypeVar("_T")
# Of inputs, as float32, that are answered at once; at least 256 of them. Where they are more, memory would grow
# with them by the network's activations, and by the inputs where these are no float32 yet.
_ANSWERED_BYTES = 1 << 28


class MLPLearner(Learner):
    """Linear layers on frozen features, trained item after item by SGD; no method against forgetting.

    ReLU between them; Glorot-normal weights, zero bias, no dropout, plain cross-entropy over
    all classes of the stream. Methods differ in the optimizer (:meth:`_build`) or in what they add to a step or
    to an item (the hooks below). So all of them have the same initial weights and the same order of inputs.

    Args:
        input_shape: of one input, for example ``stream.input_shape``.
        classes: how many there are in the whole stream.
        widths: units of each hidden layer; any number of layers, none too. The paper has two.
        features: a frozen module from inputs to features, moved to ``device``, or None: inputs are features,
            finite floating-point numbers or uint8, and are taken as they are (in float32, a batch at a time;
            images of a source are decoded for each batch, anew in each epoch). It is run once over an item's
            inputs, and its features, float32 in memory, serve all epochs. It is not saved.
        lr, momentum: of SGD.
        batch_size: inputs per step.
        seed: of initial weights, the order of inputs and all other random choices; 0 <= seed < 2**64.
        device: where to compute. Default: the CPU.
        cuda_graph: whether steps on an NVIDIA GPU are replayed from a CUDA graph: the same bits, without the
            time of the Python that launches kernels, which counts where layers are small. The first two steps
            of an item run without it, and so do a last smaller batch, two steps after a change of lr, and all
            steps that look at values on the device (while ``scale="auto"`` is measured). Not saved.
        features_cache: a folder, or a :class:`flexkern.features.FeatureCache`, in which the features of an
            experience's training and test inputs are looked for and kept: they are computed once for all runs,
            and read from there a batch at a time instead of being held in memory. The same bits, unless they
            were computed before with another number of threads or on another GPU. Only with ``features``. Not
            saved.
        output_gate: "frequency": output c learns from an item by the share ``(n_c / max n)^2`` of its error,
            with n_c the labels of class c among those that the item's steps are taken on
            (:mod:`flexkern.learners.mlp.output_gate`). So an item moves the outputs of the classes that it
            brings, and hardly those it names in passing. It needs these negatives: on two-digit items, where
            half of an item's images are others' with wrong labels, plain SGD keeps three times as much with
            it; on class-incremental streams, whose items have none, it does not help
            (docs/results/metaplasticity.md, split CIFAR-100). "none": all of the error.
        precision: "float32", or "bfloat16": parameters and activations are bfloat16, and so are products; each
            step is taken on float32 masters of the parameters, of which these are the roundings, and the loss
            and all answers are float32. It pays where layers are wide and the processor multiplies bfloat16
            (AVX512-BF16, AMX, a GPU); others are right, and slower than in float32. See ``docs/tuning.md``.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    family = "mlp"
    takes: ClassVar[tuple[str, ...]] = SCENARIOS  # all classes are there from the start
    model: Any
    optimizer: MetaplasticSGD | None
    default_epochs = 5  # the paper's

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        widths: tuple[int, ...] = (512, 512),
        features: nn.Module | None = None,
        lr: float = 1e-2,
        momentum: float = 0.0,
        batch_size: int = 50,
        seed: int = 0,
        device: torch.device | str = "cpu",
        cuda_graph: bool = False,
        features_cache: str | os.PathLike[str] | FeatureCache | None = None,
        output_gate: str = "none",
        precision: str = "float32",
    ) -> None:
        self.input_shape = sizes(input_shape, "input_shape", what="shape of one input")
        self.classes = classes = whole_number(classes, "classes")
        self.batch_size = whole_number(batch_size, "batch_size")
        units = sizes(widths, "widths", what="units of each hidden layer, a list")
        lr, momentum = number(lr, "lr", 0), number(momentum, "momentum", 0)
        self.output_gate = output_gate = choice(output_gate, "output_gate", OUTPUT_GATES)
        configuration: dict[str, Any] = {
            "input_shape": list(self.input_shape), "classes": classes, "widths": list(units), "lr": lr,
            "momentum": momentum, "batch_size": self.batch_size,
            "output_gate": output_gate, "precision": choice(precision, "precision", PRECISIONS),
        }  # fmt: skip
        super().__init__(seed=seed, device=device, configuration=configuration)
        if features is not None and not isinstance(features, nn.Module):
            raise TypeError(f"features must be a torch.nn.Module or None, got {type(features).__name__}")
        self.features = None if features is None else features.to(self.device).eval()
        self.features_cache = check_cache(features_cache, self.features)
        self._dtype: torch.dtype = getattr(torch, precision)
        self.model, self.optimizer = self._build((self._count_features(), *units, classes), lr, momentum)
        self._cuda_graph = check_cuda_graph(cuda_graph, self.device, type(self), MLPLearner)

    def _build(
        self, sizes: Sequence[int], lr: float, momentum: float
    ) -> tuple[nn.Module, MetaplasticSGD | None]:
        """The network of these sizes and its optimizer; None: nothing is trained, and an item is taken in by
        :meth:`_after_item` alone. Here f = 1 is plain SGD, where scale has no effect."""
        model, fields = build(sizes, self.seed, self.device, dtype=self._dtype)
        anchors = [a for field in fields for a in (field, None)]
        optimizer = MetaplasticSGD(
            model.parameters(),
            lr,
            scale=1.0,
            flexibility=1.0,
            seed=self.seed,
            momentum=momentum,
            anchor=anchors,
        )
        return model, optimizer

    # ------------------------------------------------------------------ what methods do differently

    # Whether _before_step and _after_step of a subclass only launch kernels, the same ones in each step of an
    # item and on the same memory, so that a CUDA graph of the step may hold them.
    _captures_hooks: ClassVar[bool] = False

    # Whether _training_set and _after_item of a subclass take inputs that are a Rows, too: these are not in
    # memory, and give rows when they are indexed. Where it is False they get a tensor, and an item's inputs are
    # in memory as float32. A class that overrides them says it itself.
    _takes_rows: ClassVar[bool] = False

    def _training_set(self, inputs: Any, labels: Tensor) -> tuple[Any, Tensor]:
        """What an item is trained on, float32 [n, features]. It is asked again when an item goes on, so it
        changes nothing."""
        return inputs, labels

    def _batch(self, inputs: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What a step is taken on; ``step`` counts from 0 in each epoch."""
        return inputs, labels

    def _label_counts(self, labels: Tensor) -> Tensor:
        """How often steps are taken on each class in an epoch over a training set, [classes]."""
        return labels.bincount(minlength=self.classes)

    def _before_step(self) -> None:
        """Parameters have their gradients, and the optimizer has not seen them."""

    def _after_step(self) -> None:
        """The optimizer has moved the parameters; their gradients are still there."""

    def _after_item(self, inputs: Any, labels: Tensor) -> None:
        """All epochs over this training set are done; ``items_learned`` does not count the item yet.

        What it does is undone if it or what follows raises: see ``_written_at_end``.
        """

    def _why_alone(self) -> str | None:
        if self._cuda_graph:
            return "a CUDA graph would have to hold the sums over them; pass cuda_graph=False"
        return None

    # ------------------------------------------------------------------ learning

    def _check(self, experience: Experience) -> None:
        if experience.input_shape != self.input_shape:
            raise ValueError(
                f"experience: its inputs are {experience.input_shape}, this learner was made for "
                f"{self.input_shape}"
            )
        labels = experience.train_labels
        self._check_inputs(experience.train_inputs, "experience: its train_inputs")
        if not labels.numel():
            raise ValueError("experience: it has no training inputs")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.classes:
            raise ValueError(f"experience: its labels must be in [0, {self.classes}), got {low} to {high}")
        same = self._begun == {"name": experience.name}
        self._check_begun(experience, same, f" ({self._epochs_done} epochs are done)")

    def _take_up(self, experience: Experience, epochs: int) -> Item:
        features: Any = self._features_of(
            experience.train_inputs, f"{experience.name}, train", kept=True, training=True
        )
        if self.features is not None and not is_finite(features):
            raise ValueError("features: the extractor gives infinite or NaN features of these inputs")
        rows = rows_of(features, self.device)
        if isinstance(rows, Rows) and not self._hooks_take_rows():
            rows = rows.tensor()
        inputs, labels = self._training_set(rows, experience.train_labels.to(self.device))
        self._begun = {"name": experience.name}
        end = partial(self._end, inputs, labels)
        if self.optimizer is None:
            return Item(None, end)
        take_step: Step = self._take_step
        if self.output_gate != "none":
            take_step = partial(self._take_step, gates=class_gates(self._label_counts(labels)))
        if self._cuda_graph:
            # New ones for each item: alpha and gates lie elsewhere, and all synapses may be functional now.
            take_step = graphed_steps(take_step, self.optimizer, self.device)

        def train(epoch: int) -> float:
            return self._epoch(inputs, labels, self._order(len(labels), epoch), take_step)

        return Item(train, end)

    def _hooks_take_rows(self) -> bool:
        """Whether each class that does anything with an item's inputs says so, or one that inherits from it."""
        classes = type(self).__mro__

        def place(name: str) -> int:
            return next(i for i, one in enumerate(classes) if name in vars(one))

        own = [place(name) for name in ("_training_set", "_after_item")]
        changed = [i for i in own if classes[i] is not MLPLearner]
        return not changed or (self._takes_rows and place("_takes_rows") <= min(changed))

    def _end(self, inputs: Tensor | Rows, labels: Tensor) -> None:
        self._after_item(inputs, labels)
        if self.optimizer is not None:
            self.optimizer.consolidate()

    def _epoch(self, inputs: Tensor | Rows, labels: Tensor, order: Tensor, take_step: Step) -> float:
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        rows, together = order.split(self.batch_size), world_size() > 1
        # Of several processes each reads its share of a batch only, unless a method makes another batch of it.
        shares = together and type(self)._batch is MLPLearner._batch
        wanted = [own_rows(batch) for batch in rows] if shares else rows
        with contextlib.closing(read(inputs, wanted)) as taken:  # whatever raises, nothing goes on decoding
            for step, (batch, x) in enumerate(zip(rows, taken, strict=True)):
                if shares:
                    loss = take_step(x, labels[own_rows(batch)], count=len(batch))
                else:
                    x, y = self._batch(x, labels[batch], step)
                    own = {"count": len(y)} if together else {}
                    loss = take_step(own_rows(x), own_rows(y), **own)
                total += loss * len(batch)
                tell("training", min((step + 1) * self.batch_size, len(labels)), len(labels))
        sum_([total])
        return total.item() / len(labels)

    def _take_step(self, x: Tensor, y: Tensor, gates: Tensor | None = None, count: int | None = None) -> Tensor:
        """One step of training on a batch; the mean loss before it. Nothing in it waits for the device.

        ``count``: of several processes each has some of so many inputs, and its share of the mean.
        """
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        logits = self._forward(x)
        logits = logits if gates is None else gated(logits, gates)
        if count is None:
            loss = nn.functional.cross_entropy(logits, y)
        else:
            loss = nn.functional.cross_entropy(logits, y, reduction="sum") / count
        loss.backward()
        add_gradients(self.model.parameters())
        self._before_step()
        self.optimizer.step()
        self._after_step()
        return loss.detach()

    def _order(self, count: int, epoch: int) -> Tensor:
        """The order of the inputs: seed, item and epoch decide it, so there is no generator to save."""
        rng = np.random.default_rng([self.seed, self.items_learned, epoch])
        return torch.from_numpy(rng.permutation(count)).to(self.device)

    def _rng(self, what: int, epoch: int = 0, step: int = 0) -> np.random.Generator:
        """Of another random choice: these, seed and item decide it."""
        return np.random.default_rng([self.seed, self.items_learned, epoch, step, what])

    # ------------------------------------------------------------------ answering

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """The network's output before softmax, float32 [n, classes], for inputs [n, \\*input_shape].

        All classes of the stream are there from the start, so it answers before it has learned anything, too.

        Args:
            x: floating-point and finite, or uint8, or a source of images; n may be 0.

        Raises:
            TypeError, ValueError: naming ``x``.
        """
        self._check_inputs(x, "x")
        return self._scores(x)

    def _scores(self, x: Tensor | ImageSource, name: str = "", *, kept: bool = False) -> Tensor:
        if not len(x):
            return torch.zeros((0, self.classes), dtype=torch.float32, device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            rows = rows_of(self._features_of(x, name, kept=kept), self.device)
            each = max(256, _ANSWERED_BYTES // (4 * max(self._widest(rows.shape[1]), 1)))
            if len(rows) <= each:
                logits = self._answer(rows if isinstance(rows, Tensor) else rows.tensor())
                tell("answering", len(rows), len(rows))
                return logits
            logits = torch.empty((len(rows), self.classes), dtype=torch.float32, device=self.device)
            parts = [slice(i, i + each) for i in range(0, len(rows), each)]
            with contextlib.closing(read(rows, parts)) as taken:
                for part, batch in zip(parts, taken, strict=True):
                    logits[part] = self._answer(batch)
                    tell("answering", part.start + len(batch), len(rows))
            return logits

    def _answer(self, x: Tensor) -> Tensor:
        """Logits float32 [n, classes] of features float32 [n, width]."""
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        """The same, in training."""
        if self._dtype is torch.float32:
            return self.model(x)
        return self.model(x.to(self._dtype)).float()

    def _widest(self, width: int) -> int:
        """Numbers that an answer has of each input at once, given the width of its features."""
        return width

    def _each(self, x: Any, task: Tensor | None, of: Callable[[Tensor], _T]) -> list[_T]:
        # Not a source batch by batch: logits reads it ahead, and has the bits that its tensor would have.
        if task is not None:
            raise TypeError(f"task: {type(self).__name__} asks for no tasks; leave it out")
        return [of(self.logits(x))] if len(x) else []

    def _test(self, experience: Experience, of: Callable[[Tensor], Any]) -> None:
        if self.features_cache is None:
            super()._test(experience, of)
            return
        with torch.no_grad():
            of(self._scores(experience.test_inputs, f"{experience.name}, test", kept=True))

    def _check_inputs(self, x: Tensor | ImageSource, name: str) -> None:
        check_inputs(x, self.input_shape, name)

    def _check_test_labels(self, labels: Tensor, name: str) -> None:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.classes:
            raise ValueError(f"{name} must be in [0, {self.classes}), got {low} to {high}")

    def _count_classes(self, stream: Sequence[Experience]) -> int:
        return self.classes

    def _size_of_pictures(self) -> int | None:
        size = size_of_pictures(self.input_shape)
        if size is not None and self.items_learned and self.decoded_size is None:
            raise TypeError(
                f"x must be a tensor: {type(self).__name__} learned floating-point inputs, and files and "
                "pictures are bytes, 0 ... 255"
            )
        return size

    def _of_pictures(self, pictures: ImageSource) -> Any:
        if self.input_shape[0] == 3 and len(self.input_shape) == 3:
            return pictures.tensor()
        return grey(pictures.tensor()).view(-1, *self.input_shape)

    def _ended(self, experience: Experience) -> None:
        super()._ended(experience)
        if self.features is None and experience.train_inputs.dtype is not torch.uint8:
            self.decoded_size = None  # what bytes would be in their units is not known

    def _count_known(self) -> int:
        """All classes of the stream, from the start."""
        return self.classes

    def _network_beside(self) -> nn.Module | None:
        return self.features

    def _count_features(self) -> int:
        if self.features is None:
            return math.prod(self.input_shape)
        example = torch.zeros((1, *self.input_shape), dtype=torch.uint8)
        return extract_from(self.features, example, device=self.device).shape[1]

    def _features_of(
        self, inputs: Tensor | ImageSource, name: str = "", *, kept: bool = False, training: bool = False
    ) -> Tensor | ImageSource:
        """Features of inputs, [n, width]; without an extractor the inputs. ``kept``: by the cache, if there is
        one; ``training``: they are an item's."""
        if self.features is None:
            return inputs

        def progress(done: int, total: int) -> None:
            if training or done < total:  # the last answers are told of when they are there
                tell("taking in" if training else "answering", done, total)

        cache = self.features_cache if kept else None
        take = features_together if training else extract_from
        return take(self.features, inputs, device=self.device, cache=cache, name=name, progress=progress)

    # ------------------------------------------------------------------ files

    def _modules(self) -> nn.Module:
        return self.model

    def _optimizer(self) -> torch.optim.Optimizer | None:
        return self.optimizer

    def _frozen(self) -> str | None:
        return fingerprint(self.features)

    @classmethod
    def _check_frozen(  # type: ignore[override] # it names what it takes
        cls,
        known: str | None,
        *,
        features: nn.Module | None = None,
        cuda_graph: bool = False,
        features_cache: str | os.PathLike[str] | FeatureCache | None = None,
    ) -> dict[str, Any]:
        if known != fingerprint(features):
            expected = "none" if known is None else "another one"
            raise ValueError(
                f"features: not the extractor that this learner was trained with (it had {expected}); pass the "
                "same module, with the same weights and calibration"
            )
        given: dict[str, Any] = {"features": features, "cuda_graph": cuda_graph}
        # A method of one's own need not know of it.
        return given if features_cache is None else given | {"features_cache": features_cache}
