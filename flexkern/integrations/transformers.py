"""Ends items in a ``transformers.Trainer``."""

from __future__ import annotations

from typing import Any

from flexkern.integrations.consolidation import Every, ItemEnds, metaplastic_optimizers, needs

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise needs(__name__, "transformers", "'flexkern[transformers]'") from error

__all__ = ["ConsolidateCallback"]

_REMEDY = "Trainer(optimizers=(optimizer, None)), or a create_optimizer of your own"


class ConsolidateCallback(TrainerCallback, ExportableState):
    """Calls the optimizer's ``consolidate()`` where an item ends.

    An optimizer step counts once, however many batches were accumulated for it. Checkpoints hold what is needed
    to go on. After ``train()`` without a single ``consolidate()`` there is a warning.

    Args:
        every: "experience" (or "train_end"): one ``train()`` learns one item; "epoch"; a number of optimizer
            steps; or several of these, of which those that coincide count once.

    Raises:
        TypeError, ValueError: for another ``every``. When training begins: if the Trainer's optimizer has no
            ``consolidate()``.
    """

    def __init__(self, every: Every = "experience") -> None:
        self.ends = ItemEnds(every, type(self).__name__)
        self.every = list(self.ends.moments)  # as JSON has it

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finds the optimizer, behind accelerate's wrapper, and what the checkpoint says of items."""
        # The Trainer looks this up when it saves, and a checkpoint that was written without this callback lacks
        # it.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        # A checkpoint's records are in the state, whether or not the Trainer was told to restore callbacks from
        # it.
        if state.global_step and (record := self._recorded(state)) is not None:
            self.ends.restore(record)
        found = metaplastic_optimizers(kwargs.get("optimizer"), type(self).__name__, _REMEDY)
        self.ends.begin(found, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an optimizer step; before a checkpoint is written."""
        # A whole number exactly at an epoch's last step: epoch + steps / steps of an epoch.
        self.ends.step_ended(state.global_step, last_of_epoch=float(state.epoch).is_integer())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends an item where the epoch's last step was not known beforehand."""
        self.ends.epoch_ended(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the experience."""
        self.ends.experience_ended(state.global_step)
        self.ends.training_ended(state.global_step)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {"every": self.every}, "attributes": {"record": self.ends.record()}}

    @property
    def record(self) -> dict[str, int]:
        """Where the last item ended, and how many did; the Trainer sets it when it restores callbacks."""
        return self.ends.record()

    @record.setter
    def record(self, record: dict[str, int]) -> None:
        self.ends.restore(record)

    def _recorded(self, state: Any) -> dict[str, int] | None:
        saved = state.stateful_callbacks.get(type(self).__name__)
        # Of several callbacks with one name the Trainer keeps the records of earlier checkpoints, too, in
        # front.
        for one in reversed(saved if isinstance(saved, list) else [saved]):
            if isinstance(one, dict) and one.get("args") == {"every": self.every}:
                return one["attributes"]["record"]
        return None
