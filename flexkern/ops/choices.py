"""The words that arguments of the operators take."""

from __future__ import annotations

__all__ = ["COMPLETIONS", "INSERTS", "NONFINITE", "PRECISIONS", "REWEIGHTINGS", "RULES"]

COMPLETIONS = ("later", "new")  # over: of complete_prototypes
INSERTS = ("init", "hebbian")  # insert: what silent synapses become
NONFINITE = ("raise", "skip", "propagate")  # nonfinite: of a step
PRECISIONS = ("float32", "bfloat16")  # precision: that networks are multiplied in, of learners and fused layers
REWEIGHTINGS = ("code", "paper")  # reweighting: of prototype_logits
RULES = ("hebbian", "rate")  # rule: how activities make a coincidence
