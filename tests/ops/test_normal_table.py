"""The normal distribution by a table: its numbers, its error over the words, its tails, and who takes it."""

from __future__ import annotations

import copy
import math
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from flexkern import Field, ops, reference
from flexkern.fields import Kind, Purpose
from flexkern.nn.silent.state import decode, encode
from flexkern.optim.flexibilities import field_of, plain
from flexkern.spec.normal_table import FIRST, ROWS, SHIFT
from helpers.scripts import load_file

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent.parent
ONE = 2**31  # the words' lower 31 bits stand for a probability
ERROR = 6e-7  # what Field.normal_table's docstring says, in standard deviations
SIGN = 1 << 31


def values(words: Tensor) -> Tensor:
    return reference.field_values(words, Kind.NORMAL_TABLE, (0.0, 1.0))


def exact(words: Tensor) -> np.ndarray:
    """The quantile in float64: of the lower 31 bits, the last of them set, as a tail on both sides."""
    size = -special.ndtri(((words & (ONE - 1)) | 1).double().numpy() / (2 * ONE))
    return np.where((words >> 31).numpy() == 1, -size, size)


def around(words: list[int], reach: int) -> Tensor:
    near = torch.tensor(words).unsqueeze(1) + torch.arange(-reach, reach + 1)
    return near.flatten().unique()


def borders() -> Tensor:
    """Words about all borders of segments, in order, and about both ends."""
    starts = [int(2**octave * (1 + part / 8)) for octave in range(31) for part in range(8)]
    near = around(starts, 40)
    return torch.cat([near[(near >= 0) & (near < ONE)], torch.arange(ONE - 300, ONE)]).unique()


# --------------------------------------------------------------------------- the table


def test_the_table_is_what_the_script_computes() -> None:
    """To an ulp: another library's erfc may round a node differently."""
    script = load_file(ROOT / "scripts" / "normal_table.py")
    computed, kept = np.array(script.rows(), np.float32), np.array(ROWS, np.float32)
    assert computed.shape == kept.shape == (31 * 8 + 1, 4)
    assert (np.abs(computed - kept) <= np.spacing(np.abs(kept))).all()
    assert np.float32(1).view(np.int32) >> SHIFT == FIRST
    assert np.float32(ONE).view(np.int32) >> SHIFT == FIRST + len(ROWS) - 1


def test_numbers_of_the_table_are_float32() -> None:
    """Written as decimals that every compiler rounds to the same float32."""
    for row in ROWS:
        for number in row:
            assert float(np.format_float_scientific(np.float32(number))) == number


def test_error_over_the_words() -> None:
    steps = (1 << torch.arange(31)).unsqueeze(1) + torch.arange(2048) * (1 << torch.arange(31)).unsqueeze(
        1
    ) // 2048
    for words in (borders(), steps.flatten().unique(), torch.arange(7, ONE, 33_331)):
        assert np.abs(values(words).double().numpy() - exact(words)).max() <= ERROR


def test_ends_of_the_words() -> None:
    words = torch.tensor([0, 1, 2, 3, ONE - 65, ONE - 64, ONE - 1])
    found = values(words)
    assert np.abs(found.double().numpy() - exact(words)).max() <= ERROR
    assert found[0] == found[1]  # the last bit counts as set
    assert 6.23 < found[0] < 6.2303
    assert (found[:5] > 0).all()
    assert (found[5:] == 0).all()  # as float32 these are 2**31
    assert torch.equal(values(words | SIGN), -found)  # 0 is 0: the mean is added


def test_it_falls_steadily() -> None:
    """But for the rounding of the last sum: an ulp of the values between 2 and 4."""
    for words in (borders(), torch.arange(7, ONE, 33_331)):
        assert values(words).diff().max() <= 2.0**-22


def test_cubics_meet_at_borders() -> None:
    table = np.array(ROWS)
    borders = np.array([2.0**octave * (1 + part / 8) for octave in range(31) for part in range(8)] + [2.0**31])
    left = np.polynomial.polynomial.polyval(borders[1:], table[:-1].T, tensor=False)
    right = np.polynomial.polynomial.polyval(borders[1:], table[1:].T, tensor=False)
    assert np.abs(left - right).max() <= 2.0**-20  # the rounding of their coefficients


@pytest.mark.slow
def test_every_argument_is_within_the_error_and_falls() -> None:
    """Odd words up to 2**24; then one word for each float32."""
    last = math.inf
    for octave in range(31):
        step = 2 << max(0, octave - 24)
        for part in torch.arange(1 << octave, 2 << octave, step).split(1 << 22):
            found = values(part)
            assert np.abs(found.double().numpy() - exact(part)).max() <= ERROR
            assert found[0] <= last + 2.0**-22
            assert len(found) == 1 or found.diff().max() <= 2.0**-22
            last = float(found[-1])


# --------------------------------------------------------------------------- the distribution

COUNT = 1 << 20


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return ops.materialize(Field.normal_table(41), (COUNT,)).double().numpy()


def farthest(found: np.ndarray) -> float:
    """How far the distribution of a sample is from the one that has these values at the sorted sample."""
    steps = np.arange(len(found) + 1) / len(found)
    return max(float((found - steps[:-1]).max()), float((steps[1:] - found).max()))


def test_kolmogorov_smirnov(drawn: np.ndarray) -> None:
    """P(sqrt(n) D > 2.23) = 1e-4 of a right generator; the error of the table moves D by ERROR / sqrt(2 pi)."""
    assert farthest(special.ndtr(np.sort(drawn))) < 2.23 / math.sqrt(COUNT)
    sizes = np.sort(np.abs(drawn))
    assert farthest(special.erf(sizes / math.sqrt(2))) < 2.23 / math.sqrt(COUNT)


def test_moments(drawn: np.ndarray) -> None:
    """Of a normal sample the first four have the variances 1, 2, 6 and 24 over n; within four deviations."""
    found = (drawn.mean(), drawn.var() - 1, stats.skew(drawn), stats.kurtosis(drawn))
    for moment, variance in zip(found, (1, 2, 6, 24), strict=True):
        assert abs(moment) < 4 * math.sqrt(variance / COUNT)


def test_signs_and_neighbours_are_independent(drawn: np.ndarray) -> None:
    assert abs((drawn > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(COUNT)
    for lag in (1, 2, 3, 4):
        assert abs(np.mean(drawn[lag:] * drawn[:-lag])) < 4 / math.sqrt(COUNT)


@pytest.mark.parametrize("bound", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
def test_tails(bound: float) -> None:
    """Exactly: how many of all words give more than the bound, against P(|x| > bound)."""
    low, high = 0, ONE - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if float(values(torch.tensor([middle]))) > bound else (low, middle)
    # An error e of x is one of e x / (1 - 1 / x^2 ...) of the tail at most; and the last word counts whole.
    tail = 2 * stats.norm.sf(bound)
    assert abs((low + 1) / ONE - tail) <= tail * ERROR * (bound + 1) + 1.5 / ONE


def test_tails_of_a_sample() -> None:
    found = ops.materialize(Field.normal_table(43), (1 << 22,)).abs()
    for bound in (3.0, 4.0, 5.0):
        expected = len(found) * 2 * stats.norm.sf(bound)
        assert abs(int((found > bound).sum()) - expected) < 4 * math.sqrt(expected)
    assert found.max() < 6.2303


# --------------------------------------------------------------------------- beside the other kinds

# CRC32 of the first 1,000 values. Saved runs go on from these bits: a kind keeps them for good.
BITS = {
    Kind.UNIFORM: 3_544_609_407,
    Kind.NORMAL: 1_972_556_374,
    Kind.BIASED_HIGH: 2_884_114_329,
    Kind.BIASED_LOW: 2_713_263_046,
    Kind.NORMAL_TABLE: 1_792_601_427,
}


@pytest.mark.parametrize("kind", BITS, ids=lambda kind: kind.name)
def test_a_kind_keeps_its_bits(backend: str, kind: Kind) -> None:
    field = Field(kind, 2**40 + 5, 3, Purpose.ANCHOR, 2**33 + 1, (0.25, 0.75))
    assert zlib.crc32(ops.materialize(field, (1000,)).numpy().tobytes()) == BITS[kind]


def test_every_distribution_has_its_bits_here() -> None:
    assert set(BITS) == set(Kind) - {Kind.STORED, Kind.CONSTANT}


def test_checkpoints_keep_the_kind() -> None:
    field = Field.normal_table(2**63 + 1, 7, mean=0.5, std=0.25, offset=9)
    assert field_of(plain(field)) == field
    assert decode(encode(field, [1]))[0] == field
    assert pickle.loads(pickle.dumps(field)) == copy.deepcopy(field) == field
    assert field.shard(5).kind is Kind.NORMAL_TABLE


def test_it_is_no_flexibility() -> None:
    field = Field.normal_table(0, mean=0.5, std=0.01)
    assert not field.is_flexibility()
    with pytest.raises(ValueError, match="flexibility must be in"):
        ops.metaplastic_gate(torch.ones(3), torch.ones(3), field, 1.0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"std": -1.0}, r"std must not be negative, got -1.0"),
        ({"mean": math.nan}, r"parameters \(mean, std\) must be finite in float32"),
        ({"std": 6e37}, r"mean \+ 6.3 std must be finite in float32"),
    ],
)
def test_numbers_out_of_range(numbers: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Field.normal_table(0, **numbers)
    assert Field.normal_table(0, std=5.4e37).parameters == (0.0, 5.4e37)
