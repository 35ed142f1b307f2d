"""The registry: a method of a user's own is one class, and all learners keep one protocol."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern import learners
from flexkern.learners import (
    METHODS,
    MLP_METHODS,
    ArtsyViT,
    ElasticMLP,
    IntelligentMLP,
    Learner,
    MetaplasticMLP,
    SimpleCIL,
    checkpoint,
    load_learner,
    load_mlp,
    make_learner,
    register_method,
    registry,
)
from flexkern.learners.answering import Answering
from flexkern.learners.mlp.base import MLPLearner
from flexkern.learners.vit.base import ViTLearner
from flexkern.streams import Stream
from helpers import tiny_vit
from helpers.mlp_blobs import CLASSES, SIZE, bits


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))


def test_a_users_method_on_a_transformer(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")

    @register_method("scaled", factor=0.5)
    class Scaled(SimpleCIL):
        """SimpleCIL with its logits times a factor."""

        def __init__(self, backbone: Any = "small", *, factor: float = 1.0, **common: Any) -> None:
            super().__init__(backbone, factor=factor, **common)
            self.factor = factor

        def _logits(self, images: Tensor, task: Tensor | None) -> Tensor:
            return self.factor * super()._logits(images, task)

    assert "scaled" in METHODS
    assert METHODS["scaled"] is Scaled
    assert (Scaled.method, SimpleCIL.method) == ("scaled", "simplecil")
    stream = tiny_vit.stream()
    usual, half, double = (
        make_learner(method, tiny_vit.backbone(), epochs=3, **options)
        for method, options in (("simplecil", {}), ("scaled", {}), ("scaled", {"factor": 2.0}))
    )
    for one in (usual, half, double):
        for item in stream:
            one.learn(item)
    images = stream[0].test_inputs
    assert torch.equal(half.logits(images), 0.5 * usual.logits(images))
    assert torch.equal(double.logits(images), 2 * usual.logits(images))
    double.save(tmp_path / "one")
    again = load_learner(tmp_path / "one", backbone=tiny_vit.backbone())
    assert type(again) is Scaled
    assert torch.equal(again.logits(images), double.logits(images))
    assert (again.evaluate(stream).confusion == double.evaluate(stream).confusion).all()
    with pytest.raises(ValueError, match=r"method 'scaled' has no option 'fcator'; it has \[.*'factor'"):
        make_learner("scaled", tiny_vit.backbone(), fcator=2.0)


def test_a_users_method_has_the_options_of_what_it_inherits_from() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")

    @register_method("colder")
    class Colder(ArtsyViT):
        def __init__(self, backbone: Any = "small", *, temperature: float = 1.0, **common: Any) -> None:
            super().__init__(backbone, **common)
            self._configuration["temperature"] = temperature

    assert set(Colder.options()) == {*ArtsyViT.options(), "temperature"}
    one = make_learner("colder", tiny_vit.backbone(), rank=3, temperature=0.5, batch_size=7)
    assert (one.bank.rank, one.recipe.batch_size) == (3, 7)
    assert one.configuration()["temperature"] == 0.5


def test_a_users_method_on_a_perceptron(stream: Stream, tmp_path: Path) -> None:
    @register_method("decaying")
    class Decaying(MLPLearner):
        """Shrinks all weights when an item ends."""

        def __init__(self, input_shape: Any, classes: int, *, decay: float = 0.9, **common: Any) -> None:
            super().__init__(input_shape, classes, **common)
            self._configuration["decay"] = decay

        def _after_item(self, inputs: Tensor, labels: Tensor) -> None:
            with torch.no_grad():
                for p in self.model.parameters():
                    p *= self._configuration["decay"]

    assert "decaying" in MLP_METHODS
    assert "decaying" not in METHODS
    one = MLP_METHODS["decaying"]((SIZE,), CLASSES, widths=(8, 8), decay=0.5)
    one.learn(stream[0], epochs=1)
    one.save(tmp_path / "one")
    for load in (load_learner, load_mlp, Decaying.load):
        again = load(tmp_path / "one")
        assert type(again) is Decaying
        assert bits(again) == bits(one)
        assert again.configuration() == one.configuration()
        again.learn(stream[1])


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match=r"'ewc' is flexkern.learners.mlp.ewc.EWC already"):

        @register_method("ewc")
        class Other(MLPLearner):
            pass

    with pytest.raises(TypeError, match="must be a class that inherits from Learner"):
        register_method("number")(int)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="name must be a string"):
        register_method("")
    # A module that is run again, and another family's name, are no clash.
    assert register_method("ewc")(learners.EWC) is learners.EWC
    assert METHODS["joint"] is not MLP_METHODS["joint"]


def test_a_class_that_is_not_registered_is_loaded_by_its_own_load(stream: Stream, tmp_path: Path) -> None:
    class Mine(MetaplasticMLP):
        pass

    one = Mine((SIZE,), CLASSES, widths=(8, 8))
    one.save(tmp_path / "one")
    assert bits(Mine.load(tmp_path / "one")) == bits(one)
    with pytest.raises(ValueError, match="holds 'Mine', which is none of"):
        load_learner(tmp_path / "one")
    with pytest.raises(ValueError, match="holds 'Mine' in format 2; this version reads 'MetaplasticMLP'"):
        MetaplasticMLP.load(tmp_path / "one")


def test_names_of_before() -> None:
    assert ElasticMLP is learners.EWC is MLP_METHODS["ewc"]
    assert IntelligentMLP is learners.SI is MLP_METHODS["si"]
    ours = {"artsy", "ease", "artsy-best", "simplecil", "ranpac", "lda", "finetune", "joint"}
    assert set(METHODS) == ours
    assert set(MLP_METHODS) == {"metaplastic", "ewc", "si", "replay", "joint", "ridge", "lda"}
    # Rivals are siblings of our own learner, not its children.
    assert not any(issubclass(c, MetaplasticMLP) for n, c in MLP_METHODS.items() if n != "metaplastic")


@pytest.mark.parametrize("method", [*METHODS.values(), *MLP_METHODS.values()])
def test_one_protocol(method: type[Learner]) -> None:
    """What users call is said once, in the base."""
    for name in ("learn", "evaluate", "predict", "probabilities", "save", "load", "configuration"):
        said = [c for c in method.__mro__ if name in vars(c)]
        assert said in ([Learner], [Answering]), name
    assert issubclass(method, (MLPLearner, ViTLearner))
    arguments = {"self", "experience", "epochs", "progress", "watch"}
    assert inspect.signature(method.learn).parameters.keys() == arguments


def test_the_record_of_a_checkpoint(stream: Stream, tmp_path: Path) -> None:
    one = learners.ReplayMLP((SIZE,), CLASSES, widths=(8, 8), memory=10)

    def stop(_: object) -> None:
        one.save(tmp_path / "one")
        raise InterruptedError

    one.learn(stream[0], epochs=1)
    with pytest.raises(InterruptedError):
        one.learn(stream[1], epochs=3, progress=stop)
    _, record = checkpoint.read(tmp_path / "one")
    assert {k: record[k] for k in ("format", "family", "method", "frozen")} == {
        "format": 2, "family": "mlp", "method": "replay", "frozen": None,
    }  # fmt: skip
    assert record["configuration"]["memory"] == 10
    assert record["progress"] == {
        "items_learned": 1, "epochs_done": 1, "begun": {"name": "item 1"}, "class_names": ["0", "1"],
        "decoded_size": None, "calibration": {"log_temperature": 0.0, "images": 0}, "tensors": 6,
    }  # fmt: skip
