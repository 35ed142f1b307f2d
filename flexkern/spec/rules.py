"""The rules by which a synapse steps: what state each keeps for a weight, and its numbers.

Every rule has the form ``w <- w - lr alpha d``: it says the direction d that the plain optimizer would go, and
alpha scales it (docs/design.md, Optimizers). How d is computed stands once in each language:
flexkern/reference/rules.py, csrc/include/flexkern/rules.h, triton_kernels/rules.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from .argument import LARGEST_NUMBER, number

__all__ = ["RULES", "AdamWRule", "Rule", "SgdRule"]


@dataclass(frozen=True)
class Rule:
    """What a rule declares: its numbers are its attributes.

    Attributes:
        NAME: of its struct in C++; the operators of a rule have it in small letters in their names.
        STATES: the state of a weight, each with its meaning: tensors like the weight, in float32 (float64 for
            float64 weights), that begin as zeros.
        COUNTS_STEPS: whether a step depends on how many came before it. Its operators then have the argument
            ``step``: for each weight a one-element float32 tensor on its device with the number of this step,
            1 in the first. They read it where they run, so that weights of different counts go in one call,
            and a CUDA graph that is replayed counts on.
    """

    NAME: ClassVar[str] = ""
    STATES: ClassVar[dict[str, str]] = {}
    COUNTS_STEPS: ClassVar[bool] = False

    @classmethod
    def operator(cls, family: str) -> str:
        """The name of its operator in a family; those of SGD, the first rule, on layers do not name it."""
        word = cls.NAME.lower()
        if family == "metaplastic":
            return f"metaplastic_{word}_"
        return f"{family}_step_" if cls is SgdRule else f"{family}_{word}_step_"

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Rule:
        """The rule of a parameter group, which has its numbers among others."""
        kind: Any = cls  # mypy takes the hash of the class for that of its instances
        return _made(kind, tuple([group[name] for name in _names(kind)]))

    def keywords(self) -> dict[str, Any]:
        """Its numbers by name, without those that have their defaults; not to be written to."""
        return _keywords(self)

    def needs(self) -> tuple[str, ...]:
        """The names of the states that a step with these numbers has; the others are not looked at."""
        return tuple(self.STATES)

    def of_first_step(self) -> Rule:
        """The rule of a step whose states are new."""
        return self

    def why_needed(self) -> str:
        """Why they are needed, for the message that says that one is missing."""
        return f"a {self.NAME} step updates it"

    def check(self) -> None:
        """Numbers that do not go together.

        Raises:
            ValueError: naming them.
        """


@dataclass(frozen=True)
class SgdRule(Rule):
    """SGD as in :class:`torch.optim.SGD`: the numbers beside lr.

    Args:
        weight_decay: this times the weight is added to the gradient; >= 0.
        momentum: what stays of the momentum buffer in a step; >= 0.
        dampening: what of the gradient does not enter the buffer.
        nesterov: whether the step looks ahead; needs momentum > 0 and no dampening.
        maximize: whether to go up instead of down.
    """

    NAME: ClassVar[str] = "Sgd"
    STATES: ClassVar[dict[str, str]] = {"momentum_buffer": "what torch.optim.SGD keeps; needed with momentum"}

    weight_decay: float = number(0.0, low=0.0)
    momentum: float = number(0.0, low=0.0)
    dampening: float = number(0.0, low=-LARGEST_NUMBER)
    nesterov: bool = False
    maximize: bool = False

    def needs(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def of_first_step(self) -> Rule:
        """As in :class:`torch.optim.SGD`, a new buffer becomes the gradient, without dampening."""
        return replace(self, dampening=0.0) if self.dampening else self

    def why_needed(self) -> str:
        return "momentum is not 0"

    def check(self) -> None:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov needs momentum > 0 and dampening = 0")


@dataclass(frozen=True)
class AdamWRule(Rule):
    """AdamW as in :class:`torch.optim.AdamW`: the numbers beside lr.

    Args:
        beta1, beta2: what stays of the running means of the gradient and of its square; 0 <= beta < 1.
        eps: is added to the root of the second mean; >= 0.
        weight_decay: this times lr is the share by which a free weight decays in a step; >= 0.
        amsgrad: whether the largest second mean that was ever seen takes the place of the present one.
        maximize: whether to go up instead of down.
    """

    NAME: ClassVar[str] = "AdamW"
    STATES: ClassVar[dict[str, str]] = {
        "exp_avg": "the running mean of the gradient",
        "exp_avg_sq": "the running mean of the gradient's square",
        "max_exp_avg_sq": "the largest exp_avg_sq so far; needed with amsgrad",
    }
    COUNTS_STEPS: ClassVar[bool] = True

    beta1: float = number(0.9, low=0.0)
    beta2: float = number(0.999, low=0.0)
    eps: float = number(1e-8, low=0.0)
    weight_decay: float = number(1e-2, low=0.0)
    amsgrad: bool = False
    maximize: bool = False

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Rule:
        """As in torch's, the group of an optimizer has the pair ``betas``."""
        beta1, beta2 = group["betas"]
        return super().of({**group, "beta1": beta1, "beta2": beta2})

    def needs(self) -> tuple[str, ...]:
        return tuple(self.STATES) if self.amsgrad else ("exp_avg", "exp_avg_sq")

    def check(self) -> None:
        if not (self.beta1 < 1 and self.beta2 < 1):
            raise ValueError(
                f"beta1 and beta2 must be at least 0 and less than 1, got {self.beta1} and {self.beta2}"
            )


# Optimizers ask for these at every step: a rule and its names are made once (1 us in place of 5).
@functools.cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


@functools.lru_cache(maxsize=1024, typed=True)
def _made(kind: Any, numbers: tuple[Any, ...]) -> Rule:
    return kind(*numbers)


@functools.lru_cache(maxsize=1024, typed=True)
def _keywords(rule: Rule) -> dict[str, Any]:
    return {f.name: getattr(rule, f.name) for f in fields(rule) if getattr(rule, f.name) != f.default}


# Every operator that steps exists for each of them.
RULES: tuple[type[Rule], ...] = (SgdRule, AdamWRule)
