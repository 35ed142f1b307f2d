"""Learners on a vision transformer: any number of processes has the same one, and goes on from any file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.groups import needs_gloo, run_cases

pytest.importorskip("transformers")
from distributed import vit_cases

pytestmark = [needs_gloo, pytest.mark.usefixtures("one_thread_in_module")]  # as the processes have
ON_FOUR = ("artsy", "small batches", "artsy-best", "few")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vit")
    vit_cases.stop_in_task(str(made / "by-1.safetensors"))
    return made


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return run_cases("distributed.vit_cases", [*vit_cases.CASES], 2, folder)


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    return run_cases("distributed.vit_cases", ON_FOUR, 4, folder)


def check(found: list[Any], judge: dict[str, Any]) -> None:
    for of_one in found:
        assert of_one["state"].keys() == judge["state"].keys()
        for key, expected in judge["state"].items():
            value = of_one["state"][key]
            assert torch.equal(value, found[0]["state"][key]), key  # all processes have the same bits
            if not expected.is_floating_point():
                assert torch.equal(value, expected), key
            else:
                scale = float(expected.abs().max()) if expected.numel() else 0.0
                both = [t.tril() if key.endswith("scatter") else t for t in (value, expected)]
                torch.testing.assert_close(*both, rtol=1e-3, atol=1e-3 * scale + 1e-4)
        assert of_one["confusion"] == judge["confusion"]
        assert of_one["accuracies"] == judge["accuracies"]
        assert of_one["losses"] == pytest.approx(judge["losses"], rel=1e-3)
        assert of_one["temperature"] == pytest.approx(judge["temperature"], rel=1e-2)
        assert of_one["report"] == pytest.approx(judge["report"], rel=1e-2, abs=1e-2)
        torch.testing.assert_close(of_one["logits"], judge["logits"], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", vit_cases.LEARNED)
def test_two_processes_have_what_one_has(two: list[dict[str, Any]], name: str) -> None:
    check([of_one[name] for of_one in two], vit_cases.LEARNED[name]())


@pytest.mark.parametrize("name", ON_FOUR)
def test_four_processes_have_what_one_has(four: list[dict[str, Any]], name: str) -> None:
    check([of_one[name] for of_one in four], vit_cases.LEARNED[name]())


def test_files_go_from_any_number_of_processes_to_any_other(two: list[dict[str, Any]], folder: Path) -> None:
    judge = vit_cases.go_on(str(folder / "by-1.safetensors"))
    check([of_one["resumed"] for of_one in two], judge)
    check([vit_cases.go_on(two[0]["saved"])], judge)


def test_refused(two: list[dict[str, Any]]) -> None:
    for of_one in two:
        assert "learn() of ArtsyViT: the learner's configuration is" in of_one["refused"]


def test_a_backbone_in_parts_is_refused(two: list[dict[str, Any]]) -> None:
    for of_one in two:
        assert of_one["sharded"].startswith("backbone: its weights are sharded")
