"""What products linear_step_ has the library make on a CPU: gradients in blocks, coincidences where needed."""

from __future__ import annotations

import re

import pytest
import torch

import flexkern
from helpers.children import run_python

pytestmark = [
    pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="MKL's log of its calls is what is read"),
    pytest.mark.skipif(not flexkern.backends()["cpu"].available, reason="needs the compiled kernels"),
]

STEP = """
import torch
from flexkern import ops
rows, columns, batch = {shape}
mask = torch.zeros(rows, columns, dtype=torch.bool)
for silent in {silent_rows}:
    mask[silent, 5] = True
anchor = torch.full((rows, columns), 0.1)
weight = torch.where(mask, 0.0, anchor)
x, grad_out, post = torch.ones(batch, columns), torch.ones(batch, rows), torch.ones(batch, rows)
words = ops.pack_mask(mask)
with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
    done = ops.linear_step_(
        weight, x, grad_out, anchor, 0.5, {words}, post, lr=0.1, scale=1.0, threshold=0.5, rule={rule!r}
    )
print("converted", int(done.converted.sum()))
"""
ROWS, COLUMNS, BATCH = 2100, 40, 3


def products(silent_rows: list[int], rule: str = "hebbian", words: str = "words") -> tuple[list[int], int]:
    """The number of weight rows of each product, in order, and how many synapses converted."""
    code = STEP.format(shape=(ROWS, COLUMNS, BATCH), silent_rows=silent_rows, rule=rule, words=words)
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    # MKL is column-major: the m, n, k of out^T = x^T grad_out are columns, rows, batch.
    calls = [tuple(map(int, sizes)) for sizes in re.findall(r"SGEMM\(\w,\w,(\d+),(\d+),(\d+),", done.stdout)]
    assert calls
    assert all((m, k) == (COLUMNS, BATCH) for m, _, k in calls)
    found = re.search(r"converted (\d+)", done.stdout)
    assert found is not None
    return [n for _, n, _ in calls], int(found.group(1))


def test_the_gradient_exists_1024_rows_at_a_time() -> None:
    assert products([], words="None") == ([1024, 1024, 52], 0)


def test_no_second_product_without_silent_synapses() -> None:
    assert products([]) == ([1024, 1024, 52], 0)


def test_no_second_product_with_the_rate_rule() -> None:
    assert products([3, 2000], rule="rate") == ([1024, 1024, 52], 2)


def test_the_second_product_is_of_the_tiles_with_silent_synapses() -> None:
    # Tiles of 128 rows; 0 and 1 are neighbours and one product, 6 is another; the last block is a tile itself.
    gradient_and_tiles = [1024, 256, 128, 1024, 52, 52]
    assert products([3, 130, 800, 2099]) == (gradient_and_tiles, 4)
