"""One parameter of a metaplastic optimizer: its state, and what its next step takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexkern import ops
from flexkern.fields import Field
from flexkern.nn.silent.layer_of_weight import SilentSynapses, silent_synapses
from flexkern.ops.checks import LOW_PRECISION
from flexkern.optim import groups
from flexkern.optim.groups import STORED, Flexibility, exact_dtype

__all__ = ["Slot"]


class Slot:
    """Parameter ``i`` of a group, with its state in the optimizer.

    Args:
        group: a parameter group.
        i: position of the parameter in it.
        state: the parameter's state, which :meth:`prepare` completes.

    Attributes:
        param: the parameter.
        synapses: the layer that has silent synapses in it, or None.
    """

    __slots__ = ("group", "i", "param", "state", "synapses")

    def __init__(self, group: dict[str, Any], i: int, state: dict[str, Any]) -> None:
        self.group, self.i, self.state = group, i, state
        self.param: Tensor = group["params"][i]
        self.synapses: SilentSynapses | None = silent_synapses(self.param)

    def weight(self) -> Tensor:
        """The exact weight."""
        p = self.param.detach()
        return self.state.get("master", p) if p.dtype in LOW_PRECISION else p

    def anchor(self) -> Tensor | Field:
        stored = self.state["anchor"]
        return self.group["anchor"][self.i] if stored is None else stored

    def flexibility(self) -> Flexibility:
        f = self.group["flexibility"][self.i]
        return self.state["flexibility"] if f == STORED else f

    # ------------------------------------------------------------------ what a step takes

    def prepare(self, needed: tuple[str, ...]) -> tuple[str, bool]:
        """Makes sure that the state has what a step needs, of the rule's states those that are named.

        Returns:
            Which alpha the step has ("free": 1, "stored": the item's, "step": computed in it), and whether the
            rule's states are new.

        Raises:
            ValueError: if the weight does not hold the values of the Field that was given as its anchor.
        """
        p, group, state = self.param, self.group, self.state
        if p.dtype in LOW_PRECISION and "master" not in state:
            state["master"] = _exact_copy(p)
        flexible = groups.is_flexible(group, self.i)
        first = "anchor" not in state
        # What is inserted into a silent synapse is its anchor, also where synapses then move freely.
        if first and (flexible or self.synapses is not None):
            self._take_anchor()
        kind = self._prepare_gate(first) if flexible else "free"
        missing = [name for name in needed if name not in state] if needed else ()
        for name in missing:
            state[name] = torch.zeros(p.shape, dtype=exact_dtype(p), device=p.device)
        return kind, bool(missing)

    def _take_anchor(self) -> None:
        """Before a parameter's first step: its anchor, and from where its weight is exact.

        Functional synapses are where their anchor is. That of a silent synapse is the layer's own draw for it.
        """
        p, state, synapses = self.param, self.state, self.synapses
        given = self.group["anchor"][self.i]
        field = synapses.init if given is None and synapses is not None else given
        if field is None:
            state["anchor"] = _exact_copy(p)
            return
        anchor = ops.materialize(field, p.shape, device=p.device).to(exact_dtype(p))
        silent = self._silent()
        initial = anchor if silent is None else anchor.masked_fill(silent, 0.0)
        holds = torch.equal(initial.to(p.dtype), p)
        if given is not None and not holds:
            raise ValueError(
                f"anchor: parameter {self.i} of its group, shape {tuple(p.shape)}, does not hold the values of "
                f"{field}; initialise it with flexkern.ops.materialize(field, shape), or use anchor=None"
            )
        if holds and p.dtype in LOW_PRECISION:
            # The displacement from a float32 anchor has to start at 0, not at the rounding of the weight.
            state["master"] = initial
        if synapses is not None and (not holds or synapses.insertion()["insert"] == "hebbian"):
            assert silent is not None
            state["anchor"] = torch.where(silent, anchor, self.weight())
        else:
            state["anchor"] = None
            self.group["anchor"][self.i] = field

    def _prepare_gate(self, first: bool) -> str:
        state, f = self.state, self.flexibility()
        if self.group["gate"] == "step" and not groups.is_unmeasured(self.group):
            return "step"
        if first:
            # Here w = a: alpha is 1 at any scale, except 0 where f = 0.
            w = self.weight()
            state["alpha"] = None if groups.is_never_zero(f) else self._kept(ops.metaplastic_gate(w, w, f, 1.0))
        elif "alpha" not in state:
            # An unmeasured group never comes here: it has its first alpha until it is measured.
            scale = groups.scale_in_force(self.group)
            state["alpha"] = self._kept(ops.metaplastic_gate(self._resting(), self.anchor(), f, scale))
        return "free" if state["alpha"] is None else "stored"

    def _kept(self, alpha: Tensor) -> Tensor:
        """alpha as it is kept through an item."""
        rounds = alpha.dtype is torch.float32 and alpha.device.type == "cpu" and self.synapses is None
        return alpha.to(self.group["alpha_dtype"]) if rounds else alpha

    def _silent(self) -> Tensor | None:
        """bool, where synapses are silent; None where the parameter has none that could be."""
        synapses = self.synapses
        return None if synapses is None else ops.unpack_mask(synapses.silent, self.param.shape[1])

    def _resting(self) -> Tensor:
        """The exact weight, with silent synapses at their anchor: there they begin when they are converted."""
        weight, silent = self.weight(), self._silent()
        return weight if silent is None else torch.where(silent, self._stored_anchor(), weight)

    def _stored_anchor(self) -> Tensor:
        anchor, p = self.anchor(), self.param
        if isinstance(anchor, Field):
            anchor = ops.materialize(anchor, p.shape, device=p.device).to(exact_dtype(p))
        return anchor

    def gate(self, kind: str) -> dict[str, Any]:
        """anchor, flexibility, alpha and scale of the step, as the operators on one layer take them."""
        needs_anchor = kind == "step" or self.synapses is not None
        # With f = 1 the anchor of a functional synapse is never looked at.
        anchor = self.anchor() if needs_anchor else Field.uniform(0)
        if kind == "free":
            return {"anchor": anchor, "flexibility": 1.0, "scale": 1.0}
        if kind == "stored":
            alpha = self.state["alpha"].to(exact_dtype(self.param))
            return {"anchor": anchor, "flexibility": None, "alpha": alpha}
        return {
            "anchor": anchor,
            "flexibility": self.flexibility(),
            "scale": groups.scale_in_force(self.group),
        }

    def displacement(self) -> float:
        """Mean |w - a| over functional synapses; waits for the device."""
        moved = (self._resting() - self._stored_anchor()).abs()
        silent = self._silent()
        if silent is None:
            # In row-major order, so that the sum has the same bits for every memory layout.
            return moved.contiguous().mean().item()
        return moved.sum().item() / max(silent.numel() - int(silent.sum()), 1)


def _exact_copy(p: Tensor) -> Tensor:
    return p.detach().to(exact_dtype(p), memory_format=torch.contiguous_format, copy=True)
