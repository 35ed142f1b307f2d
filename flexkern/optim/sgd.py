"""Optimizers whose synapses resist being moved from where they started (arXiv 2407.07133; DESIGN 1.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from flexkern import ops
from flexkern.fields import Field
from flexkern.nn.fused.stepped_grad import SteppedGrad
from flexkern.nn.silent.registry import silent_synapses
from flexkern.ops import checks
from flexkern.optim import groups
from flexkern.optim.groups import STORED, Flexibility, exact_dtype
from flexkern.optim.scale import FirstItem, auto_scale
from flexkern.optim.slot import Slot

__all__ = ["MetaplasticSGD"]


class MetaplasticSGD(Optimizer):
    """SGD in which each weight moves by ``alpha = sech(scale (1 - f) / f |w - a|)^2`` of its step.

    A weight w that has moved far from its anchor a (its value at initialisation) holds what was learned and
    gets stiff; a flexible one (f near 1) gets stiff late, a stable one (f near 0) soon. So a network trained
    on a stream of items keeps the early ones, at the cost of plain SGD. Call :meth:`consolidate` where an item
    (task) ends::

        optimizer = flexkern.optim.MetaplasticSGD(model.parameters(), lr=1e-4, scale=4e5)
        for item in stream:
            for x, y in item:
                optimizer.zero_grad()
                loss_function(model(x), y).backward()
                optimizer.step()
            optimizer.consolidate()

    Source: arXiv 2407.07133, section 2; its authors' release has lr 1e-4, momentum 0, batches of 1024, and
    scale 4e5 for streams of 10 items, 2e5 for 30.

    All arguments after ``params`` can be set for each parameter group.

    Args:
        params: parameters, named parameters or groups, as for every torch optimizer. float32, bfloat16,
            float16 or float64. A parameter of fewer than two dimensions (a bias) moves freely, alpha = 1,
            unless ``flexible_vectors``.
        lr: learning rate, a number or a one-element tensor.
        scale: s > 0, a number or a one-element tensor, or "auto": measured over the first item, in which alpha
            is 1 with either gate, by :func:`flexkern.optim.scale.auto_scale`; the first consolidate() sets it.
        flexibility: f in [0, 1], fixed for life. "uniform" (the hybrid network), "biased_high" or "biased_low"
            (the paper's supplement): procedural, drawn from ``seed`` and the parameter's position in the
            optimizer and never stored. A number for all (1: conventional, 0.3: the paper's stable network). A
            :class:`flexkern.Field`: as it is for a group of one parameter, else with its stream plus the
            parameter's position in the group. A tensor, for a group of one parameter. Or a list with a number,
            a Field or a tensor for each parameter. A tensor is kept, not copied.
        seed: of the procedural flexibility; 0 <= seed < 2**64.
        gate: "item" computes alpha once an item, at its first step, and holds it (as the release does; stores
            one more float32 tensor from the second item on); "step" computes it anew at each step.
        momentum, dampening, weight_decay, nesterov, maximize: as in :class:`torch.optim.SGD`. alpha scales the
            step, not what enters the momentum buffer.
        anchor: None: a float32 copy of each flexible weight, taken at the first step that has a gradient for
            it, so that moving, casting or loading the model after the optimizer was made does no harm. A
            :class:`flexkern.Field` (streams as for ``flexibility``) or a list of Fields and Nones, for weights
            that were initialised from that field: nothing is stored. It must be the very field; the first step
            compares (and waits for the device), because a wrong anchor silently freezes learning. The weight of
            a :class:`flexkern.nn.SilentLinear` has its layer's field, while it still holds its values.
        flexible_vectors: also parameters of fewer than two dimensions are flexible.
        nonfinite: what a NaN or infinite gradient does: "skip" leaves the synapses that it would spoil as they
            are, "raise" raises before any weight changes (waits for the device), "propagate" lets it through.
        alpha_dtype: how ``gate="item"`` holds alpha. torch.bfloat16 takes two bytes a weight less and, on the
            CPU, a seventh off the step's time; each step is off by at most 2**-8 of itself. It is held so by
            float32, bfloat16 and float16 weights on the CPU that have no silent synapses; others keep float32.
            Not for weights that are stepped in backward: their alpha is widened there at each step.

    State, for each parameter, all float32 (float64 for float64 parameters; ``alpha`` as ``alpha_dtype`` says),
    only what is needed: ``anchor``
    (None where procedural), ``alpha`` (None while it is 1 everywhere, as it is in a parameter's first item),
    ``momentum_buffer``, ``master`` (the exact weight of which a bfloat16 or float16 parameter is the rounding;
    write to such a parameter from outside, and the next step overwrites it), ``flexibility`` (a given tensor).
    :meth:`state_dict` holds tensors and plain data only.

    Raises:
        TypeError, ValueError: at construction and in :meth:`add_param_group`, naming the argument; nothing
            has been changed then.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        scale: float | Tensor | str,
        flexibility: str | Flexibility | list[Flexibility] = "uniform",
        seed: int = 0,
        gate: str = "item",
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        anchor: Field | list[Field | None] | None = None,
        flexible_vectors: bool = False,
        nonfinite: str = "skip",
        alpha_dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {
            "lr": lr,
            "scale": scale,
            "flexibility": flexibility,
            "seed": seed,
            "gate": gate,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "anchor": anchor,
            "flexible_vectors": flexible_vectors,
            "nonfinite": nonfinite,
            "alpha_dtype": alpha_dtype,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in :meth:`torch.optim.Optimizer.add_param_group`.

        In the group that results, ``flexibility`` and ``anchor`` are lists with an entry for each parameter.

        Raises:
            TypeError, ValueError: if a value does not fit; the optimizer is then as it was before.
        """
        first = sum(len(group["params"]) for group in self.param_groups)
        super().add_param_group(dict(param_group) if isinstance(param_group, dict) else param_group)
        group = self.param_groups.pop()
        groups.check_group(group)
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

        Silent synapses that were driven since the last step become functional in the same pass. Weights that
        their backward has stepped already (:func:`flexkern.optim.fuse_into_backward`) are left as they are.

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
        kind, fresh = slot.prepare()
        arguments = slot.gate(kind) | self._rule([slot], fresh, several=False)
        synapses = slot.synapses
        if synapses is None or post is None:
            return ops.linear_step_(weight, x, grad_out, **arguments)
        arguments |= {"silent": synapses.silent, "post": post, "rule": synapses.rule, **synapses.insertion()}
        conversions = ops.linear_step_(weight, x, grad_out, **arguments)
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
            ValueError: if it is not the state of a MetaplasticSGD or does not fit the parameters; nothing has
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
                    loaded[p] = {k: _restored(p, k, v) for k, v in saved["state"].get(key, {}).items()}
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
        for i, p in enumerate(group["params"]):
            if p.grad is None or isinstance(p.grad, SteppedGrad):
                continue
            slot = self._slot(group, i)
            kind, fresh = slot.prepare()
            alone = None if slot.synapses is None else i
            batches.setdefault((p.device, p.dtype, p.grad.dtype, alone, kind, fresh), []).append(slot)
        return batches

    def _rule(self, slots: list[Slot], fresh: bool, *, several: bool = True) -> dict[str, Any]:
        """The step of these parameters of one group and dtype, but for its alpha; one, if not ``several``."""
        group = slots[0].group
        rule = groups.step_numbers(group, fresh)
        low = slots[0].param.dtype in checks.LOW_PRECISION
        for name, needed in (("momentum_buffer", group["momentum"] != 0), ("master", low)):
            values = [slot.state[name] for slot in slots] if needed else None
            rule[name] = values if values is None or several else values[0]
        return rule

    def _step_batch(self, slots: list[Slot], kind: str, fresh: bool) -> None:
        params = [slot.param for slot in slots]
        grads = [cast(Tensor, slot.param.grad) for slot in slots]
        synapses = slots[0].synapses
        if synapses is not None and synapses.may_convert():
            arguments = slots[0].gate(kind) | self._rule(slots, fresh, several=False)
            arguments |= {"silent": synapses.silent, **synapses.recorded(), **synapses.insertion()}
            synapses.passed(cast(ops.Conversions, ops.synapse_step_(params[0], grads[0], **arguments)))
            return
        rule = self._rule(slots, fresh)
        if kind == "free":
            ops.gated_sgd_(params, grads, None, **rule)
        elif kind == "held":
            ops.gated_sgd_(params, grads, [slot.state["alpha"] for slot in slots], **rule)
        else:
            anchors, flexibilities = [slot.anchor() for slot in slots], [slot.flexibility() for slot in slots]
            scale = groups.scale_in_force(slots[0].group)
            ops.metaplastic_sgd_(params, grads, anchors, flexibilities, scale=scale, **rule)

    def _watch_first_item(self, group: dict[str, Any], stepped: Iterable[int]) -> None:
        """Keeps of the group's last flexible weight what ``scale="auto"`` is measured from."""
        params, f = group["params"], group["flexibility"]
        watched = [i for i in stepped if groups.is_flexible(group, i) and f[i] != 0.0 and params[i].numel()]
        if not watched:
            return
        state = self.state[params[max(watched)]]
        watch = FirstItem(*state.get("first_item", ())).step(
            float(group["lr"]), group["momentum"], group["dampening"], group["nesterov"]
        )
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


def _restored(p: Tensor, name: str, value: Any) -> Any:
    """A value of a saved state for parameter ``p``."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != p.shape:
        raise ValueError(
            f"state_dict: {name} has shape {tuple(value.shape)} but its parameter has {tuple(p.shape)}"
        )
    # What steps write to must not be shared with the state_dict that was given.
    written = name in ("momentum_buffer", "master") or (name == "anchor" and silent_synapses(p) is not None)
    rounded = name == "alpha" and value.dtype is torch.bfloat16
    dtype = torch.bfloat16 if rounded else exact_dtype(p)
    return value.to(device=p.device, dtype=dtype, copy=written)
