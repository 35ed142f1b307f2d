"""A folder of ``flexkern run`` grows by seeds, methods and tasks, to the bits of one go."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from flexkern.runs.incremental import run as run_module
from flexkern.runs.incremental.config import Config, DataConfig, MethodConfig, StreamConfig
from flexkern.runs.incremental.data import make_stream
from flexkern.runs.incremental.run import Event, run
from helpers.incremental import LEARNERS, configuration, numbers

LOCAL, ALL = configuration(Path("unused")).methods


def go(config: Config, **options: Any) -> dict[str, Any]:
    return run(config, learners=LEARNERS, **options)


def trained(config: Config, **options: Any) -> tuple[dict[str, Any], set[tuple[str, int, int]], list[str]]:
    """The results, what was learned for them (method, seed, task), and what was said to be added."""
    events: list[Event] = []
    results = go(config, observe=events.append, **options)
    learned = {(e.method, e.seed, e.task) for e in events if e.kind == "epoch"}
    return results, learned, [phrase for e in events for phrase in e.added]


def test_seeds_and_methods_are_added_to_the_bits_of_one_go(tmp_path: Path) -> None:
    folder = tmp_path / "grown"
    go(configuration(folder, methods=(LOCAL,), seeds=(0,)))
    _, learned, added = trained(configuration(folder, methods=(LOCAL,), seeds=(2,)))
    assert {(method, seed) for method, seed, _ in learned} == {("Local rows", 2)}
    assert added == ["seed 2"]
    before = json.loads((folder / "results.json").read_text())
    # Another method, before the one that there is, and one seed of the two: those of the folder stay.
    grown, learned, added = trained(configuration(folder, methods=(ALL, LOCAL), seeds=(0,)))
    assert {(method, seed) for method, seed, _ in learned} == {("All rows", 0), ("All rows", 2)}
    assert added == ["method 'All rows'"]
    assert [r for r in grown["runs"] if r["method"] == "Local rows"] == before["runs"]
    whole = go(configuration(tmp_path / "whole", seeds=(0, 2)))
    assert numbers(grown) == numbers(whole)
    assert list(grown["summary"]) == list(whole["summary"])
    assert not (folder / "checkpoints").exists()
    again, learned, added = trained(configuration(folder, methods=(ALL,), seeds=(2,)))
    assert (again, learned, added) == (grown, set(), [])


def test_a_seeds_stream_is_made_once_for_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is put together of all images, and looked at whole: to see that it is the same, and to learn it."""
    config = configuration(tmp_path, stream=StreamConfig(increment=2, seed="run"), seeds=(0, 1))
    first = go(config)
    made: list[int] = []

    def counted(*given: Any) -> Any:
        made.append(given[-1])
        return make_stream(*given)

    monkeypatch.setattr(run_module, "make_stream", counted)
    assert go(config) == first
    assert made == [0, 1, 0, 1]


def test_a_run_that_was_stopped_ends_while_its_folder_grows(tmp_path: Path) -> None:
    class Stop(Exception):  # noqa: N818 - no error
        pass

    def stop(event: Event) -> None:
        if event.kind == "epoch" and event.task == 1:
            raise Stop

    with pytest.raises(Stop):
        go(configuration(tmp_path / "grown", methods=(ALL,)), observe=stop)
    grown, learned, _ = trained(configuration(tmp_path / "grown", methods=(LOCAL, ALL), seeds=(1,)))
    assert ("All rows", 0, 2) in learned
    assert ("All rows", 0, 0) not in learned
    whole = go(configuration(tmp_path / "whole", methods=(ALL, LOCAL), seeds=(0, 1)))
    assert numbers(grown) == numbers(whole)


def ordered(folder: Path, classes: int, **changes: Any) -> Config:
    stream = StreamConfig(increment=2, order=tuple(range(classes)))
    return configuration(folder, stream=stream, **changes)


def test_a_task_is_added_to_learners_that_were_kept(tmp_path: Path) -> None:
    folder = tmp_path / "grown"
    four = go(ordered(folder, 4), keep=True)
    grown, learned, added = trained(ordered(folder, 6, seeds=(0, 1)))
    assert {(seed, task) for _, seed, task in learned} == {(0, 2), (1, 0), (1, 1), (1, 2)}
    assert added == ["seed 1", "stream.order was [0, 1, 2, 3], is [0, 1, 2, 3, 4, 5]"]
    whole = go(ordered(tmp_path / "whole", 6, seeds=(0, 1)))
    for record in grown["runs"]:
        assert record.pop("kept", None) == (True if record["seed"] == 0 else None)
    assert numbers(grown) == numbers(whole)
    assert grown["runs"][0]["tasks"][:2] == four["runs"][0]["tasks"]
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["0_local_rows_seed0.safetensors", "1_all_rows_seed0.safetensors"]
    with pytest.raises(ValueError, match=r"stream.order was \[0, 1, 2, 3, 4, 5\], is \[0, 1\]"):
        go(ordered(folder, 2))


def test_a_domain_is_added_and_the_last_one_is_tested_again(tmp_path: Path) -> None:
    """Forward transfer to a domain is measured before it is learned, by the learner that was kept."""
    pytest.importorskip("sklearn")
    mlp = {"widths": [8, 8], "epochs": 1, "features": "pixels"}
    methods = (
        MethodConfig("Ridge", "ridge", {"features": "pixels", "random_features": 64}),
        MethodConfig("EWC", "ewc", mlp),
    )

    def domains(folder: str, *names: str) -> Config:
        data = DataConfig(kind="digits", train_per_class=5, test_per_class=3, domains=names)
        return configuration(
            tmp_path / folder, data=data, stream=StreamConfig(kind="domain-incremental"), methods=methods
        )

    run(domains("grown", "digits", "digits:inverted"), keep=True)
    grown = run(domains("grown", "digits", "digits:inverted", "digits:rotated:2"), keep=True)
    whole = run(domains("whole", "digits", "digits:inverted", "digits:rotated:2"), keep=True)
    assert numbers(grown) == numbers(whole)
    assert grown["summary"]["Ridge"]["forward_transfer"]["mean"] is not None


@pytest.mark.parametrize(
    ("change", "keep", "message"),
    [
        ({"order": (0, 1, 2, 3, 4, 5)}, False, "has learned its 2 tasks and was not kept .--keep.*--restart"),
        ({"order": (0, 1, 3, 2, 4, 5)}, True, r"stream.order was .*: 'Local rows', 'All rows', seeds 0"),
        ({"order": (0, 1, 2, 3), "seed": 3}, True, "stream.seed was 1993, is 3"),
        ({"order": (0, 1, 2, 3, 4), "increment": 3}, True, "stream.increment was 2, is 3"),
    ],
)  # fmt: skip
def test_what_cannot_grow_is_refused_by_name(
    change: dict[str, Any], keep: bool, message: str, tmp_path: Path
) -> None:
    go(ordered(tmp_path, 4), keep=keep)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    stream = StreamConfig(**({"increment": 2} | change))
    with pytest.raises(ValueError, match=message):
        go(configuration(tmp_path, stream=stream))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_tasks_of_other_images_are_refused(tmp_path: Path) -> None:
    """With more classes the seed's order is another one, and so are the tasks that were learned."""
    data = DataConfig(kind="digits", train_per_class=20, test_per_class=10, classes=tuple(range(4)))
    config = configuration(tmp_path, data=data, stream=StreamConfig(increment=2))
    go(config, keep=True)
    more = dataclasses.replace(data, classes=tuple(range(6)))
    with pytest.raises(ValueError, match=r"data.classes was .* tasks 1 to 2 are other ones with that"):
        go(dataclasses.replace(config, data=more))


def test_a_perceptron_has_outputs_for_the_classes_of_its_stream(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    methods = (MethodConfig("Ridge", "ridge", {"features": "pixels", "random_features": 64}),)
    run(ordered(tmp_path, 4, methods=methods), keep=True)
    with pytest.raises(ValueError, match="'Ridge', seed 0, was made with an output for each class"):
        run(ordered(tmp_path, 6, methods=methods))
