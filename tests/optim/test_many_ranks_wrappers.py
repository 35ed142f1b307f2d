"""Wrappers of torch.distributed around an optimizer: it does as in one process, or says why it cannot."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from helpers import ranks
from helpers.nets import mlp
from helpers.optimizers import KINDS, MAKERS
from helpers.ranks_optimizers import DATA, LR, learn
from helpers.ranks_wrappers import FLATTENED, FUSED, NONFINITE
from helpers.ranks_zero import GOES_ON, PARTITIONED, zero_alone

pytestmark = ranks.marks
judge_of_zero = functools.cache(zero_alone)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LOOSE = {"rtol": 1e-4, "atol": 1e-4}  # AdamW divides small gradients by their own size


def assert_close(left: list[torch.Tensor], right: list[torch.Tensor], **close: float) -> None:
    for mine, theirs in zip(left, right, strict=True):
        torch.testing.assert_close(mine, theirs, **(close or CLOSE))


@pytest.mark.parametrize(("count", "kind", "option"), PARTITIONED)
def test_a_partition_of_the_parameters_trains_as_all_of_them(
    found: list[dict[str, Any]], count: int, kind: str, option: str
) -> None:
    expected = judge_of_zero(kind, option)
    answers = ranks.of_case(found, f"ZeRO, {count}, {kind}, {option}")
    fields: dict[int, Any] = {}
    for answer in answers:
        assert all(map(torch.equal, answer["weights"], answers[0]["weights"]))
        assert_close(answer["weights"], expected["weights"], **LOOSE)
        assert answer["scales"] == answers[0]["scales"]
        assert answer["scales"] == pytest.approx(expected["scales"], rel=1e-4)
        fields |= answer["fields"]
    assert [fields[i] for i in range(len(fields))] == expected["fields"]


@pytest.mark.parametrize(("kind", "before", "after"), GOES_ON)
def test_what_a_partition_saved_another_goes_on_with(
    found: list[dict[str, Any]], kind: str, before: int, after: int
) -> None:
    for weights in ranks.of_case(found, f"ZeRO from {before} to {after}, {kind}"):
        assert_close(weights, judge_of_zero(kind, "auto")["weights"], **LOOSE)


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("way", NONFINITE)
@pytest.mark.parametrize("kind", MAKERS)
def test_all_processes_do_alike_where_one_has_a_nan(
    found: list[dict[str, Any]], kind: str, way: str, nonfinite: str
) -> None:
    if (kind, way) == ("wrapped", "ZeRO"):
        pytest.skip("it wraps an optimizer, and is not made from parameters")
    for answer in ranks.of_case(found, f"NaN, {way}, {kind}, {nonfinite}"):
        if nonfinite == "raise":
            assert answer["refused"].startswith("FloatingPointError")
            assert not any(moved.any() for moved in answer["moved"])
        else:
            assert not answer["refused"]
            still = [moved == 0 for moved in answer["moved"]]
            assert sum(int(of_one.sum()) for of_one in still) == 1
            assert any(of_one[6, 2] for of_one in still)


def test_an_anchor_that_differs_in_one_part_is_refused_everywhere(found: list[dict[str, Any]]) -> None:
    for held, spoiled in ranks.of_case(found, "anchor differs in one part"):
        assert not held
        assert spoiled.startswith("ValueError: anchor")


def test_gradients_that_are_laid_out_otherwise(found: list[dict[str, Any]]) -> None:
    answers = ranks.of_case(found, "gradients laid out otherwise")
    for kind, maker in MAKERS.items():
        p = torch.nn.Parameter(torch.arange(35.0).reshape(7, 5) / 35)
        optimizer = maker([p], lr=0.05, scale=20.0, gate="step")
        for _ in range(2):
            p.grad = torch.full((7, 5), 3.0)  # 0.5 + 1 + 1.5
            optimizer.step()
        for answer in answers:
            assert_close(answer[kind], [p.detach()] * 3)


def test_layouts_that_no_step_can_change_are_refused(found: list[dict[str, Any]]) -> None:
    for answer in ranks.of_case(found, "refusals of layouts"):
        assert answer["Partial"].startswith("ValueError: params[0] is a DTensor with placements (Partial")
        assert answer["sharded gradient"].startswith("TypeError: gradient of parameter 1 of its group")


@pytest.mark.parametrize(("kind", "views"), FLATTENED)
def test_flattened_parameters_are_refused(found: list[dict[str, Any]], kind: str, views: bool) -> None:
    """FSDP1 makes one vector of all weights, in which all would move freely."""
    for answer in ranks.of_case(found, f"FSDP1, {kind}, {views}"):
        assert answer["refused"].startswith("ValueError: params: FullyShardedDataParallel (FSDP1)")
        assert "fully_shard" in answer["refused"]
        for after in ("after 0", "after 3"):
            # Where its vector is another parameter, the optimizer's own have no gradient.
            said = "ValueError: params: Fully" if views else "found no gradient at all. FullySharded"
            assert said in answer[after]


def test_a_flat_vector_that_is_not_sharded(found: list[dict[str, Any]]) -> None:
    model = mlp()
    optimizer = KINDS["SGD"](model.named_parameters(), lr=LR, scale=20.0, seed=3)
    learn(model, optimizer)
    for answer in ranks.of_case(found, "FSDP1 that does not shard"):
        assert_close(answer, [p.detach() for p in model.parameters()])


def test_an_optimizer_of_parameters_that_the_model_has_no_more(found: list[dict[str, Any]]) -> None:
    for counts in ranks.of_case(found, "wrapped after the optimizer was made"):
        assert counts == dict.fromkeys(MAKERS, 1)


@pytest.mark.parametrize("order", FUSED)
def test_fused_steps_of_several_processes_are_refused_before_any(
    found: list[dict[str, Any]], order: str
) -> None:
    for answer in ranks.of_case(found, order):
        assert answer["unchanged"]
        assert "DistributedDataParallel" in answer["ddp"]
        assert "optimizer.step() takes the same step" in answer["ddp"]
        assert "FullyShardedDataParallel" in answer["fsdp1"]
        for way in ("fsdp2", "tp"):
            assert "fully_shard, parallelize_module" in answer[way]


def test_clipped_and_accumulated_gradients(found: list[dict[str, Any]]) -> None:
    for answer in ranks.of_case(found, "clipped and accumulated"):
        for way in ("DDP", "FSDP2"):
            assert_close(answer[way], answer["alone"])


def test_a_scaler_skips_on_all_processes(found: list[dict[str, Any]]) -> None:
    model = mlp()
    optimizer = KINDS["SGD"](model.named_parameters(), lr=LR, scale=20.0, seed=3)
    for step in (0, 1, 3):
        x, y = DATA[step]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    for answer in ranks.of_case(found, "a scaler"):
        for weights in answer.values():
            assert_close(weights, [p.detach() for p in model.parameters()])


@pytest.mark.parametrize("name", ["mixed", "made on the meta device"])
def test_networks_of_other_kinds(found: list[dict[str, Any]], name: str) -> None:
    model = mlp()
    optimizer = KINDS["SGD"](model.named_parameters(), lr=LR, scale="auto", momentum=0.9, seed=3)
    learn(model, optimizer)
    for answer in ranks.of_case(found, name):
        assert_close(answer, [p.detach() for p in model.parameters()])


@pytest.mark.parametrize("kind", MAKERS)
def test_parameters_that_a_framework_exchanged_are_what_they_were(
    found: list[dict[str, Any]], kind: str
) -> None:
    expected = judge_of_zero(kind, "auto")
    for answer in ranks.of_case(found, "exchanged by a framework"):
        assert answer[kind]["fields"] == expected["fields"]
        assert_close(answer[kind]["weights"], expected["weights"], **LOOSE)


@pytest.mark.parametrize("name", ["taken over from torch", "other optimizers in the wrapper"])
def test_what_began_as_an_optimizer_of_torch(found: list[dict[str, Any]], name: str) -> None:
    for answer in ranks.of_case(found, name):
        for way, weights in answer.items():
            if way.endswith("FSDP2"):
                assert_close(weights, answer[way.replace("FSDP2", "alone")], **LOOSE)
