"""The operators: checks, choice of backend, one dispatcher entry each."""

from flexkern.ops.adapter import gated_adapter
from flexkern.ops.displacement import gated_displacement_, scale_displacement_
from flexkern.ops.field import flexibility_field, materialize
from flexkern.ops.layers import Conversions
from flexkern.ops.linear import linear_step_
from flexkern.ops.mask import pack_mask, unpack_mask
from flexkern.ops.metaplastic import (
    gated_adamw_,
    gated_sgd_,
    metaplastic_adamw_,
    metaplastic_gate,
    metaplastic_sgd_,
)
from flexkern.ops.prototype import complete_prototypes, prototype_logits
from flexkern.ops.steps import InsertionRule
from flexkern.ops.synapse import synapse_step_
from flexkern.spec.rules import AdamWRule, SgdRule

__all__ = [
    "AdamWRule",
    "Conversions",
    "InsertionRule",
    "SgdRule",
    "complete_prototypes",
    "flexibility_field",
    "gated_adamw_",
    "gated_adapter",
    "gated_displacement_",
    "gated_sgd_",
    "linear_step_",
    "materialize",
    "metaplastic_adamw_",
    "metaplastic_gate",
    "metaplastic_sgd_",
    "pack_mask",
    "prototype_logits",
    "scale_displacement_",
    "synapse_step_",
    "unpack_mask",
]
