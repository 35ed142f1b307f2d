"""One pass over a layer inside the product that makes its gradient (docs/design.md, One pass)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .argument import argument
from .declare import operator_of_each_rule
from .layers import Layer
from .metaplastic import FLOATS
from .rules import RULES

if TYPE_CHECKING:
    from torch import Tensor

ON_TENSOR_CORES = {"cuda": "on a GPU it runs on tensor cores through Triton"}


@operator_of_each_rule(RULES, returns="Tensor", by_rows=True, lacks=ON_TENSOR_CORES)
class Linear(Layer):
    """the pass of synapse_step_ inside the product that makes the gradient, which is never written to memory

    ``activities`` is empty without silent synapses. For the Hebbian rule it is the post activity of the batch,
    [batch, out] (pre is x); for the rate rule, the mean activities pre [in] and post [out].
    """

    weight: Tensor = argument("updated", written=True, dtypes=FLOATS, shape=("out", "in"))
    x: Tensor = argument("the layer's input", dtypes=FLOATS, shape=("batch", "in"))
    grad_out: Tensor = argument("the loss's derivative by its output", dtypes="x", shape=("batch", "out"))
