"""Class-incremental learners on a tiny vision transformer with random weights, on patterns that it can tell
apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexkern.learners import checkpoint
from flexkern.learners.progress import Progress
from flexkern.learners.registry import METHODS, load_learner, make_learner
from flexkern.learners.vit.artsy import ArtsyViT
from flexkern.learners.vit.base import ViTLearner
from flexkern.learners.vit.training import Recipe, Training
from flexkern.nn import ExpertHead
from flexkern.streams import augment
from helpers.tiny_vit import CLASSES, TEST, backbone, stream

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "crop": (0.6, 1.0)}
OPTIONS: dict[str, dict[str, Any]] = {
    "artsy": {"rank": 4, "gate": {"gate": "ridge", "gating": "topk", "k": 1, "fill": True, "features": 64}},
    "ease": {"rank": 4},
    "ranpac": {"features": 128},
    "finetune": {"epochs": 6, "lr": 0.05},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def learner(method: str, **options: Any) -> ViTLearner:
    return make_learner(method, backbone(), **(QUICK | OPTIONS.get(method, {}) | options))


@pytest.mark.parametrize("method", METHODS)
def test_learns_and_comes_back(method: str, tmp_path: Path) -> None:
    given = stream()
    one = learner(method)
    for item in given:
        one.learn(item)
    evaluation = one.evaluate(given)
    assert one.classes_seen == CLASSES
    assert evaluation.confusion.sum() == CLASSES * TEST
    # Chance is 1 in 6. Fine-tuning forgets all but its last task.
    assert evaluation.accuracies[-1 if method == "finetune" else slice(None)].mean() > 0.6
    assert one.parameters_added > 0
    assert one.report["passes"] >= 1
    path = tmp_path / "learner.safetensors"
    one.save(path)
    other = load_learner(path, backbone=backbone())
    assert type(other) is type(one)
    images = given[0].test_inputs
    assert torch.equal(one.logits(images), other.logits(images))


class StopError(Exception):
    pass


@pytest.mark.parametrize("method", ["artsy", "finetune", "joint"])
def test_stopped_in_the_middle_goes_on_to_the_bit(method: str, tmp_path: Path) -> None:
    given = stream()
    straight = learner(method)
    for item in given:
        straight.learn(item)

    path = tmp_path / "learner.safetensors"
    stopped = learner(method)
    stopped.learn(given[0])

    def stop(now: Progress) -> None:
        stopped.save(path)
        if now.epoch == 1:
            raise StopError

    with pytest.raises(StopError):
        stopped.learn(given[1], progress=stop)
    with pytest.raises(ValueError, match="'1' was begun and not ended"):
        stopped.learn(given[2].__class__("2", 2, *(getattr(given[1], f) for f in FIELDS)))
    loaded = load_learner(path, backbone=backbone())
    for again in (stopped, loaded):
        for item in given[1:]:
            again.learn(item)
        assert torch.equal(again.logits(given[0].test_inputs), straight.logits(given[0].test_inputs))
        ours, theirs = again._modules().state_dict(), straight._modules().state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


FIELDS = ("train_inputs", "train_labels", "test_inputs", "test_labels")


def learned(**options: Any) -> ArtsyViT:
    one = learner("artsy", **options)
    for item in stream():
        one.learn(item)
    assert isinstance(one, ArtsyViT)
    return one


def recorded(one: ArtsyViT, openings: Tensor) -> Callable[..., Tensor]:
    """Stands for the gate: always these openings."""
    return lambda h0, task=None: openings[: len(h0)].to(h0)


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_open_pairs_in_one_batch_equal_a_pass_a_task(combine: str) -> None:
    """The same openings, once as one virtual batch, once as EASE does it: the whole model for each task."""
    one = learned(combine=combine)
    images = stream()[1].test_inputs[:7]
    openings = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1.0]])
    x = images.float() / 255
    with torch.no_grad():
        passes = [one.adapted(x, task=t).last_hidden_state[:, 0] for t in (None, 0, 1, 2)]
        trunk = one.adapted.trunk(x)
        spaces = one._spaces(trunk, one.adapted.features(trunk), openings)
        gated = [p * openings[:, t - 1 : t] if t else p for t, p in enumerate(passes)]
        expected = torch.stack(gated, 1) if combine == "concat" else sum(gated).unsqueeze(1)
        # Sums of some tens of values in another order, through three blocks.
        torch.testing.assert_close(spaces, expected, rtol=1e-4, atol=1e-4)


def test_cost_follows_the_open_synapses() -> None:
    one = learned(gate={"gate": "ridge", "gating": "topk", "k": 1, "fill": True, "features": 64})
    rows = []
    original = one.adapted.features

    def counted(trunk: Any, task: Any = None, sample: Any = None, **options: bool) -> Tensor:
        rows.append((len(trunk.x) if sample is None else len(sample), task is not None))
        return original(trunk, task, sample, **options)

    one.adapted.features = counted  # type: ignore[method-assign]
    one.evaluate(stream())
    images = CLASSES * TEST
    assert sum(n for n, adapted in rows if not adapted) == images
    assert sum(n for n, adapted in rows if adapted) == images  # one open synapse each, of three
    assert one.report["open_per_sample"] == 1.0
    assert one.report["passes"] == 2.0
    every = learned(gate={"gate": "none"})
    every.evaluate(stream())
    assert every.report["passes"] == 4.0


def test_oracle_opens_the_true_task() -> None:
    one = learned(gate={"gate": "oracle"})
    given = stream()
    evaluation = one.evaluate(given)
    assert one.report["open_per_sample"] == 1.0
    assert evaluation.accuracies.mean() >= learned().evaluate(given).accuracies.mean()


def test_a_pass_can_be_split() -> None:
    given = stream()
    a, b = learned(images_per_pass=7), learned(images_per_pass=1000)
    # Not to the bit: a product's blocks depend on the batch.
    torch.testing.assert_close(
        a.logits(given[0].test_inputs), b.logits(given[0].test_inputs), rtol=1e-3, atol=1e-3
    )


def test_epochs_can_be_given_and_resumed_in(tmp_path: Path) -> None:
    """The same as a recipe with so many: the rate falls to 0 over them."""
    given = stream()[:2]
    recipe, told, stopped = learner("artsy", epochs=3), learner("artsy", epochs=7), learner("artsy")
    path = tmp_path / "learner.safetensors"

    def stop(now: Progress) -> None:
        assert now.epochs == 3
        stopped.save(path)
        raise StopError

    for item in given:
        recipe.learn(item)
        told.learn(item, epochs=3)
    with pytest.raises(StopError):
        stopped.learn(given[0], epochs=3, progress=stop)
    resumed = load_learner(path, backbone=backbone())
    for item in given:
        resumed.learn(item, epochs=3)
    expected = recipe._modules().state_dict()
    for one in (told, resumed):
        assert all(torch.equal(value, expected[name]) for name, value in one._modules().state_dict().items())
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        told.learn(stream()[2], epochs=0)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one = make_learner("artsy", backbone_once := backbone(), **QUICK, **OPTIONS["artsy"])
    assert backbone_once is one.backbone
    torch.manual_seed(7)
    one.learn(stream()[0])
    assert torch.equal(torch.rand(3), expected)


def test_best_learns_and_comes_back(tmp_path: Path) -> None:
    given = stream()
    one = ArtsyViT.best(backbone(), recipe=Recipe(**QUICK), rank=4)
    for item in given:
        one.learn(item)
    assert one.evaluate(given).accuracies.mean() > 0.6
    assert one.report["keeps_data"] == 0
    kept = one.adapters_kept
    assert one.report["adapters_kept"] == sum(kept) == one.bank.tasks
    assert one.report["open_per_sample"] <= min(2, sum(kept))
    path = tmp_path / "learner.safetensors"
    one.save(path)
    other = load_learner(path, backbone=backbone())
    images = given[1].test_inputs
    assert torch.equal(one.logits(images), other.logits(images))
    with pytest.raises(ValueError, match=r"needs combine=.*lda gate"):
        ArtsyViT(backbone(), head="experts")
    with pytest.raises(ValueError, match=r"holdout is for head='experts'".replace("'", '"')):
        ArtsyViT(backbone(), holdout=0.2)


@pytest.mark.parametrize("method", ["artsy", "artsy-best", "ranpac"])
def test_adapters_in_the_last_block(method: str, tmp_path: Path) -> None:
    """The gate and the heads read what they read with adapters in all blocks."""
    given, options = stream(), OPTIONS.get(method, {}) | {"rank": 4, "blocks": 1}
    if method == "ranpac":
        options["first_session"] = "both"
    one = make_learner(method, backbone(), **(QUICK | options))
    whole = make_learner(method, backbone(), **(QUICK | options | {"blocks": None}))
    bank: Any = one.adapted.bank
    blocks = len(one._known_parts(one.backbone).points)
    assert blocks > bank.layers == 1
    assert blocks * bank.parameters_per_task == whole.adapted.bank.parameters_per_task
    for item in given:
        one.learn(item)
    assert one.evaluate(given).accuracies.mean() > 0.6
    if method != "ranpac":
        x = augment.test_view(given[0].test_inputs, one.image_size)
        torch.testing.assert_close(one._base(one._run_trunk(x)), whole._base(whole._run_trunk(x)))
        opened = one.report["open_per_sample"]
        assert one.report["passes"] == pytest.approx(1 + opened / blocks)
    path = tmp_path / "learner.safetensors"
    one.save(path)
    other = load_learner(path, backbone=backbone())
    assert other.adapted.bank.layers == 1
    assert torch.equal(one.logits(given[1].test_inputs), other.logits(given[1].test_inputs))
    for wrong, error in ((0, ValueError), (blocks + 1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="blocks must be"):
            make_learner(method, backbone(), **(QUICK | options | {"blocks": wrong}))


@pytest.mark.parametrize("method", ["ranpac", "simplecil", "lda"])
def test_blocks_are_of_an_adapter(method: str) -> None:
    with pytest.raises(
        ValueError, match=r"blocks is of the adapter of a first session, and there is none; got 2"
    ):
        make_learner(method, backbone(), blocks=2)


def test_what_make_learner_is_not_for_is_said() -> None:
    with pytest.raises(ValueError, match=r"on a perceptron it is flexkern\.learners\.MetaplasticMLP"):
        make_learner("metaplastic")
    with pytest.raises(
        ValueError, match=r"takes the fields of a Recipe by themselves.*ArtsyViT\(backbone, recipe="
    ):
        make_learner("artsy", recipe=Recipe())


def test_adapters_that_are_of_no_use_are_thrown_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second of three tasks: the third has its rows in the bank, and answers as it would by itself."""
    given = stream()
    one = ArtsyViT.best(backbone(), recipe=Recipe(**QUICK), rank=4)
    trained: list[int] = []
    epoch = Training.epoch

    def counted(self: Training, images: Any, labels: Tensor) -> float:
        trained.append(len(labels))
        return epoch(self, images, labels)

    def evidence(head: ExpertHead, *_: Any) -> tuple[float, float]:
        return (0.0, -0.1) if head.tasks == 1 else (5.0, 0.1)

    monkeypatch.setattr(Training, "epoch", counted)
    monkeypatch.setattr(ExpertHead, "_evidence", evidence)
    for item in given:
        one.learn(item)
    counts = [len(e.train_labels) for e in given]
    assert set(trained) < set(range(min(counts)))  # a fifth of each class was held out
    assert one.adapters_kept == [True, False, True]
    assert one.bank.tasks == 2
    images = given[2].test_inputs[:4]
    spaces = one.spaces(images)
    assert spaces.shape[1] == 4
    assert not spaces[:, 2].any()
    trunk = one._run_trunk(augment.test_view(images, one.image_size))
    torch.testing.assert_close(spaces[:, 3], one.adapted.features(trunk, 1))
    one.evaluate(given)
    assert one.report["open_per_sample"] <= 2
    path = tmp_path / "learner.safetensors"
    one.save(path)
    other = load_learner(path, backbone=backbone())
    assert other.adapters_kept == one.adapters_kept
    assert torch.equal(one.logits(images), other.logits(images))
    tensors, record = checkpoint.read(path)
    checkpoint.write(path, tensors | {"model.experts.strength": torch.tensor([5.0, 5.0, 5.0])}, record)
    with pytest.raises(ValueError, match=r"model.bank has 2 tasks, and the record says 3"):
        load_learner(path, backbone=backbone())


def test_reports_say_what_the_gates_did() -> None:
    one = learned(gate={"gate": "mlp", "negatives": "replay", "epochs": 30})
    one.evaluate(stream())
    assert one.report["keeps_data"] == 1
    assert 0.5 < one.report["gate_auroc"] <= 1
    assert len(one.gate_report["confusion"]) == 3
    assert one.report["open_rate"] == pytest.approx(one.report["open_per_sample"] / 3)


def test_errors(tmp_path: Path) -> None:
    given = stream()
    with pytest.raises(ValueError, match="method must be one of"):
        make_learner("icarl", backbone())
    with pytest.raises(ValueError, match="method 'finetune' has no option 'rank'"):
        make_learner("finetune", backbone(), rank=3)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        learner("artsy", epochs=0)
    with pytest.raises(ValueError, match="combine must be one of"):
        learner("artsy", combine="mean")
    one = learner("simplecil")
    with pytest.raises(ValueError, match=r"classes from 0 on.*got \[2, 3\]"):
        one.learn(given[1])
    one.learn(given[0])
    path = tmp_path / "one.safetensors"
    one.save(path)
    with pytest.raises(ValueError, match="backbone: not the one"):
        load_learner(path, backbone=backbone(weights=5))
