"""The words that arguments of the operators take, for checks elsewhere."""

from flexkern.ops._layer import INSERTS
from flexkern.ops.linear import RULES

__all__ = ["INSERTS", "RULES"]
