"""Experts: a head that decides which task by E0's features, and within an open task also by its adapter's."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from flexkern.nn.growing import GrowingState, check_features, check_finite, check_labels
from flexkern.nn.heads.ridge import RidgeHead
from flexkern.nn.undo import Undo
from flexkern.plain import number, whole_number

__all__ = ["ExpertHead"]

_STRENGTHS = (1.0, 2.5, 5.0, 10.0)
_ONE_SIDED = 1.645


class ExpertHead(GrowingState):
    """``log p(c | x) = log p(t | x) + log p(c | t, x)``, with t the task of class c; this package's own.

    Scores of all classes by E0's features, such as those of a :class:`flexkern.nn.RidgeHead`, say which task:
    ``p(t | x)`` is the sum of ``softmax(temperature * scores)`` over its classes. They also say which class of
    the task, and where the task's synapse is open an expert is heard too: a ridge head on [E0(x), Et(x)], which
    the task's own images fit in closed form when it is learned. So an adapter is only asked what it was trained
    for, to tell its own classes apart, and no data and no features of other tasks are needed.

    **Evidence.** How much an expert's scores count, its ``strength``, is ``expert_temperature``, or what
    held-out images of the task say: the strength of 1, 2.5, 5 and 10 that makes their classes most likely among
    the task's, if it makes them likelier than no expert does, beyond what chance would (1.645 standard errors
    of the mean, one-sided 95 %); else 0, and the expert is never heard.

    Args:
        width: of E0(x) and of each Et(x).
        temperature: of the scores, > 0.
        expert_temperature: of the experts' scores where there is no evidence, > 0.
        device: of the state.

    Raises:
        ValueError: naming the argument.
    """

    weight: Tensor
    class_task: Tensor
    strength: Tensor
    gain: Tensor
    _SIZES: ClassVar = {
        "weight": ("C", "2", "width"), "class_task": ("C",), "strength": ("T",), "gain": ("T",),
    }  # fmt: skip

    def __init__(
        self,
        width: int,
        *,
        temperature: float = 20.0,
        expert_temperature: float = 10.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        width = self.width = whole_number(width, "width")
        self.temperature = number(temperature, "temperature", 0, above=True)
        self.expert_temperature = number(expert_temperature, "expert_temperature", 0, above=True)
        # For each class what its task's expert multiplies [E0(x), Et(x)] by.
        self.register_buffer("weight", torch.zeros((0, 2, width), dtype=torch.float32, device=device))
        self.register_buffer("class_task", torch.zeros(0, dtype=torch.int64, device=device))
        # Of each task's expert: how much it counts, and by how much it made held-out images likelier, in nats
        # of each, less 1.645 standard errors; 0 where nothing was held out.
        self.register_buffer("strength", torch.zeros(0, dtype=torch.float32, device=device))
        self.register_buffer("gain", torch.zeros(0, dtype=torch.float32, device=device))

    @property
    def classes(self) -> int:
        """How many classes are known."""
        return len(self.class_task)

    @property
    def tasks(self) -> int:
        """How many experts there are."""
        return int(self.class_task[-1]) + 1 if self.classes else 0

    @torch.no_grad()
    def learn(
        self,
        h0: Tensor,
        own: Tensor,
        labels: Tensor,
        *,
        held_out: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> None:
        """A task comes: fits its expert.

        Args:
            h0: floating-point [n, width], E0 of the task's images.
            own: [n, width], Et of them.
            labels: integers [n]: the next classes.
            held_out: bool [n], those that Et was not trained on, by which the expert's strength is set; without
                any it is 0. None: it is ``expert_temperature``.
            scores: floating-point [held out, C], of all classes, these included, by E0's features of what is
                held out, as :meth:`logits` has them of images that were never learned.

        Raises:
            TypeError, ValueError: naming the argument.
            RuntimeError: if all features are 0.

        Nothing was learned then.
        """
        check_features(h0, self.width)
        check_features(own, self.width, "own")
        check_labels(labels, len(h0))
        if len(own) != len(h0):
            raise ValueError(f"own must be [{len(h0)}, {self.width}], as h0, got {tuple(own.shape)}")
        check_finite(h0)
        check_finite(own, "own")
        seen = labels.unique().tolist()
        if not seen or seen != list(range(self.classes, self.classes + len(seen))):
            raise ValueError(
                f"labels must be the next classes from {self.classes} on without a gap, got {seen[:10]}"
            )
        task, both, first = self.tasks, torch.cat([h0, own], 1), self.classes
        strength, gain = self.expert_temperature, 0.0
        if held_out is not None:
            strength, gain = self._evidence(both, labels - first, held_out, scores)
        weight = self._fitted(both, labels - first).T.reshape(len(seen), 2, self.width)
        with Undo(self):
            self._append("weight", weight)
            self._append("class_task", self.class_task.new_full((len(seen),), task))
            self._append("strength", self.strength.new_tensor([strength]))
            self._append("gain", self.gain.new_tensor([gain]))

    def _fitted(self, both: Tensor, labels: Tensor) -> Tensor:
        """[2 width, classes]."""
        expert = RidgeHead(2 * self.width, device=self.weight.device)
        expert.update(both, labels)
        return expert.solve()

    def _evidence(
        self, both: Tensor, labels: Tensor, held_out: Tensor, scores: Tensor | None
    ) -> tuple[float, float]:
        """Strength and gain of a new task's expert, by what is held out."""
        if tuple(held_out.shape) != (len(both),) or held_out.dtype is not torch.bool:
            raise ValueError(
                f"held_out must be bool [{len(both)}], got {held_out.dtype} {list(held_out.shape)}"
            )
        count, classes = int(held_out.sum()), int(labels.max()) + 1
        shape = (count, self.classes + classes)
        if scores is None or tuple(scores.shape) != shape:
            got = None if scores is None else list(scores.shape)
            raise ValueError(f"scores must be {list(shape)}, of what is held out, got {got}")
        trained = ~held_out
        # What cannot be judged is not heard: nothing held out, or a class without other images.
        if count < 2 or len(labels[trained].unique()) < classes:
            return 0.0, 0.0
        own = both[held_out].float() @ self._fitted(both[trained], labels[trained])
        base = self.temperature * scores[:, self.classes :].float()
        strengths = own.new_tensor(_STRENGTHS)[:, None, None]
        likely = torch.log_softmax(torch.cat([base[None], base + strengths * own]), 2).double()
        of_true = likely.gather(2, labels[held_out].expand(len(likely), -1)[..., None])[..., 0]
        gains = of_true[1:] - of_true[0]
        surely = gains.mean(1) - _ONE_SIDED * gains.std(1) / math.sqrt(count)
        best = int(surely.argmax())
        gain = float(surely[best])
        return (_STRENGTHS[best] if gain > 0 else 0.0), gain

    @torch.no_grad()
    def logits(self, scores: Tensor, spaces: Tensor, openings: Tensor) -> Tensor:
        """Log probabilities, float32 [n, C].

        Args:
            scores: floating-point [n, C], of all classes, by E0's features.
            spaces: [n, 1 + T, width], E0(x) and each Et(x); what is closed is not used.
            openings: [n, T], how far each task's synapse is open; its expert counts where > 0.

        Raises:
            ValueError: if the sizes do not fit.
        """
        n, tasks = len(scores), self.tasks
        for name, tensor, shape in (
            ("scores", scores, (n, self.classes)), ("spaces", spaces, (n, 1 + tasks, self.width)),
            ("openings", openings, (n, tasks)),
        ):  # fmt: skip
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        with torch.autocast(scores.device.type, enabled=False):
            shared = self.temperature * scores.float()
            of_task = functional.one_hot(self.class_task, tasks).float()
            per_class = torch.log_softmax(shared, 1)
            # A task that no float32 holds any more is as good as impossible, not NaN.
            task = (per_class.exp() @ of_task).clamp(min=1e-38).log()[:, self.class_task]
            strength = self.strength[self.class_task]
            within = self._log_softmax_within(shared + strength * self._experts(spaces.float()))
            is_open = (openings > 0)[:, self.class_task] & (strength > 0)
            return torch.where(is_open, task + within, per_class)

    def _experts(self, spaces: Tensor) -> Tensor:
        """Scores [n, C] of each class by its own task's expert: one product, 0 for the other tasks' spaces."""
        weight = self.weight.new_zeros((self.classes, spaces.shape[1], self.width))
        weight[:, 0] = self.weight[:, 0]
        rows = torch.arange(self.classes, device=weight.device)
        weight[rows, 1 + self.class_task] = self.weight[:, 1]
        return spaces.flatten(1) @ weight.flatten(1).T

    def _log_softmax_within(self, x: Tensor) -> Tensor:
        """log_softmax over the classes of each task."""
        index = self.class_task.expand_as(x)
        top = x.new_full((len(x), self.tasks), -math.inf).scatter_reduce(1, index, x, "amax")
        shifted = x - top.gather(1, index)
        total = x.new_zeros((len(x), self.tasks)).scatter_add(1, index, shifted.exp())
        return shifted - total.log().gather(1, index)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Earlier versions had no evidence: each expert counted alike.
        task = state_dict.get(prefix + "class_task")
        if isinstance(task, Tensor) and prefix + "strength" not in state_dict:
            tasks = int(task[-1]) + 1 if task.numel() else 0
            state_dict = state_dict | {
                prefix + "strength": self.strength.new_full((tasks,), self.expert_temperature),
                prefix + "gain": self.gain.new_zeros(tasks),
            }
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _check_state(self, state: dict[str, Any]) -> None:
        weight = state.get("weight")
        if weight is not None and tuple(weight.shape[1:]) != (2, self.width):
            raise ValueError(f"the state has weights {tuple(weight.shape)}, and this head width {self.width}")

        task = state.get("class_task")
        if task is not None and task.numel() and not (task[0] == 0 and bool((task.diff() >> 1 == 0).all())):
            raise ValueError("class_task must count tasks from 0 on, and the state's does not")

    def extra_repr(self) -> str:
        return f"width={self.width}, tasks={self.tasks}, classes={self.classes}, temperature={self.temperature}"
