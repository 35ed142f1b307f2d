"""What products linear_step_ has the library make on a CPU: gradients in blocks, coincidences where needed."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
import torch

import flexkern
from helpers.children import run_python

pytestmark = [
    pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="MKL's log of its calls is what is read"),
    pytest.mark.skipif(not flexkern.backends()["cpu"].available, reason="needs the compiled kernels"),
]


class Case(NamedTuple):
    """``silent``: rows with one silent synapse; None: there is no mask."""

    silent: list[int] | None
    rule: str = "hebbian"


CASES = {
    "no mask": Case(None),
    "none silent": Case([]),
    "rate rule": Case([3, 2000], "rate"),
    "some silent": Case([3, 130, 800, 2099]),
}
ROWS, COLUMNS, BATCH = 2100, 40, 3
# The log goes through C's buffer: it is emptied before Python says what comes next.
STEPS = """
import ctypes, torch
from flexkern import ops
rows, columns, batch = {shape}

def say(*words):
    ctypes.CDLL(None).fflush(None)
    print(*words, flush=True)

for name, (silent, rule) in {cases}.items():
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[silent or [], 5] = True
    anchor = torch.full((rows, columns), 0.1)
    weight = torch.where(mask, 0.0, anchor)
    x, grad_out, post = torch.ones(batch, columns), torch.ones(batch, rows), torch.ones(batch, rows)
    words = None if silent is None else ops.pack_mask(mask)
    say("case", name)
    with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
        done = ops.linear_step_(
            weight, x, grad_out, anchor, 0.5, words, post, lr=0.1, scale=1.0, threshold=0.5, rule=rule
        )
    say("converted", int(done.converted.sum()))
"""


@pytest.fixture(scope="module")
def log() -> dict[str, str]:
    """By case, what one process says of it: the log goes to where C prints."""
    done = run_python(
        STEPS.format(shape=(ROWS, COLUMNS, BATCH), cases={name: tuple(case) for name, case in CASES.items()})
    )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^case (.*)$", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def products(said: str) -> tuple[list[int], int]:
    """The number of weight rows of each product, in order, and how many synapses converted."""
    # MKL is column-major: the m, n, k of out^T = x^T grad_out are columns, rows, batch.
    calls = [tuple(map(int, sizes)) for sizes in re.findall(r"SGEMM\(\w,\w,(\d+),(\d+),(\d+),", said)]
    assert calls
    assert all((m, k) == (COLUMNS, BATCH) for m, _, k in calls)
    found = re.search(r"converted (\d+)", said)
    assert found is not None
    return [n for _, n, _ in calls], int(found.group(1))


def test_the_gradient_exists_1024_rows_at_a_time(log: dict[str, str]) -> None:
    assert products(log["no mask"]) == ([1024, 1024, 52], 0)


def test_no_second_product_without_silent_synapses(log: dict[str, str]) -> None:
    assert products(log["none silent"]) == ([1024, 1024, 52], 0)


def test_no_second_product_with_the_rate_rule(log: dict[str, str]) -> None:
    assert products(log["rate rule"]) == ([1024, 1024, 52], 2)


def test_the_second_product_is_of_the_tiles_with_silent_synapses(log: dict[str, str]) -> None:
    # Tiles of 128 rows; 0 and 1 are neighbours and one product, 6 is another; the last block is a tile itself.
    gradient_and_tiles = [1024, 256, 128, 1024, 52, 52]
    assert products(log["some silent"]) == (gradient_and_tiles, 4)
