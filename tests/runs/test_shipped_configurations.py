"""Configurations of the data sets that PILOT learns: its class orders and increments, and that they run."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pydantic")

from flexkern.runs.incremental import tables
from flexkern.runs.incremental.config import Config, StreamConfig, find_config, read_config
from flexkern.runs.incremental.run import run
from flexkern.streams import class_order

# Of PILOT's utils/data.py and of EASE's exps: increment, whether the order is shuffled, epochs, learning rate,
# batch, units of an adapter, and the average and the last figure of the log beside them.
PILOT: dict[str, tuple[Any, ...]] = {
    "imagenet_r_b0_inc20": (20, True, 20, 0.05, 16, 64, 81.74, 76.17),
    "imagenet_r_b0_inc40": (40, True, 20, 0.05, 16, 64, None, None),
    "imagenet_a_b0_inc20": (20, True, 20, 0.05, 32, 64, 65.34, 55.04),
    "cub200_b0_inc10": (10, True, 20, 0.008, 32, 64, 92.22, 86.81),
    "cub200_b0_inc20": (20, True, 20, 0.008, 32, 64, None, None),
    "omnibenchmark_b0_inc30": (30, True, 20, 0.01, 16, 64, 81.07, 74.80),
    "vtab_b0_inc10": (10, False, 45, 0.03, 16, 16, 93.61, 93.55),
    "objectnet_b0_inc10": (10, True, 25, 0.05, 48, 64, 70.84, 57.86),
    "objectnet_b0_inc20": (20, True, 25, 0.05, 48, 64, None, None),
}
CLASSES = 50  # of the folder here; VTAB names so many


@pytest.mark.parametrize("name", PILOT)
def test_it_is_pilots(name: str) -> None:
    increment, shuffled, epochs, lr, batch, rank, average, last = PILOT[name]
    config = read_config(find_config(name))
    assert (config.data.kind, config.data.size, config.data.path) == ("folder", 256, None)
    assert (config.stream.base, config.stream.increment, config.stream.seed) == (0, increment, 1993)
    assert config.stream.order == (None if shuffled else tuple(range(50)))
    assert config.data.classes is None
    artsy, ease = config.methods[:2]
    for method in (artsy, ease):
        o = method.options
        assert (o["epochs"], o["lr"], o["batch_size"], o["rank"]) == (epochs, lr, batch, rank)
    assert artsy.paper is None
    figures = (None, None) if ease.paper is None else (ease.paper.average, ease.paper.last)
    assert figures == (average, last)
    if ease.paper is not None:
        assert re.search(rf"CVPR24-Ease, logs/ease/\w+/0/{increment}\b", ease.paper.source)
        assert (ease.paper.epochs, ease.paper.backbone) == (epochs, config.backbone)
        assert ease.paper.shuffled == shuffled


def test_the_order_of_a_paper_that_shuffles_none_is_no_difference() -> None:
    for name, told in (("vtab_b0_inc10", False), ("cifar100_b0_inc10", True)):
        stream = StreamConfig(increment=10, order=tuple(range(50)))
        ours = dataclasses.replace(read_config(find_config(name)), stream=stream)
        (note,) = tables.notes(ours, {"summary": {}, "runs": [], "environments": []})
        assert ("another order" in note) == told


def test_papers_of_before_are_the_same_configuration() -> None:
    papers = [m["paper"] for m in read_config(find_config("cifar100_b0_inc10")).asdict()["methods"]]
    assert [sorted(p) for p in papers if p] == [["average", "backbone", "epochs", "last", "source"]]


def test_orders_are_pilots() -> None:
    """NumPy's legacy permutation, as its data manager draws it of the classes' numbers."""
    np.random.seed(1993)
    assert class_order(range(200)) == np.random.permutation(200).tolist()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("transformers")
    from flexkern.backbones import random_backbone

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = random_backbone(
            "small", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            image_size=16,
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    network.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As PILOT's: train and test, in each one folder for each class, here with three images and one."""
    images = pytest.importorskip("PIL.Image")
    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 1)):
        for c in range(CLASSES):
            of_class = root / part / f"n{c:08d}"
            of_class.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                images.fromarray(pixels).save(of_class / f"{i}.png")
    return root


def small(name: str, backbone: str, data: Path, out: Path) -> Config:
    """The configuration on the tiny network, for one epoch."""
    config = read_config(find_config(name)).override(
        backbone=backbone, data=str(data), out=str(out), device="cpu"
    )
    methods = tuple(
        dataclasses.replace(
            m, options=m.options | {"epochs": 1} | ({"features": 20} if "features" in m.options else {})
        )
        for m in config.methods
    )
    return dataclasses.replace(config, methods=methods)


@pytest.mark.parametrize("name", PILOT)
def test_all_its_methods_can_be_made(name: str, tiny: str, tmp_path: Path) -> None:
    """Up to the images: there are none in this folder."""
    with pytest.raises(FileNotFoundError, match="must hold a folder 'train'"):
        run(small(name, tiny, tmp_path, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", PILOT)
def test_it_runs_on_a_folder(name: str, tiny: str, folder: Path, tmp_path: Path) -> None:
    config = small(name, tiny, folder, tmp_path / "out")
    results = run(config)
    assert results["finished"]
    tasks = -(-CLASSES // config.stream.increment)
    for record in results["runs"]:
        assert [t["classes"] for t in record["tasks"]][-1] == CLASSES
        assert len(record["tasks"]) == tasks
    first = results["runs"][0]["experiences"][0].split(", ")[0]
    order = config.stream.order or class_order(range(CLASSES))
    assert first == f"n{order[0]:08d}"
