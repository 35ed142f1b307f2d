"""Ends items in a Lightning ``Trainer``."""

from __future__ import annotations

from typing import Any

from flexkern.integrations.consolidation import Every, ItemEnds, metaplastic_optimizers, needs

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    raise needs(__name__, "lightning", "'flexkern[lightning]'") from error

__all__ = ["ConsolidateCallback"]


class ConsolidateCallback(Callback):
    """Calls ``consolidate()`` of the module's optimizers where an item ends.

    Steps are those of ``trainer.global_step``: a step counts once, however many batches were accumulated for
    it, and those of several optimizers are added. Checkpoints hold what is needed to go on. After ``fit()``
    without a single ``consolidate()`` there is a warning.

    Args:
        every: "experience" (or "train_end"): one ``fit()`` learns one item; "epoch"; a number of optimizer
            steps; or several of these, of which those that coincide count once.

    Raises:
        TypeError, ValueError: for another ``every``. When training begins: if no optimizer has a
            ``consolidate()``.
    """

    def __init__(self, every: Every = "experience") -> None:
        self.ends = ItemEnds(every, type(self).__name__)

    @property
    def state_key(self) -> str:
        """Apart from another one with other moments, which may be there, too."""
        return self._generate_state_key(every=self.ends.moments)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Finds the optimizers."""
        found = metaplastic_optimizers(trainer.optimizers, type(self).__name__, "configure_optimizers()")
        self.ends.begin(found, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends an item after a step; before a checkpoint is written, whose callbacks come last."""
        self.ends.step_ended(trainer.global_step, last_of_epoch=trainer.is_last_batch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Ends an item where the epoch's last batch was not known beforehand."""
        self.ends.epoch_ended(trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Ends the experience."""
        self.ends.experience_ended(trainer.global_step)
        self.ends.training_ended(trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.ends.record()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.ends.restore(state_dict)
