"""Philox4x32-10 (Salmon et al., SC'11, section 4.3) in a tile: one block of four words for four elements."""

# ruff: noqa: ANN001, ANN201, ANN202, RUF100, SIM300 - device functions: Triton infers the types of arguments

import triton
import triton.language as tl

from flexkern.spec.constants import PHILOX_MULTIPLIERS, PHILOX_ROUNDS, PHILOX_WEYL

__all__ = ["random_words", "random_words_of_rows"]

M0, M1 = (tl.constexpr(m) for m in PHILOX_MULTIPLIERS)
W0, W1 = (tl.constexpr(w) for w in PHILOX_WEYL)
ROUNDS = tl.constexpr(PHILOX_ROUNDS)


@triton.jit
def _multiply(x, M: tl.constexpr):
    """32 x 32 -> 64 bit product as its high and low word: one IMAD.WIDE, where umulhi and mul would be two."""
    product = x.to(tl.uint64) * M
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def _philox(block, seed, stream, purpose):
    """The four random words of each 64-bit block number. What is the same for all lanes stays a scalar."""
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = stream.to(tl.uint32)
    c3 = purpose.to(tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(ROUNDS):
        high0, low0 = _multiply(c0, M0)
        high1, low1 = _multiply(c2, M1)
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = tl.add(k0, W0, sanitize_overflow=False)
        k1 = tl.add(k1, W1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _straddle(w0, w1, w2, w3, shift, following):
    """The four words from lane ``shift`` (0 .. 3) of a block on; ``following`` is the next block."""
    n0, n1, n2, _ = following
    s0 = tl.where(shift == 0, w0, tl.where(shift == 1, w1, tl.where(shift == 2, w2, w3)))
    s1 = tl.where(shift == 0, w1, tl.where(shift == 1, w2, tl.where(shift == 2, w3, n0)))
    s2 = tl.where(shift == 0, w2, tl.where(shift == 1, w3, tl.where(shift == 2, n0, n1)))
    s3 = tl.where(shift == 0, w3, tl.where(shift == 1, n0, tl.where(shift == 2, n1, n2)))
    return s0, s1, s2, s3


@triton.jit
def random_words(first, seed, stream, purpose, TILE: tl.constexpr):
    """Four uint32 [TILE // 4], one for each lane: the random words of the positions ``first + 4 i + lane``.

    All arguments are int64.
    """
    block = (first >> 2) + tl.arange(0, TILE // 4)
    w0, w1, w2, w3 = _philox(block, seed, stream, purpose)
    # A shard may begin inside a block: then its groups of four straddle two blocks.
    shift = first & 3
    if shift != 0:
        w0, w1, w2, w3 = _straddle(w0, w1, w2, w3, shift, _philox(block + 1, seed, stream, purpose))
    return w0, w1, w2, w3


@triton.jit
def random_words_of_rows(first, seed, stream, purpose, ALIGNED: tl.constexpr, WIDTH: tl.constexpr):
    """As random_words, for rows of WIDTH elements that begin at the positions ``first`` [rows, 1].

    Four uint32 [rows, WIDTH // 4]. ALIGNED promises that all of ``first`` are multiples of 4.
    """
    block = (first >> 2) + tl.arange(0, WIDTH // 4)[None, :]
    w0, w1, w2, w3 = _philox(block, seed, stream, purpose)
    if not ALIGNED:
        following = _philox(block + 1, seed, stream, purpose)
        w0, w1, w2, w3 = _straddle(w0, w1, w2, w3, first & 3, following)
    return w0, w1, w2, w3
