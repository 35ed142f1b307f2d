"""``flexkern run class-incremental``: perceptrons, and streams of every kind, resumed to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexkern.learners import METHODS, MLP_METHODS, load_learner
from flexkern.runs.incremental import run as run_module
from flexkern.runs.incremental.config import Config, DataConfig, MethodConfig, StreamConfig, parse_config
from flexkern.runs.incremental.data import load_images, make_stream
from flexkern.runs.incremental.measures import Measures
from flexkern.runs.incremental.run import Event, run
from helpers.incremental import LEARNERS, configuration, numbers

DOMAINS = ("digits", "digits:inverted", "digits:rotated:5")
STREAMS = {
    "class-incremental": (DataConfig(kind="digits", train_per_class=6, test_per_class=3), {"increment": 5}),
    "domain-incremental": (
        DataConfig(kind="digits", train_per_class=3, test_per_class=3, domains=DOMAINS),
        {},
    ),
    "blurry": (DataConfig(kind="digits", train_per_class=8, test_per_class=3), {"tasks": 3}),
    "class-repetition": (
        DataConfig(kind="digits", train_per_class=8, test_per_class=3),
        {"experiences": 3, "classes_per_experience": 5},
    ),
}
QUICK = (("class-incremental", 0), ("domain-incremental", 0), ("blurry", 7))
VIT = (
    MethodConfig("LDA", "lda"),
    MethodConfig("Finetune", "finetune", {"epochs": 2, "flip": 0.0}),
)
MLP = (
    MethodConfig("Metaplastic", "metaplastic", {"widths": [16, 16], "epochs": 2, "scale": 10.0, "lr": 0.1}),
    MethodConfig("Replay", "replay", {"widths": [16, 16], "epochs": 2, "features": "pixels", "memory": 20}),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny transformer of random weights."""
    pytest.importorskip("transformers")
    from flexkern.backbones import random_backbone

    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random_backbone(
            "small", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            image_size=16,
        ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def scenario(out: Path, kind: str, tiny: str, online: int = 0, **changes: Any) -> Config:
    data, options = STREAMS[kind]
    values: dict[str, Any] = {
        "data": data,
        "stream": StreamConfig(kind=kind, online=online, **options),
        "methods": (*VIT, *MLP),
        "backbone": tiny,
        "device": "cpu",
        "out": str(out),
    }
    return Config(**(values | changes))


# ----------------------------------------------------------------- streams of every kind


@pytest.mark.parametrize(
    ("kind", "online"),
    [
        pytest.param(kind, online, id=f"{kind}-{'online' if online else 'whole'}",
                     marks=() if (kind, online) in QUICK else pytest.mark.slow)
        for kind in STREAMS for online in (0, 7)
    ],
)  # fmt: skip
def test_a_stopped_run_ends_with_the_same_numbers(
    kind: str, online: int, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_PARTS", 3)
    events: list[Event] = []
    whole = run(scenario(tmp_path / "whole", kind, tiny, online), observe=events.append)
    assert whole["finished"]
    assert not (tmp_path / "whole" / "features").exists()
    left = 0

    def observe(event: Event) -> None:
        nonlocal left
        left -= event.kind in ("epoch", "part", "task")
        if not left:
            raise InterruptedError

    stops = 0
    while True:
        left = 5
        try:
            stopped = run(scenario(tmp_path / "stopped", kind, tiny, online), observe=observe)
            break
        except InterruptedError:
            stops += 1
    assert stops >= len(whole["runs"])
    assert numbers(stopped) == numbers(whole)
    stream = make_stream(scenario(tmp_path, kind, tiny, online), *load_images(STREAMS[kind][0]), seed=0)
    for record in whole["runs"]:
        tasks = record["tasks"]
        assert [t["classes"] for t in tasks] == [
            len(set(torch.cat([e.train_labels for e in stream[: i + 1]]).tolist())) for i in range(len(stream))
        ]
        untested = [not len(e.test_labels) for e in stream]
        assert [a is None for a in tasks[-1]["accuracies"]] == untested
        assert (tasks[-1]["task_named"] is None) == (kind != "class-incremental")
        assert (tasks[-1]["forward_transfer"] is None) == (kind != "domain-incremental")
        assert ("anytime" in tasks[-1]) == bool(online)
        assert tasks[-1]["masked"] >= tasks[-1]["seen"]
        assert len(tasks[-1]["per_class"]) == 10
    parts = [e for e in events if e.kind == "part"]
    if online:
        assert len(parts) == 4 * sum(-(-len(e.train_labels) // online) for e in stream)
        assert [e.epoch for e in parts if e.method == "LDA" and e.task == 1] == list(
            range(1, -(-len(stream[1].train_labels) // online) + 1)
        )
        losses = [record["tasks"][0]["losses"] for record in whole["runs"]]
        assert losses[0] == [None] * len(losses[0])  # nothing is trained
        assert all(loss > 0 for of_run in losses[1:] for loss in of_run)
    else:
        assert not parts


def test_online_parts_are_learned_once_each_from_where_the_checkpoint_is(tiny: str, tmp_path: Path) -> None:
    """Of 9 parts, stopped after the 5th: none was saved, for fewer than a hundred were learned."""
    config = scenario(tmp_path, "class-incremental", tiny, 4, methods=VIT[:1])
    seen: list[int] = []

    def observe(event: Event) -> None:
        if event.kind == "part" and event.task == 1:
            seen.append(event.epoch)
            if seen == [1, 2, 3, 4, 5]:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        run(config, observe=observe)
    run(config, observe=observe)
    assert seen == [1, 2, 3, 4, 5, *range(1, 9)]


@pytest.mark.parametrize("kind", ["domain-incremental", "blurry", "class-repetition"])
def test_methods_that_do_not_take_a_stream_are_refused_before_data_is_read(
    kind: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("images were read")

    monkeypatch.setattr(run_module, "load_images", refuse)
    monkeypatch.setattr(METHODS["lda"], "takes", ("class-incremental", "online"))
    config = scenario(tmp_path / "out", kind, tiny)
    message = (
        rf"'LDA' \(lda\) learns class-incremental, online streams, and this one is {kind}. "
        r"Methods that learn such: on a transformer .*finetune.*; on a perceptron .*ewc"
    )
    with pytest.raises(ValueError, match=message):
        run(config)
    monkeypatch.setattr(METHODS["lda"], "takes", ("class-incremental", kind))
    with pytest.raises(ValueError, match=r"'LDA' \(lda\) learns .* streams, and this one is online"):
        run(scenario(tmp_path / "out", kind, tiny, online=1))
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------- what is measured


def test_what_a_domain_brings_to_the_next_is_measured_before_it_is_learned(tiny: str, tmp_path: Path) -> None:
    config = scenario(tmp_path, "domain-incremental", tiny, methods=VIT[:1])
    results = run(config)
    stream = make_stream(config, *load_images(config.data), seed=0)
    learner = METHODS["lda"].make(tiny, seed=0)
    matrix = []
    for experience in stream:
        learner.learn(experience)
        matrix.append(learner.evaluate(stream).accuracies)
    tasks = results["runs"][0]["tasks"]
    assert [t.get("before_next") for t in tasks] == [matrix[0][1], matrix[1][2], None]
    assert tasks[0]["forward_transfer"] == pytest.approx(matrix[0][1] - 0.1)
    last = np.mean([matrix[0][1] - 0.1, matrix[1][2] - 0.1])
    assert tasks[1]["forward_transfer"] == tasks[2]["forward_transfer"] == pytest.approx(last)
    assert tasks[2]["learning_accuracy"] == pytest.approx(np.mean([matrix[i][i] for i in range(3)]))
    gained = np.mean([matrix[2][i] - matrix[i][i] for i in range(2)])
    assert tasks[2]["backward_transfer"] == pytest.approx(gained)
    assert results["summary"]["LDA"]["forward_transfer"]["mean"] == pytest.approx(last)


def test_experiences_without_tests_count_in_no_mean(tmp_path: Path, tiny: str) -> None:
    config = scenario(tmp_path, "class-repetition", tiny)
    stream = make_stream(config, *load_images(config.data), seed=0)
    measures = Measures(stream)
    assert not all(measures.tested)
    results = run(config)
    for record in results["runs"]:
        counts = np.array([len(e.test_labels) for e in stream])
        for t in record["tasks"]:
            shares = np.array([a or 0.0 for a in t["accuracies"]])
            weights = counts[: len(shares)]
            assert t["seen"] == pytest.approx((shares * weights).sum() / weights.sum())
        seen = [t["seen"] for t in record["tasks"]]
        assert record["tasks"][-1]["average"] == pytest.approx(np.mean(seen))


def test_an_unfinished_run_of_before_goes_on(tmp_path: Path) -> None:
    """Its tasks lack what was not measured then, and so does the summary."""
    new = ("learning_accuracy", "backward_transfer", "forward_transfer", "masked", "top5", "macro", "per_class")
    whole = run(configuration(tmp_path / "whole"), learners=LEARNERS)

    def stop(event: Event) -> None:
        if event.kind == "task" and event.task == 1:
            raise InterruptedError

    config = configuration(tmp_path / "old")
    with pytest.raises(InterruptedError):
        run(config, learners=LEARNERS, observe=stop)
    path = tmp_path / "old" / "results.json"
    old = json.loads(path.read_text())
    for task in old["runs"][0]["tasks"]:
        for key in new:
            del task[key]
    path.write_text(json.dumps(old))
    again = run(config, learners=LEARNERS)
    for mine, theirs in zip(again["runs"], whole["runs"], strict=True):
        for key in ("accuracies", "seen", "average", "forgetting", "task_named", "losses"):
            assert [t[key] for t in mine["tasks"]] == [t[key] for t in theirs["tasks"]]
    # Of the last task all is known; its accuracy right after each was learned is, too.
    summaries = [results["summary"]["Local rows"] for results in (again, whole)]
    assert summaries[0]["learning_accuracy"] == summaries[1]["learning_accuracy"]
    assert summaries[0]["masked"]["mean"] is None  # these learners do not measure it
    for task in again["runs"][0]["tasks"]:
        task.pop("macro", None)
    from flexkern.runs.incremental.summary import summarise

    assert "macro" not in summarise(again)["Local rows"]
    tables = pytest.importorskip("flexkern.runs.incremental.tables")
    assert tables.measures_table(config, again | {"summary": summarise(again)}).row_count == 2


def test_all_tables_fit_a_terminal_of_80_columns(tiny: str, tmp_path: Path) -> None:
    rich = pytest.importorskip("rich.console")
    from flexkern.runs.incremental import pictures, tables

    config = scenario(tmp_path, "blurry", tiny, online=20)
    results = run(config)
    console = rich.Console(width=80, record=True, file=(tmp_path / "text").open("w"))
    for table in (tables.method_table(config, results), tables.measures_table(config, results)):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    for head in ("learned", "BWT", "FWT", "told", "named", "top 5", "macro", "anytime"):
        assert head in text
    s = results["summary"]["Metaplastic"]
    row = next(line for line in text.splitlines()[::-1] if line.startswith(" Metaplastic"))
    expected = [f"{100 * s[key]['mean']:.1f}" for key in ("learning_accuracy", "backward_transfer")]
    expected += ["-", f"{100 * s['masked']['mean']:.1f}", "-"]
    assert row.split()[1:] == [*expected, *(f"{100 * s[k]['mean']:.1f}" for k in ("top5", "macro", "anytime"))]
    pictures.draw(results, tmp_path / "picture.png")  # over tasks: not each brings new classes


# ----------------------------------------------------------------- methods on a perceptron


def test_a_name_of_both_families_is_the_transformers_unless_said(tiny: str, tmp_path: Path) -> None:
    options = {"epochs": 1}
    methods = (
        MethodConfig("Joint", "joint", options | {"flip": 0.0}),
        MethodConfig("Joint MLP", "joint", options | {"widths": [8, 8]}, family="mlp"),
    )
    results = run(scenario(tmp_path, "class-incremental", tiny, methods=methods), keep=True)
    added = [record["tasks"][-1]["parameters_added"] for record in results["runs"]]
    assert added[0] != added[1]
    assert "family" not in results["configuration"]["methods"][0]
    assert results["configuration"]["methods"][1]["family"] == "mlp"
    from flexkern.features import BackboneFeatures

    path = tmp_path / "checkpoints" / "1_joint_mlp_seed0.safetensors"
    learner: Any = load_learner(path, features=BackboneFeatures(tiny))
    assert type(learner) is MLP_METHODS["joint"]
    assert learner.items_learned == 2


@pytest.mark.parametrize(
    ("method", "options", "family", "message"),
    [
        ("metaplastik", {}, None, "has method 'metaplastik'; allowed are .*did you mean 'metaplastic'"),
        ("lda", {}, "xyz", "family must be one of vit, mlp or None|family must be"),
        ("si", {"strenght": 1.0}, None, r"has no option 'strenght' \(did you mean strength\?\)"),
        ("si", {"widths": 8}, None, "widths must be a list of whole numbers"),
        ("si", {"widths": [0, 8]}, None, r"'M' \(si\): widths\[0\] must be at least 1"),
        ("si", {"lr": -1.0}, None, r"'M' \(si\): lr must be"),
        ("si", {"epochs": 0}, None, r"'M' \(si\): epochs must be at least 1"),
        ("si", {"features": "layers"}, None, "features must be one of backbone, pixels"),
        ("si", {"features": "pixels", "features_cache": 3}, None, "features_cache must be"),
        ("metaplastic", {"silent_fraction": 2.0}, None, "silent_fraction must be a share"),
        ("metaplastic", {"gate": "never"}, None, "gate must be one of"),
        ("artsy", {}, "mlp", "has method 'artsy'; allowed are"),
        ("metaplastic", {}, "vit", "has method 'metaplastic'; allowed are"),
        ("si", {"input_shape": [3]}, None, "input_shape is not an option of a method"),
    ],
)
def test_mistakes_are_found_before_images_are_read(
    method: str,
    options: dict[str, Any],
    family: Any,
    message: str,
    tiny: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "load_images", lambda *_: pytest.fail("images were read"))

    def start() -> None:
        methods = (MethodConfig("M", method, options, family=family),)
        run(scenario(tmp_path / "out", "class-incremental", tiny, methods=methods))

    with pytest.raises(ValueError, match=message):
        start()
    assert not (tmp_path / "out").exists()


def test_each_family_has_a_table_of_its_own_in_the_file() -> None:
    table: dict[str, Any] = {
        "data": {"kind": "digits"},
        "stream": {"increment": 5},
        "learner": {"epochs": 3, "flip": 0.0},
        "mlp": {"epochs": 4, "widths": [8, 8]},
        "methods": [
            {"name": "a", "method": "lda"},
            {"name": "b", "method": "metaplastic", "epochs": 5},
            {"name": "c", "method": "joint", "family": "mlp"},
        ],
    }
    config = parse_config(table)
    assert [m.options for m in config.methods] == [
        {"epochs": 3, "flip": 0.0}, {"epochs": 5, "widths": [8, 8]}, {"epochs": 4, "widths": [8, 8]}
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"entry 2, by \[mlp\]: .*has no option 'flip'"):
        parse_config(table | {"mlp": {"flip": 0.5}})
    with pytest.raises(ValueError, match=r"\[mlp\]: it has options of methods on a perceptron, and"):
        parse_config(table | {"methods": table["methods"][:1]})
    with pytest.raises(ValueError, match=r"\[mlp\]: family has a place of its own"):
        parse_config(table | {"mlp": {"family": "mlp"}})


@pytest.mark.parametrize("method", MLP_METHODS)
def test_defaults_are_options_as_well(method: str) -> None:
    from flexkern.runs.incremental.config.file_schema import file_model
    from flexkern.runs.incremental.config.method_options import options_of

    given = {name: o.default for name, o in options_of(method, "mlp").items() if o.default is not None}
    entry = {"name": "a", "method": method, "family": "mlp", **json.loads(json.dumps(given))}
    table = {"data": {"kind": "digits"}, "stream": {"increment": 5}, "methods": [entry]}
    assert set(parse_config(table).methods[0].options) == set(given)
    file_model().model_validate_json(json.dumps(table))


def test_features_are_computed_once(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flexkern.features import BackboneFeatures

    images: list[int] = []
    forward: Callable[..., Any] = BackboneFeatures.forward

    def counting(self: Any, x: torch.Tensor) -> torch.Tensor:
        images.append(len(x))
        return forward(self, x)  # type: ignore[no-any-return]

    monkeypatch.setattr(BackboneFeatures, "forward", counting)
    methods = (MLP[0], MethodConfig("SI", "si", {"widths": [8, 8], "epochs": 1}))
    run(scenario(tmp_path, "class-incremental", tiny, methods=methods, seeds=(0, 1)))
    # 60 images for training and 30 for tests; one here and there to see that features are those that were kept.
    assert 90 <= sum(images) <= 90 + 60
    assert sorted(images)[-4:] == [15, 15, 30, 30]
