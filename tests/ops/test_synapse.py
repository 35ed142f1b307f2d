"""synapse_step_ on every backend, dtype, shape, layout, source and number, against the float64 judge."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from flexkern import Field, Purpose, ops, reference
from helpers import judge_layer
from helpers.arguments import LAYOUTS, count_around, lay_out
from helpers.judge import Rule, same_bits
from helpers.judge_layer import (
    LOW,
    RULES,
    Layer,
    Opening,
    clone,
    eighths,
    halfway,
    judge_pass,
    judge_rate,
    make_layer,
    mask_of,
    same_state,
    step_layer,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Words of 32, chunks of 1024; one below, at and above; several chunks, and many rows.
SHAPES = [
    (0, 0), (0, 5), (5, 0), (1, 1), (3, 31), (3, 32), (2, 33), (5, 65), (3, 1023), (2, 1024), (3, 1025),
    (2, 2049), (3, 3101), (700, 33), (4099, 3),
]  # fmt: skip
OPENINGS = {
    "init": Opening(0.0),
    "hebbian": Opening(0.0, "hebbian", eta=0.3),
    "pruned": Opening(0.0, prune=0.3),
    "hebbian pruned": Opening(0.0, "hebbian", eta=1.7, prune=0.6),
}
GRID = 1 / 64  # products of multiples of 1/8 are multiples of it


def rates(shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """pre and post whose products are exact; some are negative, which counts as 0."""
    return eighths((shape[1],), seed + 1), eighths((shape[0],), seed + 2)


def checked(before: Layer, rule: Rule, how: Opening, seed: int = 0, **change: object) -> judge_layer.Judgement:
    """One pass with exact coincidences: every conversion is certain, and of prunings nearly every one."""
    pre, post = rates(before.weight.shape, seed)
    after = clone(before)
    done = step_layer(after, rule, how, pre, post, **change)
    return judge_pass(before, after, done, judge_rate(pre, post), rule, how)


# --------------------------------------------------------------------------- shapes and dtypes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_pass(backend: str, rule: Rule, opening: Opening, shape: tuple[int, int]) -> None:
    c, _ = judge_rate(*rates(shape))
    how = opening._replace(threshold=halfway(c, GRID, per_unit=True))
    judged = checked(make_layer(shape, seed=sum(shape)), rule, how)
    assert judged.open == 0
    if shape[0] * shape[1] > 1:
        assert judged.converted > 0
        assert (judged.pruned > 0) == (how.prune > 0)


@pytest.mark.parametrize("silent", [0.0, 0.01, 0.99, 1.0])
@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_shares_of_silent_synapses(backend: str, opening: Opening, silent: float) -> None:
    # Kernels take short cuts through chunks that are wholly functional, or wholly silent and not driven.
    shape = (40, 2100)
    c, _ = judge_rate(*rates(shape))
    for theta in (halfway(c, GRID), halfway(c.max(), GRID), torch.tensor(2.0**-7)):
        judged = checked(
            make_layer(shape, 1, silent=silent), RULES["nesterov"], opening._replace(threshold=theta)
        )
        assert judged.open == 0
        assert (judged.converted == 0) == (silent == 0 or bool(theta > c.max()))


@pytest.mark.parametrize("columns", [1, 5, 17, 31, 33, 1025])
def test_a_large_bound_prunes_nothing_past_the_end_of_a_row(backend: str, columns: int) -> None:
    # What a kernel takes for the missing lanes of a row's last vector is under such a bound too.
    judged = checked(make_layer((3, columns), 5, silent=0.0), Rule(), Opening(100.0, prune=8.0))
    assert judged == (0, 3 * columns, 0, 0)


def test_one_synapse_at_a_time(backend: str) -> None:
    # Each place of a row is the only one that is silent and driven.
    columns = 70
    for place in range(columns):
        mask = torch.zeros(1, columns, dtype=torch.bool)
        mask[0, place] = True
        layer = make_layer((1, columns), 3, silent=0.0)
        layer.weight[mask], layer.master[mask] = 0.0, 0.0
        layer = layer._replace(silent=reference.pack_mask(mask))
        after = clone(layer)
        pre, post = mask[0].float(), torch.ones(1)
        done = step_layer(after, Rule(), Opening(0.5), pre, post)
        judged = judge_pass(layer, after, done, judge_rate(pre, post), Rule(), Opening(0.5))
        assert judged == (1, 0, 0, 0)
        assert not mask_of(after).any()


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 33), (5, 1025), (300, 7)], ids=str)
@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
@pytest.mark.parametrize("rule", [RULES["plain"], RULES["nesterov"]], ids=["plain", "nesterov"])
@pytest.mark.parametrize("grad", ["own", "float32"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_low_precision_weights(
    backend: str, dtype: torch.dtype, grad: str, rule: Rule, opening: Opening, shape: tuple[int, int]
) -> None:
    c, _ = judge_rate(*rates(shape))
    layer = make_layer(shape, 7, dtype, torch.float32 if grad == "float32" else dtype)
    judged = checked(layer, rule, opening._replace(threshold=halfway(c, GRID)))
    assert judged.open == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_activities_of_all_sizes(backend: str, opening: Opening, seed: int) -> None:
    # Of any floats: only a synapse within one rounding of its threshold may go either way.
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(1500, generator=generator) * 10 ** (4 * torch.rand(1500, generator=generator) - 2)
    post = torch.randn(40, generator=generator) * 10 ** (4 * torch.rand(40, generator=generator) - 2)
    c = judge_rate(pre, post)
    theta = c[0][:, pre.argmax()].clamp(min=1e-3).float() / 64
    pre[seed] = pre.max() / 64  # one synapse of each row is at the edge
    c, how = judge_rate(pre, post), opening._replace(threshold=theta)
    before, rule = make_layer((40, 1500), seed), RULES["dampening"]
    after = clone(before)
    judged = judge_pass(before, after, step_layer(after, rule, how, pre, post), c, rule, how)
    assert judged.converted > 1000
    assert 0 < judged.open <= 40


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_a_coincidence_matrix(backend: str, opening: Opening) -> None:
    # It is compared as it is, with no rounding: exact for any floats.
    generator = torch.Generator().manual_seed(5)
    shape = (33, 1100)
    matrix = torch.randn(shape, generator=generator)
    c = (matrix.double(), torch.zeros(shape, dtype=torch.float64))
    before, rule = make_layer(shape, 5), RULES["nesterov"]
    for theta in (0.0, 0.5, matrix[:, 3].contiguous()):
        after, how = clone(before), opening._replace(threshold=theta)
        done = step_layer(after, rule, how, coincidence=matrix)
        judged = judge_pass(before, after, done, c, rule, how)
        assert judged.open == 0
        assert judged.converted > 1000


def test_at_the_threshold_it_converts(backend: str) -> None:
    pre, post = torch.tensor([0.125, 0.25, 0.375, 0.5] * 10), torch.tensor([0.0, 0.5, 1.0])
    layer = make_layer((3, 40), 2, silent=1.0)
    done = step_layer(layer, Rule(), Opening(0.25), pre, post)
    assert done.converted.tolist() == [0, 10, 30]
    below, above = (
        torch.nextafter(torch.tensor(0.25), torch.zeros(())),
        torch.nextafter(torch.tensor(0.25), post[2]),
    )
    for theta, count in ((below, 30), (above, 20), (torch.tensor(0.25), 30)):
        layer = make_layer((3, 40), 2, silent=1.0)
        assert step_layer(layer, Rule(), Opening(theta), pre, post).converted[2] == count


def test_a_threshold_of_0_wakes_all_that_have_a_number(backend: str) -> None:
    pre = torch.tensor([1.0, 0.0, -1.0, torch.nan, torch.inf] * 9)
    layer = make_layer((2, 45), 2, silent=1.0)
    step_layer(layer, Rule(), Opening(0.0), pre, torch.ones(2))
    assert torch.equal(mask_of(layer), pre.isnan().logical_or(pre.isinf()).expand(2, 45))


# --------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_layouts(backend: str, opening: Opening, dtype: torch.dtype, layout: str) -> None:
    rule, shape = RULES["dampening"], (37, 70)
    c, _ = judge_rate(*rates(shape))
    theta = halfway(c, GRID, per_unit=True)
    how = opening._replace(threshold=theta)
    before, (pre, post) = make_layer(shape, 11, dtype), rates(shape)
    after = Layer(*(lay_out(t, layout) for t in before))
    around = [count_around(t) for t in after]
    strided = [lay_out(v.view(1, -1), layout)[0] for v in (pre, post, theta)]
    done = step_layer(after, rule, how._replace(threshold=strided[2]), *strided[:2])
    judge_pass(before, after, done, judge_rate(pre, post), rule, how)
    assert [count_around(t) for t in after] == around  # nothing is written beside the elements
    dense = clone(before)
    step_layer(dense, rule, how, pre, post)
    assert same_state(dense, after)  # the layout does not enter the result


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_coincidence_and_alpha(backend: str, layout: str) -> None:
    shape, how = (37, 70), Opening(0.5, "hebbian")
    matrix, alpha = eighths(shape, 1), eighths(shape, 2, 0, 8)
    dense, other = make_layer(shape, 12), make_layer(shape, 12)
    step_layer(dense, Rule(), how, coincidence=matrix, alpha=alpha)
    step_layer(other, Rule(), how, coincidence=lay_out(matrix, layout), alpha=lay_out(alpha, layout))
    assert same_state(dense, other)


# --------------------------------------------------------------------------- sources


ANCHORS = {
    "stored": None,
    "uniform": Field.uniform(2**64 - 5, 3, low=-1.5, high=0.75, purpose=Purpose.ANCHOR, offset=5),
    "normal": Field.normal(17, 2**32 - 1, mean=0.25, std=0.5, offset=2**40 + 3),
    "normal_table": Field.normal_table(17, 2**32 - 1, mean=0.25, std=0.5, offset=2**40 + 3),
}
FLEXIBILITIES = {"stored": None, "number": 0.3, "uniform": Field.uniform(9, 1, offset=2)}


@pytest.mark.parametrize("shape", [(7, 33), (3, 2049), (0, 4)], ids=str)
@pytest.mark.parametrize("flexibility", FLEXIBILITIES)
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_source_gives_the_bits_of_its_tensor(
    backend: str, dtype: torch.dtype, anchor: str, flexibility: str, shape: tuple[int, int]
) -> None:
    start, (pre, post) = make_layer(shape, 3, dtype), rates(shape)
    a, f = ANCHORS[anchor], FLEXIBILITIES[flexibility]
    given = {"anchor": start.anchor if a is None else a, "flexibility": start.flexibility if f is None else f}
    tensors = {name: judge_layer.materialized(source, start.anchor) for name, source in given.items()}
    how = Opening(halfway(judge_rate(pre, post)[0], GRID), prune=0.2)
    stored, mine = clone(start._replace(**tensors)), clone(start)
    for i in range(2):
        grad = eighths(shape, i).to(dtype)
        stored, mine = stored._replace(grad=grad), mine._replace(grad=grad)
        before = clone(stored)
        done = step_layer(stored, RULES["nesterov"], how, pre, post)
        judge_pass(before, stored, done, judge_rate(pre, post), RULES["nesterov"], how)
        step_layer(mine, RULES["nesterov"], how, pre, post, **given)
    for name in ("weight", "buffer", "master", "silent"):
        assert same_bits(getattr(mine, name), getattr(stored, name)), name


@pytest.mark.parametrize("anchor", [n for n in ANCHORS if n != "stored"])
def test_with_a_held_alpha_the_anchor_is_what_is_inserted(backend: str, anchor: str) -> None:
    shape, rule = (7, 1033), RULES["nesterov"]
    pre, post = rates(shape)
    alpha = eighths(shape, 9, 0, 8)
    how = Opening(halfway(judge_rate(pre, post)[0], GRID), prune=0.2)
    before = make_layer(shape, 4)
    before = before._replace(anchor=ops.materialize(ANCHORS[anchor], shape))
    held = {"alpha": alpha, "flexibility": None, "scale": None}
    stored, mine = clone(before), clone(before)
    done = step_layer(stored, rule, how, pre, post, **held)
    judged = judge_pass(before, stored, done, judge_rate(pre, post), rule, how, alpha=alpha)
    assert min(judged.converted, judged.pruned) > 0
    step_layer(mine, rule, how, pre, post, **held, anchor=ANCHORS[anchor])
    assert same_state(mine, stored)


def test_with_a_held_alpha_and_hebbian_insertion(backend: str) -> None:
    shape, rule, how = (7, 1033), RULES["dampening"], Opening(0.3, "hebbian", eta=0.4)
    pre, post = rates(shape)
    alpha = eighths(shape, 9, 0, 8)
    before = make_layer(shape, 4, torch.float16)
    after = clone(before)
    done = step_layer(after, rule, how, pre, post, alpha=alpha)
    assert judge_pass(before, after, done, judge_rate(pre, post), rule, how, alpha=alpha).converted > 0


@pytest.mark.parametrize("cuts", [(0, 1, 5, 9), (0, 4, 9)], ids=str)
def test_shards_of_rows_pass_as_the_whole(backend: str, cuts: tuple[int, ...]) -> None:
    shape, how = (9, 1027), Opening(0.5, prune=0.1)
    anchor, flexibility, (pre, post) = ANCHORS["normal"], FLEXIBILITIES["uniform"], rates(shape)
    whole, parts = make_layer(shape, 6), make_layer(shape, 6)
    sources = {"anchor": anchor, "flexibility": flexibility}
    done = step_layer(whole, Rule(), how, pre, post, **sources)
    for start, end in itertools.pairwise(cuts):
        part = Layer(*(t[start:end] for t in parts))
        sources = {"anchor": anchor.shard(start * 1027), "flexibility": flexibility.shard(start * 1027)}
        some = step_layer(part, Rule(), how, pre, post[start:end], **sources)
        assert torch.equal(some.converted, done.converted[start:end])
        assert torch.equal(some.pruned, done.pruned[start:end])
    assert same_state(parts, whole)


# --------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_a_threshold_as_a_tensor_is_the_number(backend: str, shape: tuple[int, ...]) -> None:
    # 0.3 is not exact in float32; c of the first 70 synapses is what float32 makes of it
    pre = torch.full((140,), 0.3)
    pre[70:] = torch.nextafter(pre[70:], torch.zeros(70))
    for threshold in (0.3, torch.full(shape, 0.3), torch.full((5,), 0.3)):
        layer = make_layer((5, 140), 1, silent=1.0)
        done = step_layer(layer, Rule(), Opening(threshold), pre, torch.ones(5))
        assert done.converted.tolist() == [70] * 5
        assert not mask_of(layer)[:, :70].any()


def test_a_threshold_for_each_unit(backend: str) -> None:
    layer = make_layer((6, 100), 1, silent=1.0)
    theta = torch.tensor([0.0, 0.5, 2.0, -1.0, torch.inf, torch.nan])
    pre = torch.arange(100) / 64
    done = step_layer(layer, Rule(), Opening(theta), pre, torch.ones(6))
    assert done.converted.tolist() == [100, 68, 0, 100, 0, 0]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lr_and_scale_as_tensors_give_the_same_bits(
    backend: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    rule, how = Rule(lr=0.1, scale=21.7, momentum=0.9), Opening(0.5, prune=0.1)
    numbers, tensors = make_layer((9, 130), 17, dtype), make_layer((9, 130), 17, dtype)
    pre, post = rates((9, 130))
    step_layer(numbers, rule, how, pre, post)
    step_layer(tensors, rule, how, pre, post, lr=torch.full(shape, 0.1), scale=torch.full(shape, 21.7))
    assert same_state(tensors, numbers)
