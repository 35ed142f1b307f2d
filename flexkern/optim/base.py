"""What the metaplastic optimizers have in common: all but their rule (docs/design.md, Optimizers)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from flexkern import ops
from flexkern.nn.fused.stepped_grad import SteppedGrad
from flexkern.nn.silent.layer_of_weight import silent_synapses
from flexkern.ops import checks
from flexkern.optim import groups
from flexkern.optim.groups import STORED, exact_dtype
from flexkern.optim.scale import FirstItem, auto_scale
from flexkern.optim.slot import Slot
from flexkern.spec import Rule

__all__ = ["MetaplasticOptimizer", "Steps"]


class Steps(NamedTuple):
    """The operators that step by a rule: with alpha computed in the step, with an alpha that is given, over a
    layer with silent synapses, and inside a layer's backward pass."""

    step: Callable[..., None]
    gated: Callable[..., None]
    synapse: Callable[..., Any]
    linear: Callable[..., ops.Conversions]


class MetaplasticOptimizer(Optimizer):
    """An optimizer of which each weight moves by alpha times the step that the plain one would take.

    A subclass has the rule and its operators, and says in its constructor which numbers there are. It says how
    far a steady gradient takes a weight in :meth:`watch_step`, and, where a step with new states has other
    numbers than the group, which in :meth:`rule_of`.
    """

    rule: ClassVar[type[Rule]]
    steps: ClassVar[Steps]

    def watch_step(self, first_item: FirstItem, group: dict[str, Any]) -> FirstItem:
        """What ``scale="auto"`` is measured from, after one more step of this group."""
        raise NotImplementedError

    def rule_of(self, group: dict[str, Any], state: dict[str, Any], fresh: bool) -> Rule:
        """The numbers for a step of a parameter with this state; ``fresh``: the rule's states are new."""
        return self.rule.of(group)

    def told_apart_by(self, state: dict[str, Any], fresh: bool) -> Hashable:
        """What :meth:`rule_of` makes of a parameter beside its group: those that agree in it step together."""
        return fresh

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in :meth:`torch.optim.Optimizer.add_param_group`.

        In the group that results, ``flexibility`` and ``anchor`` are lists with an entry for each parameter.

        Raises:
            TypeError, ValueError: if a value does not fit; the optimizer is then as it was before.
        """
        first = sum(len(group["params"]) for group in self.param_groups)
        super().add_param_group(dict(param_group) if isinstance(param_group, dict) else param_group)
        group = self.param_groups.pop()
        groups.check_group(group, self.rule)
        flexibility = groups.resolve_flexibilities(group, first)
        group["anchor"] = groups.resolve_anchors(group)
        group["flexibility"] = [STORED if isinstance(f, Tensor) else f for f in flexibility]
        group["measured_scale"] = None
        for p, f in zip(group["params"], flexibility, strict=True):
            if isinstance(f, Tensor):
                self.state[p]["flexibility"] = f
        self.param_groups.append(group)

    @torch.no_grad()
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
            ValueError: if a weight does not hold the values of the Field that was given as its anchor.
            FloatingPointError: if a gradient is not finite and ``nonfinite="raise"``.
            RuntimeError: if a weight with a fused step is in the middle of its window, or had its step before.

        No weight has been changed when one of these is raised.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            groups.check_grads(group, self)
        # All that can refuse comes before the first weight changes.
        batches = [(group, self._batches(group)) for group in self.param_groups]
        for group, of_group in batches:
            for (*_, kind, fresh), members in of_group.items():
                self._step_batch(members, kind, fresh)
            stepped = [slot.i for members in of_group.values() for slot in members]
            for i, p in enumerate(group["params"]):
                if isinstance(p.grad, SteppedGrad):
                    p.grad.counted = True
                    stepped.append(i)
            if groups.is_unmeasured(group):
                self._watch_first_item(group, stepped)
        return loss

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
        slot = self._slot_of(weight)
        if slot is None:
            raise ValueError(f"weight of shape {tuple(weight.shape)} is not a parameter of this optimizer")
        if slot.group["nonfinite"] == "raise":
            checks.check_finite([x], "x")
            checks.check_finite([grad_out], "grad_out")
        kind, fresh = slot.prepare(self.rule.of(slot.group).needs())
        arguments = slot.gate(kind) | self._rule([slot], fresh, several=False)
        synapses = slot.synapses
        if synapses is None or post is None:
            return self.steps.linear(weight, x, grad_out, **arguments)
        arguments |= {"silent": synapses.silent, "post": post, "rule": synapses.rule, **synapses.insertion()}
        conversions = self.steps.linear(weight, x, grad_out, **arguments)
        synapses.passed(conversions)
        return conversions

    def owns(self, weight: Tensor) -> bool:
        """Whether ``weight`` is one of this optimizer's parameters."""
        return self._slot_of(weight) is not None

    @torch.no_grad()
    def consolidate(self) -> None:
        """An item ends: alpha is taken anew from the weights as they stand, at the next step.

        With ``scale="auto"`` the first call measures the scale (and waits for the device). A group of which no
        flexible weight has had a step yet goes on waiting for its first item.

        Raises:
            RuntimeError: with ``scale="auto"`` if there is nothing to measure: no step has been taken, or the
                weights are still where they started. Nothing has been changed then.
        """
        waiting = [group for group in self.param_groups if groups.is_unmeasured(group)]
        if waiting and not any("anchor" in state for state in self.state.values()):
            raise RuntimeError(
                "scale='auto' is measured over the first item, but no flexible weight has had a step yet; call "
                "consolidate() after the first item's steps, or give scale a number"
            )
        measured = [self._measure_scale(group) for group in waiting]
        for group, scale in zip(waiting, measured, strict=True):
            group["measured_scale"] = scale
        for group in self.param_groups:
            if not groups.is_unmeasured(group):
                for p in group["params"]:
                    self.state[p].pop("alpha", None)
                    self.state[p].pop("first_item", None)
            for p in group["params"]:
                synapses = silent_synapses(p)
                if synapses is not None:
                    synapses.end_item()

    def scales(self) -> list[float | Tensor | None]:
        """The scale in force in each group; None where "auto" has not measured it yet."""
        return [groups.scale_in_force(group) for group in self.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """As in :class:`torch.optim.Optimizer`; holds tensors and plain data, so that
        ``torch.load(weights_only=True)`` reads it. Fields are written as dictionaries."""
        state_dict = super().state_dict()
        plain = [groups.encode_group(group) for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": plain}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, to the bit, on the devices of this optimizer's parameters.

        Raises:
            ValueError: if it is not the state of such an optimizer or does not fit the parameters; nothing has
                been changed then.
        """
        # torch casts all floating state to the parameter's dtype, which would round a bfloat16 parameter's
        # master and anchor. So it is given no state, and the state is restored here; as hooks, so that the
        # user's own hooks see what they expect before and after.
        loaded: dict[Tensor, dict[str, Any]] = {}

        def decode(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            decoded = [groups.decode_group(group) for group in saved["param_groups"]]
            # torch refuses other numbers of groups and of parameters after this hook.
            for group, saved_group in zip(self.param_groups, decoded, strict=False):
                for p, key in zip(group["params"], saved_group["params"], strict=False):
                    loaded[p] = {
                        k: _restored(p, k, v, self.rule) for k, v in saved["state"].get(key, {}).items()
                    }
            return {**saved, "state": {}, "param_groups": decoded}

        def restore(_: Optimizer) -> None:
            self.state.update(loaded)

        hooks = [
            self.register_load_state_dict_pre_hook(decode),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    # ------------------------------------------------------------------ one step

    def _slot(self, group: dict[str, Any], i: int) -> Slot:
        return Slot(group, i, self.state[group["params"][i]])

    def _slot_of(self, weight: Tensor) -> Slot | None:
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                if p is weight:
                    return self._slot(group, i)
        return None

    def _batches(self, group: dict[str, Any]) -> dict[tuple, list[Slot]]:
        """The parameters that step: those of one key go in one call."""
        batches: dict[tuple, list[Slot]] = {}
        needed = self.rule.of(group).needs()
        for i, p in enumerate(group["params"]):
            if p.grad is None or isinstance(p.grad, SteppedGrad):
                continue
            slot = self._slot(group, i)
            kind, fresh = slot.prepare(needed)
            alone = None if slot.synapses is None else i
            own = self.told_apart_by(slot.state, fresh)
            batches.setdefault((p.device, p.dtype, p.grad.dtype, alone, own, kind, fresh), []).append(slot)
        return batches

    def _rule(self, slots: list[Slot], fresh: bool, *, several: bool = True) -> dict[str, Any]:
        """The step of these parameters of one group and dtype, but for its alpha; one, if not ``several``."""
        group = slots[0].group
        rule = self.rule_of(group, slots[0].state, fresh)
        lr = group["lr"]
        arguments: dict[str, Any] = {
            "lr": lr.to(torch.float32) if isinstance(lr, Tensor) else lr,
            # With "raise" all that goes into a step has been looked at before it begins.
            "nonfinite": "propagate" if group["nonfinite"] == "propagate" else "skip",
            **rule.keywords(),
        }
        low = slots[0].param.dtype in checks.LOW_PRECISION
        for name in (*rule.needs(), *(["master"] if low else [])):
            values = [slot.state[name] for slot in slots]
            arguments[name] = values if several else values[0]
        return arguments

    def _step_batch(self, slots: list[Slot], kind: str, fresh: bool) -> None:
        params = [slot.param for slot in slots]
        grads = [cast(Tensor, slot.param.grad) for slot in slots]
        synapses = slots[0].synapses
        if synapses is not None and synapses.may_convert():
            arguments = slots[0].gate(kind) | self._rule(slots, fresh, several=False)
            arguments |= {"silent": synapses.silent, **synapses.recorded(), **synapses.insertion()}
            synapses.passed(cast(ops.Conversions, self.steps.synapse(params[0], grads[0], **arguments)))
            return
        rule = self._rule(slots, fresh)
        if kind == "free":
            self.steps.gated(params, grads, None, **rule)
        elif kind == "stored":
            self.steps.gated(params, grads, [slot.state["alpha"] for slot in slots], **rule)
        else:
            anchors, flexibilities = [slot.anchor() for slot in slots], [slot.flexibility() for slot in slots]
            scale = groups.scale_in_force(slots[0].group)
            self.steps.step(params, grads, anchors, flexibilities, scale=scale, **rule)

    def _watch_first_item(self, group: dict[str, Any], stepped: Iterable[int]) -> None:
        """Keeps of the group's last flexible weight what ``scale="auto"`` is measured from."""
        params, f = group["params"], group["flexibility"]
        watched = [i for i in stepped if groups.is_flexible(group, i) and f[i] != 0.0 and params[i].numel()]
        if not watched:
            return
        state = self.state[params[max(watched)]]
        watch = self.watch_step(FirstItem(*state.get("first_item", ())), group)
        # After steps 1, 2, 4, 8, ...: a look reads the weight and waits for the device.
        if watch.steps & (watch.steps - 1) == 0:
            watch = watch.look(self._slot(group, max(watched)).displacement())
        state["first_item"] = tuple(watch)

    def _measure_scale(self, group: dict[str, Any]) -> float | None:
        watched = [i for i, p in enumerate(group["params"]) if "first_item" in self.state[p]]
        if not watched:
            return None
        watch = FirstItem(*self.state[group["params"][max(watched)]]["first_item"])
        scale = auto_scale(watch, self._slot(group, max(watched)).displacement())
        if not (math.isfinite(scale) and scale > 0):
            raise RuntimeError(
                f"scale='auto' cannot be measured, it came out as {scale}: in the first item the weights have "
                "not moved, or not to finite values; look at lr and the gradients, or give scale a number"
            )
        return scale


def _restored(p: Tensor, name: str, value: Any, rule: type[Rule]) -> Any:
    """A value of a saved state for parameter ``p``."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != p.shape:
        raise ValueError(
            f"state_dict: {name} has shape {tuple(value.shape)} but its parameter has {tuple(p.shape)}"
        )
    # What steps write to must not be shared with the state_dict that was given.
    written = name in (*rule.STATES, "master") or (name == "anchor" and silent_synapses(p) is not None)
    rounded = name == "alpha" and value.dtype is torch.bfloat16
    dtype = torch.bfloat16 if rounded else exact_dtype(p)
    return value.to(device=p.device, dtype=dtype, copy=written)
