"""flexkern.nn.ExpertHead: probabilities as written out in loops, experts heard only where their synapse is
open."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flexkern.nn.heads.experts import ExpertHead

WIDTH, SIZES = 6, (3, 2, 4)


def learned(**options: float) -> tuple[ExpertHead, list[tuple[Tensor, Tensor, Tensor]]]:
    head = ExpertHead(WIDTH, **options)
    data, first = [], 0
    for classes in SIZES:
        labels = torch.arange(first, first + classes).repeat(15)
        centres = torch.randn(classes, 2, WIDTH) * 2
        x = centres[labels - first] + torch.randn(len(labels), 2, WIDTH)
        head.learn(x[:, 0], x[:, 1], labels)
        data.append((x[:, 0], x[:, 1], labels))
        first += classes
    return head, data


def test_equals_the_formula_in_loops() -> None:
    head, _ = learned(temperature=3.0, expert_temperature=2.0)
    n, tasks, classes = 5, len(SIZES), sum(SIZES)
    scores, spaces = torch.randn(n, classes), torch.randn(n, 1 + tasks, WIDTH)
    openings = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0, 0.3]])
    result = head.logits(scores, spaces, openings)
    ends = torch.tensor(SIZES).cumsum(0).tolist()
    for i in range(n):
        p = torch.softmax(3.0 * scores[i].double(), 0)
        for t, end in enumerate(ends):
            of = range(end - SIZES[t], end)
            x = torch.cat([spaces[i, 0], spaces[i, 1 + t]]).double()
            z = torch.stack([3.0 * scores[i, c] + 2.0 * (head.weight[c].double().flatten() @ x) for c in of])
            expected = p[of].sum().log() + torch.log_softmax(z, 0) if openings[i, t] > 0 else p[of].log()
            # Sums of 12 products of order 10, and exponentials of them: some 30 roundings of values under 100.
            torch.testing.assert_close(result[i, of].double(), expected, rtol=0, atol=30 * 100 * 2**-24)
        assert result[i].exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_closed_experts_change_nothing() -> None:
    head, _ = learned()
    scores = torch.randn(4, sum(SIZES))
    spaces = torch.randn(4, 1 + len(SIZES), WIDTH)
    closed = torch.zeros(4, len(SIZES))
    expected = torch.log_softmax(20 * scores, 1)
    torch.testing.assert_close(head.logits(scores, spaces, closed), expected)
    one = closed.clone()
    one[:, 1] = 1
    other = spaces.clone()
    other[:, [1, 3]] = 1e3  # what is in the closed subspaces does not matter
    assert torch.equal(head.logits(scores, spaces, one)[:, :3], head.logits(scores, other, one)[:, :3])


def test_an_expert_tells_its_classes_apart() -> None:
    """The shared scores know the task but not the class: the expert does."""
    head, data = learned()
    for task, (h0, own, labels) in enumerate(data):
        scores = torch.zeros(len(labels), sum(SIZES))
        scores[:, head.class_task == task] = 1.0
        spaces = torch.zeros(len(labels), 1 + len(SIZES), WIDTH)
        spaces[:, 0], spaces[:, 1 + task] = h0, own
        openings = torch.zeros(len(labels), len(SIZES))
        openings[:, task] = 1
        right = (head.logits(scores, spaces, openings).argmax(1) == labels).float().mean()
        assert right > 0.9  # centres are 2 sqrt 12 = 7 standard deviations apart


def test_impossible_tasks_are_not_nan() -> None:
    head, _ = learned()
    scores = torch.zeros(2, sum(SIZES))
    scores[:, 0] = 1e4
    spaces = torch.zeros(2, 1 + len(SIZES), WIDTH)
    result = head.logits(scores, spaces, torch.ones(2, len(SIZES)))
    assert bool(torch.isfinite(result).all())
    assert result.argmax(1).tolist() == [0, 0]


def test_state_goes_into_a_fresh_head() -> None:
    head, _ = learned()
    other = ExpertHead(WIDTH)
    other.load_state_dict(head.state_dict())
    scores, spaces = torch.randn(3, sum(SIZES)), torch.randn(3, 1 + len(SIZES), WIDTH)
    openings = torch.ones(3, len(SIZES))
    assert torch.equal(head.logits(scores, spaces, openings), other.logits(scores, spaces, openings))
    with pytest.raises(ValueError, match="width 5"):
        ExpertHead(5).load_state_dict(head.state_dict())


def test_errors() -> None:
    head, data = learned()
    with pytest.raises(ValueError, match=r"next classes from 9 on.*got \[0, 1, 2\]"):
        head.learn(*data[0])
    with pytest.raises(ValueError, match=r"openings must be \[3, 3\], got \[3, 2\]"):
        head.logits(torch.zeros(3, 9), torch.zeros(3, 4, WIDTH), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        ExpertHead(4, temperature=0.0)


def judged(useful: bool, n: int = 200) -> ExpertHead:
    """One task of three classes: E0 tells nothing, its adapter all or nothing; 2 of 5 images are held out."""
    head = ExpertHead(WIDTH, temperature=1.0)
    labels = torch.arange(n) % 3
    own = torch.randn(n, WIDTH)
    if useful:
        own += 2 * torch.eye(3, WIDTH)[labels]
    held_out = torch.arange(n) % 5 < 2
    scores = torch.zeros(int(held_out.sum()), 3)
    head.learn(torch.randn(n, WIDTH), own, labels, held_out=held_out, scores=scores)
    return head


def test_evidence_decides_whether_an_expert_is_heard() -> None:
    useful, useless = judged(True), judged(False)
    assert float(useful.strength) in (1.0, 2.5, 5.0, 10.0)
    assert float(useful.gain) > 0.1
    assert float(useless.strength) == 0
    assert float(useless.gain) <= 0
    scores, spaces, opened = torch.randn(4, 3), torch.randn(4, 2, WIDTH), torch.ones(4, 1)
    torch.testing.assert_close(useless.logits(scores, spaces, opened), scores.log_softmax(1))
    assert not torch.allclose(useful.logits(scores, spaces, opened), scores.log_softmax(1))


def test_noise_is_heard_as_seldom_as_the_level_says() -> None:
    """One-sided 95 %, and the best of four strengths: at most 4 x 5 % if they were unrelated."""
    torch.manual_seed(1)
    heard = sum(float(judged(False, 60).strength) > 0 for _ in range(60))
    assert heard <= 12


def test_what_cannot_be_judged_is_not_heard() -> None:
    head = ExpertHead(WIDTH)
    labels = torch.arange(20) % 2
    nothing = torch.zeros(20, dtype=torch.bool)
    head.learn(
        torch.randn(20, WIDTH), torch.randn(20, WIDTH), labels, held_out=nothing, scores=torch.zeros(0, 2)
    )
    assert head.strength.tolist() == [0]
    assert head.gain.tolist() == [0]
    with pytest.raises(ValueError, match=r"scores must be \[5, 4\]"):
        head.learn(
            torch.randn(20, WIDTH), torch.randn(20, WIDTH), labels + 2, held_out=torch.arange(20) < 5,
            scores=torch.zeros(5, 2),
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"held_out must be bool \[20\]"):
        head.learn(torch.randn(20, WIDTH), torch.randn(20, WIDTH), labels + 2, held_out=torch.arange(5))
    assert head.tasks == 1


def test_a_state_without_evidence_is_of_experts_that_count_alike() -> None:
    head, _ = learned(expert_temperature=7.0)
    state = {k: v for k, v in head.state_dict().items() if k not in ("strength", "gain")}
    other = ExpertHead(WIDTH, expert_temperature=7.0)
    other.load_state_dict(state)
    assert other.strength.tolist() == [7.0] * 3
    scores, spaces, opened = torch.randn(4, 9), torch.randn(4, 4, WIDTH), torch.ones(4, 3)
    assert torch.equal(head.logits(scores, spaces, opened), other.logits(scores, spaces, opened))
