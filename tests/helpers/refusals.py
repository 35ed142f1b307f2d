"""Arguments of the steps that do not fit, and what is said of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from helpers.arguments import SHAPE

__all__ = ["NOT_GATED", "ONLY_GATED", "WRONG", "tensor"]


def tensor(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


# Argument, what is passed for it, exception, message. Each wrong by exactly one thing.
WRONG = [
    ("weight", [[1.0]], TypeError, r"weight must be a torch.Tensor, got list"),
    ("weight", 1.0, TypeError, r"weight must be a torch.Tensor, got float"),
    ("weight", tensor(torch.int32), TypeError, r"weight must be torch.float32 or .*, got torch.int32"),
    ("weight", tensor(torch.complex64), TypeError, r"weight must be .*, got torch.complex64"),
    ("weight", tensor().to_sparse(), TypeError, r"weight must be a dense tensor, got layout torch.sparse_coo"),
    ("weight", tensor(shape=(1, 6)).expand(4, 6), ValueError, r"weight is written but its elements overlap"),
    (
        "weight",
        torch.zeros(27).as_strided((4, 6), (5, 1)),
        ValueError,
        r"weight is written but its elements overlap",
    ),
    ("grad", None, TypeError, r"grad must be a torch.Tensor, got NoneType"),
    ("grad", tensor(torch.float64), TypeError, r"grad must be torch.float32.*, got torch.float64"),
    ("grad", tensor(torch.bfloat16), TypeError, r"grad must be torch.float32.*, got torch.bfloat16"),
    ("grad", tensor().to_sparse(), TypeError, r"grad must be a dense tensor.*sparse_coo; call .to_dense\(\)"),
    ("grad", tensor(shape=(6, 4)), ValueError, r"grad must have the shape of weight, \(4, 6\), got \(6, 4\)"),
    ("grad", tensor(shape=(24,)), ValueError, r"grad must have the shape of weight, \(4, 6\), got \(24,\)"),
    ("grad", tensor(shape=(1, 6)), ValueError, r"grad must have the shape"),
    ("grad", tensor().to("meta"), ValueError, r"grad must be on the device of weight, cpu, got meta"),
    ("anchor", None, TypeError, r"anchor must be a tensor or a flexkern.Field, got NoneType"),
    ("anchor", 0.5, TypeError, r"anchor must be a tensor or a flexkern.Field, got float"),
    ("anchor", tensor(torch.bfloat16), TypeError, r"anchor must be torch.float32, got torch.bfloat16"),
    ("anchor", tensor(torch.float64), TypeError, r"anchor must be torch.float32, got torch.float64"),
    ("anchor", tensor(shape=(4, 5)), ValueError, r"anchor must have the shape of weight"),
    ("anchor", tensor().to("meta"), ValueError, r"anchor must be on the device of weight"),
    ("anchor", tensor().to_sparse(), TypeError, r"anchor must be a dense tensor"),
    (
        "flexibility",
        None,
        TypeError,
        r"flexibility must be a tensor, a number or a flexkern.Field, got NoneType",
    ),
    ("flexibility", "uniform", TypeError, r"flexibility must be .*, got str"),
    ("flexibility", True, TypeError, r"flexibility must be .*, got bool"),
    ("flexibility", -0.1, ValueError, r"flexibility must be in \[0, 1\], got -0.1"),
    ("flexibility", 1.1, ValueError, r"flexibility must be in \[0, 1\], got 1.1"),
    ("flexibility", math.nan, ValueError, r"flexibility must be in \[0, 1\], got nan"),
    ("flexibility", tensor(torch.float16), TypeError, r"flexibility must be torch.float32, got torch.float16"),
    ("flexibility", tensor(shape=(1,)), ValueError, r"flexibility must have the shape"),
    ("flexibility", tensor().to("meta"), ValueError, r"flexibility must be on the device"),
    ("lr", -0.1, ValueError, r"lr must be finite and >= 0, got -0.1"),
    ("lr", math.nan, ValueError, r"lr must be finite"),
    ("lr", math.inf, ValueError, r"lr must be finite"),
    ("lr", "0.1", TypeError, r"lr must be a number or a one-element tensor, got str"),
    ("lr", True, TypeError, r"lr must be a number or a one-element tensor, got bool"),
    ("lr", None, TypeError, r"lr must be a number"),
    (
        "lr",
        torch.tensor(0.1, dtype=torch.float64),
        ValueError,
        r"lr as a tensor must be one float32 element.*float64",
    ),
    ("lr", torch.tensor([0.1, 0.2]), ValueError, r"lr as a tensor must be one float32 element.*\(2,\)"),
    ("lr", torch.empty(0), ValueError, r"lr as a tensor must be one float32 element"),
    ("lr", torch.zeros((), device="meta"), ValueError, r"lr must be on cpu"),
    ("scale", 0.0, ValueError, r"scale must be finite and > 0, got 0.0"),
    ("scale", -1.0, ValueError, r"scale must be finite and > 0, got -1.0"),
    ("scale", math.inf, ValueError, r"scale must be finite"),
    ("scale", 1e39, ValueError, r"scale"),  # infinite in float32
    ("scale", 3e38, ValueError, r"scale"),  # 2 log2(e) times this is, and at an anchor infinity times 0
    ("scale", torch.ones(2), ValueError, r"scale as a tensor must be one float32 element"),
    ("scale", torch.tensor(1, dtype=torch.int64), ValueError, r"scale as a tensor must be one float32 element"),
    ("weight_decay", -0.1, ValueError, r"weight_decay must be .*, got -0.1"),
    ("weight_decay", math.nan, ValueError, r"weight_decay must be .*, got nan"),
    ("weight_decay", math.inf, ValueError, r"weight_decay must be .*, got inf"),
    ("momentum", -0.9, ValueError, r"momentum must be .*, got -0.9"),
    ("momentum", math.nan, ValueError, r"momentum must be .*, got nan"),
    ("momentum", math.inf, ValueError, r"momentum must be .*, got inf"),
    ("dampening", math.nan, ValueError, r"dampening must be .*, got nan"),
    ("momentum_buffer", None, ValueError, r"momentum_buffer is needed: momentum is not 0"),
    (
        "momentum_buffer",
        tensor(torch.float64),
        TypeError,
        r"momentum_buffer must be torch.float32, got torch.float64",
    ),
    ("momentum_buffer", tensor(shape=(6, 4)), ValueError, r"momentum_buffer must have the shape"),
    (
        "momentum_buffer",
        tensor(shape=()).expand(SHAPE),
        ValueError,
        r"momentum_buffer is written but its elements",
    ),
    ("momentum_buffer", tensor().to("meta"), ValueError, r"momentum_buffer must be on the device"),
    (
        "nonfinite",
        "ignore",
        ValueError,
        r"nonfinite must be one of .*'raise', 'skip', 'propagate'.*, got 'ignore'",
    ),
]
ONLY_GATED = [
    ("alpha", 1.0, TypeError, r"alpha must be a torch.Tensor, got float"),
    (
        "alpha",
        tensor(torch.float16),
        TypeError,
        r"alpha must be torch.float32 or torch.bfloat16, got torch.float16",
    ),
    ("alpha", tensor(shape=(6, 4)), ValueError, r"alpha must have the shape of weight"),
    ("alpha", tensor().to("meta"), ValueError, r"alpha must be on the device of weight"),
    ("alpha", [tensor(), tensor()], ValueError, r"alpha has 2 entries but weight has 1"),
]
NOT_GATED = ("anchor", "flexibility", "scale")
