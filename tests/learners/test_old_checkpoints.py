"""Checkpoints of before all learners had one format load to the bit, and go on: tests/data/old_learners."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern.learners import EWC, METHODS, MLP_METHODS, MetaplasticMLP, checkpoint, load_learner, load_mlp
from flexkern.nn import AdaptiveThreshold
from flexkern.nn.silent.state import decode
from flexkern.optim.flexibilities import field_of
from flexkern.streams import Experience
from helpers import tiny_vit
from helpers.mlp_blobs import blobs

# What loading says of each; test_an_old_file_is_loaded_with_a_warning looks at it.
pytestmark = pytest.mark.filterwarnings("ignore:.*carries no sum", "ignore:backbone. the checkpoint is of")

OLD = Path(__file__).resolve().parent.parent / "data" / "old_learners"

# Name of the file, method, and options beside widths (12, 8), lr 0.05, batch_size 16 and seed 3.
MLPS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "metaplastic",
        "metaplastic",
        {
            "momentum": 0.5, "silent_fraction": 0.4, "rule": "hebbian", "insert": "hebbian", "eta": 0.01,
            "threshold": dataclasses.asdict(AdaptiveThreshold(target=0.02, gain=5.0, start=0.5)),
        },
    ),
    ("field", "metaplastic", {"network": "Field", "scale": 30.0}),  # Field.uniform(3, 9, low=0.5)
    ("ewc", "ewc", {"strength": 30.0, "decay": 0.5, "fisher_samples": 50}),
    ("si", "si", {"strength": 3.0, "momentum": 0.9}),
    ("replay", "replay", {"memory": 30, "replay_batch": 8}),
    ("joint_mlp", "joint", {}),
]  # fmt: skip
VITS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "artsy",
        "artsy",
        {"rank": 2, "gate": {"gate": "ridge", "gating": "topk", "k": 1, "fill": True, "features": 16}},
    ),
    ("simplecil", "simplecil", {}),
    ("ranpac", "ranpac", {"features": 16}),
    ("finetune", "finetune", {}),
    ("joint_vit", "joint", {}),
]
TRAINED = ("artsy", "finetune", "joint_vit")


def backbone() -> nn.Module:
    """Of the smallest size, with weights that no generator decides."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = tiny_vit.SIZES | {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16}
    network = transformers.ViTModel(transformers.ViTConfig(**sizes), add_pooling_layer=False)
    with torch.no_grad():
        for n, p in enumerate(network.parameters()):
            p.copy_((((torch.arange(p.numel()) * 7919 + 31 * n) % 1000) / 1000 - 0.5).reshape(p.shape))
    return network


def images(task: int) -> Experience:
    """The first 16 training images of a task."""
    whole = tiny_vit.stream()[task]
    return dataclasses.replace(
        whole, train_inputs=whole.train_inputs[:16], train_labels=whole.train_labels[:16]
    )


def plain(optimizer: torch.optim.Optimizer | None) -> tuple[dict[str, Tensor], Any]:
    return ({}, None) if optimizer is None else checkpoint.split_optimizer(optimizer.state_dict())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype is expected[name].dtype, name
        assert torch.equal(value, expected[name]), name


def assert_means_the_same(new: dict[str, Any], old: dict[str, Any]) -> None:
    """An optimizer's numbers as they are now say what an earlier version said by lists in its groups."""
    for group, old_group in zip(new["param_groups"], old["param_groups"], strict=True):
        lists = {"flexibility", "anchor", "measured_scale"}
        assert {k: group[k] for k in old_group if k not in lists} == {
            k: v for k, v in old_group.items() if k not in lists
        }
        assert group["measured_scale"] == (old_group["measured_scale"] or 0.0)
        for key, f, anchor in zip(group["params"], old_group["flexibility"], old_group["anchor"], strict=True):
            state, marked = new["state"][str(key)], old["state"].get(str(key), {})
            expected = marked["flexibility"] if f == "stored" else f, marked.get("anchor") or anchor
            for found, value in zip((state["flexibility"], state.get("anchor")), expected, strict=True):
                is_tensor = value == {"tensor": True}
                assert found == value if is_tensor else field_of(found) == field_of(value)


@pytest.mark.parametrize(("file", "method", "options"), MLPS, ids=[m[0] for m in MLPS])
def test_an_mlp_loads_to_the_bit_and_goes_on(file: str, method: str, options: dict, tmp_path: Path) -> None:
    path = OLD / f"{file}.safetensors"
    tensors, record = checkpoint.read(path)
    one = load_mlp(path)
    assert type(one) is MLP_METHODS[method]
    shared = {"widths": [12, 8], "lr": 0.05, "batch_size": 16, "seed": 3}
    assert {**one.configuration(), **shared, **options} == one.configuration() == record["configuration"]
    modules = {f"model.{k}": v for k, v in one.model.state_dict().items()}
    assert all(isinstance(v, Tensor) for v in modules.values())
    # What old files have in their JSON, of layers with silent synapses, are tensors today.
    moved = {name: modules.pop(f"model.{name}") for name in record.get("model", {})}
    for name, value in record.get("model", {}).items():
        assert decode(moved[name]) == decode(value)
    of_optimizer, numbers = plain(one.optimizer)
    extra = {f"extra.{k}": v for k, v in one._extra_state().items()}
    assert_same(modules | of_optimizer | extra, tensors)
    assert_means_the_same(numbers, record["optimizer"])
    assert (one.items_learned, one._epochs_done) == (1, 1)

    one.save(tmp_path / "new")
    again, new = checkpoint.read(tmp_path / "new")
    assert_same(again, tensors | {f"model.{name}": value for name, value in moved.items()})
    assert new["model"] == {}
    assert new["configuration"] == record["configuration"]
    assert_means_the_same(new["optimizer"], record["optimizer"])
    resumed = load_learner(tmp_path / "new")
    stream = blobs(2, per_class=20)
    with pytest.raises(ValueError, match=r"'item 1' was begun \(1 epochs are done\)"):
        one.learn(stream[0], epochs=2)
    for learner in (one, resumed):
        learner.learn(stream[1], epochs=2)
        assert learner.items_learned == 2
    assert_same(
        {str(i): p for i, p in enumerate(one.model.parameters())},
        {str(i): p for i, p in enumerate(resumed.model.parameters())},
    )


@pytest.mark.parametrize(("file", "method", "options"), VITS, ids=[m[0] for m in VITS])
def test_a_vit_loads_to_the_bit_and_goes_on(file: str, method: str, options: dict, tmp_path: Path) -> None:
    path = OLD / f"{file}.safetensors"
    tensors, record = checkpoint.read(path)
    one = load_learner(path, backbone=backbone())
    assert type(one) is METHODS[method]
    configuration = one.configuration()
    assert configuration == record["configuration"]
    assert {k: configuration[k] for k in options} == options
    assert configuration["recipe"]["epochs"] == 2
    modules = {f"modules.{k}": v for k, v in one._modules().state_dict().items()}
    of_optimizer, numbers = plain(one._optimizer())
    # Flags were bools once, which no average can be made of.
    tensors = {name: value.long() if value.dtype is torch.bool else value for name, value in tensors.items()}
    assert_same(modules | of_optimizer, tensors)
    begun = file in TRAINED
    assert (one.tasks_learned, one.classes_seen, one._epochs_done) == ((1, 2, 1) if begun else (2, 4, 0))
    if begun:
        assert numbers == record["training"]["optimizer"]

    one.save(tmp_path / "new")
    resumed = load_learner(tmp_path / "new", backbone=backbone())
    for learner in (one, resumed):
        for task in range(learner.tasks_learned, 3):
            learner.learn(images(task))
        assert learner.classes_seen == tiny_vit.CLASSES
    assert_same(one._modules().state_dict(), resumed._modules().state_dict())


def test_an_old_file_of_another_method_is_refused_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 'ElasticMLP' in format 1; this version reads 'MetaplasticMLP'"):
        MetaplasticMLP.load(OLD / "ewc.safetensors")
    with pytest.raises(ValueError, match="holds 'ArtsyViT' in format 1; this version reads 'EWC'"):
        EWC.load(OLD / "artsy.safetensors")
    with pytest.raises(ValueError, match="holds 'ArtsyViT', which is none of"):
        load_mlp(OLD / "artsy.safetensors")
    shutil.copy(OLD / "ewc.safetensors", tmp_path / "one")
    tensors, record = checkpoint.read(tmp_path / "one")
    checkpoint.write(tmp_path / "one", tensors, record | {"format": 0})
    with pytest.raises(ValueError, match="holds 'ElasticMLP' in format 0; this version reads 'EWC'"):
        load_mlp(tmp_path / "one")
