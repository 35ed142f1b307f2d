"""One pass over the synapses of a layer, with a gradient that is there (docs/design.md, One pass)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .declare import argument, operator
from .layers import Layer
from .metaplastic import FLOATS
from .rules import SgdRule

if TYPE_CHECKING:
    from torch import Tensor


class Synapse(Layer):
    """By any rule. ``drive`` is the coincidence matrix, or the mean activities pre and post."""

    weight: Tensor = argument("updated", written=True, dtypes=FLOATS, shape=("out", "in"))
    grad: Tensor = argument(
        "of the weight's dtype or float32", dtypes=("weight", "float32"), shape=("out", "in")
    )


@operator("synapse_step_", returns="Tensor", rule=SgdRule)
class SynapseStep(Synapse):
    """one pass over a layer: functional synapses step, silent ones at their threshold become functional"""
