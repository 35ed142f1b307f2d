"""When an item ends, and which optimizers are told: what the callbacks of all frameworks have in common."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Every", "ItemEnds", "metaplastic_optimizers", "needs", "one_every"]

# "experience" (or "train_end"), "epoch", a number of optimizer steps, or several of these.
Every = str | int | Sequence[str | int]

_EXPERIENCE = ("experience", "train_end")


def needs(module: str, package: str, target: str) -> ImportError:
    """The error for a framework that cannot be imported; ``target`` is what pip is to install."""
    return ImportError(
        f"{module} needs {package}, which cannot be imported: pip install {target}", name=package
    )


def one_every(every: Every) -> tuple[str | int, ...]:
    """``every`` as a checked tuple of moments.

    Raises:
        TypeError, ValueError: saying what it must be.
    """
    allowed = (
        'every must be "experience" (or "train_end"), "epoch", a number of optimizer steps >= 1, or several of '
        f"these; got {every!r}"
    )
    moments: list[Any] = list(every) if isinstance(every, (list, tuple)) else [every]
    checked: list[str | int] = []
    for moment in moments:
        if not isinstance(moment, str):
            try:
                number = operator.index(moment)  # also of numpy
            except TypeError:
                raise TypeError(allowed) from None
            if isinstance(moment, bool):
                raise TypeError(allowed)
            if number < 1:
                raise ValueError(allowed)
            checked.append(number)
        elif moment in (*_EXPERIENCE, "epoch"):
            checked.append("epoch" if moment == "epoch" else "experience")
        else:
            raise ValueError(allowed)
    if not checked:
        raise ValueError(allowed)
    return tuple(checked)


def metaplastic_optimizers(found: Any, who: str, remedy: str) -> list[Any]:
    """The optimizers that have a ``consolidate()``, without the wrappers of their framework.

    Args:
        found: the framework's optimizer, or a list of them.
        who: the callback, for the error.
        remedy: how this framework is given another optimizer, for the error.

    Raises:
        TypeError: if there is none, naming what there is.
    """
    each = list(found) if isinstance(found, (list, tuple)) else [found]
    optimizers = [optimizer for optimizer in map(_innermost, each) if optimizer is not None]
    if not optimizers:
        classes = " and ".join(_name_of(_chain(optimizer)[-1]) for optimizer in each) or "no optimizer"
        raise TypeError(
            f"{who} ends items by optimizer.consolidate(), but what trains here is {classes}, which has no "
            f"consolidate(). Train with flexkern.optim.MetaplasticSGD, or another optimizer of flexkern.optim "
            f"({remedy}), or leave {who} out"
        )
    return list({id(optimizer): optimizer for optimizer in optimizers}.values())


def _chain(optimizer: Any) -> list[Any]:
    """An optimizer and what it wraps, outermost first. A scheduler has an optimizer, but is none."""
    chain = [optimizer]
    while True:
        inner = getattr(chain[-1], "optimizer", None)
        if not hasattr(inner, "param_groups") or any(inner is seen for seen in chain):
            return chain
        chain.append(inner)


def _innermost(optimizer: Any) -> Any | None:
    # Lightning's wrapper takes on the class of what it wraps, and would run consolidate() on itself. An
    # optimizer around one of torch's has what it wraps inside. So it is the last that has one.
    able = [one for one in _chain(optimizer) if callable(getattr(one, "consolidate", None))]
    return able[-1] if able and hasattr(able[-1], "param_groups") else None


def _name_of(thing: Any) -> str:
    return "no optimizer" if thing is None else f"{type(thing).__module__}.{type(thing).__qualname__}"


def _waits_for_items(optimizer: Any) -> bool:
    """Whether it never resists without consolidate(): alpha is one per item, or the scale is not measured."""
    default = getattr(optimizer, "gate", "item")
    scales = optimizer.scales() if callable(getattr(optimizer, "scales", None)) else []
    gates = [group.get("gate", default) for group in optimizer.param_groups]
    return "item" in gates or any(scale is None for scale in scales)


class ItemEnds:
    """Decides when an item ends, and ends it once. The callbacks tell it what happens.

    Args:
        every: see :func:`one_every`.
        who: the callback's name, for messages.
    """

    def __init__(self, every: Every, who: str) -> None:
        self.moments = one_every(every)
        self.who = who
        self.optimizers: list[Any] = []
        # At which step the last item ended, and how many did: what has to live through resuming.
        self.ended_at = 0
        self.count = 0
        self.seen = 0
        self.has_warned = False

    def begin(self, optimizers: Iterable[Any], step: int) -> None:
        """Training begins, or goes on, after ``step`` steps of the optimizer."""
        self.optimizers = list(optimizers)
        if step < self.ended_at:  # counted from 0 again: another training
            self.ended_at = 0
        self.seen = step

    def step_ended(self, step: int, *, last_of_epoch: bool = False) -> None:
        """The optimizer has made its step number ``step``.

        An epoch ends with its last step, where the framework knows which that is: a checkpoint that is written
        between the step and the end of the epoch would lose the item's end.
        """
        # Crossed, not met: several optimizers that step for one batch count together in some frameworks.
        due = any(isinstance(n, int) and step // n > self.seen // n for n in self.moments)
        self.seen = step
        if due or (last_of_epoch and "epoch" in self.moments):
            self._end(step)

    def epoch_ended(self, step: int) -> None:
        """An epoch has ended after ``step`` steps."""
        if "epoch" in self.moments:
            self._end(step)

    def experience_ended(self, step: int) -> None:
        """An experience has ended after ``step`` steps."""
        if "experience" in self.moments:
            self._end(step)

    def training_ended(self, step: int) -> None:
        """Training has ended. Warns once where no item has, and the optimizer waits for one."""
        if self.count or self.has_warned or not step or not any(map(_waits_for_items, self.optimizers)):
            return
        self.has_warned = True
        warnings.warn(
            f"{self.who}(every={_shown(self.moments)}): training ended after {step} optimizer steps without a "
            "consolidate(), so this was plain training and nothing is protected from the next item. Use a "
            'smaller number of steps, or every="experience"',
            UserWarning,
            stacklevel=3,
        )

    def _end(self, step: int) -> None:
        if step <= self.ended_at:
            return
        for optimizer in self.optimizers:
            optimizer.consolidate()
        self.ended_at = step
        self.count += 1

    def record(self) -> dict[str, int]:
        """What has to survive resuming; plain numbers."""
        return {"ended_at": self.ended_at, "count": self.count}

    def restore(self, record: dict[str, int]) -> None:
        """Goes on from what :meth:`record` gave."""
        self.ended_at, self.count = int(record["ended_at"]), int(record["count"])


def _shown(moments: tuple[str | int, ...]) -> str:
    return repr(moments[0] if len(moments) == 1 else moments)
