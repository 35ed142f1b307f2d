"""Split CIFAR-100 by the learners of the metaplasticity experiments."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from flexkern.runs.metaplasticity.protocol import protocol_for
from flexkern.runs.metaplasticity.runner import run
from helpers.memory_tiny import TINY


@pytest.mark.usefixtures("few_random_features")
def test_split_cifar100_learns_tasks_of_several_classes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from flexkern.runs.metaplasticity.split_cifar100 import SplitCIFAR100

    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (100, 1, 1, 3))
    arrays = {}
    for part, each in (("train", 12), ("test", 5)):
        labels = np.repeat(np.arange(100), each)
        noise = rng.integers(-20, 20, (len(labels), 32, 32, 3))
        arrays |= {f"x_{part}": (colours[labels] + noise).clip(0, 255).astype(np.uint8), f"y_{part}": labels}
    pack = tmp_path / "pack.npz"
    np.savez(pack, **arrays)
    protocol = protocol_for(
        **TINY
        | {"items": 3, "train_per_item": 12, "test_per_item": 5, "data": str(pack), "width": 32, "epochs": 20}
    )
    experiment = SplitCIFAR100(pilot=1, first_class=94, scales=(10.0,), ewc=(1.0,), si=(1.0,), memory=8)
    tasks = experiment.load(protocol, 0, tmp_path / "cache", lambda _: None)
    assert len(tasks) == 3
    for i in range(3):
        e = tasks.experience(i)
        assert e.train_inputs.shape == (24, 256)
        assert set(e.train_labels.tolist()) == set(e.test_labels.tolist()) == {2 * i, 2 * i + 1}
        assert tasks.test(i).train_inputs.shape == (0, 256)
        assert torch.equal(tasks.test(i).test_inputs, e.test_inputs)
    first = tasks.experience(0).train_inputs
    # Centred and scaled by these very inputs, in float32: sums of 6,144 squares.
    assert float(first.mean(0).abs().max()) < 1e-5
    assert float(first.square().mean()) == pytest.approx(1, abs=1e-5)
    results = run(experiment, protocol, out=tmp_path / "out", cache=tmp_path / "cache", jobs=1)
    (joint,) = (r for r in results["runs"] if r["network"] == "joint" and r["seed"] == 1)
    # Six different colours: trained on all of them, the network is right on nearly all.
    assert np.mean(joint["parts"]["stream"]["accuracy"][-1]) > 0.8
    assert joint["parts"]["stream"]["memorised"][-1] == [0, 1, 2]
    with pytest.raises(ValueError, match="data must be the path of the archive of CIFAR-100"):
        experiment.load(protocol_for(items=3), 0, tmp_path, lambda _: None)
    with pytest.raises(ValueError, match="items must divide the 6 classes of the stream, got 4"):
        experiment.load(dataclasses.replace(protocol, items=4), 0, tmp_path, lambda _: None)
    with pytest.raises(ValueError, match=r"first_class must be in \[0, 100\), got 100"):
        SplitCIFAR100(first_class=100)
