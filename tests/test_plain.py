"""A number is a number, whoever's scalar it is, in every constructor; what is none is refused by its name."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexkern import learners, nn
from flexkern import learners as L  # noqa: N812 - a table of calls
from flexkern.plain import number, sizes, whole_number
from helpers import tiny_vit

WHOLE: dict[str, Callable[[int], Any]] = {
    "numpy": np.int64, "small": np.uint8, "unsigned": np.uint64, "tensor": torch.tensor,
    "array": lambda n: np.array(n, dtype=np.int32),
}  # fmt: skip
REAL: dict[str, Callable[[float], Any]] = {
    "numpy": np.float64, "single": np.float32, "half": np.float16, "tensor": torch.tensor,
    "exact": lambda x: torch.tensor(x, dtype=torch.float64), "array": lambda x: np.array(x),
}  # fmt: skip

_IN = ((5,), 3)
_RIDGE = {"gate": "ridge"}
_GATE = {"gate": "mlp"}
# What makes each, its whole numbers and its real ones: names of arguments with a value that is right (and exact
# in float16), and whether each may be 0 or negative.
Numbers = dict[str, int] | dict[str, float]
CLASSES: dict[str, tuple[Callable[..., Any], dict[str, int], dict[str, float]]] = {}


def _mlp(name: str, whole: dict[str, int], real: dict[str, float], **options: Any) -> None:
    kind = learners.MLP_METHODS[name]

    def make(**given: Any) -> Any:
        own = {"input_shape": (5,), "classes": 3, "widths": (4, 4), **options, **given}
        return kind(own.pop("input_shape"), own.pop("classes"), **own)

    CLASSES[f"{kind.__name__}"] = (
        make, {"classes": 3, "batch_size": 2, "seed": 1, **whole}, {"lr": 0.5, "momentum": 0.5, **real}
    )  # fmt: skip


_mlp(
    "metaplastic",
    {},
    {"scale": 4.0, "network": 0.5, "silent_fraction": 0.5, "threshold": 0.5, "eta": 0.5, "prune": 0.25},
)
_mlp("ewc", {"fisher_samples": 3}, {"strength": 2.0, "decay": 0.5})
_mlp("si", {}, {"strength": 2.0, "damping": 0.5})
_mlp("replay", {"memory": 4, "replay_batch": 2}, {})
_mlp("joint", {}, {})
_mlp("ridge", {"random_features": 8}, {"ridge": 0.5})
_mlp("lda", {}, {"shrinkage": 0.5})
_GATE_WHOLE = {
    "k": 2,
    "keep": 3,
    "hidden": 4,
    "epochs": 1,
    "batch": 4,
    "neighbours": 2,
    "features": 8,
    "seed": 1,
}
_GATE_REAL = {
    "theta": 0.5, "target": 0.5, "gain": 0.5, "low": -8.0, "high": 8.0, "lr": 0.5, "weight_decay": 0.5,
    "holdout": 0.5, "ridge": 0.5, "shrinkage": 0.5,
}  # fmt: skip
CLASSES |= {
    "Reserve": (learners.Reserve, {}, {"silent_fraction": 0.5, "threshold": 0.5, "eta": 0.5, "prune": 0.5}),
    "Recipe": (
        learners.Recipe, {"epochs": 3, "batch_size": 4},
        {"lr": 0.5, "momentum": 0.5, "weight_decay": 0.5, "flip": 0.5},
    ),
    "AdapterBank": (
        lambda **o: nn.AdapterBank(**({"layers": 2, "width": 4, "rank": 2} | o)),
        {"layers": 2, "width": 4, "rank": 2, "capacity": 3}, {"scale": 0.5, "dropout": 0.5},
    ),
    "PagedAdapterBank": (
        lambda **o: nn.PagedAdapterBank(**({"layers": 2, "width": 4, "rank": 2} | o)),
        {"layers": 2, "width": 4, "rank": 2, "resident_tasks": 3}, {"scale": 0.5, "dropout": 0.5},
    ),
    "AdaptiveThreshold": (
        nn.AdaptiveThreshold, {}, {"target": 0.5, "gain": 0.5, "low": 0.5, "high": 4.0, "start": 2.0}
    ),
    "ExpertHead": (
        lambda **o: nn.ExpertHead(**({"width": 4} | o)), {"width": 4},
        {"temperature": 2.0, "expert_temperature": 2.0},
    ),
    "FeatureStatistics": (
        lambda **o: nn.FeatureStatistics(**({"width": 4} | o)), {"width": 4}, {"shrinkage": 0.5}
    ),
    "GateOptions": (
        lambda **o: nn.GateOptions(**({"gating": "topk", "threshold": "adaptive"} | o)), _GATE_WHOLE, _GATE_REAL
    ),
    "SynapseGate": (
        lambda **o: nn.SynapseGate(**({"width": 4, "gating": "topk", "threshold": "adaptive"} | o)),
        {"width": 4, **_GATE_WHOLE}, _GATE_REAL,
    ),
    "Insertion": (nn.Insertion, {}, {"threshold": 0.5, "eta": 0.5, "prune": 0.5}),
    "MetaplasticLinear": (
        lambda **o: nn.MetaplasticLinear(**({"in_features": 4, "out_features": 3} | o)),
        {"in_features": 4, "out_features": 3, "window": 2}, {},
    ),
    "SilentLinear": (
        lambda **o: nn.SilentLinear(**({"in_features": 4, "out_features": 3} | o)),
        {"in_features": 4, "out_features": 3, "window": 2, "seed": 1, "stream": 2},
        {"silent": 0.5, "threshold": 0.5, "eta": 0.5, "prune": 0.5},
    ),
    "PrototypeClassifier": (
        lambda **o: nn.PrototypeClassifier(**({"dim": 4} | o)), {"dim": 4}, {"weight": 0.5, "base_weight": 0.5}
    ),
    "LDAHead": (lambda **o: nn.LDAHead(**({"width": 4} | o)), {"width": 4}, {"shrinkage": 0.5}),
    "SelectedLDA": (
        lambda **o: nn.SelectedLDA(**({"width": 4} | o)), {"width": 4, "blocks": 2}, {"shrinkage": 0.5}
    ),
    "RidgeHead": (
        lambda **o: nn.RidgeHead(**({"width": 4} | o)), {"width": 4, "features": 8, "seed": 1}, {"ridge": 0.5}
    ),
}  # fmt: skip
# On a transformer, made once.
VIT: dict[str, tuple[dict[str, int], dict[str, float]]] = {
    "artsy": (
        {"rank": 2, "images_per_pass": 4, "image_size": 16, "seed": 1, "epochs": 1, "batch_size": 4},
        {"adapter_scale": 0.5, "dropout": 0.5, "alpha": 0.5, "base_weight": 0.5, "lr": 0.5, "flip": 0.5},
    ),
    "ranpac": ({"features": 8, "images_per_pass": 4, "seed": 1}, {"ridge": 0.5}),
    "lda": ({"layers": 2, "images_per_pass": 4, "seed": 1}, {"shrinkage": 0.5}),
    "simplecil": ({"images_per_pass": 4, "image_size": 16, "seed": 1}, {}),
    "finetune": ({"images_per_pass": 4, "epochs": 2, "seed": 1}, {"lr": 0.5, "momentum": 0.5}),
    "joint": ({"images_per_pass": 4, "epochs": 2, "seed": 1}, {"lr": 0.5, "weight_decay": 0.5}),
}


@pytest.fixture(scope="module")
def backbone() -> Any:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return tiny_vit.backbone()


def test_all_public_classes_are_here() -> None:
    told = {*CLASSES, "ArtsyViT", "RanPAC", "LDA", "SimpleCIL", "FinetuneViT", "JointViT"}
    without_numbers = {
        "Learner", "Answer", "BatchProgress", "Progress", "NotLearnedError", "METHODS", "MLP_METHODS",
        "ElasticMLP", "IntelligentMLP", "AdaptedModel", "AdapterPoint", "Parts", "MemoryPlan",
    }  # fmt: skip
    for module in (learners, nn):
        kinds = {name for name in module.__all__ if isinstance(getattr(module, name), type)}
        assert kinds - without_numbers <= told, kinds - without_numbers - told


def same(one: Any, other: Any) -> bool:
    """Made of equal arguments: equal settings and equal tensors."""
    if dataclasses.is_dataclass(one):
        return all(_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, learners.Learner):
        assert json.loads(json.dumps(one.configuration(), allow_nan=False)) == one.configuration()
        return one.configuration() == other.configuration() and same(one._modules(), other._modules())
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", CLASSES)
def test_scalars_of_others_are_numbers(name: str) -> None:
    make, whole, real = CLASSES[name]
    for values, kinds in ((whole, WHOLE), (real, REAL)):
        for argument, value in values.items():
            torch.manual_seed(0)
            plain = make(**{argument: value})
            for kind in kinds.values():
                if kind in (np.uint8, np.uint64) and value < 0:
                    continue
                torch.manual_seed(0)
                if (
                    argument == "threshold"
                    and name in ("Insertion", "SilentLinear")
                    and kind in (torch.tensor, REAL["exact"])
                ):
                    make(threshold=kind(value))  # a tensor there is one, for all units
                    continue
                assert same(make(**{argument: kind(value)}), plain), (argument, kind)


NEGATIVE = -1.0
NO_NUMBERS = [
    "3",
    b"3",
    None,
    True,
    np.bool_(True),
    torch.tensor(True),
    [3],
    torch.tensor([[1.0, 2.0]]),
    1j,
    {},
]
# Where None, a string or a list means something else.
MEANINGS = {
    "replay_batch": [None],
    "k": [None],
    "target": [None],
    "network": [
        "3",
        b"3",
        None,
        True,
        [3],
        {},
        np.bool_(True),
        torch.tensor(True),
        torch.tensor([[1.0, 2.0]]),
        1j,
    ],
    "image_size": [None],
    "threshold": [],
    "silent": [torch.tensor(True)],
}


def refused(make: Callable[..., Any], argument: str, value: object) -> str:
    with pytest.raises((TypeError, ValueError)) as raised:
        make(**{argument: value})
    message = str(raised.value)
    shown = {"low": "low", "high": "high"}.get(argument, argument)
    assert shown in message or (argument == "network" and "flexibility" in message), (argument, value, message)
    return message


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_no_number_is_refused_by_name(name: str) -> None:
    make, whole, real = CLASSES[name]
    if name == "Insertion":  # the layer checks it, which knows how many units there are
        real = {argument: value for argument, value in real.items() if argument != "threshold"}
    for argument in (*whole, *real):
        for value in NO_NUMBERS:
            if not any(value is known for known in MEANINGS.get(argument, ())) and not (
                argument == "network" and not isinstance(value, (int, float))
            ):
                refused(make, argument, value)
        for value in (math.nan, math.inf, -math.inf, np.float32(math.nan), torch.tensor(math.inf)):
            if (name, argument) != ("SilentLinear", "threshold") or not float(value) > 0:  # inf: never
                refused(make, argument, value)
    for argument in whole:
        for value in (2.5, np.float64(2.0), torch.tensor(2.0)):
            refused(make, argument, value)
        if argument not in ("seed", "stream"):
            refused(make, argument, -1)
    for argument in real:
        if argument not in ("low", "high", "scale", "weight", "base_weight") or name.startswith("Metaplastic"):
            refused(make, argument, -1.0)


@pytest.mark.parametrize("method", VIT)
def test_on_a_transformer(method: str, backbone: Any, tmp_path: Path) -> None:
    whole, real = VIT[method]

    def make(**options: Any) -> Any:
        return learners.make_learner(method, backbone, **options)

    for values, kinds in ((whole, WHOLE), (real, REAL)):
        for argument, value in values.items():
            plain = make(**{argument: value})
            for kind in list(kinds.values())[:: 1 if argument in ("rank", "features") else 3]:
                assert same(make(**{argument: kind(value)}), plain), argument
            for wrong in ("3", True, torch.tensor([3, 3]), math.nan, NEGATIVE):
                if argument not in ("alpha", "adapter_scale") or wrong is not NEGATIVE:
                    refused(make, argument, wrong)
    every = {name: np.int64(v) for name, v in whole.items()} | {n: np.float32(v) for n, v in real.items()}
    make(**every).save(tmp_path / "learner")
    assert same(learners.load_learner(tmp_path / "learner", backbone=backbone), make(**whole, **real))


def test_options_of_the_gate_are_plain(backbone: Any, tmp_path: Path) -> None:
    gate = {
        "gate": "ridge",
        "features": np.int64(8),
        "gating": "topk",
        "k": torch.tensor(1),
        "lr": np.float32(0.5),
    }
    one = learners.make_learner("artsy", backbone, rank=2, gate=gate)
    assert one.configuration()["gate"] == {"gate": "ridge", "features": 8, "gating": "topk", "k": 1, "lr": 0.5}
    one.save(tmp_path / "learner")
    for wrong, error, message in (
        ({"gate": "rigde"}, ValueError, "gate must be one of .*did you mean 'ridge'"),
        ({"gat": "ridge"}, TypeError, "SynapseGate has no argument 'gat'; did you mean 'gate'"),
        ("ridge", TypeError, "gate must be a mapping of options"),
    ):
        with pytest.raises(error, match=message):
            learners.make_learner("artsy", backbone, gate=wrong)
    seeded = learners.make_learner("artsy", backbone, rank=2, gate={"seed": 5})
    assert seeded.gate.options.seed == 5


def test_what_was_meant(backbone: Any) -> None:
    for call, error, message in (
        (lambda: L.make_learner("arsty", backbone), ValueError, "method must be one of .*did you mean 'artsy'"),
        (
            lambda: L.make_learner("artsy", backbone, rnak=3),
            ValueError,
            "no option 'rnak'.*did you mean 'rank'",
        ),
        (lambda: L.make_learner("artsy", backbone, epoch=3), ValueError, "did you mean 'epochs'"),
        (
            lambda: L.ArtsyViT(backbone, rnak=3),
            TypeError,
            "ArtsyViT has no argument 'rnak'; did you mean 'rank'",
        ),
        (
            lambda: L.SimpleCIL(backbone, sede=3),
            TypeError,
            "SimpleCIL has no argument 'sede'; did you mean 'seed'",
        ),
        (lambda: L.RanPAC(backbone, feature=3), TypeError, "did you mean 'features'"),
        (lambda: L.FinetuneViT(backbone, recipe={}), TypeError, "recipe must be a flexkern.learners.Recipe"),
        (lambda: L.MetaplasticMLP(*_IN, treshold=3), TypeError, "did you mean 'threshold'"),
        (lambda: L.MetaplasticMLP(*_IN, netwrok=3), TypeError, "did you mean 'network'"),
        (lambda: L.MetaplasticMLP(*_IN, network="hybird"), ValueError, "did you mean 'hybrid'"),
        (lambda: L.MetaplasticMLP(*_IN, reserve={}), TypeError, "reserve must be a flexkern.learners.Reserve"),
        (lambda: L.MetaplasticMLP(*_IN, fused_step=1), TypeError, "fused_step must be True or False, got 1"),
        (lambda: L.MetaplasticMLP(*_IN, gate="items"), ValueError, "gate must be one of .*did you mean 'item'"),
        (lambda: L.MetaplasticMLP("5", 3), TypeError, "input_shape must be the shape of one input, got '5'"),
        (lambda: L.MetaplasticMLP(5, 3), TypeError, "input_shape must be the shape of one input, got 5"),
        (lambda: L.MetaplasticMLP((5.0,), 3), TypeError, r"input_shape\[0\] must be a whole number, got 5.0"),
        (lambda: L.MetaplasticMLP((0,), 3), ValueError, r"input_shape\[0\] must be at least 1, got 0"),
        (
            lambda: L.MetaplasticMLP((5,), 3, widths=4),
            TypeError,
            "widths must be the units of each hidden layer",
        ),
        (lambda: L.MetaplasticMLP((5,), 3, widths=("4", 4)), TypeError, r"widths\[0\] must be a whole number"),
        (lambda: L.MetaplasticMLP((5,), 3, features=len), TypeError, "features must be a torch.nn.Module"),
        (lambda: L.EWC((5,), 3, seed=2**64), ValueError, "seed must be at most 18446744073709551615"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_the_largest_seeds_learn(backbone: Any) -> None:
    given = tiny_vit.stream()
    for method in ("artsy", "finetune"):
        one = learners.make_learner(method, backbone, epochs=1, batch_size=48, seed=np.uint64(2**64 - 1))
        one.learn(given[0])
    shaped = learners.MetaplasticMLP(torch.tensor([5]), np.int64(3), widths=np.array([4, 4]))
    assert shaped.configuration()["input_shape"] == [5]
    assert shaped.configuration()["widths"] == [4, 4]


def test_the_checks_themselves() -> None:
    assert type(whole_number(np.uint64(2**63 - 1), "n")) is int
    assert whole_number(-5, "n", least=None) == -5
    assert type(number(np.float32(0.1), "x")) is float
    assert number(np.float32(0.1), "x") == float(np.float32(0.1))
    assert sizes([np.int64(2), torch.tensor(3)], "sizes") == (2, 3)
    for value, low, above, message in (
        (0, 0, True, "x must be finite and > 0, got 0"),
        (-1, 0, False, "x must be finite and >= 0, got -1"),
        (math.inf, -math.inf, False, "x must be finite, got inf"),
        (10**400, 0, False, "x must be finite and >= 0, got an integer of 1329 bits"),
    ):
        with pytest.raises(ValueError, match=message):
            number(value, "x", low, above=above)
    with pytest.raises(ValueError, match=r"x must be in \(0, 1\], got 0"):
        number(0, "x", 0, 1, above=True)
    with pytest.raises(ValueError, match=r"n must be at most .*, got an integer of 333 bits"):
        whole_number(10**100, "n")
    with pytest.raises(TypeError, match=r"n must be a whole number, got 'aaa.*str"):
        whole_number("a" * 1000, "n")
    with pytest.raises(TypeError, match="n must be a whole number"):
        whole_number(torch.empty((), dtype=torch.int64, device="meta"), "n")
