"""Steps that are taken otherwise on several processes, inside of backward or compiled, are those of step()."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from helpers import ranks
from helpers.optimizers import MAKERS
from helpers.ranks_fused import GATHERED

pytestmark = ranks.marks


@pytest.mark.parametrize(("kind", "option", "way", "count"), GATHERED)
def test_the_step_in_backward_is_that_after_it(
    found: list[dict[str, Any]], kind: str, option: str, way: str, count: int
) -> None:
    answers = ranks.of_case(found, f"gathered, {kind}, {option}, {way}, {count}")
    assert len(answers) == count
    # Steps of AdamW divide small gradients by their own size; gradients of bfloat16 are rounded before the sum.
    rtol = 0.02 if option == "bfloat16" else 1e-4
    for answer in answers:
        fused, plain = answer["fused"], answer["plain"]
        assert all(map(torch.equal, fused["weights"], answers[0]["fused"]["weights"]))
        assert fused["scales"] == answers[0]["fused"]["scales"]
        assert fused["scales"] == pytest.approx(plain["scales"], rel=1e-3)
        assert fused["fields"] == plain["fields"]
        for mine, theirs in zip(fused["weights"], plain["weights"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("find_unused", r"RuntimeError: .*find_unused_parameters=True\).*leave fuse_into_backward out"),
        ("join", r"RuntimeError: .*join\(\).*as many batches"),
        ("unfused", "RuntimeError: .*nobody would reduce it.*anew without"),
        ("other layers", "RuntimeError: fuse_into_backward: layers is .* on process 0"),
        ("inside", "RuntimeError: .*inside DistributedDataParallel.*the very module that is wrapped"),
        ("no group", "TypeError: process_group must be a torch.distributed.ProcessGroup.*got str"),
    ],
)
def test_what_would_drift_or_wait_is_refused(found: list[dict[str, Any]], name: str, words: str) -> None:
    for answer in ranks.of_case(found, "gathered, refused"):
        assert re.search(words, answer[name], re.DOTALL), answer[name]


def test_a_compiled_step_of_sharded_weights_is_taken_outside(found: list[dict[str, Any]]) -> None:
    for answer in ranks.of_case(found, "compiled, sharded"):
        assert list(answer) == list(MAKERS)
        for plain, compiled in answer.values():
            assert all(map(torch.equal, plain["weights"], compiled["weights"]))
            assert plain["scales"] == compiled["scales"]
