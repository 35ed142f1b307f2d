"""What the runner learns from: the stream that a configuration says, of the bundled digits."""

from __future__ import annotations

from typing import Any

import pytest

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
