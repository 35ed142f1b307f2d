"""A record that someone else wrote, with the right sums: what does not fit is a ValueError that names the file
and the field, before anything is made from it."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexkern.learners import (
    METHODS,
    MLP_METHODS,
    MetaplasticMLP,
    checkpoint,
    load_learner,
    register_method,
    registry,
    schema,
)
from flexkern.learners.mlp.base import MLPLearner
from flexkern.version import __version__
from helpers import tiny_vit
from helpers.children import run_python
from helpers.mlp_blobs import QUICK, SIZE, blobs, make

STREAM = blobs(2, per_class=8)
MISSING = object()


class _StopError(Exception):
    pass


def stop(_: object) -> None:
    raise _StopError


def begun(learner: Any, items: Any) -> Any:
    """A learner in the middle of its second item."""
    learner.learn(items[0], epochs=1)
    with pytest.raises(_StopError):
        learner.learn(items[1], epochs=2, progress=stop)
    return learner


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlp") / "learner"
    begun(make(MetaplasticMLP, widths=(6, 5), silent_fraction=0.3, momentum=0.5), STREAM).save(path)
    return path


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return tiny_vit.backbone()


@pytest.fixture(scope="module")
def artsy(backbone: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artsy") / "learner"
    gate = {"gate": "ridge", "features": 8}
    begun(METHODS["artsy"].make(copy.deepcopy(backbone), epochs=2, rank=2, gate=gate), tiny_vit.stream()).save(
        path
    )
    return path


def edited(path: Path, tmp_path: Path, field: str, value: Any) -> Path:
    """The file with one field of its record changed, or left out, and sums that fit."""
    tensors, record = checkpoint.read(path)
    *way, last = field.split(".")
    holder: Any = record
    for step in way:
        holder = holder[int(step) if isinstance(holder, list) else step]
    if value is MISSING:
        del holder[last]
    else:
        holder[int(last) if isinstance(holder, list) else last] = value
    checkpoint.write(tmp_path / "edited", tensors, record)
    return tmp_path / "edited"


def refusal(path: Path, **given: Any) -> str:
    with pytest.raises(ValueError, match=re.escape(f"path: {str(path)!r} ")) as refused:
        load_learner(path, **given)
    return str(refused.value)


# ------------------------------------------------------------------ fields

MLP_CASES: list[tuple[str, Any, str]] = [
    ("format", "2", "holds 'MetaplasticMLP' in format '2'; this version reads"),
    ("format", MISSING, "holds 'MetaplasticMLP' in format None; this version reads"),
    ("family", 3, "family must be a string"),
    ("method", ["metaplastic"], "method must be a string"),
    ("method", "other", "which is none of"),
    ("progress", MISSING, "progress is missing"),
    ("progress", [], "progress must be an object"),
    ("progress.items_learned", -5, "progress.items_learned must be in [0,"),
    ("progress.items_learned", 10**400, "progress.items_learned must be in [0,"),
    ("progress.items_learned", 1.5, "progress.items_learned must be a whole number"),
    ("progress.items_learned", True, "progress.items_learned must be a whole number"),
    ("progress.items_learned", MISSING, "progress.items_learned is missing"),
    ("progress.epochs_done", -1, "progress.epochs_done must be in [0,"),
    ("progress.calibration.log_temperature", "x", "progress.calibration.log_temperature must be a number"),
    ("progress.begun", None, "progress.epochs_done is 1, and no item was begun"),
    ("progress.begun", "item", "progress.begun must be an object"),
    ("progress.begun", {}, "progress.begun.name is missing"),
    ("configuration", None, "configuration must be an object"),
    ("configuration.classes", MISSING, "configuration.classes is missing"),
    ("configuration.lr", "x", "configuration.lr must be float, got 'x'"),
    ("configuration.lr", -1, "configuration: lr must be"),
    ("configuration.scale", -1.0, "configuration: scale must be"),
    ("configuration.scale", [1], "configuration.scale must be float | str"),
    ("configuration.gate", "never", "configuration: gate must be one of"),
    ("configuration.gate", 3, "configuration.gate must be str"),
    ("configuration.widths", [6], "tensors: "),
    ("configuration.widths", [6, "5"], "configuration.widths must be tuple[int, ...]"),
    ("configuration.widths", [0, 5], "configuration: widths[0] must be at least 1"),
    ("configuration.widths", [6, 6], "tensors: "),
    ("configuration.widths", [10**6, 10**6], "configuration: asks for a tensor of [1000000, 20]"),
    ("configuration.classes", 10**9, "configuration: asks for a tensor of [1000000000, 5]"),
    ("configuration.input_shape", [10**9, 10**9], "configuration: shape must be of sizes >= 0 that an address"),
    ("configuration.input_shape", [10**6, 10**6], "configuration: asks for a tensor of [6, 1000000000000]"),
    ("configuration.seed", -1, "configuration: seed"),
    ("configuration.seed", 2**70, "configuration: seed"),
    ("configuration.batch_size", 0, "configuration: batch_size must be"),
    ("configuration.fused_step", 3, "configuration.fused_step must be bool"),
    ("configuration.silent_fraction", "x", "configuration: silent_fraction must be a number"),
    ("configuration.threshold", {"target": "x"}, "threshold.target must be float"),
    ("configuration.threshold", {"x": 1}, "configuration: "),
    ("configuration.network", {}, "network must be a name or a number"),
    ("configuration.new", 1, "configuration: MetaplasticMLP got an unexpected keyword argument 'new'"),
    ("new", 1, "new is no field of it"),
    ("model", [], "model must be an object"),
    ("model", {"0.x": 1}, "tensors: "),
    ("optimizer", None, "optimizer: no state of it"),
    ("optimizer", {}, "optimizer.state is missing"),
    ("optimizer.param_groups", [], "optimizer: param_groups must have the parameters"),
    ("optimizer.param_groups.0.params", [0, 0, 0, 0, 0, 0], "optimizer: param_groups must have the parameters"),
    ("optimizer.param_groups.0.lr", "x", "optimizer: state_dict: lr must be"),
    ("optimizer.param_groups.0.scale", -1.0, "optimizer: state_dict: scale must be"),
    ("optimizer.param_groups.0.flexibility", {"kind": "uniform"}, "optimizer: "),
    ("optimizer.state.x", {}, "optimizer: optimizer.state: 'x' is no number of a parameter"),
    ("optimizer.state.99", {}, "optimizer: state.99: there are 6 parameters"),
    ("optimizer.state.0", 3, "optimizer.state.0 must be an object"),
    ("optimizer.state.0.items", -1, "optimizer: state_dict: items must be"),
    ("optimizer.state.0.new", {"tensor": True}, "optimizer: optimizer.state.0.new: the record has it"),
    ("optimizer.state.0.momentum_buffer", 1, "optimizer: optimizer.state.0.momentum_buffer: the tensors have"),
]
ARTSY_CASES: list[tuple[str, Any, str]] = [
    ("progress.classes_seen", MISSING, "progress.classes_seen is missing"),
    ("progress.classes_seen", -1, "progress.classes_seen must be in [0,"),
    ("progress.classes_seen", 3, "tensors: model.prototypes has 2 classes, and the record says 3"),
    ("progress.items_learned", 2, "and the record says"),
    ("progress.begun.classes", 10**9, "progress: asks for a tensor of [1000000000, 24]"),
    ("progress.begun.classes", 0, "progress.begun.classes must be in [1,"),
    ("progress.begun.classes", 3, "tensors: "),
    ("configuration.rank", 10**9, "configuration: asks for a tensor of [4, 24, 1000000000]"),
    ("configuration.rank", 3, "tensors: "),
    ("configuration.image_size", 2**40, "image_size must be in [1, 16384]"),
    ("configuration.combine", "product", "configuration: combine must be one of"),
    ("configuration.combine", "sum", "tensors: "),
    ("configuration.gate", "ridge", "configuration.gate must be"),
    ("configuration.gate", {"gate": "ridge", "features": 10**6}, "asks for a tensor of [1000000, 1000000]"),
    ("configuration.gate", {"gates": "ridge"}, "configuration: "),
    ("configuration.recipe", None, "configuration: "),
    ("configuration.recipe.lr", "x", "recipe.lr must be float"),
    ("configuration.recipe.epochs", 0, "configuration: epochs must be at least 1"),
    ("configuration.recipe.new", 1, "configuration: "),
    ("frozen", 3, "frozen must be a string"),
    ("optimizer.param_groups.0.lr", "x", "optimizer: param_groups.0.lr must be like"),
    ("optimizer.param_groups.0.momentum", -1.0, "optimizer: param_groups.0.momentum must be like"),
    ("optimizer.param_groups.0.nesterov", 3, "optimizer: param_groups.0.nesterov must be like"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "message"), MLP_CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(MLP_CASES)]
)
def test_a_field_of_an_mlp(field: str, value: Any, message: str, mlp: Path, tmp_path: Path) -> None:
    assert message in refusal(edited(mlp, tmp_path, field, value))


@pytest.mark.parametrize(
    ("field", "value", "message"), ARTSY_CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(ARTSY_CASES)]
)
def test_a_field_of_an_artsy(
    field: str, value: Any, message: str, artsy: Path, backbone: nn.Module, tmp_path: Path
) -> None:
    assert message in refusal(edited(artsy, tmp_path, field, value), backbone=backbone)


def test_every_field_of_every_type(mlp: Path, tmp_path: Path) -> None:
    """No value of any type in the place of any field is another error, or a learner that does not answer."""
    _, record = checkpoint.read(mlp)
    fields = [*(f"{part}.{k}" for part in ("progress", "configuration") for k in record[part]), *record]
    fields.remove("frozen")  # of another one the argument that was given is named
    for field in fields:
        for value in (None, -1, 1e300, "x", [], {}, [[]], True):
            path = edited(mlp, tmp_path, field, value)
            try:
                learner = load_learner(path)
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017 - some fit
            else:
                assert learner.logits(STREAM[0].test_inputs).shape == (
                    len(STREAM[0].test_inputs),
                    learner.classes,
                )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "its record nests too deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "its record nests too deep"),
        ('{"a":' * 100 + "1" + "}" * 100, "its record nests too deep"),
        ("x", "its record is not JSON"),
        ("", "its record is not JSON"),
        ("[]", "its record is no JSON object"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": 1e999}', "1e999 is too large"),
        ('{"a": ' + "1" * 5000 + "}", "its record is not JSON"),
        ('{"a": 1, "a": 2}', "'a' stands there twice"),
        ("{}", "which is none of"),
        ('{"format": 2}', "family is missing"),
        ('{"format": 1, "learner": "EWC"}', "configuration is missing"),
    ],
    ids=range(13),
)
def test_a_text_that_is_no_record(text: str, message: str, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    sums = checkpoint._sums(text, {"a": torch.zeros(1)})
    metadata = {"flexkern": text, "flexkern.sums": json.dumps(sums)}
    save_file({"a": torch.zeros(1)}, tmp_path / "one", metadata)
    assert message in refusal(tmp_path / "one")


# ------------------------------------------------------------------ versions


def test_a_later_format_says_what_reads_it(mlp: Path, tmp_path: Path) -> None:
    tensors, record = checkpoint.read(mlp)
    assert record["version"] == __version__
    later = {"format": schema.FORMAT + 1, "class": "Marvel", "version": "9.1", "anything": [1]}
    checkpoint.write(tmp_path / "later", tensors, later)
    for load in (load_learner, MetaplasticMLP.load):
        with pytest.raises(
            ValueError, match=r"later' holds 'Marvel' in format 3, which flexkern 9\.1 wrote"
        ) as refused:
            load(tmp_path / "later")
        assert f"this is flexkern {__version__}, which reads formats up to 2: install" in str(refused.value)


# ------------------------------------------------------------------ tensors


def with_tensors(path: Path, tmp_path: Path, **changes: Tensor | None) -> Path:
    tensors, record = checkpoint.read(path)
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    checkpoint.write(tmp_path / "changed", tensors, record)
    return tmp_path / "changed"


@pytest.mark.parametrize("family", ["mlp", "artsy"])
def test_every_tensor_missing_cast_reshaped_or_unknown(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = request.getfixturevalue(family)
    given = {"backbone": request.getfixturevalue("backbone")} if family == "artsy" else {}
    tensors, record = checkpoint.read(path)
    for name, value in tensors.items():
        other = torch.float64 if value.dtype is not torch.float64 else torch.float32
        for changed in (None, value.to(other), value.reshape(-1)[:-1], torch.zeros((*value.shape, 2))):
            kept = {k: v for k, v in tensors.items() if k != name} | (
                {} if changed is None else {name: changed}
            )
            same = changed is not None and changed.dtype is value.dtype and changed.shape == value.shape
            if same or (name.endswith("_extra_state") and changed is not None):
                continue  # nothing to take away; read by its own length
            checkpoint.write(tmp_path / "changed", kept, record)
            key = name.removeprefix("model.").removeprefix("extra.").split(".")[-1]
            said = refusal(tmp_path / "changed", **given)
            # A head says its width or columns, and where classes are missing, who has how many.
            assert key in said or "the state has" in said or "and the record says" in said, (name, changed)
    for unknown in ("model.new", "optimizer.state.0.new", "extra.new", "new"):
        checkpoint.write(tmp_path / "changed", tensors | {unknown: torch.zeros(1)}, record)
        assert "new" in refusal(tmp_path / "changed", **given)


def test_sums_that_are_not_finite_are_refused(artsy: Path, backbone: nn.Module, tmp_path: Path) -> None:
    tensors, _ = checkpoint.read(artsy)
    for name in ("model.prototypes.sums", "model.gate.slope"):
        changed = tensors[name].clone()
        changed.view(-1)[-1] = torch.nan
        path = with_tensors(artsy, tmp_path, **{name.replace(".", "__"): changed})
        assert f"{name} is not finite" in refusal(path, backbone=backbone)


def test_sums_that_give_no_answers_are_refused(backbone: nn.Module, tmp_path: Path) -> None:
    learner = METHODS["lda"](backbone)
    learner.learn(tiny_vit.stream()[0])
    learner.save(tmp_path / "one")
    changed = checkpoint.read(tmp_path / "one")[0]["model.head.scatter"].clone()
    changed[0].diagonal()[-1] = -changed[0].diagonal()[:-1].sum() / 2  # a variance below 0
    path = with_tensors(tmp_path / "one", tmp_path, model__head__scatter=changed)
    assert "does not fit, tensors: " in refusal(path, backbone=backbone)


@pytest.mark.parametrize("method", ["ewc", "si", "replay", "joint"])
def test_what_a_method_keeps_is_looked_at(method: str, tmp_path: Path) -> None:
    learner = begun(make(MLP_METHODS[method], widths=(6, 5)), STREAM)
    learner.save(tmp_path / "one")
    load_learner(tmp_path / "one")
    tensors, record = checkpoint.read(tmp_path / "one")
    kept = {name: value for name, value in tensors.items() if name.startswith("extra.")}
    assert kept
    for name, value in kept.items():
        for changed in (None, value.double(), value.new_zeros((*value.shape, 2)), value.new_full((3, 7), -1)):
            rest = {k: v for k, v in tensors.items() if k != name} | (
                {} if changed is None else {name: changed}
            )
            checkpoint.write(tmp_path / "changed", rest, record)
            said = refusal(tmp_path / "changed")
            assert name in said or "extra.inputs" in said or repr(name.removeprefix("extra.")) in said
    if "extra.labels" in kept:
        for label in (-1, learner.classes):
            changed = kept["extra.labels"].clone()
            changed[-1] = label
            checkpoint.write(tmp_path / "changed", tensors | {"extra.labels": changed}, record)
            assert "extra.labels must be in [0, 6)" in refusal(tmp_path / "changed")


@pytest.mark.parametrize("method", MLP_METHODS)
def test_every_method_bounds_what_it_makes(method: str, tmp_path: Path) -> None:
    learner = make(MLP_METHODS[method], widths=(6, 5), **QUICK.get(method, {}))
    learner.save(tmp_path / "one")
    name, value, asked = {
        "ridge": ("random_features", 10**6, [10**6, 10**6]),
        "lda": ("input_shape", [10**6], [1, 10**6, 10**6]),
    }.get(method, ("widths", [10**6, 10**6], [10**6, SIZE]))
    path = edited(tmp_path / "one", tmp_path, f"configuration.{name}", value)
    assert f"asks for a tensor of {asked}" in refusal(path)


@pytest.mark.parametrize("seed", [2**62 + 1, 2**64 - 1])
def test_a_seed_is_no_size(seed: int, tmp_path: Path) -> None:
    make(MLP_METHODS["metaplastic"], widths=(6, 5), seed=seed, silent_fraction=0.5).save(tmp_path / "one")
    assert load_learner(tmp_path / "one").seed == seed


def test_a_method_of_a_user_is_looked_at_as_ours_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))

    @register_method("mine, with a projection")
    class Mine(MLPLearner):
        def __init__(self, input_shape: Any, classes: int, *, size: int = 3, **common: Any) -> None:
            super().__init__(input_shape, classes, **common)
            self._configuration["size"] = size
            self.projection = torch.zeros(size, 4)

    make(Mine, widths=(6, 5)).save(tmp_path / "one")
    assert load_learner(tmp_path / "one").projection.shape == (3, 4)
    path = edited(tmp_path / "one", tmp_path, "configuration.size", "3")
    assert "configuration.size must be int, got '3'" in refusal(path)
    path = edited(tmp_path / "one", tmp_path, "configuration.size", 10**12)
    assert "asks for a tensor of [1000000000000, 4]" in refusal(path)
    path = edited(tmp_path / "one", tmp_path, "configuration.size", 10**6)
    assert load_learner(path).projection.shape == (10**6, 4)  # less than unsaved_numbers


@pytest.mark.slow
def test_memory_stays_small(mlp: Path, tmp_path: Path) -> None:
    path = edited(mlp, tmp_path, "configuration.widths", [10**6, 10**6])
    child = run_python(
        "import resource, sys\n"
        "from flexkern.learners import load_learner\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n"
        "try: load_learner(sys.argv[1])\n"
        "except ValueError as error: print(error)\n",
        str(path),
    )
    assert "asks for a tensor of [1000000, 20]" in child.stdout, child.stderr


# ------------------------------------------------------------------ what a refusal leaves


def test_loading_leaves_torch_as_it_was(mlp: Path, artsy: Path, backbone: nn.Module, tmp_path: Path) -> None:
    bad = edited(artsy, tmp_path, "progress.items_learned", 7)
    for path, fits, given in (
        (mlp, True, {}), (artsy, True, {"backbone": backbone}), (bad, False, {"backbone": backbone}),
    ):  # fmt: skip
        generator, dtype = torch.get_rng_state(), torch.get_default_dtype()
        if fits:
            load_learner(path, **given)
        else:
            refusal(path, **given)
        assert torch.equal(torch.get_rng_state(), generator)
        assert torch.get_default_dtype() is dtype
        assert torch.zeros(2**25 + 1).numel() > 2**24  # nothing is bounded any more
