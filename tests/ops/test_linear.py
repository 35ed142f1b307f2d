"""linear_step_ on every backend: the product, the step and the conversion against the float64 judge."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import Field, ops
from helpers import judge, judge_layer
from helpers.arguments import LAYOUTS, count_around, lay_out
from helpers.judge import Rule, same_bits
from helpers.judge_layer import (
    LOW,
    RULES,
    Batch,
    Layer,
    Opening,
    clone,
    eighths,
    halfway,
    judge_coincidence,
    judge_pass,
    judge_product,
    linear_layer,
    make_batch,
    make_layer,
    mask_of,
    materialized,
    same_state,
    step_layer,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Batch, out, in.
SIZES = [
    (4, 0, 0), (4, 0, 5), (4, 5, 0), (1, 1, 1), (2, 3, 31), (4, 2, 32), (8, 3, 33), (16, 5, 65), (32, 3, 1025),
    (4, 3, 2049), (8, 300, 7), (1, 40, 3),
]  # fmt: skip
OPENINGS = {
    "functional": None,
    "init": Opening(0.0),
    "hebbian": Opening(0.0, "hebbian", eta=0.3),
    "pruned": Opening(0.0, "hebbian", eta=1.7, prune=0.3),
}
COINCIDENCES = ("hebbian", "rate")


def checked(
    before: Layer,
    batch: Batch,
    rule: Rule,
    how: Opening | None,
    coincidence: str = "hebbian",
    *,
    exact: bool,
    alpha: Tensor | None = None,
) -> judge_layer.Judgement:
    """One pass. ``exact``: the activities and their batch are such that all sums are exact."""
    after = clone(before)
    held = {} if alpha is None else {"alpha": alpha, "flexibility": None, "scale": None}
    done = linear_layer(after, batch, rule, how, coincidence, **held)
    c = judge_coincidence(batch.x, batch.post, coincidence)
    grad = judge_product(batch.grad_out, batch.x)
    if exact:
        c, grad = ((v, torch.zeros_like(v)) for v, _ in (c, grad))
    if how is None:
        assert not mask_of(before).any()
        how = Opening(0.0)
    return judge_pass(before, after, done, c, rule, how, alpha=alpha, grad=grad)


def with_threshold(how: Opening | None, batch: Batch, coincidence: str, *, per_unit: bool) -> Opening | None:
    """A threshold that no coincidence of a batch of multiples of 1/8 is equal to."""
    size = len(batch.x)
    # hebbian: multiples of 1 / (64 B). rate: of 1 / (8 B) squared.
    grid = 1 / (64 * size) if coincidence == "hebbian" else 1 / (8 * size) ** 2
    c, _ = judge_coincidence(batch.x, batch.post, coincidence)
    return None if how is None else how._replace(threshold=halfway(c, grid, per_unit=per_unit))


# --------------------------------------------------------------------------- shapes and dtypes


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("coincidence", COINCIDENCES)
@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
@pytest.mark.parametrize("rule", [RULES["decay"], RULES["nesterov"]], ids=["decay", "nesterov"])
def test_exact_sums(
    backend: str, rule: Rule, opening: Opening | None, coincidence: str, size: tuple[int, int, int]
) -> None:
    # The gradient has no error, no decision is open.
    shape = size[1:]
    batch = make_batch(size[0], shape, seed=sum(size), exact=True)
    how = with_threshold(opening, batch, coincidence, per_unit=rule.momentum == 0)
    layer = make_layer(shape, seed=3, silent=0.0 if how is None else 0.5)
    judged = checked(layer, batch, rule, how, coincidence, exact=True)
    assert judged.open == 0
    if how is not None and min(size) > 1:  # of a single sample, it may happen that no synapse is driven
        assert judged.converted > 0


@pytest.mark.parametrize("size", [s for s in SIZES if 0 not in s] + [(37, 20, 1030), (300, 17, 130)], ids=str)
@pytest.mark.parametrize("coincidence", COINCIDENCES)
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_random_floats(backend: str, dtype: torch.dtype, coincidence: str, size: tuple[int, int, int]) -> None:
    # Only a synapse whose coincidence is within its bound of the threshold may go either way.
    shape = size[1:]
    batch = make_batch(size[0], shape, 5, dtype, exact=False)
    c, _ = judge_coincidence(batch.x, batch.post, coincidence)
    how = Opening(c.median(1).values.float(), "hebbian", eta=0.5, prune=0.2)
    judged = checked(make_layer(shape, 6), batch, RULES["nesterov"], how, coincidence, exact=False)
    # the median is a coincidence itself, one in each row; others of the same value are 0
    zeros = int((c == 0).sum())
    assert judged.open <= shape[0] + zeros


@pytest.mark.parametrize("batch_dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_low_precision_weights(
    backend: str, opening: Opening | None, dtype: torch.dtype, batch_dtype: torch.dtype
) -> None:
    for size in ((8, 3, 33), (32, 6, 1030)):
        shape = size[1:]
        batch = make_batch(size[0], shape, 4, batch_dtype, exact=True)
        how = with_threshold(opening, batch, "hebbian", per_unit=True)
        layer = make_layer(shape, 3, dtype, silent=0.0 if how is None else 0.5)
        assert checked(layer, batch, RULES["nesterov"], how, exact=True).open == 0


@pytest.mark.parametrize("silent", [0.0, 0.001, 1.0])
@pytest.mark.parametrize("coincidence", COINCIDENCES)
def test_shares_of_silent_synapses(backend: str, coincidence: str, silent: float) -> None:
    batch = make_batch(8, (50, 1100), 2, exact=True)
    how = with_threshold(OPENINGS["pruned"], batch, coincidence, per_unit=False)
    layer = make_layer((50, 1100), 2, silent=silent)
    judged = checked(layer, batch, RULES["dampening"], how, coincidence, exact=True)
    assert judged.open == 0
    assert (judged.converted > 0) == (silent > 0)


@pytest.fixture
def cpu() -> Iterator[None]:
    """The CPU kernel, which works on 1024 rows of the gradient at a time."""
    status = flexkern.backends()["cpu"]
    if not status.available:
        pytest.skip(status.reason)
    with flexkern.use_backend("cpu"):
        yield


@pytest.mark.usefixtures("cpu")
def test_silent_rows_beside_functional_ones() -> None:
    # It makes the second product only for blocks that have silent synapses.
    shape = (2100, 1025)
    for rows in (slice(0, 5), slice(2095, 2100)):
        layer = make_layer(shape, 4, silent=0.0)
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[rows] = True
        layer.weight[mask], layer.master[mask] = 0.0, 0.0
        layer = layer._replace(silent=ops.pack_mask(mask))
        batch = make_batch(2, shape, 9, exact=True)
        how = with_threshold(OPENINGS["pruned"], batch, "hebbian", per_unit=False)
        judged = checked(layer, batch, Rule(), how, exact=True)
        assert judged.open == 0
        assert judged.converted > 1000


@pytest.mark.parametrize("coincidence", COINCIDENCES)
@pytest.mark.parametrize("rule", [Rule(weight_decay=0.25), RULES["nesterov"]], ids=["decay", "nesterov"])
def test_an_empty_batch_has_no_gradient_and_converts_nothing(
    backend: str, rule: Rule, coincidence: str
) -> None:
    before = make_layer((5, 40), 1)
    batch = make_batch(0, (5, 40), 1, exact=True)
    for theta in (0.0, torch.zeros(5)):
        after = clone(before)
        done = linear_layer(after, batch, rule, Opening(theta), coincidence)
        nothing = torch.zeros((5, 40), dtype=torch.float64)
        none = (torch.full((5, 40), torch.nan, dtype=torch.float64), nothing)
        judged = judge_pass(before, after, done, none, rule, Opening(0.0), grad=(nothing, nothing))
        assert judged == (0, 0, 0, 0)


@pytest.mark.parametrize("coincidence", COINCIDENCES)
def test_float64(coincidence: str) -> None:
    # On the reference only: the same decisions, and weights closer than float32 could be.
    batch = Batch(*(t.double() for t in make_batch(8, (6, 40), 1, exact=True)))
    how = with_threshold(OPENINGS["pruned"], batch, coincidence, per_unit=True)
    how = how._replace(threshold=how.threshold.double())
    before = make_layer((6, 40), 2, torch.float64)
    assert checked(before, batch, RULES["nesterov"], how, coincidence, exact=True).open == 0


# --------------------------------------------------------------------------- it is the product and the pass


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("coincidence", COINCIDENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exact_sums_give_the_bits_of_synapse_step(
    backend: str, dtype: torch.dtype, coincidence: str, size: tuple[int, int, int]
) -> None:
    shape, rule = size[1:], RULES["nesterov"]
    batch = make_batch(size[0], shape, 8, dtype, exact=True)
    how = with_threshold(OPENINGS["pruned"], batch, coincidence, per_unit=False)
    x, post = batch.x.float(), batch.post.float()
    grad = batch.grad_out.float().T @ x
    pre, after = x.clamp(min=0), post.clamp(min=0)
    fused, other = make_layer(shape, 9, dtype), make_layer(shape, 9, dtype)
    done = linear_layer(fused, batch, rule, how, coincidence)
    if coincidence == "rate":
        activities = {"pre": pre.mean(0), "post": after.mean(0)}
    else:
        activities = {"coincidence": after.T @ pre / size[0]}
    expected = step_layer(other, rule, how, grad=grad, **activities)
    assert same_state(fused, other)
    assert all(same_bits(a, b) for a, b in zip(done, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_without_a_mask_it_is_the_plain_step(backend: str, rule: Rule, dtype: torch.dtype) -> None:
    shape = (33, 130)
    batch = make_batch(16, shape, 8, dtype, exact=True)
    fused, other = make_layer(shape, 9, dtype, silent=0.0), make_layer(shape, 9, dtype, silent=0.0)
    done = linear_layer(fused, batch, rule, None)
    assert done.converted.tolist() == done.pruned.tolist() == [0] * 33
    grad = batch.grad_out.float().T @ batch.x.float()
    ops.metaplastic_sgd_(
        other.weight, grad, other.anchor, other.flexibility, **rule._asdict(),
        momentum_buffer=other.buffer if rule.momentum else None,
        master=other.master if dtype in LOW else None,
    )  # fmt: skip
    assert same_state(fused, other)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_it_is_near_the_step_of_the_library_product(backend: str, batch_size: int) -> None:
    # Both are within the judge's bound, so within twice that of each other.
    shape, rule = (20, 300), RULES["nesterov"]
    batch = make_batch(batch_size, shape, 3, exact=False)
    before = make_layer(shape, 4, silent=0.0)
    fused, other = clone(before), clone(before)
    linear_layer(fused, batch, rule, None)
    step_layer(other, rule, Opening(0.0), torch.ones(300), torch.ones(20), grad=batch.grad_out.T @ batch.x)
    gate = judge.judge_gate(before.weight, before.anchor, before.flexibility, rule.scale)
    grad, bound = judge_product(batch.grad_out, batch.x)
    judged = judge.judge_step(before.weight, grad, *gate, rule, before.buffer, bound)
    judge.assert_within(fused.weight, other.weight.double(), 2 * judged.weight_bound)
    judge.assert_within(fused.buffer, other.buffer.double(), 2 * judged.buffer_bound)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_micro_batches_accumulate_to_one_batch(backend: str, parts: int) -> None:
    # The means of equal micro-batches average to the mean of all: gradients and coincidences add up.
    shape, rule = (9, 70), RULES["dampening"]
    batch = make_batch(16, shape, 3, exact=True)
    how = with_threshold(OPENINGS["pruned"], batch, "hebbian", per_unit=True)
    large, added = make_layer(shape, 4), make_layer(shape, 4)
    done = linear_layer(large, batch, rule, how)
    grad, coincidence = torch.zeros(shape), torch.zeros(shape)
    for x, grad_out, post in zip(*(t.chunk(parts) for t in batch), strict=True):
        grad += grad_out.T @ x
        coincidence += post.clamp(min=0).T @ x.clamp(min=0) / len(x) / parts
    expected = step_layer(added, rule, how, grad=grad, coincidence=coincidence)
    assert int(done.converted.sum()) > 0
    assert same_state(large, added)
    assert torch.equal(done.converted, expected.converted)


# --------------------------------------------------------------------------- layouts, sources, numbers


@pytest.mark.parametrize("coincidence", COINCIDENCES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(backend: str, dtype: torch.dtype, layout: str, coincidence: str) -> None:
    rule, shape = RULES["dampening"], (37, 70)
    batch = make_batch(8, shape, 3, dtype, exact=True)
    how = with_threshold(OPENINGS["pruned"], batch, coincidence, per_unit=False)
    dense, start = make_layer(shape, 4, dtype), make_layer(shape, 4, dtype)
    strided = Layer(*(lay_out(t, layout) for t in start))
    around = [count_around(t) for t in strided]
    linear_layer(dense, batch, rule, how, coincidence)
    linear_layer(strided, Batch(*(lay_out(t, layout) for t in batch)), rule, how, coincidence)
    assert same_state(dense, strided)
    assert [count_around(t) for t in strided] == around


@pytest.mark.parametrize("flexibility", [None, 0.3, Field.uniform(9, 1, offset=2)], ids=str)
@pytest.mark.parametrize(
    "anchor",
    [None, Field.normal(17, 5, std=0.5, offset=3), Field.normal_table(17, 5, std=0.5, offset=3)],
    ids=str,
)
@pytest.mark.parametrize("silent", [0.0, 0.5])
def test_a_source_gives_the_bits_of_its_tensor(
    backend: str, silent: float, anchor: Field | None, flexibility: Field | float | None
) -> None:
    sources_are_their_tensors((40, 1030), silent, anchor, flexibility)


@pytest.mark.usefixtures("cpu")
def test_the_positions_of_a_source_go_on_from_block_to_block() -> None:
    sources_are_their_tensors((2050, 1030), 0.5, Field.normal(17, 5), Field.uniform(9, 1))


def sources_are_their_tensors(
    shape: tuple[int, int], silent: float, anchor: Field | None, flexibility: Field | float | None
) -> None:
    rule = RULES["nesterov"]
    batch = make_batch(4, shape, 3, exact=True)
    how = with_threshold(OPENINGS["init"] if silent else None, batch, "hebbian", per_unit=False)
    start = make_layer(shape, 4, silent=silent)
    given = start._replace(
        anchor=start.anchor if anchor is None else anchor,
        flexibility=start.flexibility if flexibility is None else flexibility,
    )
    stored = clone(
        start._replace(**{n: materialized(getattr(given, n), start.anchor) for n in ("anchor", "flexibility")})
    )
    linear_layer(given, batch, rule, how)
    linear_layer(stored, batch, rule, how)
    for name in ("weight", "buffer", "silent"):
        assert same_bits(getattr(given, name), getattr(stored, name)), name


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_a_held_alpha(backend: str, opening: Opening | None) -> None:
    shape = (9, 1030)
    batch = make_batch(8, shape, 3, exact=True)
    how = with_threshold(opening, batch, "hebbian", per_unit=True)
    before = make_layer(shape, 4, silent=0.0 if how is None else 0.5)
    alpha = eighths(shape, 5, 0, 8)
    assert checked(before, batch, RULES["nesterov"], how, exact=True, alpha=alpha).open == 0


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_numbers_as_tensors_give_the_same_bits(backend: str, shape: tuple[int, ...]) -> None:
    rule, batch = Rule(lr=0.1, scale=21.7, momentum=0.9), make_batch(8, (9, 130), 3, exact=False)
    numbers, tensors = make_layer((9, 130), 17), make_layer((9, 130), 17)
    linear_layer(numbers, batch, rule, Opening(0.3))
    as_tensors = {
        "lr": torch.full(shape, 0.1),
        "scale": torch.full(shape, 21.7),
        "threshold": torch.full(shape, 0.3),
    }
    linear_layer(tensors, batch, rule, Opening(0.3), **as_tensors)
    assert same_state(tensors, numbers)
    assert not same_bits(tensors.silent, make_layer((9, 130), 17).silent)
