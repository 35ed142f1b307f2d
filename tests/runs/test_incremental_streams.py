"""What the runner learns from: the stream that a configuration says, of the bundled digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pydantic")
pytest.importorskip("sklearn")

from flexkern.runs.incremental.config import Config, parse_config
from flexkern.runs.incremental.data import digest, load_images, make_stream
from flexkern.streams import OnlineStream, Stream


def config(stream: dict[str, Any], data: dict[str, Any] | None = None) -> Config:
    few = {"kind": "digits", "train_per_class": 12, "test_per_class": 3}
    methods = [{"name": "A", "method": "simplecil"}]
    return parse_config({"data": few if data is None else data, "stream": stream, "methods": methods})


def made(stream: dict[str, Any], data: dict[str, Any] | None = None, seed: int = 0) -> Stream:
    this = config(stream, data)
    return make_stream(this, *load_images(this.data), seed=seed)


@pytest.mark.parametrize(
    ("stream", "scenario", "experiences"),
    [
        ({"increment": 2}, "class-incremental", 5),
        ({"kind": "blurry", "tasks": 4, "disjoint": 0.4, "blur": 0.25}, "blurry", 4),
        ({"kind": "class-repetition", "experiences": 6, "classes_per_experience": 3}, "class-repetition", 6),
        ({"kind": "class-repetition", "experiences": 6, "probability": 0.3}, "class-repetition", 6),
    ],
)
def test_the_stream_of_a_configuration(stream: dict[str, Any], scenario: str, experiences: int) -> None:
    one = made(stream)
    assert (one.scenario, len(one), one.classes) == (scenario, experiences, 10)
    assert sum(len(e.train_labels) for e in one) == 120
    assert sum(len(e.test_labels) for e in one) == 30
    assert digest(one) == digest(made(stream))
    assert digest(one) != digest(made(stream | {"seed": 7}))
    assert digest(made(stream | {"seed": "run"}, seed=7)) == digest(made(stream | {"seed": 7}))
    parts = made(stream | {"online": 5})
    assert isinstance(parts, OnlineStream)
    assert (parts.of, parts.batch_size) == (scenario, 5)


def test_domains_of_digits() -> None:
    names = ["digits", "digits:inverted", "digits:coloured"]
    data = {"kind": "digits", "domains": names, "train_per_class": 3, "test_per_class": 2}
    stream = made({"kind": "domain-incremental"}, data)
    assert (stream.scenario, stream.names, stream.classes) == ("domain-incremental", names, 10)
    assert isinstance(stream[1].train_inputs, torch.Tensor)
    assert stream.input_shape == (3, 32, 32)
    shuffled = {"kind": "domain-incremental", "shuffle_domains": True, "seed": "run"}
    assert len({tuple(made(shuffled, data, seed).names) for seed in range(6)}) > 1
    parts = made({"kind": "domain-incremental", "online": 10}, data)
    assert isinstance(parts, OnlineStream)
    assert len(parts.parts(1)) == 3


def test_domains_of_a_pack(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (20, 6, 6, 3), dtype=np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "pack.npz", x_train=x[:14], y_train=y[:14], x_test=x[14:], y_test=y[14:])
    data = {"kind": "pack", "path": str(tmp_path / "pack.npz"), "domains": ["clean", "fog:2"], "size": 8}
    stream = made({"kind": "domain-incremental"}, data)
    assert (stream.names, stream.input_shape) == (["clean", "fog:2"], (3, 8, 8))
    assert digest(stream) == digest(made({"kind": "domain-incremental"}, data))


@pytest.mark.parametrize("in_memory", ["auto", False])
def test_domains_of_folders(tmp_path: Path, in_memory: Any) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for d, domain in enumerate(("day", "night")):
        for c in ("cat", "dog", "owl")[: 2 + d]:
            for part, count in (("train", 3), ("test", 1)):
                for i in range(count):
                    path = tmp_path / domain / part / c / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    pillow.new("RGB", (9, 8), (d * 100 + i, 0, 0)).save(path)
    data = {
        "kind": "folder",
        "path": str(tmp_path),
        "size": 4,
        "domains": ["day", "night"],
        "in_memory": in_memory,
    }
    stream = made({"kind": "domain-incremental"}, data)
    assert stream.names == ["day", "night"]
    assert stream.class_names == ["cat", "dog", "owl"]
    assert isinstance(stream[0].train_inputs, torch.Tensor) == (in_memory == "auto")
    missing = config({"kind": "domain-incremental"}, data | {"domains": ["day", "dusk"]})
    with pytest.raises(FileNotFoundError, match=r"data.domains: no folder 'dusk' in "):
        load_images(missing.data)


@pytest.mark.parametrize(
    ("stream", "data", "message"),
    [
        (
            {"increment": 2},
            {"kind": "digits", "domains": ["digits"]},
            r"stream\.kind and data\.domains go together",
        ),
        ({"kind": "domain-incremental"}, {"kind": "digits"}, r"stream\.kind and data\.domains go together"),
        ({"increment": 2}, {"kind": "core50", "size": 4}, "a domain-incremental stream needs"),
        ({"kind": "domain-incremental"}, {"kind": "digits", "domains": []}, "domains must name at least one"),
        (
            {"kind": "domain-incremental"},
            {"kind": "digits", "domains": ["digit"]},
            r"domains\[0\] must begin with",
        ),
        (
            {"kind": "domain-incremental"},
            {"kind": "digits", "domains": ["digits:foggy:2"]},
            "there is no look 'foggy'",
        ),
        (
            {"kind": "domain-incremental"},
            {"kind": "digits", "domains": ["digits", "digits"]},
            "got 'digits' twice",
        ),
        (
            {"kind": "domain-incremental"},
            {"domains": ["fog"], "path": "x"},
            r"domains\[0\]: 'fog' needs a severity",
        ),
        (
            {"kind": "domain-incremental"},
            {"kind": "digits", "domains": ["digits"], "size": 4},
            "are 32 pixels wide",
        ),
        ({"kind": "domain-incremental"}, {"kind": "domainnet"}, "size is needed for folders of images"),
        ({"kind": "domain-incremental"}, {"kind": "core50", "size": 4, "test_share": 0.2}, "test_share is for"),
    ],
)
def test_domains_that_are_refused(stream: dict[str, Any], data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(stream, data)


def test_mnist_is_no_bundled_domain(tmp_path: Path) -> None:
    this = config({"kind": "domain-incremental"}, {"kind": "digits", "domains": ["digits", "mnist"]})
    with pytest.raises(ValueError, match=r"data\.path: this configuration needs the archive"):
        load_images(this.data)
    with pytest.raises(FileNotFoundError):
        load_images(this.override(data=str(tmp_path / "mnist.npz")).data)
