"""Artsy: a frozen vision transformer, an adapter per task, synapses that open it (arXiv 2410.05899)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flexkern.distributed import as_lead_has, gathered
from flexkern.learners.processes import own_share
from flexkern.learners.registry import register_method
from flexkern.learners.vit.adapters import (
    adapter_logits,
    adapter_options,
    offload_options,
    with_adapters,
)
from flexkern.learners.vit.base import check_same
from flexkern.learners.vit.held_out import check_head, held_out_of
from flexkern.learners.vit.images import check_images
from flexkern.learners.vit.memory_plan import PairsCost, pairs_cost
from flexkern.learners.vit.opened import COUNTED, Seen, counting, report_of
from flexkern.learners.vit.task_rows import TaskRows
from flexkern.learners.vit.training import CosineHead, Recipe, Training
from flexkern.nn.adapters.adapted_model import Trunk
from flexkern.nn.gates.options import GateOptions
from flexkern.nn.gates.synapse_gate import SynapseGate
from flexkern.nn.heads.experts import ExpertHead
from flexkern.nn.heads.prototype import PrototypeClassifier
from flexkern.nn.heads.selected import LAYERS
from flexkern.nn.records import record_of
from flexkern.nn.task_scores import group_logsumexp, group_max
from flexkern.nn.together import learning_together
from flexkern.ops.choices import REWEIGHTINGS
from flexkern.plain import SEEDS, choice, number, whole_number
from flexkern.streams.base import Experience

__all__ = ["ArtsyViT"]

COMBINES = ("concat", "sum")
HEADS = ("prototype", "experts")
EVIDENCE = ("class", "class+mean")
# The gate, and the way to combine it with the adapters, that did best in docs/results/artsy.md.
BEST: dict[str, Any] = {
    "head": "experts",
    "evidence": "class+mean",
    "layers": None,
    "holdout": 0.2,
    "gate": {"gate": "lda", "gating": "topk", "k": 2, "fill": True},
}


@register_method("artsy-best", **BEST)
@register_method("ease", gate={"gate": "none"})
@register_method("artsy")
class ArtsyViT(TaskRows):
    """A frozen pre-trained transformer E0; for each task an adapter sub-network, and a synapse that opens it.

    Learning a task trains its adapters with a cosine head over its own classes, which is thrown away, then
    takes the class means of its images in all subspaces (E0's and each adapter's), completes the means of
    earlier classes in the new subspace (EASE), and trains the task's synapse on E0's features. Inference
    takes one pass for E0, which also decides what opens, and one pass for each *open* synapse, whatever the
    number of tasks: all (image, open task) pairs go through the network as one batch. What comes before the
    first adapter runs once per image. Adapters, gates and heads are float32, whatever torch's default dtype is.

    Args:
        backbone: as :func:`flexkern.backbones.load_backbone` takes it.
        recipe: of an adapter's training; the default is EASE's.
        rank, adapter_scale, dropout: of the adapters, see :class:`flexkern.nn.AdapterBank`.
        blocks: how many blocks, the last ones, have adapters; None: all, as the paper has it. What comes
            before them runs once for all tasks, and training takes no backward pass through it.
        combine: "concat": a subspace for E0 and each adapter, and prototypes in all of them; "sum": one
            feature, E0(x) + the sum of open Et(x).
        alpha, reweighting: how much the subspaces of other tasks count, see
            :func:`flexkern.ops.prototype_logits`.
        base_weight: how much E0's subspace counts.
        head: "prototype" (the paper's), or "experts", :class:`flexkern.nn.ExpertHead` on the scores of the
            head that a "ridge" or "lda" gate has.
        evidence: what of E0 the gate reads: "class", its feature (the class token, where the backbone pools
            that), or "class+mean", and the mean of the patches' tokens.
        layers: of how many blocks, the last ones, the gate reads that; None: six, or all where there are fewer.
        holdout: for experts on an lda gate: this share of each class's images is not for training the task's
            adapter, but says whether it may open: if they are not likelier with it than without, beyond chance,
            it is thrown away (:attr:`adapters_kept`). 0: no evidence, all adapters open.
        gate: options of :class:`flexkern.nn.SynapseGate`, for example {"gate": "mlp", "gating": "hard"}; "none"
            is EASE, "oracle" opens the true task, which it is told. Where no synapse opens for an image, E0
            alone answers. What a task needs of images and classes is
            :meth:`flexkern.nn.SynapseGate.check_labels`.
        offload: where the adapters of all tasks lie: "none": on the device; "cpu": in the host's memory;
            "disk": in a temporary file (:class:`flexkern.nn.PagedAdapterBank`). So the device holds a few,
            however many tasks there are. Answers are the same to the bit, and so are checkpoints' tensors;
            ``load(path, offload=...)`` takes another one.
        resident_tasks: for how many tasks the device has room then, beside the one that is learned.
        images_per_pass, image_size, normalize, calibration_images, seed, device: as in
            :class:`flexkern.learners.vit.base.ViTLearner`.

    Raises:
        ValueError: if an option is outside its range.
    """

    told_anew = (*TaskRows.told_anew, "offload", "resident_tasks")

    def __init__(
        self,
        backbone: str | os.PathLike[str] | nn.Module = "small",
        *,
        recipe: Recipe | None = None,
        rank: int = 64,
        adapter_scale: float = 0.1,
        dropout: float = 0.1,
        blocks: int | None = None,
        combine: str = "concat",
        alpha: float = 0.1,
        reweighting: str = "code",
        base_weight: float = 0.1,
        head: str = "prototype",
        evidence: str = "class",
        layers: int | None = 1,
        holdout: float = 0.0,
        gate: Annotated[Mapping[str, Any], GateOptions] | None = None,
        offload: str = "none",
        resident_tasks: int = 8,
        seed: int = 0,
        **common: Any,
    ) -> None:
        for name, value, known in (
            ("combine", combine, COMBINES), ("head", head, HEADS), ("evidence", evidence, EVIDENCE),
        ):  # fmt: skip
            choice(value, name, known)
        if gate is not None and not isinstance(gate, Mapping):
            raise TypeError(f"gate must be a mapping of options, such as {{'gate': 'mlp'}}, got {gate!r}")
        given = dict(gate or {})
        for_gate = record_of(GateOptions, None, given, name="gate", of=SynapseGate)
        layers = None if layers is None else whole_number(layers, "layers")
        holdout = number(holdout, "holdout", 0, 1, below=True)
        check_head(head, combine, for_gate.gate, holdout)
        if "layers" in given:
            raise ValueError("gate.layers is set by the learner's own layers; leave it out")
        options: dict[str, Any] = {
            **adapter_options(rank, adapter_scale, dropout, blocks), "combine": combine,
            "alpha": number(alpha, "alpha"), "reweighting": choice(reweighting, "reweighting", REWEIGHTINGS),
            "base_weight": number(base_weight, "base_weight", 0), "head": head, "evidence": evidence,
            "gate": {name: getattr(for_gate, name) for name in given},
            "layers": layers, "holdout": holdout, **offload_options(offload, resident_tasks),
        }  # fmt: skip
        super().__init__(backbone, recipe=recipe, seed=seed, **options, **common)
        self._parts = parts = self._known_parts(self.backbone)
        self.adapted = with_adapters(self.backbone, parts, self.width, options, self.device)
        self.bank, self.combine = self.adapted.bank, combine
        self.layers = parts.checked_layers(layers, LAYERS)
        # To a discriminant what it has twice is no news.
        twice = parts.summaries == 1 and for_gate.gate == "lda"
        self._mean = evidence == "class+mean" and not twice
        self._holdout = holdout
        self._adapted_share = self.bank.layers / len(parts.points)
        self._calibrated = head != "experts" or for_gate.gate != "lda"  # whose scores have a temperature
        reads = self.layers * self.width * (2 if self._mean else 1)
        for_gate = replace(for_gate, layers=self.layers, seed=options["gate"].get("seed", self.seed))
        self.gate = SynapseGate(reads, options=for_gate, device=self.device)
        self.experts = ExpertHead(self.width, device=self.device) if head == "experts" else None
        concat = combine == "concat"
        self.prototypes = PrototypeClassifier(
            self.width, weight=options["alpha"], reweighting=reweighting, base=concat,
            base_weight=options["base_weight"], device=self.device,
        )  # fmt: skip
        if not concat:
            self.prototypes.add_subspace()
        self._head: CosineHead | None = None
        self.gate_report: dict[str, Any] = {}
        """Of the last :meth:`evaluate`: open rates, AUROC and confusion of the gates, see
        :meth:`flexkern.nn.SynapseGate.report`."""

    @classmethod
    def best(cls, backbone: str | os.PathLike[str] | nn.Module = "small", **options: Any) -> ArtsyViT:
        """The configuration that did best in our study (docs/results/artsy.md), which keeps no data.

        Linear discriminant analysis on E0's class and mean tokens of up to six layers
        (:class:`flexkern.nn.SelectedLDA`) names classes and tasks; in the two most likely tasks the experts of
        :class:`flexkern.nn.ExpertHead` are heard, if held-out images of the task were likelier with its adapter
        than without, and adapters that are of no use are thrown away. The paper's own configuration is the
        constructor's default.

        Args:
            options: arguments of the constructor, over what is chosen here.
        """
        return cls(backbone, **(BEST | options))

    # ------------------------------------------------------------------ learning

    def _check(self, experience: Experience) -> None:
        super()._check(experience)
        if self._begun is None or self._epochs_done == 0:
            try:
                self.gate.check_labels(self._row_labels(experience.train_labels).to(self.device))
            except ValueError as error:
                why = str(error).replace("h0", "its training set", 1)
                raise ValueError(f"experience: {experience.name!r} cannot be learned: {why}") from None

    def _begin(self, classes: int) -> None:
        # The bank draws from a generator of its own, so that a task's first weights do not depend on the
        # others.
        self.bank.add_task(generator=self._generator(0))
        super()._begin(classes)

    def _make_room(self, classes: int) -> None:
        self._head = CosineHead(self.width, classes, self._generator(1)).to(self.device) if classes else None

    def _generator(self, purpose: int) -> torch.Generator:
        seed = (self.seed * 1009 + self.tasks_learned) * 2 + purpose
        return torch.Generator().manual_seed(seed % SEEDS)

    def _make_training(self) -> Training:
        assert self._head is not None
        parameters = [*self.bank.parameters_of(self.bank.tasks - 1), *self._head.parameters()]
        return self._training_of(parameters, self._training_logits, self.adapted.trunk)

    def _training_logits(self, trunk: Trunk) -> Tensor:
        assert self._head is not None
        return adapter_logits(self.adapted, self._head, self.bank.tasks - 1, trunk)

    def _epoch(self, training: Training, images: Any, labels: Tensor) -> float:
        rows = (~self._held_out(labels)).nonzero().squeeze(1)
        if len(rows) == len(labels):
            return super()._epoch(training, images, labels)
        return super()._epoch(training, images[rows.to(getattr(images, "device", "cpu"))], labels[rows])

    def _held_out(self, labels: Tensor) -> Tensor:
        """bool [n]: which images of a task its adapter is not trained on."""
        return held_out_of(labels, self._holdout, self.seed, self.tasks_learned)

    @property
    def adapters_kept(self) -> list[bool]:
        """Of each task, whether it has an adapter; without evidence (``holdout=0``) all have."""
        return [slot >= 0 for slot in self._slots().tolist()]

    def _slots(self) -> Tensor:
        """The adapter of each task in the bank, int64 [tasks]; -1 where it was thrown away."""
        if self.experts is None:
            return torch.arange(self.tasks_learned, device=self.device)
        kept = self.experts.strength > 0
        return torch.where(kept, kept.cumsum(0) - 1, -1)

    def _written_at_end(self) -> nn.Module:
        """Not the bank, which is by far the largest: its adapters are trained by then."""
        return nn.ModuleDict({name: module for name, module in self._modules().items() if name != "bank"})

    def _finish(self, images: Any, labels: Tensor) -> None:
        """Until it returns, it has the features of all images of the task in memory, from which gates and
        experts learn: of each image ``4 * width`` bytes, twice that with experts or with the mean of tokens,
        and as much again while the gate learns. At a width of 768 that is 6 to 18 KB, an eighth of its pixels
        at most.
        """
        self.bank.freeze()
        if self.experts is not None:
            self._finish_experts(self.experts, images, labels)
            return
        if self.combine == "concat":
            self.prototypes.add_subspace()
        # Prototypes are taken in all subspaces; a sum needs the new one only.
        first = 0 if self.combine == "concat" else -1
        own_images, own_labels = own_share(images, labels)
        h0 = torch.empty((len(own_images), self.gate.width), dtype=torch.float32, device=self.device)
        done = 0
        with learning_together(self.prototypes):
            for x, y in self._test_batches(own_images, own_labels):
                trunk = self._run_trunk(x)
                h = self._base(trunk)
                every = h.new_zeros((len(x), self.bank.tasks))
                every[:, first:] = 1
                batch = self._spaces(trunk, self._feature(h), every)
                h0[done : done + len(x)] = h
                done += len(x)
                self.prototypes.update(batch, y)
        self.gate.learn(gathered(h0), labels.to(self.device))
        as_lead_has(list(self.gate.buffers()))

    def _finish_experts(self, experts: ExpertHead, images: Any, labels: Tensor) -> None:
        labels, done = labels.to(self.device), 0
        own_images, own_labels = own_share(images, labels)
        h0 = torch.empty((len(own_images), self.gate.width), dtype=torch.float32, device=self.device)
        own = h0.new_empty((len(own_images), self.width))
        for x, _ in self._test_batches(own_images, own_labels):
            trunk = self._run_trunk(x)
            rows = slice(done, done + len(x))
            h0[rows] = self._base(trunk)
            own[rows] = self._run(self.adapted.features, trunk, self.bank.tasks - 1)
            done += len(x)
        h0, own = gathered(h0), gathered(own)
        self.gate.learn(h0, labels)
        given: dict[str, Any] = {}
        if self._holdout:
            held_out = self._held_out(labels)
            scores = self.gate.left_out_scores(h0[held_out], labels[held_out])
            given = {"held_out": held_out, "scores": scores}
        experts.learn(self._feature(h0), own, labels, **given)
        # What all computed from the same features differs by roundings, and not where it decides.
        as_lead_has([*self.gate.buffers(), *experts.buffers()])
        if not float(experts.strength[-1]):
            self.bank.remove_last()

    def _bytes_at_end(self, images: int) -> int:
        """As :meth:`_finish` says."""
        own = 0 if self.experts is None else self.width
        return 2 * images * (self.gate.width + own) * torch.float32.itemsize

    # ------------------------------------------------------------------ answering

    def _answering_cost(self) -> PairsCost:
        with self._trial_adapter() as adapted:
            return pairs_cost(adapted, self._blank, self._autocast, self.layers, self._mean)

    def _joined(self, scores: Tensor, classes: Tensor) -> Tensor:
        """Of experts, whose scores are logarithms of probabilities, a class has the sum over its rows."""
        join = group_max if self.experts is None else group_logsumexp
        return join(scores, classes, self.classes_seen)

    def _run_trunk(self, x: Tensor) -> Trunk:
        with self._autocast():
            return self.adapted.trunk(x, layers=self.layers)

    def _base(self, trunk: Trunk) -> Tensor:
        """What the gate reads: E0's feature, and behind it, if asked for, the mean of the patches' tokens."""
        return self._run(partial(self.adapted.features, mean=self._mean, layers=self.layers), trunk)

    def _feature(self, h: Tensor) -> Tensor:
        """E0's feature in what :meth:`_base` gives: of the last layer, before the mean."""
        last = h[:, (self.layers - 1) * h.shape[1] // self.layers :]
        return last[:, : self.width]

    def _spaces(self, trunk: Trunk, h0: Tensor, openings: Tensor) -> Tensor:
        """Features in all subspaces, [n, K, width]: of E0, and of each open adapter; 0 where it is closed.

        Args:
            openings: [n, tasks]; what is 0 is not computed.
        """
        slots = self._slots() if self.experts is not None else torch.arange(openings.shape[1])
        task, image = openings.T.nonzero(as_tuple=True)  # sorted by task, as the kernel likes it
        adapters = slots.to(task)[task].to(torch.int32)
        # Of all passes before the first one: where the host asks the device for them, it waits.
        each = [self.bank.grouped(some) for some in adapters.split(self.images_per_pass) if len(some)]
        parts = [
            self._run(self.adapted.features, trunk, some, rows)
            for some, rows in zip(each, image.split(self.images_per_pass), strict=False)  # none: all are closed
        ]
        opened = torch.cat(parts) if parts else h0.new_zeros((0, self.width))
        if self.combine == "sum":
            weighted = opened * openings[image, task].unsqueeze(1)
            return h0.index_add(0, image, weighted).unsqueeze(1)
        spaces = h0.new_zeros((len(h0), 1 + openings.shape[1], self.width))
        spaces[:, 0] = h0
        spaces[image, 1 + task] = opened
        return spaces

    def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
        trunk = self._run_trunk(images)
        h = self._base(trunk)
        h0 = self._feature(h)
        # For a task that is still to come an oracle opens the newest synapse: no answer can be right there.
        evidence = self.gate.evidence(h, None if task is None else task.clamp(max=self.tasks_learned - 1))
        # What was thrown away stays silent.
        openings = self.gate.open(evidence) * (self._slots() >= 0)
        counted = COUNTED.get()
        if counted is not None and task is not None:
            counted.append((evidence, openings, task))
        spaces = self._spaces(trunk, h0, openings)
        if self.experts is not None:
            return self.experts.logits(self.gate.class_scores(h), spaces, openings)
        if self.combine == "sum":
            return self.prototypes.logits(spaces)
        logits = self.prototypes.logits(spaces, torch.cat([openings.new_ones((len(h0), 1)), openings], 1))
        closed = ~(openings > 0).any(1)
        if self.prototypes.base_weight == 0 and bool(closed.any()):
            # E0 counts for nothing then beside an adapter, but where none is open it is what there is.
            prototypes = self.prototypes.complete()[:, 0]
            logits[closed] = functional.linear(
                functional.normalize(h0[closed]), functional.normalize(prototypes)
            )
        return logits

    @torch.no_grad()
    def spaces(self, images: Any) -> Tensor:
        """Features of images in all subspaces, every synapse open: float32 [n, 1 + tasks, width]; 0 where a
        task's adapter was thrown away."""
        check_images(images, "images")
        kept = (self._slots() >= 0).float()
        parts = [torch.zeros((0, 1 + len(kept), self.width), dtype=torch.float32, device=self.device)]
        if self.combine == "sum":
            parts = [parts[0][:, :1]]
        for x, _ in self._test_batches(images, torch.zeros(len(images))):
            trunk = self._run_trunk(x)
            h0 = self._run(self.adapted.features, trunk)
            parts.append(self._spaces(trunk, h0, kept.expand(len(x), -1)))
        return torch.cat(parts)

    @torch.no_grad()
    def means(self, images: Any) -> Tensor:
        """Means of E0's tokens of the patches: float32 [n, width]."""
        check_images(images, "images")
        means = partial(self.adapted.features, mean=True)
        batches = self._test_batches(images, torch.zeros(len(images)))
        empty = torch.zeros((0, self.width), dtype=torch.float32, device=self.device)
        return torch.cat([empty, *(self._run(means, self._run_trunk(x))[:, self.width :] for x, _ in batches)])

    @contextmanager
    def _counting(self) -> Iterator[dict[str, float]]:
        report: dict[str, float] = {}
        with counting() as counted:
            yield report
        report |= self._report_of(counted)

    def _report_of(self, counted: list[Seen]) -> dict[str, float]:
        self.gate_report, report = report_of(counted, self.tasks_learned, self._adapted_share, self.device)
        report["keeps_data"] = float(self.gate.keeps_data)
        return report | ({"adapters_kept": float(sum(self.adapters_kept))} if self._holdout else {})

    # ------------------------------------------------------------------ files

    def _modules(self) -> nn.ModuleDict:
        modules: dict[str, nn.Module] = {"bank": self.bank, "prototypes": self.prototypes, "gate": self.gate}
        if self.experts is not None:
            modules["experts"] = self.experts
        if self._head is not None:
            modules["head"] = self._head
        return nn.ModuleDict(modules)

    def _adapters_expected(self) -> int:
        return sum(self.adapters_kept) + (self._begun is not None)

    def _check_restored(self) -> None:
        super()._check_restored()
        if self.experts is None:
            subspaces = 1 if self.combine == "sum" else 1 + self.items_learned
            check_same("prototypes", "subspaces", self.prototypes.sums.shape[1], subspaces)

    @property
    def parameters_added(self) -> int:
        head = self.prototypes.sums if self.experts is None else self.experts.weight
        return self.bank.parameters_per_task * self.bank.tasks + head.numel() + self.gate.parameters_added
