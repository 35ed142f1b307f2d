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
    options.

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
                _take_in_appended(optimizer, group, names)
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


def _take_in_appended(optimizer: Any, group: dict[str, Any], names: dict[int, str]) -> None:
    """Gives parameters that were appended to a group's list the options that go with each parameter.

    They come from the optimizer's own ``add_param_group``. The group that it makes is merged into this one,
    because Avalanche gives the next new head to the group of its neighbours, and fails where these are in
    several.

    Raises:
        ValueError: if parameters were taken out of the group, whose options then fit no more.
    """
    params = group["params"]
    lists = {
        key: value for key, value in group.items() if isinstance(value, list) and key != "params" and value
    }
    known = max(map(len, lists.values()), default=len(params))
    if known > len(params):
        raise ValueError(
            f"a group of the optimizer has options for {known} parameters and {len(params)} parameters: "
            "Avalanche took some out (remove_params=True), and which options were theirs is not known. Train "
            "with remove_params=False"
        )
    if known == len(params):
        return
    own = {key: value for key, value in lists.items() if len(value) == known}
    appended = params[known:]
    del params[known:]
    options = {key: value for key, value in group.items() if key != "params" and key not in own}
    named = [(names[id(p)], p) for p in appended] if "param_names" in own else appended
    try:
        optimizer.add_param_group({**options, "params": named})
    except BaseException:
        params.extend(appended)
        raise
    added = optimizer.param_groups.pop()
    params.extend(added["params"])
    for key, value in own.items():
        value.extend(added[key])
