"""The words that arguments of the operators take, for checks before an operator is called."""

from flexkern.ops._layer import INSERTS
from flexkern.ops.linear import RULES
from flexkern.ops.prototype import COMPLETIONS, REWEIGHTINGS

__all__ = ["COMPLETIONS", "INSERTS", "REWEIGHTINGS", "RULES"]
