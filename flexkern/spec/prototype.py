"""What the direct call of prototype_logits takes; it is no operator of the dispatcher
(csrc/bindings/prototype.cpp)."""

from __future__ import annotations

from dataclasses import fields, make_dataclass

from .argument import argument, argument_of

__all__ = ["LOGITS"]

_LOGITS = [
    ("features", "Tensor", argument("[N, K, dim]", dtypes="float32")),
    ("prototypes", "Tensor", argument("[C, K, dim]", dtypes="float32")),
    ("own_subspace", "Tensor", argument("[C]", dtypes=("int32", "int64"))),
    ("openings", "Tensor | None", argument("[N, K]; None: 1", dtypes="float32")),
    ("rest", "float", argument("the weight of the subspaces of other tasks")),
    ("first", "float", argument("the weight of the first subspace, where it has one of its own")),
    ("has_base", "bool", argument("whether it has")),
]
LOGITS = tuple(argument_of(f) for f in fields(make_dataclass("Logits", _LOGITS)))
