"""The classifier of the metaplasticity paper (arXiv 2407.07133) as a continual learner."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from flexkern.features import extract_from, fingerprint
from flexkern.learners import checkpoint
from flexkern.learners.mlp.cuda_graph import Step, captured_steps, check_capture
from flexkern.learners.mlp.network import build, linear_layers
from flexkern.learners.progress import Progress
from flexkern.metrics import Evaluation, confusion_matrix
from flexkern.nn import AdaptiveThreshold, SilentLinear
from flexkern.optim import MetaplasticSGD, fuse_into_backward
from flexkern.streams.base import Experience

__all__ = ["NETWORKS", "MetaplasticMLP"]

# The paper's three networks by the flexibility of their synapses.
NETWORKS: dict[str, str | float] = {"conventional": 1.0, "hybrid": "uniform", "stable": 0.3}
# Found on two-digit items (docs/results/silent_reserve). It starts above the coincidences there are, because
# under them half the reserve would convert at once; of the silent synapses one in 2,000 converts in a step.
THRESHOLD = AdaptiveThreshold(target=5e-4, gain=30.0, start=10.0)
_FORMAT = 1


class MetaplasticMLP:
    """Three linear layers on frozen features, trained item after item by flexible synapses.

    Linear, ReLU, linear, ReLU, linear; Glorot-normal weights, zero bias, no dropout, plain cross-entropy over
    all classes of the stream, as in the paper. Each item is learned with the alpha that the weights had when it
    began. The initial weights are procedural, so the optimizer needs no copy of them as anchors (on a CPU it
    keeps one with gate "step")::

        learner = MetaplasticMLP(stream.input_shape, stream.classes, features=extractor)
        for item in stream:
            learner.learn(item)
            print(learner.evaluate(stream).accuracies)

    One seed gives the same bits on the same device, also when a run is saved, loaded and continued.

    With ``silent_fraction`` the two hidden layers have a reserve: synapses that are silent until what their
    units do drives them over a threshold; then they begin at their initial weight
    (:class:`flexkern.nn.SilentLinear`). On two-digit items that helps late items at the cost of early ones; the
    cost is least with ``insert="hebbian", eta=1e-3``. See ``docs/results/silent_reserve``.

    Args:
        input_shape: of one input, for example ``stream.input_shape``.
        classes: how many there are in the whole stream.
        widths: units of the two hidden layers; the paper has (4096, 4096).
        features: a frozen module from inputs to features, moved to ``device``, or None: inputs are features. It
            is run once over an item's inputs, and its features serve all epochs. It is not saved.
        network: "conventional" (f = 1), "hybrid" (f uniform on (0, 1)), "stable" (f = 0.3), or any
            ``flexibility`` that :class:`flexkern.optim.MetaplasticSGD` takes.
        lr, scale, gate, momentum: of the optimizer. The paper: lr 1e-4, scale 4e5 for streams of 10 items,
            gate "item", no momentum.
        batch_size: inputs of a step; the paper: 1024.
        seed: of initial weights, flexibility, the choice of silent synapses and the order of inputs;
            0 <= seed < 2**64.
        device: where to compute. Default: the CPU.
        silent_fraction: share of the hidden layers' synapses that begins silent, 0 to 1. The functional ones
            have the weights that they have without a reserve.
        threshold, rule, insert, eta, prune: how silent synapses convert, see :class:`flexkern.nn.SilentLinear`;
            ``threshold`` is a number or an :class:`flexkern.nn.AdaptiveThreshold`. They matter with
            ``silent_fraction`` > 0, or with ``prune`` > 0, where functional synapses go silent.
        fused_step: whether the backward pass steps the weights
            (:func:`flexkern.optim.fuse_into_backward`): the same weights up to rounding, and no gradient of a
            weight in memory.
        cuda_graph: whether steps on an NVIDIA GPU are replayed from a CUDA graph: the same bits, without the
            time of the Python that launches kernels, which counts where layers are small. The first two steps
            of an item run as ever, and so do a last smaller batch, two steps after a change of lr, and all of
            the first item with ``scale="auto"``. Not saved.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        widths: tuple[int, int] = (512, 512),
        features: nn.Module | None = None,
        network: Any = "hybrid",
        lr: float = 1e-2,
        scale: float | str = "auto",
        gate: str = "item",
        momentum: float = 0.0,
        batch_size: int = 50,
        seed: int = 0,
        device: torch.device | str = "cpu",
        silent_fraction: float = 0.0,
        threshold: float | AdaptiveThreshold = THRESHOLD,
        rule: str = "rate",
        insert: str = "init",
        eta: float = 1.0,
        prune: float = 0.0,
        fused_step: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        if isinstance(network, str) and network not in {*NETWORKS, "uniform", "biased_high", "biased_low"}:
            raise ValueError(f"network must be one of {tuple(NETWORKS)} or a flexibility, got {network!r}")
        for name, value in (("classes", classes), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if len(widths) != 2 or min(widths) < 1:
            raise ValueError(f"widths must be the units of two hidden layers, got {widths}")
        if isinstance(silent_fraction, bool) or not isinstance(silent_fraction, (int, float)):
            raise TypeError(f"silent_fraction must be a number, got {silent_fraction!r}")
        if not 0 <= silent_fraction <= 1:
            raise ValueError(f"silent_fraction must be a share of synapses in [0, 1], got {silent_fraction}")
        if not isinstance(threshold, (int, float, AdaptiveThreshold)):
            # A tensor of one for each unit would have to fit both hidden layers.
            raise TypeError(f"threshold must be a number or an AdaptiveThreshold, got {threshold!r}")
        self.device = torch.device(device)
        self.features = None if features is None else features.to(self.device).eval()
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.batch_size = batch_size
        self.seed = seed
        self.items_learned = 0
        self._epochs_done = 0  # of the item that is being learned
        self._item_name: str | None = None  # its name, while it is being learned
        self._configuration: dict[str, Any] = {
            "input_shape": list(self.input_shape),
            "classes": classes,
            "widths": list(widths),
            "network": network if isinstance(network, (str, int, float)) else type(network).__name__,
            "lr": lr,
            "scale": scale,
            "gate": gate,
            "momentum": momentum,
            "batch_size": batch_size,
            "seed": seed,
            "silent_fraction": silent_fraction,
            "threshold": asdict(threshold) if isinstance(threshold, AdaptiveThreshold) else threshold,
            "rule": rule,
            "insert": insert,
            "eta": eta,
            "prune": prune,
            "fused_step": fused_step,
        }
        sizes = (self._count_features(), *widths, classes)
        reserve = {
            "silent": float(silent_fraction), "threshold": threshold, "rule": rule, "insert": insert,
            "eta": eta, "prune": prune,
        }  # fmt: skip
        has_reserve = silent_fraction > 0 or prune > 0
        reads_anchors = gate == "step" and self.device.type == "cpu"
        self.model, fields = build(sizes, seed, self.device, reserve if has_reserve else None)
        self.optimizer = MetaplasticSGD(
            self.model.parameters(),
            lr,
            scale=scale,
            flexibility=NETWORKS.get(network, network) if isinstance(network, str) else network,
            seed=seed,
            gate=gate,
            momentum=momentum,
            # One entry a parameter; biases, between the weights, have no anchor: they move freely. Where each
            # step takes them anew, a CPU reads anchors in a third of the time that drawing normal ones takes.
            anchor=None if reads_anchors else [a for field in fields for a in (field, None)],
        )
        if fused_step:
            fuse_into_backward(self.model, self.optimizer)
        self._cuda_graph = check_capture(cuda_graph, self.device, type(self), MetaplasticMLP)

    # ------------------------------------------------------------------ learning

    def learn(
        self, experience: Experience, *, epochs: int = 5, progress: Callable[[Progress], None] | None = None
    ) -> None:
        """Learns one item, then consolidates: the next item finds the synapses as stiff as this one left them.

        After an exception out of ``progress`` (to stop early), or when loaded from a checkpoint that
        ``progress`` wrote, call it with the same item again: it goes on with the next epoch.

        Args:
            experience: its labels are among the classes of the stream.
            epochs: passes over the training inputs, at least 1; the paper has 5.
            progress: called after each epoch.

        Raises:
            ValueError: if the experience does not fit the network, or another item was begun and not ended.
        """
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        self._check(experience)
        inputs, labels = self._training_set(
            self._features_of(experience.train_inputs), experience.train_labels.to(self.device)
        )
        self._item_name = experience.name
        # A new one for each item: alpha lies elsewhere, and all synapses may have become functional.
        take_step = captured_steps(self._take_step, self.optimizer, self.device) if self._cuda_graph else None
        for epoch in range(self._epochs_done, epochs):
            loss = self._epoch(inputs, labels, self._order(len(labels), epoch), take_step)
            self._epochs_done = epoch + 1
            if progress is not None:
                progress(Progress(self.items_learned, epoch + 1, epochs, loss))
        self._after_item(inputs, labels)
        self.optimizer.consolidate()
        self.items_learned += 1
        self._epochs_done, self._item_name = 0, None

    def _epoch(self, inputs: Tensor, labels: Tensor, order: Tensor, take_step: Step | None = None) -> float:
        total = torch.zeros((), device=self.device)
        for step, batch in enumerate(order.split(self.batch_size)):
            x, y = self._batch(inputs[batch], labels[batch], step)
            total += (take_step or self._take_step)(x, y) * len(batch)
        return total.item() / len(labels)

    def _take_step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of training on a batch; the mean loss before it. Nothing in it waits for the device."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        self._before_step()
        self.optimizer.step()
        self._after_step()
        return loss.detach()

    def _order(self, count: int, epoch: int) -> Tensor:
        """The order of the inputs: seed, item and epoch decide it, so there is no generator to save."""
        rng = np.random.default_rng([self.seed, self.items_learned, epoch])
        return torch.from_numpy(rng.permutation(count)).to(self.device)

    # ------------------------------------------------------------------ what other methods do differently

    # Whether _before_step and _after_step of a subclass only launch kernels, the same ones in each step of an
    # item and on the same memory, so that a CUDA graph of the step may hold them.
    _captures_hooks: ClassVar[bool] = False

    def _training_set(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What an item is trained on. It is asked again when an item goes on, so it changes nothing."""
        return inputs, labels

    def _batch(self, inputs: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What a step is taken on; ``step`` counts from 0 in each epoch."""
        return inputs, labels

    def _before_step(self) -> None:
        """Parameters have their gradients, and the optimizer has not seen them."""

    def _after_step(self) -> None:
        """The optimizer has moved the parameters; their gradients are still there."""

    def _after_item(self, inputs: Tensor, labels: Tensor) -> None:
        """All epochs over this training set are done; ``items_learned`` does not count the item yet."""

    def _extra_state(self) -> dict[str, Tensor]:
        """Tensors that learning depends on besides model and optimizer, for the checkpoint."""
        return {}

    def _load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`_extra_state` gave; tensors are on the learner's device."""

    # ------------------------------------------------------------------ answering

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """The network's output before softmax, float32 [n, classes], for inputs [n, \\*input_shape]."""
        if tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(f"x must be [n, {', '.join(map(str, self.input_shape))}], got {tuple(x.shape)}")
        return self.model(self._features_of(x))

    def predict(self, x: Tensor) -> Tensor:
        """The class of each input, int64 [n], on the learner's device."""
        return self.logits(x).argmax(1)

    def evaluate(self, stream: Sequence[Experience]) -> Evaluation:
        """Accuracy on the test inputs of each experience, and the confusion matrix over all of them."""
        accuracies = []
        confusion = np.zeros((self.classes, self.classes), dtype=np.int64)
        for experience in stream:
            labels = experience.test_labels.numpy(force=True)
            predictions = self.predict(experience.test_inputs).numpy(force=True)
            accuracies.append(float((labels == predictions).mean()))
            confusion += confusion_matrix(labels, predictions, self.classes)
        return Evaluation(np.array(accuracies), confusion)

    # ------------------------------------------------------------------ silent synapses

    def functional_share(self) -> list[float]:
        """Share of functional synapses in each linear layer, now; 1 where there is no reserve."""
        return [
            float(layer.functional_share().mean()) if isinstance(layer, SilentLinear) else 1.0
            for layer in linear_layers(self.model)
        ]

    def conversions(self) -> list[list[int]]:
        """For each item that has ended: how many synapses of each linear layer became functional in it."""
        counts = [
            layer.conversions if isinstance(layer, SilentLinear) else [0] * self.items_learned
            for layer in linear_layers(self.model)
        ]
        return [list(of_item) for of_item in zip(*counts, strict=True)]

    # ------------------------------------------------------------------ saving

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that learning depends on, but not the feature extractor, to one safetensors file.

        The file appears whole or not at all. It holds tensors and JSON; reading it executes nothing.

        Raises:
            ImportError: if safetensors is not installed.
        """
        state = self.model.state_dict()
        tensors = {f"model.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
        tensors |= {f"extra.{name}": value for name, value in self._extra_state().items()}
        optimizer_tensors, optimizer = checkpoint.split_optimizer(self.optimizer.state_dict())
        record = {
            "format": _FORMAT,
            "learner": type(self).__name__,
            "configuration": self._configuration,
            "features": fingerprint(self.features),
            "items_learned": self.items_learned,
            "epochs_done": self._epochs_done,
            "item_name": self._item_name,
            "model": {name: value for name, value in state.items() if not isinstance(value, Tensor)},
            "optimizer": optimizer,
        }
        checkpoint.write(path, tensors | optimizer_tensors, record)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        features: nn.Module | None = None,
        device: torch.device | str = "cpu",
        cuda_graph: bool = False,
    ) -> MetaplasticMLP:
        """The learner that :meth:`save` wrote; on the same device it goes on to the bit as if never stopped.

        Args:
            path: of the checkpoint.
            features: the extractor that the learner was made with, if it had one.
            device: where to compute.
            cuda_graph: as the learner takes it; the bits are the same with and without.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not such a checkpoint, or ``features`` is another extractor.
            ImportError: if safetensors is not installed.
        """
        tensors, record = checkpoint.read(path)
        if record.get("learner") != cls.__name__ or record.get("format") != _FORMAT:
            raise ValueError(
                f"path: {os.fspath(path)!r} holds {record.get('learner')!r} in format "
                f"{record.get('format')!r}; this version reads {cls.__name__!r} in format {_FORMAT}"
            )
        if record["features"] != fingerprint(features):
            expected = "none" if record["features"] is None else "another one"
            raise ValueError(
                f"features: not the extractor that this learner was trained with (it had {expected}); pass the "
                "same module, with the same weights and calibration"
            )
        configuration = dict(record["configuration"])
        if "network" in configuration and configuration["network"] not in NETWORKS:
            # The flexibility comes back with the optimizer's state, in whatever form it had.
            configuration["network"] = "hybrid"
        if isinstance(configuration.get("threshold"), dict):
            configuration["threshold"] = AdaptiveThreshold(**configuration["threshold"])
        learner = cls(**configuration, features=features, device=device)
        learner._cuda_graph = check_capture(cuda_graph, learner.device, cls, MetaplasticMLP)
        learner._configuration = record["configuration"]
        learner.model.load_state_dict(_under(tensors, "model.") | record.get("model", {}))
        learner.optimizer.load_state_dict(checkpoint.join_optimizer(tensors, record["optimizer"]))
        extra = _under(tensors, "extra.")
        learner._load_extra_state({name: value.to(learner.device) for name, value in extra.items()})
        learner.items_learned = record["items_learned"]
        learner._epochs_done = record["epochs_done"]
        learner._item_name = record["item_name"]
        return learner

    # ------------------------------------------------------------------ helpers

    def _count_features(self) -> int:
        if self.features is None:
            return math.prod(self.input_shape)
        example = torch.zeros((1, *self.input_shape), dtype=torch.uint8)
        return extract_from(self.features, example, device=self.device).shape[1]

    def _features_of(self, inputs: Tensor) -> Tensor:
        if self.features is None:
            return inputs.to(self.device, torch.float32).flatten(1)
        return extract_from(self.features, inputs, device=self.device)

    def _check(self, experience: Experience) -> None:
        if experience.input_shape != self.input_shape:
            raise ValueError(
                f"experience: its inputs are {experience.input_shape}, this learner was made for "
                f"{self.input_shape}"
            )
        labels = experience.train_labels
        if not labels.numel():
            raise ValueError("experience: it has no training inputs")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.classes:
            raise ValueError(f"experience: its labels must be in [0, {self.classes}), got {low} to {high}")
        if self._item_name is not None and experience.name != self._item_name:
            raise ValueError(
                f"experience: item {self._item_name!r} was begun ({self._epochs_done} epochs are done) and not "
                f"ended; learn it to its end before {experience.name!r}"
            )


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
