"""One parameter of a metaplastic optimizer: what is fixed for its life, its state, what its next step takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexkern import ops
from flexkern.fields import Field
from flexkern.nn.silent.layer_of_weight import SilentSynapses, silent_synapses
from flexkern.ops.checks import LOW_PRECISION, exact_dtype
from flexkern.ops.layers import LayerGate
from flexkern.optim import agreement, sharded
from flexkern.optim.flexibilities import Flexibility, field_of, is_never_zero, plain
from flexkern.optim.group_options import is_auto, scale_in_force
from flexkern.spec import RULES
from flexkern.spec.argument import shown

__all__ = ["KEPT", "STATE", "Slot", "is_unmeasured", "split_insertion"]

# The names of a parameter's state but for the rule's, see Slot.
STATE = ("items", "flexibility", "master", "anchor", "alpha", "alpha_item")
# Of all state, the tensors that are like the parameter.
KEPT = ("master", "anchor", "alpha", *(name for rule in RULES for name in rule.STATES))


class Slot:
    """A parameter, with its state in the optimizer. It does not know its place in a list.

    Args:
        param: the parameter.
        stream: of its procedural flexibility.
        flexibility: a tensor like the whole parameter, a Field of it, or a number.
        anchor: the Field of the whole parameter that it began from; None: a copy is taken.

    Attributes:
        settings: the group's settings of flexibility and anchor from which these two were made.
        has_begun: whether it has had a step with this optimizer.

    State, as all state constant in its keys and their types. Items are counted from 1; ``items`` is 0 before
    the first step:

    - ``items``: the item that the parameter is in.
    - ``flexibility``: a tensor, a number or a plain Field.
    - ``master``: the exact weight of a low-precision parameter.
    - of a parameter that resists being moved ``anchor``, a tensor or a plain Field, and with ``gate="item"``
      ``alpha`` and ``alpha_item``, the item that it was taken for.
    - the rule's states.
    """

    __slots__ = ("anchor", "flexibility", "has_begun", "param", "settings", "stream")

    def __init__(self, param: Tensor, stream: int, flexibility: Flexibility, anchor: Field | None) -> None:
        self.param, self.stream = param, stream
        self.flexibility, self.anchor = flexibility, anchor
        self.settings: tuple[Any, Any, Any] = (None, None, None)
        self.has_begun = False
        silent_synapses(param)  # of a sharded weight found while its layer has it

    @property
    def synapses(self) -> SilentSynapses | None:
        """The layer that has silent synapses in the parameter, or None."""
        return silent_synapses(self.param)

    def is_flexible(self, group: dict[str, Any]) -> bool:
        """Whether it resists being moved."""
        f = self.flexibility
        return (self.param.dim() >= 2 or group["flexible_vectors"]) and (isinstance(f, Tensor) or f != 1.0)

    def can_be_watched(self, group: dict[str, Any]) -> bool:
        """Whether ``scale="auto"`` can be measured from it."""
        f = self.flexibility
        never_moves = not isinstance(f, Tensor) and f == 0.0
        return self.is_flexible(group) and not never_moves and self.param.numel() > 0

    # ------------------------------------------------------------------ parts that are here

    def weight(self, state: dict[str, Any]) -> Tensor:
        """The exact weight. One that was written from outside is not the rounding of its master any more."""
        p = sharded.here(self.param.detach())
        if p.dtype not in LOW_PRECISION or "master" not in state:
            return p
        master = sharded.here(state["master"])
        return torch.where(master.to(p.dtype) == p, master, p.to(master.dtype))

    def anchor_here(self, state: dict[str, Any]) -> Tensor | Field:
        """The anchor of the part that is here."""
        stored = state["anchor"]
        return sharded.here(stored) if isinstance(stored, Tensor) else self._field_here(field_of(stored))

    def flexibility_here(self) -> Flexibility:
        """The flexibility of the part that is here."""
        f = self.flexibility
        if not isinstance(f, Tensor):
            return self._field_here(f)
        part = sharded.values_here(self.param, f)
        return part.to(device=sharded.here(self.param).device, dtype=exact_dtype(self.param))

    def _field_here(self, source: Any) -> Any:
        found = sharded.field_here(self.param, source)
        return found.to(exact_dtype(self.param)) if isinstance(found, Tensor) else found

    # ------------------------------------------------------------------ state

    def prepare(
        self,
        group: dict[str, Any],
        state: dict[str, Any],
        needed: tuple[str, ...],
        counts: bool,
        is_template: bool = False,
    ) -> bool:
        """Makes sure that the state has what a step needs, of the rule's states those that are named.

        Args:
            group: the parameter's group.
            state: its state, which is completed.
            needed: names of the rule's states.
            counts: whether the rule counts steps.
            is_template: whether no step comes, and what is made says which state a saved one will have.

        Returns:
            Whether the rule's states are new.

        Raises:
            ValueError: if the weight does not hold the values of the Field that was given as its anchor.
        """
        exact = exact_dtype(self.param)
        here = sharded.here(self.param)
        self._follow(state, exact, here.device)
        if here.dtype in LOW_PRECISION and "master" not in state:
            state["master"] = self._kept(_exact_copy(here))
        begins = not state.get("items")
        fresh = state.setdefault("items", -1) == 0  # it was made for a look at what state there will be
        state["items"] = max(state["items"], 0)
        if begins:
            state["flexibility"] = plain(self.flexibility)
        if self.is_flexible(group) or self.synapses is not None:
            if begins or "anchor" not in state:
                self._begin(state, is_template)
            if self._has_alpha(group) and "alpha" not in state:
                state["alpha"] = self._kept(self._first_alpha(group, state))
                state["alpha_item"] = 1
        for name in needed:
            if name not in state:
                state[name] = self._kept(torch.zeros(here.shape, dtype=exact, device=here.device))
                fresh = True
        if counts and "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=here.device)
        return fresh

    def _kept(self, part: Tensor) -> Tensor:
        return sharded.like_parameter(self.param, part)

    def _follow(self, state: dict[str, Any], exact: torch.dtype, device: torch.device) -> None:
        """State goes where its parameter went (``model.double()``, ``model.cuda()``)."""
        if "master" in state and self.param.dtype not in LOW_PRECISION:
            del state["master"]
        for name, value in state.items():
            if name in ("step", "flexibility") or not isinstance(value, Tensor):
                continue
            if name in KEPT and value.shape != self.param.shape:
                raise ValueError(
                    f"{name} in the state of a parameter must have its shape, {tuple(self.param.shape)}, got "
                    f"{tuple(value.shape)}; a parameter whose size changes needs a new optimizer"
                )
            dtype = exact if name != "alpha" or value.dtype is not torch.bfloat16 else value.dtype
            if value.dtype is not dtype or value.device != device:
                state[name] = value.to(device=device, dtype=dtype)

    def _begin(self, state: dict[str, Any], is_template: bool) -> None:
        """Before a parameter's first step: its anchor, and from where its weight is exact.

        Functional synapses are where their anchor is. That of a silent synapse is the layer's own draw for it.
        """
        p, synapses = sharded.here(self.param.detach()), self.synapses
        field = synapses.init if self.anchor is None and synapses is not None else self.anchor
        if field is None:
            state["anchor"] = self._kept(_exact_copy(self.weight(state)))
            return
        anchor = self._materialized(self._field_here(field))
        silent = self._silent()
        initial = anchor if silent is None else anchor.masked_fill(silent, 0.0)
        differs = not torch.equal(initial.to(p.dtype), p)
        holds = not agreement.anywhere(differs, [self.param])
        if self.anchor is not None and not holds:
            raise ValueError(
                f"anchor: the parameter of shape {tuple(self.param.shape)} does not hold the values of "
                f"{field}; initialise it with flexkern.ops.materialize(field, shape), or use anchor=None"
            )
        if holds and p.dtype in LOW_PRECISION:
            # The displacement from a float32 anchor has to start at 0, not at the rounding of the weight.
            state["master"] = self._kept(initial)
        as_init = holds
        if synapses is not None:
            as_init = holds and synapses.insertion()["insert"] == "init"
            if not is_template:
                synapses.began_as_init = as_init
            elif synapses.began_as_init is not None:
                as_init = synapses.began_as_init  # weights that were loaded have moved since
        if not as_init:
            assert silent is not None
            state["anchor"] = self._kept(torch.where(silent, anchor, self.weight(state)))
        else:
            state["anchor"] = plain(field)

    def _materialized(self, source: Tensor | Field) -> Tensor:
        if isinstance(source, Tensor):
            return source
        here = sharded.here(self.param)
        return ops.materialize(source, here.shape, device=here.device).to(exact_dtype(here))

    # ------------------------------------------------------------------ alpha

    def _has_alpha(self, group: dict[str, Any]) -> bool:
        """Whether alpha is kept; in an item that is not gated yet only if some synapses never move."""
        if not self.is_flexible(group):
            return False
        return group["gate"] == "item" or (is_auto(group) and not is_never_zero(self.flexibility))

    def _first_alpha(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        """In the first item w = a: alpha is 1 at any scale, except 0 where f = 0."""
        w = self.weight(state)
        f = self.flexibility_here()
        alpha = torch.ones_like(w, memory_format=torch.contiguous_format)
        if not is_never_zero(f):
            alpha = ops.metaplastic_gate(alpha, alpha, f, 1.0)
        return self._rounded(alpha, group)

    def gate_kind(self, group: dict[str, Any], state: dict[str, Any], unmeasured: bool) -> str:
        """Which alpha the step has ("free": 1, "stored": the item's, "step": computed in it), after
        :meth:`prepare`; takes the item's anew where a new item has begun.

        Args:
            unmeasured: whether the group waits for its scale; then its items have not begun to count.

        Raises:
            ValueError: if they have, because the group's scale was set to "auto" later.
        """
        if not self.is_flexible(group):
            return "free"
        if group["gate"] == "step" and not unmeasured:
            return "step"
        if state["items"] <= 1:
            return "free" if is_never_zero(self.flexibility) else "stored"
        if state.get("alpha_item") != state["items"]:
            if unmeasured:
                raise ValueError(
                    f"scale='auto' is measured over the first item, but the parameter of shape "
                    f"{tuple(self.param.shape)} is in item {shown(state['items'])} (items in its state): call "
                    "consolidate(), which measures it, or give scale a number"
                )
            scale, resting = scale_in_force(group), self._resting(state)
            alpha = ops.metaplastic_gate(resting, self.anchor_here(state), self.flexibility_here(), scale)
            state["alpha"] = self._kept(self._rounded(alpha, group))
            state["alpha_item"] = state["items"]
        return "stored"

    def _rounded(self, alpha: Tensor, group: dict[str, Any]) -> Tensor:
        """alpha as it is kept through an item."""
        rounds = alpha.dtype is torch.float32 and alpha.device.type == "cpu" and self.synapses is None
        return alpha.to(group["alpha_dtype"]) if rounds else alpha

    def _silent(self) -> Tensor | None:
        """bool, where synapses are silent; None where the parameter has none that could be."""
        synapses = self.synapses
        return None if synapses is None else ops.unpack_mask(synapses.silent, self.param.shape[1])

    def _resting(self, state: dict[str, Any]) -> Tensor:
        """The exact weight, with silent synapses at their anchor: there they begin when they are converted."""
        weight, silent = self.weight(state), self._silent()
        if silent is None:
            return weight
        return torch.where(silent, self._materialized(self.anchor_here(state)), weight)

    def gate(self, group: dict[str, Any], state: dict[str, Any], kind: str) -> tuple[LayerGate, Any]:
        """The gate of a step, as the operators on one layer take it, and its scale."""
        needs_anchor = kind == "step" or self.synapses is not None
        # With f = 1 the anchor of a functional synapse is never looked at.
        anchor = self.anchor_here(state) if needs_anchor else Field.uniform(0)
        if kind == "free":
            return LayerGate(anchor, 1.0, None), 1.0
        if kind == "stored":
            alpha = sharded.here(state["alpha"]).to(exact_dtype(self.param))
            return LayerGate(anchor, None, alpha), None
        return LayerGate(anchor, self.flexibility_here(), None), scale_in_force(group)

    def displacement(self, state: dict[str, Any]) -> float:
        """Mean |w - a| over functional synapses; waits for the device."""
        moved = (self._resting(state) - self._materialized(self.anchor_here(state))).abs()
        silent = self._silent()
        if silent is None:
            return agreement.mean(self.param, moved)
        if sharded.is_sharded(self.param):
            functional = agreement.mean(self.param, (~silent).double()) or 1.0
            return agreement.mean(self.param, moved) / functional
        return moved.sum().item() / max(silent.numel() - int(silent.sum()), 1)


def split_insertion(synapses: SilentSynapses) -> tuple[Any, dict[str, Any]]:
    """The threshold of a layer's silent synapses, and what else says how they convert."""
    insertion = dict(synapses.insertion())
    return insertion.pop("threshold"), insertion


def is_unmeasured(group: dict[str, Any], slots: list[Slot]) -> bool:
    """Whether a group waits for ``scale="auto"``, with a flexible weight for which it matters."""
    return is_auto(group) and not group["measured_scale"] and any(slot.is_flexible(group) for slot in slots)


def _exact_copy(p: Tensor) -> Tensor:
    return p.detach().to(exact_dtype(p), memory_format=torch.contiguous_format, copy=True)
