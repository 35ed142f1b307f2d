"""What decides the bits of a run, under whichever of torch's settings of products."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flexkern.runs.provenance import decides_bits

GPU: Any = torch.backends.cuda.matmul
CPU: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "value", "expected"),
    [
        (GPU, "ieee", "highest"),
        (GPU, "tf32", "GPU: tf32, CPU: none"),
        (CPU, "bf16", "GPU: none, CPU: bf16"),
    ],
)
def test_products_by_the_new_setting_are_noted(settings: Any, value: str, expected: str) -> None:
    before = GPU.fp32_precision, CPU.fp32_precision
    try:
        GPU.fp32_precision = CPU.fp32_precision = "none"
        settings.fp32_precision = value
        assert decides_bits(torch.device("cpu"))["float32_products"] == expected
    finally:
        GPU.fp32_precision, CPU.fp32_precision = before
    assert decides_bits(torch.device("cpu"))["float32_products"] == "highest"
