"""Without augmentation, what comes before the first adapter is computed once in a task."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from flexkern.learners import METHODS as METHOD_CLASSES
from flexkern.learners import load_learner
from flexkern.learners.vit.token_cache import TokenCache
from helpers import tiny_vit

pytest.importorskip("transformers")

EPOCHS, BATCH = 4, 16
IMAGES = tiny_vit.PER_TASK * tiny_vit.TRAIN
METHODS = {"ease": {}, "simplecil": {"first_session": "adapter"}}


def learner(method: str = "ease", **options: Any) -> Any:
    given: dict[str, Any] = {
        "rank": 4, "dropout": 0.1, "blocks": 1, "lr": 0.1, "epochs": EPOCHS, "batch_size": BATCH, "seed": 1,
        "augment": False, "calibration_images": 0, **METHODS[method], **options,
    }  # fmt: skip
    return METHOD_CLASSES[method].make(tiny_vit.backbone(), **given)


def images_through_the_first_block(learner: Any) -> list[int]:
    """One entry for each pass, from now on."""
    seen: list[int] = []
    first = learner.adapted._known_parts().points[0].block
    first.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def weights(learner: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in learner.adapted.bank.parameters_of(0)]


def train(learner: Any, stop_after: int = EPOCHS) -> Any:
    """The first task's training, without its end."""
    experience = tiny_vit.stream()[0]
    training = learner._training_now()
    if training is None:
        learner._take_up(experience, EPOCHS)
        training = learner._training_now()
    labels = learner._training_labels(experience.train_labels)
    for _ in range(training.epochs_done, stop_after):
        training.epoch(experience.train_inputs, labels)
    return training


@pytest.mark.parametrize("method", METHODS)
def test_each_image_goes_through_the_trunk_once(method: str) -> None:
    one = learner(method)
    seen = images_through_the_first_block(one)
    train(one)
    assert seen == [BATCH] * (IMAGES // BATCH)


@pytest.mark.parametrize(
    "options",
    [{"augment": True}, {"token_cache": 0}, {"token_cache": 1e-6}],
    ids=["augmented", "no room", "too small"],
)
def test_it_goes_through_it_in_each_epoch_where_it_must(options: dict[str, Any]) -> None:
    one = learner(**options)
    seen = images_through_the_first_block(one)
    train(one)
    # To see that there is no room a pass is made, once.
    assert sum(seen) == EPOCHS * IMAGES + (BATCH if options.get("token_cache") == 1e-6 else 0)


def test_room_is_told_to_the_byte() -> None:
    tokens, width = 5, tiny_vit.SIZES["hidden_size"]  # 2 x 2 patches and the class token
    needed = IMAGES * 2 * tokens * width * 4
    for limit, fits in ((needed, True), (needed - 1, False)):
        one = learner(token_cache=limit / 2**30)
        training = train(one, 1)
        assert (training.cache._kept is not None) is fits


@pytest.mark.parametrize("method", METHODS)
def test_what_is_learned_is_the_same(method: str) -> None:
    kept, anew = learner(method), learner(method, token_cache=0)
    first = weights_at_start(kept)
    for one in (kept, anew):
        train(one)
    # Tokens come of other batches, so sums may round otherwise. As in the benchmark of training: ten sums of up
    # to 4 d values in a block, there and back, err by sqrt(20 * 3) sqrt(4 * 24) 2^-24 in each of 12 steps.
    allowed = (20 * 3) ** 0.5 * (4 * 24) ** 0.5 * 2**-24 * EPOCHS * (IMAGES // BATCH)
    for start, a, b in zip(first, weights(kept), weights(anew), strict=True):
        assert (a - b).norm() <= allowed * (a - start).norm()
        assert not torch.equal(a, start)


def weights_at_start(learner: Any) -> list[torch.Tensor]:
    learner._take_up(tiny_vit.stream()[0], EPOCHS)
    return weights(learner)


def test_a_stopped_one_goes_on_to_the_bit(tmp_path: Path) -> None:
    stream = tiny_vit.stream()
    straight, stopped = learner(), learner()
    straight.learn(stream[0])

    class StopError(Exception):
        pass

    def stop(progress: Any) -> None:
        stopped.save(tmp_path / "stopped.safetensors")
        raise StopError

    with pytest.raises(StopError):
        stopped.learn(stream[0], progress=stop)
    loaded = load_learner(tmp_path / "stopped.safetensors", backbone=tiny_vit.backbone())
    others = [loaded, copy.deepcopy(stopped), pickle.loads(pickle.dumps(stopped)), stopped]
    for other in others:
        assert other.recipe == straight.recipe
        other.learn(stream[0])
        for a, b in zip(weights(other), weights(straight), strict=True):
            assert torch.equal(a, b)


def test_a_copy_keeps_nothing() -> None:
    one = learner()
    training = train(one, 1)
    assert training.cache._kept is not None
    for other in (copy.deepcopy(training), pickle.loads(pickle.dumps(training))):
        assert isinstance(other.cache, TokenCache)
        assert other.cache._kept is None
    one.learn(tiny_vit.stream()[0])
    assert one._training is None  # and with it what was kept


def test_images_of_a_source_are_decoded_once() -> None:
    experience = tiny_vit.of_source(tiny_vit.stream()[0])
    decoded: list[int] = []
    source: Any = experience.train_inputs
    plain = type(source).decode

    class Counted(type(source)):  # type: ignore[misc]
        def decode(self, i: int) -> Any:
            decoded.append(i)
            return plain(self, i)

    source.__class__ = Counted
    one = learner()
    one._take_up(experience, EPOCHS)
    training = one._training_now()
    for _ in range(EPOCHS):
        training.epoch(source, one._training_labels(experience.train_labels))
    assert sorted(decoded) == list(range(IMAGES))


def test_the_record_has_it_only_where_it_says_something() -> None:
    assert {"augment", "token_cache"}.isdisjoint(learner(augment=True)._configuration["recipe"])
    assert learner()._configuration["recipe"]["augment"] is False


@pytest.mark.parametrize(
    ("options", "says"),
    [({"augment": "no"}, "augment must be True or False"), ({"token_cache": -1}, "token_cache must be")],
)
def test_refusals(options: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        learner(**options)
