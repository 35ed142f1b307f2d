"""Ends items in an Avalanche strategy, and keeps its optimizer whole where the model grows."""

from __future__ import annotations

from typing import Any

from flexkern.integrations.consolidation import Every, ItemEnds, metaplastic_optimizers, needs

try:
    from avalanche.core import SupervisedPlugin
except ImportError as error:
    raise needs(__name__, "avalanche-lib", "avalanche-lib") from error

__all__ = ["ConsolidatePlugin"]


class ConsolidatePlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Calls the optimizer's ``consolidate()`` where an item ends.

    Steps are counted over all calls of ``train()``, and kept by Avalanche's checkpoints, as the plugin is.
    Before each experience the plugin also mends what Avalanche does to an optimizer from outside: it empties
    the state when a strategy first trains, and appends the parameters of new heads to a group without their
    names. (A metaplastic optimizer takes them in by itself, with flexibilities of their own.)

    Args:
        every: "experience" (or "train_end"); "epoch"; a number of optimizer steps; or several of these, of
            which those that coincide count once. In an online stream with task boundaries an experience ends
            with its last part.

    Raises:
        TypeError, ValueError: for another ``every``. When training begins: if the strategy's optimizer has no
            ``consolidate()``.
    """

    def __init__(self, every: Every = "experience") -> None:
        super().__init__()
        self.ends = ItemEnds(every, type(self).__name__)
        self.steps = 0
        self._kept: dict[Any, dict[str, Any]] = {}

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Finds the optimizer."""
        self._begin(strategy)
        if getattr(strategy, "optimized_param_id", None) is None:
            # Avalanche is about to empty the state: anchors of what was learned before, and given
            # flexibilities.
            states = (optimizer.state for optimizer in self.ends.optimizers)
            self._kept = {p: dict(values) for state in states for p, values in state.items() if values}

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Comes after Avalanche has adapted the model and the optimizer to the experience."""
        self._begin(strategy)
        names = {id(p): name for name, p in strategy.model.named_parameters()}
        for optimizer in self.ends.optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p in self._kept and not optimizer.state.get(p):
                        optimizer.state[p] = self._kept[p]
                if "param_names" in group:
                    group["param_names"] = [names[id(p)] for p in group["params"]]
        self._kept = {}

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """After an optimizer step."""
        self.steps += 1
        self.ends.step_ended(self.steps)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Ends an epoch."""
        self.ends.epoch_ended(self.steps)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Ends an experience; a part of one, in an online stream, only where it is the last."""
        experience = strategy.experience
        if not getattr(experience, "access_task_boundaries", False) or experience.is_last_subexp:
            self.ends.experience_ended(self.steps)

    def after_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Ends a call of ``train()``."""
        self.ends.training_ended(self.steps)

    def _begin(self, strategy: Any) -> None:
        found = metaplastic_optimizers(strategy.optimizer, type(self).__name__, "the strategy's optimizer=")
        self.ends.begin(found, self.steps)
