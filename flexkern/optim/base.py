"""What the metaplastic optimizers have in common, whatever takes their steps (docs/design.md, Optimizers).

The state of each parameter, items, the measured scale, checkpoints and copies.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flexkern.nn.fused.stepped_grad import SteppedGrad
from flexkern.nn.silent.layer_of_weight import silent_synapses
from flexkern.ops import checks
from flexkern.ops.checks import exact_dtype
from flexkern.optim import agreement, flexibilities, group_options, plain_state, sharded
from flexkern.optim.group_options import scale_in_force
from flexkern.optim.members import OptimizerOfSlots, check_params, settings_of
from flexkern.optim.no_effect import LONG, NoEffect
from flexkern.optim.partition import Measured, partition_being_made
from flexkern.optim.scale import FirstItem, auto_scale
from flexkern.optim.slot import Slot, is_unmeasured
from flexkern.spec.argument import shown

__all__ = ["MetaplasticOptimizer"]


class MetaplasticOptimizer(OptimizerOfSlots):
    """An optimizer of which each weight moves by alpha times the step that the plain one would take.

    A subclass takes the steps, and says what its groups hold beside the options of
    :mod:`flexkern.optim.group_options`.

    Args:
        params: as for every torch optimizer.
        defaults: options of the groups.
        model: whose names the parameters have, if ``params`` are not named.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], model: nn.Module | None = None) -> None:
        self._slots: dict[Tensor, Slot] = {}
        self._fused: list[tuple[Any, int]] = []  # layers that are stepped in backward, with their windows
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self._names: dict[Tensor, str] = (
            {} if model is None else {p: name for name, p in model.named_parameters()}
        )
        self._begin()
        self._partition = partition_being_made()
        check_params(params)
        super().__init__(params, defaults)
        sharded.check_not_flattened(self._parameters())

    def _begin(self) -> None:
        self._looked_at, self._was_without = {}, False
        self._partition = None
        self._no_effect = NoEffect(type(self).__name__)
        weakref.finalize(self, self._no_effect.end)

    def option_defaults(self) -> dict[str, Any]:
        """What a saved group that lacks an option gets."""
        return dict(group_options.DEFAULTS)

    def watch_step(self, first_item: FirstItem, group: dict[str, Any]) -> FirstItem:
        """What ``scale="auto"`` is measured from, after one more step of this group: a steady gradient takes a
        weight ``lr`` far in a step, if a subclass does not know better."""
        return first_item.step(float(group["lr"]))

    # ------------------------------------------------------------------ items

    @torch.no_grad()
    def consolidate(self) -> None:
        """An item ends: alpha is taken anew from the weights as they stand, at the next step.

        With ``scale="auto"`` the first call measures the scale (and waits for the device). A group of which no
        flexible weight has had a step yet goes on waiting for its first item. Of weights that are spread over
        processes (DTensor, ZeroRedundancyOptimizer) the scale is that of the whole network, so all of them have
        to call this.

        Raises:
            RuntimeError: with ``scale="auto"`` if there is nothing to measure: no step has been taken, or the
                weights are still where they started. Nothing has been changed then.
        """
        slots = [self.slots_of(group) for group in self.param_groups]
        measured = [self._measured(group, of) for group, of in zip(self.param_groups, slots, strict=True)]
        begun = any(state.get("items") and "anchor" in state for state in self.state.values())
        if self._partition is not None:
            measured, begun = self._partition.agreed(measured, begun)
        if any(of_group.waits for of_group in measured) and not begun:
            raise RuntimeError(
                "scale='auto' is measured over the first item, but no flexible weight has had a step yet; call "
                "consolidate() after the first item's steps, or give scale a number"
            )
        for of_group in measured:
            if of_group.error:
                raise RuntimeError(of_group.error)
        for group, of_group in zip(self.param_groups, measured, strict=True):
            if of_group.scale:
                group |= {"measured_scale": of_group.scale, "first_item": tuple(FirstItem())}
        if self._partition is not None:
            self._partition.tell(self.param_groups, ("measured_scale", "first_item"))
        for group, of in zip(self.param_groups, slots, strict=True):
            for slot in of:
                state = self.state.get(slot.param, {})
                if state.get("items") and not is_unmeasured(group, of):
                    state["items"] += 1
                synapses = slot.synapses
                if synapses is not None:
                    synapses.end_item()
        self._no_effect.is_settled = True

    def exact(self, parameter: Tensor) -> Tensor:
        """The weight that steps are taken on, of the part of a parameter that is here.

        Args:
            parameter: one of this optimizer's.

        Returns:
            The parameter itself, detached; of a bfloat16 or float16 one its float32 master, or itself widened
            where it has none yet or was written from outside.

        Raises:
            ValueError: if it is not a parameter of this optimizer.
        """
        for group in self.param_groups:
            if any(p is parameter for p in group["params"]):
                self.slots_of(group)
                weight = self._slots[parameter].weight(self.state.get(parameter, {}))
                return weight.to(exact_dtype(weight))
        raise ValueError(f"parameter of shape {tuple(parameter.shape)} is not one of this optimizer")

    def scales(self) -> list[float | Tensor | None]:
        """The scale in force in each group; None where "auto" has not measured it yet."""
        return [scale_in_force(group) for group in self.param_groups]

    def measures_scale(self) -> bool:
        """Whether a group's scale="auto" is being measured; then each step may look at values."""
        return any(is_unmeasured(group, self.slots_of(group)) for group in self.param_groups)

    def _watch_first_item(self, group: dict[str, Any], stepped: Iterable[Slot]) -> None:
        """Keeps of the group's last flexible weight what ``scale="auto"`` is measured from."""
        watched = [slot for slot in stepped if slot.can_be_watched(group)]
        if not watched:
            return
        last, before = watched[-1], FirstItem(*group["first_item"])
        order = [slot.stream for slot in self.slots_of(group)]
        if before.watched in order and before.watched != last.stream:
            if order.index(before.watched) > order.index(last.stream):
                return  # the one that is watched has had no step
            before = FirstItem()
        before = before._replace(watched=last.stream)
        watch = self.watch_step(before, group)
        # After steps 1, 2, 4, 8, ...: a look reads the weight and waits for the device.
        if watch.steps & (watch.steps - 1) == 0:
            moved = last.displacement(self.state[last.param])
            # A step that moves nothing (a zero gradient, a skipped NaN, lr 0) is not the first one.
            watch = before if watch.steps == 1 and moved == 0.0 else watch.look(moved)
        group["first_item"] = tuple(watch)

    def _measured(self, group: dict[str, Any], slots: list[Slot]) -> Measured:
        """What ``scale="auto"`` comes to, where the group waits for it and a flexible weight has had a step."""
        if not is_unmeasured(group, slots):
            return Measured()
        watch = FirstItem(*group["first_item"])
        begun = [s for s in slots if s.can_be_watched(group) and self.state.get(s.param, {}).get("items")]
        if not begun:
            return Measured(waits=True)
        watched = next((slot for slot in begun if slot.stream == watch.watched), begun[-1])
        scale = auto_scale(watch, watched.displacement(self.state[watched.param]))
        error = ""
        if not (math.isfinite(scale) and scale > 0):
            error = (
                f"scale='auto' cannot be measured, it came out as {scale}: in the first item the weights have "
                "not moved, or not to finite values; look at lr and the gradients, or give scale a number"
            )
        place = 0 if self._partition is None else self._partition.places([watched.param])[0]
        return Measured(place, scale, error, waits=True)

    # ------------------------------------------------------------------ around a step

    @staticmethod
    def evaluate(closure: Any) -> Any:
        """The loss, where there is something that evaluates it."""
        if closure is None:
            return None
        if not callable(closure):
            raise TypeError(f"closure must be a function that evaluates the loss, got {shown(closure)}")
        with torch.enable_grad():
            return closure()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def must_be_eager(self) -> bool:
        """Whether a step is being compiled that has to be taken outside of what is compiled."""
        return torch.compiler.is_compiling() and any(map(sharded.is_sharded, self._parameters()))

    def check_sharded(self) -> None:
        """Before a step: that no wrapper which came after this optimizer has taken its parameters away.

        Raises:
            ValueError: if FullyShardedDataParallel has flattened them.
        """
        params = self._parameters()
        sharded.check_not_flattened(params)
        lone = self._was_without or not params or any(p.grad is not None for p in params)
        if not lone and torch.distributed.is_available() and torch.distributed.is_initialized():
            self._was_without = True  # it is said once
            warnings.warn(
                f"{type(self).__name__}.step() found no gradient at all. FullyShardedDataParallel, fully_shard "
                "and parallelize_module give the model other parameters: make the optimizer after them",
                stacklevel=4,
            )

    def check_finite(self, group: dict[str, Any]) -> None:
        """For ``nonfinite="raise"``: all gradients of a group are finite, also where other processes have them.

        Raises:
            FloatingPointError: if one is not; in each process that shares the parameters.
        """
        params = [p for p in group["params"] if p.grad is not None and not isinstance(p.grad, SteppedGrad)]
        error = None
        try:
            checks.check_finite([sharded.here(p.grad) for p in params])
        except FloatingPointError as found:
            error = found
        bad = agreement.anywhere(error is not None, params)
        if self._partition is not None:
            bad = self._partition.anywhere(bad)
        if bad:
            raise error or FloatingPointError(
                "a gradient has infinite or NaN elements in the part that another process has, and "
                "nonfinite='raise'; nothing was changed"
            )

    def _check_reset(self, slots: Iterable[Slot]) -> None:
        """Parameters whose state was taken away begin anew: their anchors are taken from the weights as they
        stand. Says so once."""
        gone = [slot for slot in slots if slot.has_begun and not self.state.get(slot.param, {}).get("items")]
        for slot in gone:
            slot.has_begun = False
            slot.anchor = None  # the weights have left the Field that they began from
        if gone:
            warnings.warn(
                f"the state of {len(gone)} parameters of {type(self).__name__} was removed, they begin anew: "
                "anchors are taken from the weights as they are now, and what was learned so far is not "
                "protected any more. Flexibilities stay. To end an item, call consolidate(), not a reset",
                stacklevel=4,
            )

    def _has_stepped(self, group: dict[str, Any], slots: Iterable[Slot]) -> None:
        """These parameters of a group had a step."""
        for slot in slots:
            state = self.state[slot.param]
            if not state["items"]:
                state["items"] = 1
            slot.has_begun = True

    def _look_for_effect(self) -> None:
        """After a step: whether this can only be the plain optimizer."""
        watch = self._no_effect
        watch.steps += 1
        if watch.steps < LONG and watch.steps & (watch.steps - 1):
            return  # it takes longer than a small step, so it looks after steps 1, 2, 4, 8, ...
        slots = [(group, slot) for group in self.param_groups for slot in self.slots_of(group)]
        flexible = [group for group, slot in slots if slot.is_flexible(group)]
        if not flexible:
            # Of a partition the others may have those that are.
            if (
                self._partition is None
                and watch.steps == 1
                and any(isinstance(s.flexibility, Tensor) or s.flexibility != 1.0 for _, s in slots)
            ):
                watch.nothing_is_flexible()
            watch.is_settled = True
        elif any(group["gate"] == "item" or scale_in_force(group) is None for group in flexible):
            watch.look()
        else:
            watch.is_settled = True  # alpha is computed in each step

    # ------------------------------------------------------------------ checkpoints and copies

    def state_dict(self) -> dict[str, Any]:
        """As in :class:`torch.optim.Optimizer`; holds tensors and plain data, so that
        ``torch.load(weights_only=True)`` reads it. Fields are written as dictionaries.

        Raises:
            TypeError, ValueError: if what was put into a group since the last step does not fit.
        """
        self._no_effect.was_saved = True
        for group in self.param_groups:
            self.slots_of(group)  # settings that were changed since the last step are saved as they are now
        state_dict = super().state_dict()
        state = dict(state_dict["state"])
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, key in zip(group["params"], saved["params"], strict=True):
                slot = self._slots.get(p)
                if slot is not None:
                    # What cannot be made from the group again is written before the first step, too; a plain
                    # optimizer that was taken over may have left its own state.
                    given = plain_state.given_for_one(slot, group) | state.get(key, {})
                    if given:
                        state[key] = given
        groups = [plain_state.encode_group(group) for group in state_dict["param_groups"]]
        return {**state_dict, "state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, to the bit, on the devices of this optimizer's parameters.

        Options that the saved groups lack take their defaults.

        Raises:
            TypeError: if it is no dictionary.
            ValueError: if it is not the state of such an optimizer or does not fit the parameters; nothing has
                been changed then.
        """
        plain_state.check_form(state_dict)
        # torch casts all floating state to the parameter's dtype, which would round a bfloat16 parameter's
        # master and anchor. So it is given no state, and the state is restored here; as hooks, so that the
        # user's own hooks see what they expect before and after.
        loaded: dict[Tensor, dict[str, Any]] = {}

        def decode(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            saved = plain_state.decoded(saved, self.option_defaults())
            # torch refuses other numbers of groups and of parameters after this hook.
            for group, saved_group in zip(self.param_groups, saved["param_groups"], strict=False):
                try:
                    self.check_group({**saved_group, "params": group["params"]})
                except (TypeError, ValueError) as error:
                    raise ValueError(f"state_dict: {error}") from None
                for p, key in zip(group["params"], saved_group["params"], strict=False):
                    if key in saved["state"]:
                        loaded[p] = plain_state.restored(p, saved["state"][key], self._written())
            return {**saved, "state": {}}

        def restore(_: Optimizer) -> None:
            self.state.update(loaded)
            for group in self.param_groups:
                for p in group["params"]:
                    if p in self._slots:
                        self._restore_slot(self._slots[p], group)
            if any(state.get("items", 0) > 1 for state in loaded.values()):
                self._no_effect.is_settled = True

        hooks = [
            self.register_load_state_dict_pre_hook(decode),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _written(self) -> tuple[str, ...]:
        """The names of state that steps write to: loading copies it."""
        return ("master",)

    def _restore_slot(self, slot: Slot, group: dict[str, Any]) -> None:
        state = self.state.get(slot.param, {})
        slot.has_begun = bool(state.get("items"))
        # A parameter of which nothing was saved gets what the group says, at its next step.
        slot.settings = settings_of(group) if "flexibility" in state else (None, None, None)
        if "flexibility" in state:
            slot.flexibility = flexibilities.field_of(state["flexibility"])
            f = slot.flexibility
            if isinstance(f, flexibilities.Field) and flexibilities.is_distribution(group["flexibility"]):
                slot.stream = f.stream
        if "anchor" in state and silent_synapses(slot.param) is None:
            anchor = flexibilities.field_of(state["anchor"])
            slot.anchor = None if isinstance(anchor, Tensor) else anchor
        if not slot.has_begun and not set(state) - {"flexibility", "anchor"}:
            self.state.pop(slot.param, None)  # given, but not begun

    def remember_fused(self, layer: Any, window: int) -> None:
        """A layer steps in backward by this optimizer: copies of both (``copy.deepcopy((model, optimizer))``,
        pickle) are to find each other."""
        self._fused = [(known, w) for known, w in self._fused if known is not layer]
        self._fused.append((layer, window))

    def __getstate__(self) -> dict[str, Any]:
        self._no_effect.was_saved = True
        self._fused = [(layer, window) for layer, window in self._fused if layer.fused_step]
        return {**super().__getstate__(), "_slots": self._slots, "_fused": self._fused}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_no_effect" not in self.__dict__:  # a copy, or read from a pickle
            self._names = {}
            self._begin()
            self._no_effect.is_settled = any(of.get("items", 0) > 1 for of in self.state.values())
            for layer, window in self._fused:
                layer.fuse(self, window)
