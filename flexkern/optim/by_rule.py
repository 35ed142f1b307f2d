"""Metaplastic optimizers that step by a rule of their own, with its operators: all but the rule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from operator import is_
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from flexkern import ops
from flexkern.nn.fused.stepped_grad import SteppedGrad
from flexkern.nn.silent.layer_of_weight import SilentSynapses, any_silent
from flexkern.nn.silent.recorded import share
from flexkern.ops import checks, linear, metaplastic, synapse
from flexkern.ops.layers import LayerGate
from flexkern.ops.operator import Operator
from flexkern.ops.steps import NO_OPTIONS, Options
from flexkern.optim import group_options, sharded
from flexkern.optim.base import MetaplasticOptimizer
from flexkern.optim.gradients import all_zero, check_grads
from flexkern.optim.group_options import scale_in_force
from flexkern.optim.quick import Plan, make_plan
from flexkern.optim.slot import Slot, is_unmeasured, split_insertion
from flexkern.spec import Rule

__all__ = ["RuleOptimizer"]


class _Batch(NamedTuple):
    """Parameters that step in one call."""

    slots: list[Slot]
    kind: str
    fresh: bool


class RuleOptimizer(MetaplasticOptimizer):
    """A metaplastic optimizer that steps by a rule of :mod:`flexkern.spec.rules`.

    A subclass has the rule, and says in its constructor which numbers there are. It says how far a steady
    gradient takes a weight in :meth:`watch_step`.
    """

    rule: ClassVar[type[Rule]]

    def _begin(self) -> None:
        super()._begin()
        self._plans: dict[
            int, Plan
        ] = {}  # by the identity of a group, as its settings at the last checked step
        self._seen: dict[int, tuple[Any, ...]] = {}

    def option_defaults(self) -> dict[str, Any]:
        return super().option_defaults() | {f.name: f.default for f in fields(self.rule)}

    def check_group(self, group: dict[str, Any]) -> None:
        group_options.check_group(group, self.rule)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient.

        Silent synapses whose coincidence since the last step reaches their threshold become functional in the
        same pass. Weights that their backward pass has stepped already
        (:func:`flexkern.optim.fuse_into_backward`) are left as they are.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError: if a gradient is sparse or of a dtype that does not fit its parameter.
            ValueError: if a weight does not hold the values of the Field that was given as its anchor, or
                FullyShardedDataParallel has flattened the parameters.
            FloatingPointError: if a gradient is not finite and ``nonfinite="raise"``; on all processes that
                share its parameter.
            RuntimeError: if a weight with a fused step is in the middle of its window, or had its step before.

        No weight has been changed when one of these is raised.
        """
        if self.must_be_eager():
            return sharded.eagerly(self._take_step, closure)
        return self._take_step(closure)

    def _take_step(self, closure: Callable[[], Any] | None) -> Any:
        loss = self.evaluate(closure)
        if not self._step_as_before():
            self._checked_step(self.param_groups)
        watch = self._no_effect
        if not watch.is_settled:
            self._look_for_effect()
        return loss

    # ------------------------------------------------------------------ a step as the one before

    def _step_as_before(self) -> bool:
        """The step of plans that were made when the step before was looked at; False if something has changed
        that they depend on, and nothing has been stepped."""
        plans = self._plans
        if len(plans) != len(self.param_groups):
            return False
        states = self.state
        grads = []
        for group in self.param_groups:
            plan = plans.get(id(group))
            of_group = None if plan is None else plan.gradients(group, states)
            if of_group is None:
                return False
            grads.append(of_group)
        for i, group in enumerate(self.param_groups):
            if not plans[id(group)].step(group, grads[i]):
                # The operator refuses: the checks know better.
                self._checked_step(self.param_groups[i:])
                break
        return True

    def _plan(self, group: dict[str, Any], batches: list[_Batch]) -> None:
        """After a checked step: a plan for the next one, if the two that were last had the same settings."""
        plans, seen = self._plans, self._seen
        plans.pop(id(group), None)
        here = {id(known) for known in self.param_groups}
        for gone in seen.keys() - here:  # load_state_dict replaces the groups
            plans.pop(gone, None)
            del seen[gone]
        settings = tuple(value for name, value in group.items() if name != "lr")
        before, seen[id(group)] = seen.get(id(group)), settings
        if before is None or len(before) != len(settings) or not all(map(is_, before, settings)):
            return
        members = [(slot, batch.kind, batch.fresh) for batch in batches for slot in batch.slots]
        plan = make_plan(
            self._operator(metaplastic.STEPS, "metaplastic"), self.rule.of(group), group, members, self.state
        )
        if plan is not None:
            plans[id(group)] = plan

    # ------------------------------------------------------------------ a step that is looked at

    @torch.no_grad()
    def _checked_step(self, param_groups: list[dict[str, Any]]) -> None:
        self.check_settings()
        slots = [self.slots_of(group) for group in param_groups]
        self.check_sharded()
        for group in param_groups:
            check_grads(group, self)
            if group["nonfinite"] == "raise":
                self.check_finite(group)
        self._check_reset(slot for of_group in slots for slot in of_group)
        if not self.state and all_zero(param_groups):
            # So torch.distributed.checkpoint asks which state there will be. It is no step.
            for group, of_group in zip(param_groups, slots, strict=True):
                self._batches(group, of_group, is_template=True)
            return
        # All that can refuse comes before the first weight changes.
        work = [self._batches(group, of_group) for group, of_group in zip(param_groups, slots, strict=True)]
        if any_silent():  # what they have recorded is added up while other parameters step
            synapses = [slot.synapses for batches in work for batch in batches for slot in batch.slots]
            share(s for s in synapses if s is not None and s.may_convert())
        for group, of_group, batches in zip(param_groups, slots, work, strict=True):
            for batch in batches:
                self._step_batch(group, batch)
            stepped = {slot for batch in batches for slot in batch.slots}
            for slot in of_group:
                if isinstance(slot.param.grad, SteppedGrad):
                    slot.param.grad.counted = True
                    stepped.add(slot)
            self._has_stepped(group, stepped)
            if is_unmeasured(group, of_group):
                self._watch_first_item(group, [slot for slot in of_group if slot in stepped])
            else:
                self._plan(group, batches)

    def _batches(self, group: dict[str, Any], slots: list[Slot], *, is_template: bool = False) -> list[_Batch]:
        """The parameters that step: those of one key go in one call."""
        batches: dict[tuple, _Batch] = {}
        needed, unmeasured = self.rule.of(group).needs(), is_unmeasured(group, slots)
        occurrences: dict[Slot, int] = {}
        for slot in slots:
            p = slot.param
            if p.grad is None or isinstance(p.grad, SteppedGrad):
                continue
            state = self.state[p]
            fresh = slot.prepare(group, state, needed, self.rule.COUNTS_STEPS, is_template)
            kind = slot.gate_kind(group, state, unmeasured)
            alone = None if slot.synapses is None else slot
            # One that is in the list twice steps twice, and its second step finds the states of its first.
            occurrences[slot] = again = occurrences.get(slot, 0) + 1
            fresh = fresh and again == 1
            key = (p.device, p.dtype, p.grad.dtype, alone, again, kind, fresh)
            batches.setdefault(key, _Batch([], kind, fresh)).slots.append(slot)
        return list(batches.values())

    def _operator(self, steps: dict[str, Operator], family: str) -> Operator:
        return steps[self.rule.operator(family)]

    def _given(self, group: dict[str, Any], slots: list[Slot], fresh: bool, *, several: bool) -> Options:
        """The step of these parameters of one group and dtype, but for its gate; of one, if not ``several``."""
        rule = self.rule.of(group)
        rule = rule.of_first_step() if fresh else rule
        lr = group["lr"]

        def state(name: str) -> Any:
            values = [sharded.here(self.state[slot.param][name]) for slot in slots]
            return values if several else values[0]

        states = {name: state(name) if name in rule.needs() else None for name in rule.STATES}
        if self.rule.COUNTS_STEPS:
            states["step"] = state("step")
        return Options(
            lr=lr.to(torch.float32) if isinstance(lr, Tensor) else group_options.plain_number(lr, "lr"),
            scale=1.0,
            states=states,
            master=state("master") if slots[0].param.dtype in checks.LOW_PRECISION else None,
            # With "raise" all that goes into a step has been looked at before it begins.
            nonfinite="propagate" if group["nonfinite"] == "propagate" else "skip",
            rule=rule.keywords(),
            insertion=NO_OPTIONS,
        )

    @contextlib.contextmanager
    def _counted(self, slots: list[Slot]) -> Iterator[None]:
        """A step of these parameters, which counts unless it is refused."""
        counts = [self.state[slot.param]["step"] for slot in slots] if self.rule.COUNTS_STEPS else []
        if counts:
            torch._foreach_add_(counts, 1.0)
        try:
            yield
        except Exception:
            if counts:
                torch._foreach_sub_(counts, 1.0)
            raise

    def _step_batch(self, group: dict[str, Any], batch: _Batch) -> None:
        with self._counted(batch.slots):
            self._step_counted(group, batch)

    def _step_counted(self, group: dict[str, Any], batch: _Batch) -> None:
        slots, kind, fresh = batch
        params = [sharded.here(slot.param) for slot in slots]
        grads = [sharded.here(cast(Tensor, slot.param.grad)) for slot in slots]
        states = [self.state[slot.param] for slot in slots]
        synapses = slots[0].synapses
        if synapses is not None and synapses.may_convert():
            self._step_layer(group, slots[0], fresh, grads[0], synapses)
            return
        operator = self._operator(metaplastic.STEPS, "metaplastic")
        given = self._given(group, slots, fresh, several=True)
        if kind == "step":
            anchors = [slot.anchor_here(state) for slot, state in zip(slots, states, strict=True)]
            flexibilities = [slot.flexibility_here() for slot in slots]
            given = given._replace(scale=scale_in_force(group))
            metaplastic.step_by_rule(operator, params, grads, anchors, flexibilities, given)
        else:
            alphas = None if kind == "free" else [sharded.here(state["alpha"]) for state in states]
            name = f"gated_{self.rule.NAME.lower()}_"
            metaplastic.gated_step_by_rule(operator, name, params, grads, alphas, given)

    def _layer(self, group: dict[str, Any], slot: Slot, fresh: bool) -> tuple[LayerGate, Options]:
        """Gate and options of the step of one layer."""
        state = self.state[slot.param]
        kind = slot.gate_kind(group, state, is_unmeasured(group, self.slots_of(group)))
        gate, scale = slot.gate(group, state, kind)
        return gate, self._given(group, [slot], fresh, several=False)._replace(scale=scale)

    def _step_layer(
        self, group: dict[str, Any], slot: Slot, fresh: bool, grad: Tensor, synapses: SilentSynapses
    ) -> None:
        gate, given = self._layer(group, slot, fresh)
        threshold, insertion = split_insertion(synapses)
        recorded = {"pre": None, "post": None, "coincidence": None} | synapses.recorded()
        conversions = synapse.synapse_step_by_rule(
            self._operator(synapse.STEPS, "synapse"), sharded.here(slot.param), grad, gate, synapses.silent,
            recorded["pre"], recorded["post"], recorded["coincidence"], threshold,
            given._replace(insertion=insertion),
        )  # fmt: skip
        synapses.passed(cast(ops.Conversions, conversions))

    # ------------------------------------------------------------------ inside a backward pass

    @torch.no_grad()
    def step_in_backward(
        self, weight: Tensor, x: Tensor, grad_out: Tensor, post: Tensor | None = None
    ) -> ops.Conversions:
        """The step of one weight [out, in] with the gradient ``grad_out^T x``, which is never formed.

        :class:`flexkern.nn.MetaplasticLinear` calls it in its backward pass. It is the step that :meth:`step`
        takes with such a gradient, up to rounding.

        Args:
            weight: one of this optimizer's parameters.
            x: [batch, in], the layer's input.
            grad_out: [batch, out], the loss's derivative by its output; dtype of ``x``.
            post: [batch, out], what its units did, for a weight with silent synapses; dtype of ``x``. None: no
                synapse converts.

        Raises:
            ValueError: if this optimizer does not own the weight; as :meth:`step`.
            FloatingPointError: if ``x`` or ``grad_out`` is not finite and ``nonfinite="raise"``.

        The weight has not been changed when one of these is raised.
        """
        group = self._group_of(weight)
        if group is None:
            raise ValueError(f"weight of shape {tuple(weight.shape)} is not a parameter of this optimizer")
        if group["nonfinite"] == "raise":
            checks.check_finite([x], "x")
            checks.check_finite([grad_out], "grad_out")
        self.slots_of(group)
        slot = self._slots[weight]
        self._check_reset([slot])
        state = self.state[weight]
        fresh = slot.prepare(group, state, self.rule.of(group).needs(), self.rule.COUNTS_STEPS)
        gate, given = self._layer(group, slot, fresh)
        operator, synapses = self._operator(linear.STEPS, "linear"), slot.synapses
        with self._counted([slot]):
            if synapses is None or post is None:
                conversions = linear.linear_step_by_rule(
                    operator, weight, x, grad_out, gate, None, None, "hebbian", 0.0, given
                )
            else:
                threshold, insertion = split_insertion(synapses)
                conversions = linear.linear_step_by_rule(
                    operator, weight, x, grad_out, gate, synapses.silent, post, synapses.rule, threshold,
                    given._replace(insertion=insertion),
                )  # fmt: skip
                synapses.passed(conversions)
        self._has_stepped(group, [slot])
        return conversions

    def owns(self, weight: Tensor) -> bool:
        """Whether ``weight`` is one of this optimizer's parameters."""
        return self._group_of(weight) is not None

    def _group_of(self, weight: Tensor) -> dict[str, Any] | None:
        for group in self.param_groups:
            if any(p is weight for p in group["params"]):
                return group
        return None

    def _written(self) -> tuple[str, ...]:
        return (*super()._written(), *self.rule.STATES)
