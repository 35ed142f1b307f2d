"""What a learner says that it will take, against what it then has; and a limit that it keeps to."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed")

from flexkern.learners import load_learner, make_learner
from flexkern.learners.live_bytes import Cost, LiveBytes, cost_of
from flexkern.learners.vit.memory_plan import MemoryPlan, bytes_of_modules
from flexkern.streams import Experience
from helpers import tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, TRAIN, AT_ONCE, BATCH = 4, 64, 256, 48
METHODS: dict[str, dict[str, Any]] = {
    "artsy": {}, "ease": {"blocks": 2}, "artsy-best": {"combine": "concat"}, "simplecil": {},
    "ranpac": {"features": 300, "first_session": "both"}, "lda": {}, "finetune": {},
}  # fmt: skip


def task(number: int, first: int = 0) -> Experience:
    """Noise of two classes, for the small network that the package ships."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(256, (TRAIN, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(TRAIN) % 2 + first
    images[labels == first] //= 2
    return Experience(str(number), number, images, labels, images[:0], labels[:0])


def made(method: str, **options: Any) -> Any:
    return make_learner(method, **{"epochs": 1, "batch_size": BATCH, **METHODS[method], **options})


def fullest(learner: Any, tasks: list[Experience]) -> int:
    """Bytes at the fullest moment of learning these, and of answers about as many images as go at once."""
    networks = [learner._network_given, learner.backbone]
    before = bytes_of_modules(networks) + learner.memory_bytes
    images = torch.cat([e.train_inputs for e in tasks])[:AT_ONCE]
    images = images.repeat(-(-AT_ONCE // len(images)), 1, 1, 1)[:AT_ONCE]
    with LiveBytes() as counted:
        for e in tasks:
            learner.learn(e)
        learner.logits(images)
    return before + counted.peak


@pytest.mark.parametrize("method", METHODS)
def test_within_a_tenth_of_what_is_measured(method: str) -> None:
    learner, tasks = made(method), [task(0), task(1, 2)]
    state = {k: v.clone() for k, v in learner._modules().state_dict().items() if isinstance(v, Tensor)}
    drawn = torch.get_rng_state()
    plan = learner.memory_plan(classes=CLASSES, tasks=2, images=TRAIN)
    assert torch.equal(torch.get_rng_state(), drawn)
    now = learner._modules().state_dict()
    assert all(torch.equal(now[k], v) for k, v in state.items())
    assert all(p.grad is None for p in learner._modules().parameters())
    measured = fullest(learner, tasks)
    assert abs(plan.total - measured) <= 0.1 * measured, (str(plan), measured / 2**20)


@pytest.mark.parametrize("batch", [3, 17])
def test_a_batch_of_another_size(batch: int) -> None:
    learner = made("artsy", batch_size=batch, images_per_pass=4, calibration_images=0)
    plan = learner.memory_plan(classes=2, tasks=1, images=TRAIN)
    before = bytes_of_modules([learner._network_given]) + learner.memory_bytes
    with LiveBytes() as counted:
        learner.learn(task(0))
    measured = before + counted.peak
    assert plan.during == "training"
    assert abs(plan.total - measured) <= 0.1 * measured, (str(plan), measured / 2**20)


def test_tokens_that_are_kept_between_epochs() -> None:
    options = {"augment": False, "blocks": 2, "images_per_pass": 4, "calibration_images": 0, "epochs": 2}
    learner = made("ease", **options)
    plan = learner.memory_plan(classes=2, tasks=1, images=TRAIN)
    before = bytes_of_modules([learner._network_given]) + learner.memory_bytes
    kept: list[int] = []

    def look(_: Any) -> None:
        kept.append(sum(part.nbytes for part in learner._training.cache._kept))

    with LiveBytes() as counted:
        learner.learn(task(0), progress=look)
    measured = before + counted.peak
    assert plan.during == "training"
    assert plan.tokens == kept[-1] > 0.05 * measured
    assert abs(plan.total - measured) <= 0.1 * measured, (str(plan), measured / 2**20)
    tight = made("ease", token_cache=(plan.tokens - 1) / GIB, **options)
    assert tight.memory_plan(classes=2, tasks=1, images=TRAIN).tokens == 0


def test_each_part_is_what_it_says() -> None:
    learner = made("artsy", rank=5)  # of statistics: tests/learners/test_kept_bytes.py
    plan = learner.memory_plan(classes=2, tasks=1, images=TRAIN, size=32)
    found: dict[str, int] = {}

    def look(_: Any) -> None:
        optimizer = learner._optimizer()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        momentum = [s["momentum_buffer"] for s in optimizer.state.values()]
        found["optimizer"] = sum(t.nbytes for t in momentum) + sum(p.grad.nbytes for p in trained)

    learner.learn(task(0), progress=look)
    stacks = [t for stacks in learner.bank._stacks for t in stacks.values()]
    assert plan.adapters == sum(t.nbytes for t in stacks)
    assert plan.parameters == sum(p.nbytes for p in learner.backbone.parameters())
    assert plan.images == BATCH * 3 * 32 * 32 * (1 + 4)
    assert plan.optimizer == found["optimizer"]
    assert plan.total == sum(v for k, v in dataclasses.asdict(plan).items() if k != "during")
    text = str(plan)
    assert text.startswith(f"{plan.total / 2**20:.3g} MiB of memory while training (parameters ")
    assert "activations" in text
    assert "optimizer" in text


def test_adapters_off_the_device_count_for_their_slots() -> None:
    kept = {o: made("ease", offload=o, resident_tasks=3).memory_plan(tasks=50) for o in ("none", "cpu", "disk")}
    one = made("ease").bank.parameters_per_task * 4
    assert {offload: plan.adapters // one for offload, plan in kept.items()} == {
        "none": 64,
        "cpu": 54,
        "disk": 4,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": -1}, "classes must be"),
        ({"tasks": 0}, "tasks must be at least 1, got 0"),
        ({"images": 1.5}, "images must be"),
        ({"size": 0}, "size must be at least 1, got 0"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        tiny("simplecil").memory_plan(**options)


# ------------------------------------------------------------------ a limit

GIB = 2**30


def tiny(method: str, **options: Any) -> Any:
    options = {"epochs": 1, "batch_size": 16, **options}
    if method.startswith(("artsy", "ease")):
        options = {"rank": 2, **options}
    return make_learner(method, tiny_vit.backbone(), **options)


@pytest.mark.parametrize("method", ["artsy", "ease", "lda", "finetune"])
def test_fewer_go_at_once_and_answers_are_the_same(method: str, tmp_path: Path) -> None:
    stream = tiny_vit.stream()
    free = tiny(method, images_per_pass=64)
    plan = free.memory_plan(classes=6, tasks=3, images=48)
    small = tiny(method, images_per_pass=5).memory_plan(classes=6, tasks=3, images=48)
    training = free._training_plan(16, 6, 3, 16, 0)
    least = small.total if training is None else max(small.total, training.total)
    if least >= plan.total:
        pytest.skip("training takes more than any pass")
    limited = tiny(method, images_per_pass=64, memory_limit=least / GIB)
    for experience in stream:
        free.learn(experience)
        limited.learn(experience)
    assert 1 <= limited.images_per_pass < 64
    assert free.images_per_pass == 64
    x = torch.cat([e.test_inputs for e in stream])
    torch.testing.assert_close(limited.logits(x), free.logits(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(limited.predict(x), free.predict(x))
    assert limited.memory_plan(images=48).total <= limited.memory_limit * GIB
    limited.save(tmp_path / "learner")
    again = load_learner(tmp_path / "learner", backbone=tiny_vit.backbone())
    assert (again.memory_limit, again.images_per_pass) == (limited.memory_limit, limited.images_per_pass)
    other = load_learner(tmp_path / "learner", backbone=tiny_vit.backbone(), memory_limit=None)
    assert (other.memory_limit, other.images_per_pass) == (None, 64)
    for one in (copy.deepcopy(limited), pickle.loads(pickle.dumps(limited))):
        assert one.images_per_pass == limited.images_per_pass


def test_what_does_not_fit_is_refused_before_anything_is_done() -> None:
    with pytest.raises(ValueError, match=r"memory_limit is 1e-05 GiB, and one image at a time takes .* MiB"):
        tiny("simplecil", memory_limit=1e-5)
    free = tiny("artsy", batch_size=48)
    training = free._training_plan(24, 2, 1, 16, 0)
    with pytest.raises(
        ValueError, match=r"a batch of 48 images takes .*; batches of (2\d) fit: pass batch_size=\1"
    ):
        tiny("artsy", batch_size=48, memory_limit=training.total / GIB)
    # Room for the first task, and none for a head of a hundred thousand classes.
    learner = tiny("simplecil", images_per_pass=1)
    learner.memory_limit = learner.memory_plan(classes=3).total / GIB
    many = torch.arange(100)
    x = torch.zeros((100, 3, 16, 16), dtype=torch.uint8)
    with pytest.raises(ValueError, match="one image at a time takes"):
        learner.learn(Experience("many", 0, x, many, x[:0], many[:0]))
    assert learner.classes_seen == 0


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [(0, ValueError, "memory_limit must be"), ("4", TypeError, "memory_limit must be a number")],
)
def test_a_limit_is_a_number(limit: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny("simplecil", memory_limit=limit)


def test_a_checkpoint_without_a_limit_says_nothing_new() -> None:
    assert not {"memory_limit", "recompute"} & set(tiny("simplecil").configuration())


# ------------------------------------------------------------------ counting


def test_bytes_that_live() -> None:
    given = torch.ones(1000)
    with LiveBytes() as counted:
        view = given[:10]
        made_here = given + 1
        assert counted.now == 4000
        part = made_here.view(10, 100)[3]
        del made_here
        assert counted.now == 4000  # the part keeps it
        del part
        assert counted.now == 0
        given.add_(1)
        twice = torch.cat([given, given]).double()
    assert len(view) == 10
    assert counted.peak == 8000 + 16000
    assert counted.now == twice.nbytes


def test_the_fullest_moment_may_be_another_with_more() -> None:
    weight = torch.ones(100, 100)

    def work(x: Tensor) -> None:
        small = x * 2  # 4 bytes for each sample
        del small
        large = weight * 2  # 40,000 bytes, for any number
        del large

    cost = cost_of(lambda n: torch.ones(n, 1000), work)
    assert isinstance(cost, Cost)
    assert [cost.peak(n) for n in (1, 10, 11, 100)] == [40_000, 40_000, 44_000, 400_000]


def test_a_plan_is_plain() -> None:
    plan = MemoryPlan("training", 1, 2, 3, 4, 5, 6)
    assert plan.total == 21
    assert dataclasses.replace(plan, images=0).total == 15
