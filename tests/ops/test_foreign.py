"""Tensors that are not what they seem, in the place of every argument of every operator: refused, or answered
as an ordinary tensor with the same values would be. See helpers/foreign.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flexkern import ops
from helpers.arguments import step_arguments
from helpers.judge import same_bits

TESTS = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("word", ["triton", "-triton"])
def test_every_argument_of_every_operator(tmp_path: Path, word: str) -> None:
    """In a process of its own, which a fault would end."""
    journal = tmp_path / "journal"
    command = [sys.executable, "-m", "helpers.foreign", str(journal), word]
    ended = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=500)
    last = journal.read_text().splitlines()[-1:]
    assert ended.returncode == 0, f"ended with {ended.returncode} in {last}:\n{ended.stderr[-2000:]}"
    *wrong, count = ended.stdout.splitlines()
    assert not wrong, "\n".join(wrong)
    assert int(count) > 1000


@pytest.mark.parametrize("name", ["weight", "momentum_buffer"])
def test_a_written_negative_view_is_stepped(backend: str, name: str) -> None:
    arguments, expected = step_arguments(), step_arguments()
    negative = arguments[name].neg()._neg_view()
    ops.metaplastic_sgd_(**{**arguments, name: negative})
    ops.metaplastic_sgd_(**expected)
    assert negative.is_neg()
    assert torch.equal(negative, expected[name])
    assert torch.equal(arguments["weight"] if name != "weight" else negative, expected["weight"])


def test_a_written_negative_view_shares_no_memory(backend: str) -> None:
    arguments = step_arguments()
    arguments["weight"] = arguments["grad"]._neg_view()
    before = arguments["grad"].clone()
    with pytest.raises((ValueError, RuntimeError), match=r"shares? memory"):
        ops.metaplastic_sgd_(**arguments)
    assert same_bits(arguments["grad"], before)


@pytest.mark.parametrize("name", ["weight", "momentum_buffer"])
def test_a_written_zero_tensor_is_refused_by_name(backend: str, name: str) -> None:
    arguments = {**step_arguments(), name: torch._efficientzerotensor((4, 6))}
    with pytest.raises(ValueError, match=f"{name} is written but is a zero tensor"):
        ops.metaplastic_sgd_(**arguments)


@pytest.mark.parametrize("name", ["weight", "grad", "anchor", "flexibility", "momentum_buffer"])
def test_freed_memory_is_refused_by_name(backend: str, name: str) -> None:
    arguments = step_arguments()
    arguments[name].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=f"{name} needs 96 bytes of its storage, which has 0"):
        ops.metaplastic_sgd_(**arguments)
