"""Artificial synapses that open a task's sub-network where a sample looks like the task.

Artsy, arXiv 2410.05899; docs/design.md, Artsy.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from flexkern.nn.gates.calibration import fit_platt, fit_softmax, softmax_logit
from flexkern.nn.gates.checks import check_task, check_task_features, check_true_task
from flexkern.nn.gates.detectors import Lda, LikelihoodRatio, Mahalanobis, Ridge, make_detector
from flexkern.nn.gates.mlp import Scaling, StackedMLP
from flexkern.nn.gates.negatives import Recall, training_batches
from flexkern.nn.gates.options import GateOptions
from flexkern.nn.gates.quality import gate_quality
from flexkern.nn.gates.thresholds import quantile_threshold
from flexkern.nn.growing import GrowingState, check_features, check_labels, seeded
from flexkern.nn.not_learned import NotLearnedError
from flexkern.nn.records import record_of
from flexkern.nn.task_scores import rank_in_class
from flexkern.nn.undo import Undo
from flexkern.plain import whole_number

__all__ = ["ALWAYS_OPEN", "SynapseGate"]

ALWAYS_OPEN = 30.0
"""Evidence of a gate that is open whatever the sample: sigmoid(30) is 1 in float32."""

_INIT, _SPLIT, _KEEP, _TRAIN, _REHEARSE = range(5)  # what random numbers are drawn for
_REHEARSED = 256  # features drawn of each task, to calibrate gates and set thresholds
# One factor for all gates needs fewer: this many scores (features times tasks), or a task's time would grow by
# the square of how many there are. Over 64 tasks it is less than the above.
_FOR_FACTOR = 2**20


class SynapseGate(GrowingState):
    """One artificial synapse for each task: for each sample silent (0) or functional (> 0).

    What decides is the gate of the task, by the sample's features h0 = E0(x).

    ``learn(h0, labels)`` adds a task; ``forward(h0)`` says how far each synapse is open, [N, T];
    ``evidence(h0)`` gives the logits behind that. All T gates are evaluated together, without a loop over
    tasks. All state is in buffers; a fresh object of the same options loads any state_dict.

    **The first task** has no other to be told from: its gate is open until a second task comes.

    **Evidence** is a logit: 0 means that the own task and all others, with half the weight each, are as likely.
    An MLP's output is one by training. Scores of detectors are made one by ``calibration``, which is fitted on
    held-out data of the newest task and on what stands for the others.

    Args:
        width: of h0.
        options: how gates decide and learn; None for the defaults of :class:`flexkern.nn.GateOptions`.
        device: of the state.
        gate, gating, ...: fields of ``options``, one by one; they replace its own.

    Attributes:
        options: the :class:`flexkern.nn.GateOptions`, with defaults filled in.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: arXiv 2410.05899; docs/design.md, Artsy.
    """

    ready: Tensor
    theta_logit: Tensor
    slope: Tensor
    offset: Tensor
    factor: Tensor
    _SIZES: ClassVar = {"ready": ("T",), "theta_logit": ("T",), "slope": ("T",), "offset": ("T",), "factor": ()}

    def __init__(
        self,
        width: int,
        *,
        options: GateOptions | None = None,
        device: torch.device | str | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        o = record_of(GateOptions, options, fields, name="options", of=SynapseGate).filled()
        width = whole_number(width, "width")
        self.options = o
        self.width, self.gate, self.gating = width, o.gate, o.gating
        self.sliding = o.sliding()
        # An lda gate that needs no statistics gets none: of its many values they would be as large as its own.
        nothing = o.gate == "lda" and o.calibration == "none" and o.threshold == "fixed"
        self.recall = Recall(
            1 if nothing else width, negatives=o.negatives, keep=o.keep, shrinkage=o.shrinkage, device=device
        )
        self.mlp = StackedMLP(width, o.hidden, device=device) if o.gate == "mlp" else None
        self.detector = make_detector(
            o.gate,
            width,
            neighbours=o.neighbours,
            keep=o.keep,
            features=o.features,
            ridge=o.ridge,
            layers=o.layers,
            shrinkage=o.shrinkage,
            seed=o.seed,
            device=device,
        )
        # 0 or 1, not bool: what averages buffers (AveragedModel) subtracts them, which bool has not.
        self.register_buffer("ready", torch.zeros(0, dtype=torch.int64, device=device))
        self.register_buffer("theta_logit", torch.zeros(0, dtype=torch.float32, device=device))
        self.register_buffer("slope", torch.zeros(0, dtype=torch.float32, device=device))
        self.register_buffer("offset", torch.zeros(0, dtype=torch.float32, device=device))
        self.register_buffer("factor", torch.ones((), dtype=torch.float32, device=device))

    # ------------------------------------------------------------------ what it is

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.ready)

    @property
    def keeps_data(self) -> bool:
        """Whether features of samples are kept: name it in every result."""
        return self.recall.keeps_data or (self.detector is not None and self.detector.keeps_data)

    @property
    def remembers(self) -> bool:
        """Whether statistics of features are kept of all tasks, for what scores, calibrates or sets
        thresholds."""
        if self.detector is None or self.detector.reads_recall:
            return self.mlp is not None or self.detector is not None
        return self._holds_out() or self.options.threshold == "adaptive"

    @property
    def theta(self) -> Tensor:
        """Thresholds as probabilities, float32 [T]."""
        return torch.sigmoid(self.theta_logit)

    def set_theta(self, theta: float | Tensor) -> None:
        """Sets the thresholds of all gates (a number), or of each (floating-point [T]), in [0, 1]."""
        value = torch.as_tensor(theta, dtype=torch.float64).to(self.theta_logit.device)
        if tuple(value.shape) not in ((), (self.tasks,)) or not bool(((value >= 0) & (value <= 1)).all()):
            raise ValueError(f"theta must be a probability, or one for each of {self.tasks} tasks, got {theta}")
        self.theta_logit = torch.logit(value).float().expand(self.tasks).clone()

    @property
    def parameters_added(self) -> int:
        """Trained numbers of all gates: MLPs, or a detector's classifier; class statistics are not counted."""
        if self.mlp is not None:
            return sum(b.numel() for b in self.mlp.buffers())
        return 0 if self.detector is None else self.detector.parameters_added

    # ------------------------------------------------------------------ learning

    @torch.no_grad()
    def learn(self, h0: Tensor, labels: Tensor) -> None:
        """A task comes.

        Args:
            h0: floating-point [n, width], finite, features of its data by the pre-trained network.
            labels: integers [n]: its classes, which must be the next ones (classes are numbered 0, 1, 2, ... in
                the order in which they are learned).

        Raises:
            TypeError, ValueError: naming the argument.
            RuntimeError: if the covariance of the features is singular.

        Whatever is raised, an interrupt too, nothing was learned then.
        """
        check_task_features(h0, labels, self.width)
        self.check_labels(labels)
        modules = list(self.modules())
        with Undo(*modules, written=modules):
            self._learn(h0.to(self.theta_logit), labels.to(self.recall.class_task))

    def check_labels(self, labels: Tensor) -> None:
        """Whether a task with so many samples of these classes could be learned now; changes nothing.

        A task needs the next classes, more samples than classes, with ``gate="energy"`` two classes, and where
        calibration or quantile thresholds hold data out (all detectors do by default), enough of a class that
        the share ``holdout`` is a sample, and more left than classes.

        Args:
            labels: integers [n], as :meth:`learn` takes them.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        check_labels(labels, len(labels) if isinstance(labels, Tensor) and labels.dim() else 0)
        least = 1 if self.detector is None else self.detector.least_classes
        new = check_task(labels, self.recall.classes, least)
        held_out = int(self._held_out_of(torch.bincount(labels - self.recall.classes)).sum())
        if self._holds_out() and (not held_out or len(labels) - held_out <= new):
            raise ValueError(
                f"h0 has {len(labels)} samples of {new} classes, too few to hold {self.options.holdout:.0%} of "
                "each class out for calibration or thresholds; give more, or another holdout"
            )
        freedom = self.recall.statistics.degrees_of_freedom() + len(labels) - held_out - new
        if self._needs_covariance() and self.recall.statistics.shrinkage == 0 and freedom < self.width:
            raise ValueError(
                f"h0 has {len(labels)} samples, too few for a covariance of {self.width} dimensions with "
                f"shrinkage=0 ({freedom} degrees of freedom); give more samples or a larger shrinkage"
            )

    def _needs_covariance(self) -> bool:
        """Whether learning the next task, or an answer after it, takes the shared covariance."""
        if isinstance(self.detector, Mahalanobis):
            return True
        draws = self.mlp is not None or self._holds_out() or self.options.threshold == "adaptive"
        return bool(self.tasks) and (
            isinstance(self.detector, LikelihoodRatio) or (draws and not self.recall.keeps_data)
        )

    def _learn(self, h0: Tensor, labels: Tensor) -> None:
        task = self.tasks
        new = len(labels.unique())
        scored = self.mlp is not None or self.detector is not None
        held_out = self._split(labels, new, task) if scored else torch.zeros_like(labels, dtype=torch.bool)
        self.recall.add_classes(new, task)
        self._append("ready", self.ready.new_tensor([int(not scored)]))
        self._append("theta_logit", torch.logit(torch.tensor([self.options.theta], dtype=torch.float64)))
        self._append("slope", self.slope.new_ones(1))
        self._append("offset", self.offset.new_zeros(1))
        if not scored:
            return
        generator = self._generator(task, _KEEP)
        if self.remembers:
            self.recall.add(h0[~held_out], labels[~held_out], generator)
        if self.detector is not None:
            self.detector.learn(h0[~held_out], labels[~held_out], generator)
        if self.mlp is not None:
            self.mlp.add(self._generator(task, _INIT))
        if task:
            self._fit(h0[~held_out], h0[held_out], task)
        if self.remembers:
            self.recall.add(h0[held_out], labels[held_out], generator)
        if self.detector is not None:
            self.detector.absorb(h0[held_out], labels[held_out])
            self.detector.check_answers(self.recall)

    def _fit(self, train: Tensor, held_out: Tensor, task: int) -> None:
        """Trains, calibrates and sets the thresholds of the gates that a new task changes."""
        o, device = self.options, self.ready.device
        everyone = torch.arange(task + 1, device=device)
        all_anew = o.refresh or (task == 1 and o.first == "trained")
        trained = everyone if all_anew else everyone[task:]
        if self.mlp is not None:
            self._train(trained, train, task)
        moving = o.calibration == "softmax" or (self.detector is not None and self.detector.moving)
        changed = everyone if moving else trained
        self.ready[trained] = 1
        if o.first == "open" and not o.refresh:
            changed = changed[changed > 0]
        if o.calibration == "none" and o.threshold == "fixed":
            return

        # What stands for all tasks, with real data of the newest where some was held out.
        generator = self._generator(task, _REHEARSE)
        each = torch.eye(task + 1, dtype=torch.bool, device=device)
        n = _REHEARSED
        if o.calibration == "softmax" and o.threshold == "fixed":
            n = max(1, min(n, _FOR_FACTOR // (task + 1) ** 2))
        x = self.recall.draw(each, n, generator).flatten(0, 1)
        own = everyone.repeat_interleave(n)
        if len(held_out):
            drawn = task * n
            x = torch.cat([x[:drawn], held_out])
            own = torch.cat([own[:drawn], own.new_full((len(held_out),), task)])
        scores = self.scores(x)
        if o.calibration == "platt":
            slope, offset = fit_platt(scores[:, changed], own[:, None] == changed)
            self.slope[changed], self.offset[changed] = slope, offset
        elif o.calibration == "softmax":
            self.factor.fill_(fit_softmax(scores, own))
        evidence = self._evidence(scores)
        if o.threshold == "quantile":
            earlier = changed[changed < task]
            if len(earlier):
                of_task = evidence[: task * _REHEARSED].view(task, _REHEARSED, task + 1)
                own_evidence = of_task[earlier, :, earlier].T
                self.theta_logit[earlier] = quantile_threshold(own_evidence, o.target_rate())
            self.theta_logit[task:] = quantile_threshold(evidence[own == task][:, task:], o.target_rate())
        elif self.sliding is not None:
            self._slide(evidence, own, train, task, generator)

    def _slide(
        self, evidence: Tensor, own: Tensor, train: Tensor, task: int, generator: torch.Generator
    ) -> None:
        """Adaptive thresholds: the newest on what stands for the others, the others on the new task's data."""
        assert self.sliding is not None
        others, new = evidence[own != task, task:], self.evidence(train)[:, :task]
        for gates, met in ((slice(task, None), others), (slice(0, task), new)):
            met = met[torch.randperm(len(met), generator=generator, device=met.device)]
            slid = self.sliding.slide(self.theta_logit[gates], met, self.options.batch)
            self.theta_logit[gates] = torch.where(self.ready[gates] > 0, slid, self.theta_logit[gates])

    def _train(self, which: Tensor, train: Tensor, task: int) -> None:
        assert self.mlp is not None
        o = self.options
        generator = self._generator(task, _TRAIN)
        positives = train if o.positives == "data" else None
        self.mlp.fit(
            which,
            training_batches(self.recall, which, positives, len(train), o.epochs, o.batch, generator),
            o.epochs * math.ceil(len(train) / o.batch),
            lr=o.lr,
            weight_decay=o.weight_decay,
            scaling=Scaling.of(self.recall.statistics, o.inputs),
        )

    def _split(self, labels: Tensor, classes: int, task: int) -> Tensor:
        """bool [n]: which samples are held out of learning: the same share of each class."""
        if not self._holds_out():
            return torch.zeros_like(labels, dtype=torch.bool)
        in_task = labels - self.recall.classes
        rank = rank_in_class(in_task, self._generator(task, _SPLIT))
        return rank < self._held_out_of(torch.bincount(in_task, minlength=classes))[in_task]

    def _holds_out(self) -> bool:
        """Whether samples are held out of learning."""
        scored = self.mlp is not None or self.detector is not None
        return scored and (self.options.threshold == "quantile" or self.options.calibration != "none")

    def _held_out_of(self, counts: Tensor) -> Tensor:
        """How many samples of each class are held out, of so many: int64."""
        return (counts.float() * self.options.holdout).long() * self._holds_out()

    def _generator(self, task: int, purpose: int) -> torch.Generator:
        return seeded(self.ready.device, self.options.seed, task, purpose)

    # ------------------------------------------------------------------ using

    @torch.no_grad()
    def scores(self, h0: Tensor) -> Tensor:
        """Scores before calibration, float32 [N, T], of features [N, width]: MLP outputs or a detector's
        scores."""
        check_features(h0, self.width)
        if not self.tasks:
            raise NotLearnedError("no task has been learned yet; call learn() first")
        with torch.autocast(h0.device.type, enabled=False):
            if self.mlp is not None:
                return self.mlp(h0.float())
            assert self.detector is not None, f"gate={self.gate!r} has no scores"
            return self.detector.scores(h0.float(), self.recall, self.tasks)

    def _evidence(self, scores: Tensor) -> Tensor:
        if self.options.calibration == "platt":
            scores = scores * self.slope + self.offset
        elif self.options.calibration == "softmax" and scores.shape[1] > 1:
            scores = softmax_logit(scores, self.factor)
        return torch.where(self.ready > 0, scores, ALWAYS_OPEN)

    @torch.no_grad()
    def evidence(self, h0: Tensor, task: Tensor | None = None) -> Tensor:
        """Logits that a sample is of each task, float32 [N, T], of features [N, width].

        ``ALWAYS_OPEN`` (its sigmoid is 1 in float32) of a gate without negatives, and of all for
        ``gate="none"``; plus or minus that for ``"oracle"``, which needs the true ``task``, int64 [N].

        Raises:
            TypeError, ValueError: naming the argument; :class:`flexkern.nn.NotLearnedError` before the first
            task.
        """
        check_features(h0, self.width)
        if not self.tasks:
            raise NotLearnedError("no task has been learned yet; call learn() first")
        if self.gate == "oracle":
            true = check_true_task(task, len(h0), self.tasks).to(h0.device)
            own = torch.arange(self.tasks, device=h0.device) == true[:, None]
            return torch.where(own, ALWAYS_OPEN, -ALWAYS_OPEN).float()
        if self.gate == "none":
            return torch.full((len(h0), self.tasks), ALWAYS_OPEN, dtype=torch.float32, device=h0.device)
        return self._evidence(self.scores(h0))

    def forward(self, h0: Tensor, task: Tensor | None = None) -> Tensor:
        """How far each synapse is open, float32 [N, T] in [0, 1], 0 where it is silent; see the class.

        Args, Raises: as :meth:`evidence`.
        """
        return self.open(self.evidence(h0, task))

    @torch.no_grad()
    def open(self, evidence: Tensor) -> Tensor:
        """How far each synapse is open, float32 [N, T] in [0, 1], by its evidence [N, T]."""
        o = self.options
        if self.gate == "none":
            return torch.ones_like(evidence)
        over = evidence >= self.theta_logit
        value = torch.sigmoid(evidence) if o.gating == "soft" else over.float()
        if o.k is None or o.k >= evidence.shape[1]:
            return torch.ones_like(value) if o.gating == "topk" and o.fill else value
        best = torch.zeros_like(over).scatter_(1, evidence.topk(o.k, dim=1).indices, True)
        return best.float() if o.gating == "topk" and o.fill else value * best

    def class_scores(self, h0: Tensor) -> Tensor:
        """Scores of all classes by the head of a ridge or LDA gate, float32 [N, C], of features [N, width].

        Raises:
            RuntimeError: if ``gate`` is another one, or before the first task.
        """
        if not isinstance(self.detector, (Ridge, Lda)):
            raise RuntimeError(f"only gate='ridge' and 'lda' score classes, this is gate={self.gate!r}")
        return self.detector.head.logits(h0)

    def left_out_scores(self, h0: Tensor, labels: Tensor) -> Tensor:
        """:meth:`class_scores` of features that were learned, each as if it had not been; of an LDA gate.

        Raises:
            RuntimeError: if ``gate`` is another one.
        """
        if not isinstance(self.detector, Lda):
            raise RuntimeError(f"only gate='lda' leaves samples out, this is gate={self.gate!r}")
        return self.detector.head.left_out(h0, labels)

    def report(self, h0: Tensor, task: Tensor) -> dict[str, Any]:
        """Open rates, AUROC and confusion on features [N, width] of tasks int64 [N]; see
        :func:`flexkern.nn.gates.quality.gate_quality`."""
        task = check_true_task(task, len(h0), self.tasks).to(h0.device)
        evidence = self.evidence(h0, task)
        return gate_quality(evidence, self.open(evidence), task)

    def extra_repr(self) -> str:
        o = self.options
        return (
            f"width={self.width}, gate={self.gate!r}, gating={self.gating!r}, threshold={o.threshold!r}, "
            f"refresh={o.refresh}, tasks={self.tasks}, keeps_data={self.keeps_data}"
        )
