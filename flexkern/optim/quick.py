"""A step as the one before: what a checked step has found is kept, and the next one looks whether it holds.

On small networks the checks take several times as long as the kernel. What a plan depends on is compared by
identity: the parameters, all settings but the learning rate, and every value of their state. So whatever
replaces one of them, in whatever way, leads back to the checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from flexkern import ops
from flexkern.fields import Field
from flexkern.nn.silent.layer_of_weight import any_silent
from flexkern.ops.operator import Operator, are_plain, is_refusal, tries_compiled
from flexkern.ops.sources import quick_sources
from flexkern.optim.group_options import scale_in_force
from flexkern.optim.slot import Slot
from flexkern.spec import Rule
from flexkern.spec.argument import LARGEST_NUMBER

__all__ = ["Plan", "make_plan"]

_DTYPE, _IS_SPARSE = Tensor.dtype.__get__, Tensor.is_sparse.__get__  # type: ignore[attr-defined]
_FREE_ANCHOR = Field.uniform(0)  # nothing looks at the anchor of a weight that moves freely
_FREE_ALPHA = torch.empty(0)
SMALL = 1 << 14  # elements, of which the values of a field are kept: 64 KB


class _Call:
    """One call of the compiled operator."""

    __slots__ = ("arguments", "counts", "name", "operator", "which", "written")

    def __init__(
        self,
        operator: Operator,
        name: str | None,
        arguments: list[Any],
        which: list[int],
        written: list[Tensor],
    ) -> None:
        self.operator, self.name = operator, name
        self.arguments, self.which, self.written = arguments, which, written
        self.counts: list[Tensor] = []

    def run(self) -> None:
        """Past the dispatcher where that can be."""
        operator = self.operator
        if operator.goes_direct(self.written[0]) and operator.direct(*self.arguments) is not NotImplemented:
            return
        operator.compiled(*self.arguments)
        torch.autograd.graph.increment_version(self.written)

    def is_served(self) -> bool:
        """Whether the compiled kernels are still those to take."""
        return self.operator.serves(self.written[0], self.name)


class Plan:
    """The next step of a group of parameters, by compiled kernels."""

    __slots__ = ("calls", "dtypes", "lr_at", "params", "settings", "shapes", "states", "values")

    def __init__(self, group: dict[str, Any], calls: list[_Call], states: dict[Tensor, dict[str, Any]]) -> None:
        self.params: list[Tensor] = list(group["params"])
        self.dtypes = [_DTYPE(p.grad) for p in self.params]
        self.settings = list(group.values())
        self.lr_at = list(group).index("lr")
        self.settings[self.lr_at] = None
        self.states = states
        self.values = list(chain.from_iterable(map(dict.values, states.values())))
        self.calls = calls
        # Only where no tensor of the state goes with a weight, which the operator would compare with it.
        self.shapes: list[torch.Size] | None = None

    def gradients(self, group: dict[str, Any], states: dict[Tensor, dict[str, Any]]) -> list[Tensor] | None:
        """The gradients of the next step; None if it must be looked at."""
        params, settings = group["params"], list(group.values())
        if len(params) != len(self.params) or len(settings) != len(self.settings):
            return None
        lr, settings[self.lr_at] = settings[self.lr_at], None
        values = list(chain.from_iterable(map(dict.values, states.values())))
        if (
            type(lr) is not float
            or not 0.0 <= lr <= LARGEST_NUMBER  # the operator would refuse it, with the groups before stepped
            or states is not self.states
            or len(values) != len(self.values)
            or not all(map(is_, params, self.params))
            or not all(map(is_, settings, self.settings))
            or not all(map(is_, values, self.values))
            or not tries_compiled()
            or not all(call.is_served() for call in self.calls)
            or any_silent()
            or (self.shapes is not None and [p.shape for p in params] != self.shapes)
        ):
            return None
        grads = [p.grad for p in params]
        if (
            set(map(type, grads)) != {Tensor}
            or list(map(_DTYPE, grads)) != self.dtypes
            or any(map(_IS_SPARSE, grads))
        ):
            return None
        return grads

    def step(self, group: dict[str, Any], grads: list[Tensor]) -> bool:
        """Takes the step; False, with nothing changed, if the operator refuses it."""
        lr = group["lr"]
        for call in self.calls:
            arguments = call.arguments
            arguments[1], arguments[4] = [grads[i] for i in call.which], lr
            if call.counts:
                torch._foreach_add_(call.counts, 1.0)
            try:
                call.run()
            except RuntimeError as error:
                if call.counts:
                    torch._foreach_sub_(call.counts, 1.0)
                if not is_refusal(error) or call is not self.calls[0]:
                    raise
                return False
            finally:
                arguments[1] = None  # gradients may be freed
        return True


def make_plan(
    operator: Operator,
    rule: Rule,
    group: dict[str, Any],
    members: Sequence[tuple[Slot, str, bool]],
    states: dict[Tensor, dict[str, Any]],
) -> Plan | None:
    """The plan for steps like the one that these members just had, each with its gate's kind and whether its
    states were new; None if such steps have to be looked at."""
    params = group["params"]
    position = {id(p): i for i, p in enumerate(params)}
    if (
        not tries_compiled()
        or any_silent()
        or len(members) != len(params)
        or len(position) != len(params)
        or group["nonfinite"] == "raise"
        or any(fresh for *_, fresh in members)
        or any(type(p.grad) is not Tensor or not are_plain([p], operator) for p in params)
        or isinstance(scale_in_force(group), Tensor)
    ):
        return None
    batches: dict[Any, list[tuple[Slot, str]]] = {}
    for slot, kind, _ in members:
        batches.setdefault((slot.param.dtype, _DTYPE(slot.param.grad)), []).append((slot, kind))
    calls = [_call(operator, rule, group, batch, position, states) for batch in batches.values()]
    if any(call is None for call in calls):
        return None
    plan = Plan(group, [call for call in calls if call is not None], states)
    if any(kind == "free" and slot.is_flexible(group) for slot, kind, _ in members):
        plan.shapes = [p.shape for p in params]
    return plan


def _drawn(source: Any, p: Tensor) -> Any:
    """A field of a small tensor on the CPU is drawn once: drawing takes a core 4 ns for each element, in every
    step. Its values, of which the bits are the same, are no state: they go with the plan."""
    if not isinstance(source, Field) or source is _FREE_ANCHOR or p.numel() > SMALL or not p.is_cpu:
        return source
    return ops.materialize(source, p.shape)


def _call(
    operator: Operator,
    rule: Rule,
    group: dict[str, Any],
    batch: list[tuple[Slot, str]],
    position: dict[int, int],
    states: dict[Tensor, dict[str, Any]],
) -> _Call | None:
    """One call for parameters of one dtype: those that move freely go with the others."""
    kinds = {kind for _, kind in batch}
    values: dict[str, Any] = {"scale": 1.0, "skip_nonfinite": group["nonfinite"] == "skip"}
    values |= vars(rule)
    params = [slot.param for slot, _ in batch]
    of = [states[p] for p in params]
    if "stored" in kinds:
        alphas = [
            state["alpha"] if kind == "stored" else _FREE_ALPHA
            for (_, kind), state in zip(batch, of, strict=True)
        ]
        dtypes = {alpha.dtype for alpha in alphas if alpha is not _FREE_ALPHA}
        if len(dtypes) > 1 or "step" in kinds or (torch.bfloat16 in dtypes and not params[0].is_cpu):
            return None
        values["alpha"] = alphas
    else:
        gated = [kind == "step" for _, kind in batch]
        anchors = [
            slot.anchor_here(state) if g else _FREE_ANCHOR
            for (slot, _), state, g in zip(batch, of, gated, strict=True)
        ]
        flexibilities = [
            _drawn(slot.flexibility_here(), slot.param) if g else 1.0
            for (slot, _), g in zip(batch, gated, strict=True)
        ]
        sources = quick_sources([_drawn(a, p) for a, p in zip(anchors, params, strict=True)], flexibilities)
        if sources is None:
            return None
        values |= dict(zip(("anchor", "flexibility", "sources", "parameters"), sources, strict=True))
        values["scale"] = scale_in_force(group) if any(gated) else 1.0
    names = [*rule.needs(), *(["master"] if params[0].dtype is not torch.float32 else [])]
    written = list(params)
    for name in names:
        values[name] = [state[name] for state in of]
        written += values[name]
    if rule.COUNTS_STEPS:
        values["step"] = [state["step"] for state in of]
    public = None if "step" in kinds else f"gated_{rule.NAME.lower()}_"
    if not are_plain(written, operator, public):
        return None
    declared = operator.spec.arguments
    arguments = [params, None, *(values.get(a.name, a.default) for a in declared[2:])]
    arguments[2:4] = [values.get("anchor"), values.get("flexibility")]
    while declared[len(arguments) - 1].default == arguments[-1] and not declared[len(arguments) - 1].required:
        arguments.pop()  # an argument that is passed costs time
    call = _Call(operator, public, arguments, [position[id(p)] for p in params], written)
    call.counts = values.get("step", [])
    return call
