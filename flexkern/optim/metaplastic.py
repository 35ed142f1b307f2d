"""Any torch optimizer with synapses that resist being moved (docs/design.md, Optimizers)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flexkern import ops
from flexkern.fields import Field
from flexkern.ops.checks import LOW_PRECISION
from flexkern.optim import plain_state, sharded
from flexkern.optim.base import MetaplasticOptimizer
from flexkern.optim.flexibilities import Flexibility, plain
from flexkern.optim.gradients import all_zero
from flexkern.optim.group_options import scale_in_force
from flexkern.optim.scale import FirstItem
from flexkern.optim.slot import STATE, Slot, is_unmeasured

__all__ = ["Metaplastic"]


class _Gated(NamedTuple):
    """A parameter whose step will be scaled. ``state`` is its state, or what will be added to it."""

    slot: Slot
    group: dict[str, Any]
    state: dict[str, Any]
    kind: str


class Metaplastic(MetaplasticOptimizer):
    """Scales each weight's step of any torch optimizer by ``alpha = sech(scale (1 - f) / f |w - a|)^2``.

    The optimizer takes its step as always, from gradients as they are; then one fused pass makes ``w0 + alpha
    (w - w0)`` of each weight, w0 being the weight before. Its own state (momentum, means) never sees alpha::

        optimizer = Metaplastic(torch.optim.RMSprop(model.parameters(), lr=1e-3), scale="auto")
        for item in stream:
            for x, y in item:
                optimizer.zero_grad()
                loss_function(model(x), y).backward()
                optimizer.step()
            optimizer.consolidate()

    :class:`flexkern.optim.MetaplasticSGD` and :class:`flexkern.optim.MetaplasticAdamW` do the same in the step
    itself: they move fewer bytes, need no copy of weights, and keep the whole step of low-precision weights.

    Args:
        optimizer: any but :class:`torch.optim.LBFGS`, which takes several steps in one. From now on only this
            object steps. Both have the same groups, so learning rate schedulers of either work.
        scale, flexibility, seed, gate, anchor, flexible_vectors, alpha_dtype, model: as in
            :class:`flexkern.optim.MetaplasticSGD`; they hold for all groups that do not have their own.
        nonfinite: what a weight that would become NaN or infinite does: "skip" leaves it as it was, "raise"
            looks at all gradients before the step (waits for the device), "propagate" lets it through. What the
            optimizer's own state makes of such a gradient is its own matter.

    In the first item alpha is 1, and with ``nonfinite="raise"`` or "propagate" nothing is copied. From then on,
    and with "skip" from the beginning, a copy of the weights is kept, 4 bytes per float32 weight. A
    low-precision weight gets a float32 master, to which its steps are added.

    State: that of the optimizer, and for each flexible parameter what MetaplasticSGD has. :meth:`state_dict`
    has both.

    Raises:
        TypeError, ValueError: naming what does not fit. The optimizer is then as it was before.
    """

    optimizer: Optimizer

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        scale: float | Tensor | str = "auto",
        flexibility: str | Flexibility | list[Flexibility] = "uniform",
        seed: int = 0,
        gate: str = "item",
        anchor: Field | list[Field | None] | None = None,
        flexible_vectors: bool = False,
        nonfinite: str = "skip",
        alpha_dtype: torch.dtype = torch.float32,
        model: nn.Module | None = None,
    ) -> None:
        _check_optimizer(optimizer)
        own = {
            "scale": scale,
            "flexibility": flexibility,
            "seed": seed,
            "gate": gate,
            "anchor": anchor,
            "flexible_vectors": flexible_vectors,
            "nonfinite": nonfinite,
            "alpha_dtype": alpha_dtype,
        }
        # The groups are made of copies, so that the optimizer is as it was if one does not fit.
        copies = _Groups()
        self.__dict__["optimizer"] = copies
        named = [_with_names(group) for group in optimizer.param_groups]
        super().__init__(named, {**optimizer.defaults, **own}, model)
        for group, made in zip(optimizer.param_groups, copies.param_groups, strict=True):
            group.update(made)
        self.__dict__["optimizer"] = optimizer
        self._copies: dict[Tensor, Tensor] = {}
        self._is_template = False

    # Groups and state are the optimizer's own. (The constructor of torch's Optimizer assigns both.)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the optimizer, in which this one's options are too."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = value

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """The state of the optimizer, in which this one's is too."""
        return self.optimizer.state

    @state.setter
    def state(self, value: defaultdict[Tensor, Any]) -> None:
        self.optimizer.state = value

    def watch_step(self, first_item: FirstItem, group: dict[str, Any]) -> FirstItem:
        momentum, nesterov = group.get("momentum", 0.0), group.get("nesterov", False)
        return first_item.step(float(group["lr"]), momentum, group.get("dampening", 0.0), nesterov)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the optimizer, scaled.

        Args:
            closure: evaluates the model again and returns the loss; called once, before the step.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: if a weight does not hold the values of the Field that was given as its anchor.
            TypeError: if a parameter belongs to a layer with silent synapses.
            FloatingPointError: if a gradient is not finite and ``nonfinite="raise"``.

        No weight has been changed when one of these is raised.
        """
        if self.must_be_eager():
            return sharded.eagerly(self._take_step, closure)
        return self._take_step(closure)

    def _take_step(self, closure: Callable[[], Any] | None) -> Any:
        loss = self.evaluate(closure)
        with torch.no_grad():
            self._step()
        if not self._no_effect.is_settled:
            self._look_for_effect()
        return loss

    def _step(self) -> None:
        if self._is_template:
            self.state.clear()  # it was made by a look at what state there will be
            self._is_template = False
        self.check_settings()
        slots = [self.slots_of(group) for group in self.param_groups]
        is_template = not self.state and all_zero(self.param_groups)
        self.check_sharded()
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                if p.grad is not None:
                    sharded.check_gradient(p, i)
            if group["nonfinite"] == "raise":
                self.check_finite(group)
        self._check_reset(slot for of_group in slots for slot in of_group if slot.param.grad is not None)
        gated = [
            one for group, of in zip(self.param_groups, slots, strict=True) for one in self._gated(group, of)
        ]
        scaled = [one for one in gated if one.kind != "free"]
        guarded = [one for one in gated if one.kind == "free" and one.group["nonfinite"] == "skip"]
        before = self._copied([*scaled, *guarded])
        self.optimizer.step()
        for one in gated:
            # Not earlier: optimizers make their own state where there is none at all.
            self.state[one.slot.param].update(one.state)
        if is_template:
            self._is_template = True
            return
        for batch in _batches(scaled).values():
            _scale(batch, [before[one.slot] for one in batch])
        for one in guarded:
            p = sharded.here(one.slot.param.detach())
            torch.where(p.isfinite(), p, before[one.slot], out=p)
        for group, of_group in zip(self.param_groups, slots, strict=True):
            stepped = [one.slot for one in gated if one.group is group]
            self._has_stepped(group, stepped)
            if is_unmeasured(group, of_group):
                self._watch_first_item(group, stepped)

    def _gated(self, group: dict[str, Any], slots: list[Slot]) -> list[_Gated]:
        """The parameters of a group that will have a step, with all that can refuse done."""
        found = []
        unmeasured = is_unmeasured(group, slots)
        for slot in dict.fromkeys(slots):
            if slot.param.grad is None:
                continue
            if slot.synapses is not None:
                raise TypeError(
                    f"the parameter of shape {tuple(slot.param.shape)} has silent synapses, which only a step "
                    "that knows of them leaves silent; use flexkern.optim.MetaplasticSGD or MetaplasticAdamW"
                )
            state = {name: value for name, value in self.state.get(slot.param, {}).items() if name in STATE}
            if not slot.is_flexible(group):
                state |= {"items": state.get("items", 0), "flexibility": plain(slot.flexibility)}
                found.append(_Gated(slot, group, state, "free"))
                continue
            slot.prepare(group, state, (), False)
            found.append(_Gated(slot, group, state, slot.gate_kind(group, state, unmeasured)))
        return found

    def _copied(self, gated: list[_Gated]) -> dict[Slot, Tensor]:
        """The weights as they are before the step."""
        copies = {}
        for one in gated:
            p = sharded.here(one.slot.param.detach())
            kept = self._copies.get(one.slot.param)
            if kept is None or (kept.shape, kept.dtype, kept.device) != (p.shape, p.dtype, p.device):
                kept = self._copies[one.slot.param] = torch.empty_like(p)
            copies[one.slot] = kept
        if copies:
            torch._foreach_copy_(list(copies.values()), [sharded.here(slot.param.detach()) for slot in copies])
        return copies

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        plain_state.check_form(state_dict)
        own, others = {}, {}
        for key, state in state_dict["state"].items():
            own[key] = {name: value for name, value in state.items() if name in STATE}
            others[key] = {name: value for name, value in state.items() if name not in STATE}
        others = self._taken({**state_dict, "state": others})["state"]
        super().load_state_dict({**state_dict, "state": own})
        groups, states = self.param_groups, dict(self.state)
        self.optimizer.load_state_dict({**state_dict, "state": others})
        for group, decoded in zip(self.param_groups, groups, strict=True):
            group.update({name: value for name, value in decoded.items() if name != "params"})
        for p, state in states.items():
            self.state[p].update(state)
        self._is_template = False

    def _taken(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A copy, as torch's own loading may share tensors with what was given. What the optimizer does not
        take is refused here, before this object has changed."""
        try:
            copied = {**state_dict, "state": deepcopy(state_dict["state"])}
            copy(self.optimizer).load_state_dict(copied)
        except Exception as error:  # of whatever kind the optimizer raises
            name = type(self.optimizer).__name__
            raise ValueError(f"state_dict: {name} does not take it: {error}") from error
        return copied

    load_state_dict.__doc__ = MetaplasticOptimizer.load_state_dict.__doc__

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["state"], state["param_groups"]
        return {**state, "optimizer": self.optimizer, "_copies": {}, "_is_template": self._is_template}

    def __setstate__(self, state: dict[str, Any]) -> None:
        groups, states = state.pop("param_groups", None), state.pop("state", None)
        if "optimizer" in state:
            self.__dict__["optimizer"] = state["optimizer"]
        if groups is not None:  # torch's load_state_dict
            self.param_groups, self.state = groups, states
        super().__setstate__(state)

    def __repr__(self) -> str:
        return f"Metaplastic({self.optimizer!r})"


class _Groups:
    """Stands for the optimizer while the groups are made."""

    def __init__(self) -> None:
        self.param_groups: list[dict[str, Any]] = []
        self.state: defaultdict[Tensor, Any] = defaultdict(dict)


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, MetaplasticOptimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, which is metaplastic already")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "optimizer must not be torch.optim.LBFGS: one step of it is many, with a line search that looks at "
            "the loss where the weights would be without alpha; use a first-order optimizer"
        )


def _with_names(group: dict[str, Any]) -> dict[str, Any]:
    names = group.get("param_names")
    params = group["params"] if names is None else list(zip(names, group["params"], strict=True))
    return {**{name: value for name, value in group.items() if name != "param_names"}, "params": params}


def _batches(gated: list[_Gated]) -> dict[Any, list[_Gated]]:
    """Those of one key go in one call."""
    batches: dict[Any, list[_Gated]] = {}
    for one in gated:
        p = one.slot.param
        batches.setdefault((id(one.group), p.device, p.dtype, one.kind), []).append(one)
    return batches


def _scale(batch: list[_Gated], before: list[Tensor]) -> None:
    group = batch[0].group
    weights = [sharded.here(one.slot.param) for one in batch]
    low = weights[0].dtype in LOW_PRECISION
    options: dict[str, Any] = {
        "master": [sharded.here(one.state["master"]) for one in batch] if low else None,
        "nonfinite": "propagate" if group["nonfinite"] == "propagate" else "skip",
    }
    if batch[0].kind == "stored":
        alphas = [sharded.here(one.state["alpha"]) for one in batch]
        ops.gated_displacement_(weights, before, alphas, **options)
        return
    anchors = [one.slot.anchor_here(one.state) for one in batch]
    flexibilities = [one.slot.flexibility_here() for one in batch]
    ops.scale_displacement_(weights, before, anchors, flexibilities, scale=scale_in_force(group), **options)
