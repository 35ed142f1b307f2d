"""One pass over the synapses of a layer, with a gradient that is there (docs/design.md, One pass)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .argument import argument
from .declare import operator_of_each_rule
from .layers import Layer
from .metaplastic import FLOATS
from .rules import RULES

if TYPE_CHECKING:
    from torch import Tensor


@operator_of_each_rule(RULES, returns="Tensor", by_rows=True)
class Synapse(Layer):
    """one pass over a layer: functional synapses step, silent ones at their threshold become functional

    ``activities`` is the coincidence matrix, or the mean activities pre and post.
    """

    weight: Tensor = argument("updated", written=True, dtypes=FLOATS, shape=("out", "in"))
    grad: Tensor = argument(
        "of the weight's dtype or float32", dtypes=("weight", "float32"), shape=("out", "in")
    )
