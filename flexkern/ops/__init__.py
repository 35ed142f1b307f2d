"""The operators: checks, choice of backend, one dispatcher entry each."""

from flexkern.ops.field import flexibility_field, materialize
from flexkern.ops.mask import pack_mask, unpack_mask
from flexkern.ops.metaplastic import gated_sgd_, metaplastic_gate, metaplastic_sgd_

__all__ = [
    "flexibility_field",
    "gated_sgd_",
    "materialize",
    "metaplastic_gate",
    "metaplastic_sgd_",
    "pack_mask",
    "unpack_mask",
]
