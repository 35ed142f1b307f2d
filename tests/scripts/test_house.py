"""What a change of the house costs stays within its limits, and the counts can be over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.scripts import load_file

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def house() -> Any:
    return load_file(ROOT / "scripts" / "house.py")


def test_every_count_is_within_its_limit(house: Any) -> None:
    over = {row.what: (row.value, row.files) for row in house.counts() if not row.is_kept}
    assert over == {}


def test_the_template_is_on_every_floor(house: Any) -> None:
    files = house.operator_files(house.tracked()).files
    floors = ("flexkern/spec", "flexkern/ops", "flexkern/reference", "csrc/include", "csrc/cpu", "csrc/cuda",
              "csrc/bindings", "triton_kernels")  # fmt: skip
    assert all(any(path.startswith(floor) for path in files) for floor in floors)


def test_a_circle_is_seen(house: Any) -> None:
    assert house.circles({"a": {"b"}, "b": {"c"}, "c": set()}).value == 0
    found = house.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert (found.value, found.files) == (1, ["a <-> b <-> c"])


def test_an_import_of_a_higher_room_is_seen(house: Any) -> None:
    assert house.upward({"flexkern.nn.fused.linear": {"flexkern.ops"}, "flexkern.ops": set()}).value == 0
    assert house.upward({"flexkern.ops.linear": {"flexkern.nn.fused"}}).value == 1


def test_a_room_that_is_come_back_to_is_counted(house: Any) -> None:
    assert house.rooms_of_journey(["a/x", "a/y", "b/x"]).value == 1
    assert house.rooms_of_journey(["a/x", "b/x", "a/y", "b/y", "a/z"]).value == 3
