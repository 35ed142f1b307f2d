"""Every operator in plain PyTorch: the specification, and the implementation of last resort.

One file for each family. The functions read like the papers and compute in the dtype that they are given: with
float64 inputs they are the judge of every kernel. The function of an operator's name is its implementation; it
takes the operator's arguments, or all of them as one record of :mod:`flexkern.spec`.
"""

from flexkern.reference.field import field, field_values, materialize, philox, sources_to_tensors
from flexkern.reference.mask import pack_mask, unpack_mask
from flexkern.reference.metaplastic import gate
from flexkern.reference.rules import step
from flexkern.reference.synapse import activity, coincidence

__all__ = [
    "activity",
    "coincidence",
    "field",
    "field_values",
    "gate",
    "materialize",
    "pack_mask",
    "philox",
    "sources_to_tensors",
    "step",
    "unpack_mask",
]
