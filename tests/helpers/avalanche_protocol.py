"""What Avalanche does to a plugin and an optimizer, in its order (avalanche-lib 0.6), where it is missing.

Avalanche needs torchvision. So its plugins' base class, the order in which a strategy calls them, and how it
changes an optimizer when the model grows are written down here, after ``avalanche/core.py``,
``training/templates`` and ``models/dynamic_optimizers.py``.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


class SupervisedPlugin:
    """The base class of plugins: all hooks, which do nothing."""

    supports_distributed = False

    def __init_subclass__(cls, supports_distributed: bool = False, **options: Any) -> None:
        cls.supports_distributed = supports_distributed
        super().__init_subclass__(**options)

    def _nothing(self, strategy: Any, *args: Any, **kwargs: Any) -> None: ...

    before_training = before_training_exp = before_training_epoch = before_training_iteration = _nothing
    after_training = after_training_exp = after_training_epoch = after_training_iteration = _nothing
    before_update = after_update = before_eval = after_eval = _nothing


def install() -> None:
    """Lets ``from avalanche.core import SupervisedPlugin`` find this one, if Avalanche is not there."""
    try:
        import avalanche.core  # noqa: F401
    except ImportError:
        package, core = ModuleType("avalanche"), ModuleType("avalanche.core")
        core.SupervisedPlugin = SupervisedPlugin  # type: ignore[attr-defined]
        package.core = core  # type: ignore[attr-defined]
        sys.modules.update({"avalanche": package, "avalanche.core": core})


class Experience:
    """A part of a stream: batches, and the classes in it."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]], task: int = 0) -> None:
        self.batches, self.task = batches, task


class OnlineExperience(Experience):
    """A piece of an experience, in a stream that tells where experiences end."""

    access_task_boundaries = True

    def __init__(self, batches: list[tuple[Tensor, Tensor]], is_last_subexp: bool) -> None:
        super().__init__(batches)
        self.is_last_subexp = is_last_subexp


class MultiHead(nn.Module):
    """A head for each task, which is made when the task comes, as Avalanche's MultiHeadClassifier does."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.trunk, self.classes = nn.Linear(width, 8), classes
        self.heads = nn.ModuleDict({"0": nn.Linear(8, classes)})

    def adapt(self, experience: Experience) -> None:
        """Adds the head of this experience's task."""
        if str(experience.task) not in self.heads:
            self.heads[str(experience.task)] = nn.Linear(8, self.classes)

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.heads[str(task)](self.trunk(x).relu())


class Growing(nn.Module):
    """One head that is replaced by a larger one when classes come, as an IncrementalClassifier does."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(width, 8), nn.Linear(8, classes)

    def adapt(self, experience: Experience) -> None:
        """Copies the head into a larger one, if the experience has classes that it lacks."""
        classes = 1 + max(int(labels.max()) for _, labels in experience.batches)
        old = self.head
        if classes > old.out_features:
            self.head = nn.Linear(8, classes)
            with torch.no_grad():
                self.head.weight[: old.out_features] = old.weight
                self.head.bias[: old.out_features] = old.bias

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.head(self.trunk(x).relu())


class Strategy:
    """A strategy that calls plugins as Avalanche's SupervisedTemplate does."""

    def __init__(
        self, model: Any, optimizer: Any, *, train_epochs: int = 1, plugins: Iterable[Any] = ()
    ) -> None:
        self.model, self.optimizer, self.train_epochs = model, optimizer, train_epochs
        self.plugins = list(plugins)
        self.optimized_param_id: dict[str, Tensor] | None = None
        self.experience: Any = None

    def _call(self, hook: str) -> None:
        for plugin in self.plugins:
            getattr(plugin, hook)(self)

    def train(self, experiences: Any) -> None:
        """Trains on one experience or on several."""
        experiences = [experiences] if isinstance(experiences, Experience) else experiences
        self._call("before_training")
        for self.experience in experiences:
            self._check_model_and_optimizer()
            self._call("before_training_exp")
            for _ in range(self.train_epochs):
                self._call("before_training_epoch")
                for x, labels in self.experience.batches:
                    self._iteration(x, labels)
                self._call("after_training_epoch")
            self._call("after_training_exp")
        self._call("after_training")
        self.experience = None

    def _iteration(self, x: Tensor, labels: Tensor) -> None:
        self._call("before_training_iteration")
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x, self.experience.task), labels).backward()
        self._call("before_update")
        self.optimizer.step()
        self._call("after_update")
        self._call("after_training_iteration")

    def _check_model_and_optimizer(self, reset_state: bool = False) -> None:
        if self.optimized_param_id is None:
            self._make_optimizer(reset_state=True)
        self.model.adapt(self.experience)
        self._make_optimizer(reset_state)

    def _make_optimizer(self, reset_state: bool) -> None:
        known = self.optimized_param_id or {}
        for name, p in self.model.named_parameters():
            searched = known.get(name, p)
            places = [
                (group, i)
                for group in self.optimizer.param_groups
                for i, other in enumerate(group["params"])
                if other is searched
            ]
            if not places:  # a new one goes to the group of its neighbours; here there is one group
                assert len(self.optimizer.param_groups) == 1
                self.optimizer.param_groups[0]["params"].append(p)
                self.optimizer.state[p] = {}
            elif searched is not p:
                group, i = places[0]
                group["params"][i] = p
                if searched in self.optimizer.state:
                    self.optimizer.state.pop(searched)
                    self.optimizer.state[p] = {}
        if reset_state:
            self.optimizer.state = defaultdict(dict)
        self.optimized_param_id = dict(self.model.named_parameters())
