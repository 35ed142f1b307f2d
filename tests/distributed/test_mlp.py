"""Learners on linear layers: any number of processes has the same network, and goes on from any file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed import mlp_cases
from helpers.groups import needs_gloo, run_cases

pytestmark = [needs_gloo, pytest.mark.usefixtures("one_thread_in_module")]  # as the processes have


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mlp")
    for method in mlp_cases.RESUMED:
        mlp_cases.stop_in_item(str(made / f"{method}-by-1.safetensors"), method)
    return made


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return run_cases("distributed.mlp_cases", [*mlp_cases.CASES], 2, folder)


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    names = ["metaplastic", "silent", "small batches", "lda", "saved metaplastic", "resumed metaplastic"]
    return run_cases("distributed.mlp_cases", names, 4, folder)


def of_roundings(judge: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """How far weights, and logits [rows, classes], may be apart by the roundings of bfloat16 gradients.

    One process rounds a gradient once. Two round their parts and the sum: four roundings of 2**-8 at most, of
    gradients under 1 (inputs are in [0, 1]), in each step of size lr. Taken as three standard deviations of a
    weight, four of a logit are what these come to through the layers, in which they are independent.
    """
    items, steps = len(mlp_cases.stream()), -(-2 * mlp_cases.EACH // mlp_cases.BATCH) * mlp_cases.EPOCHS
    apart = items * steps * mlp_cases.LR * 4 * 2.0**-8
    h = mlp_cases.stream()[0].test_inputs.flatten(1)
    variance = torch.zeros_like(h)
    for layer in (0, 2, 4):
        weight = judge["state"][f"{layer}.weight"].float()
        y = h @ weight.T + judge["state"][f"{layer}.bias"].float()
        variance = variance @ weight.T**2 + (apart / 3) ** 2 * ((h**2).sum(1, keepdim=True) + 1)
        h, active = y.relu(), y > 0
        variance = variance if layer == 4 else variance * active
    return apart, 4 * variance.sqrt()


def check(found: list[Any], judge: dict[str, Any], low: bool = False) -> None:
    # Weights of bfloat16 are rounded once more; scales and losses are means over weights and samples.
    weights, logits = of_roundings(judge) if low else (1e-4, torch.tensor(1e-3))
    rtol, of_means = (2.0**-8, 0.05) if low else (1e-3, 1e-3)
    for of_one in found:
        for part in ("state", "extra"):
            assert of_one[part].keys() == judge[part].keys()
            for key, expected in judge[part].items():
                value = of_one[part][key]
                assert torch.equal(value, found[0][part][key])  # all processes have the same bits
                if expected.is_floating_point():
                    torch.testing.assert_close(value, expected, rtol=rtol, atol=weights)
                else:
                    assert torch.equal(value, expected)
        for key in ("accuracies", "masked", "top", "confusion", "items"):
            assert of_one[key] == (found[0] if low else judge)[key]
        assert of_one["scales"] == pytest.approx(judge["scales"], rel=of_means)
        assert of_one["losses"] == pytest.approx(judge["losses"], rel=of_means)
        assert ((of_one["logits"] - judge["logits"]).abs() <= logits + rtol * judge["logits"].abs()).all()


@pytest.mark.parametrize("name", mlp_cases.LEARNED)
def test_two_processes_have_what_one_has(two: list[dict[str, Any]], name: str) -> None:
    check([of_one[name] for of_one in two], mlp_cases.LEARNED[name](), low=name == "bfloat16")


@pytest.mark.parametrize("name", ["metaplastic", "silent", "small batches", "lda"])
def test_four_processes_have_what_one_has(four: list[dict[str, Any]], name: str) -> None:
    check([of_one[name] for of_one in four], mlp_cases.LEARNED[name]())


def test_kept_features(two: list[dict[str, Any]]) -> None:
    judge = mlp_cases.learn("metaplastic", features=mlp_cases.Extractor())
    check([of_one["cached"] for of_one in two], judge)


@pytest.mark.parametrize("method", mlp_cases.RESUMED)
def test_files_go_from_any_number_of_processes_to_any_other(
    two: list[dict[str, Any]], folder: Path, method: str
) -> None:
    judge = mlp_cases.go_on(str(folder / f"{method}-by-1.safetensors"))
    check([of_one[f"resumed {method}"] for of_one in two], judge)
    check([mlp_cases.go_on(two[0][f"saved {method}"])], judge)
    assert not [*folder.glob("*.1")]


def test_a_file_of_four(four: list[dict[str, Any]], folder: Path) -> None:
    judge = mlp_cases.go_on(str(folder / "metaplastic-by-1.safetensors"))
    check([of_one["resumed metaplastic"] for of_one in four], judge)
    check([mlp_cases.go_on(four[0]["saved metaplastic"])], judge)


def test_learners_that_are_alone(two: list[dict[str, Any]]) -> None:
    assert [of_one["alone"]["items"] for of_one in two] == [1, 2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own data", "number of its training inputs is 23 on process 0|must have the same"),
        ("other seeds", "configuration is .*process 0 .*process 1.*of which each takes its share"),
        ("other calls", r"evaluate\(\) of MetaplasticMLP on process 0, and learn\(\) .* on process 1"),
        ("fused", "MetaplasticMLP on several processes: a fused step.*fused_step=False"),
        ("foreign", r"Foreign on several processes: .*use one process.*distributed\.alone\(\)"),
    ],
)
def test_refused(two: list[dict[str, Any]], name: str, words: str) -> None:
    for of_one in two:
        assert of_one[name].startswith("RuntimeError")
        assert re.search(words, of_one[name], re.DOTALL)
