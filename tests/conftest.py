"""Before anything imports flexkern: where there is no GPU, Triton kernels run in Triton's interpreter.

Triton decides when a kernel is defined, so the variable has to be there first. One that is already set stays.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
