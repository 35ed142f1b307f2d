"""Writes flexkern/spec/normal_table.py: the quantile of the normal distribution as a table of cubics.

    python scripts/normal_table.py

Needs Python's math only. tests/ops/test_normal_table.py compares the table with what this computes, and its
values with the quantile of scipy.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "flexkern" / "spec" / "normal_table.py"
ONE = 2.0**31  # the argument that stands for the probability 1
OCTAVES, PARTS = 31, 8  # [1, 2), [2, 4), ... [2**30, 2**31), each in eight segments of equal width
# The nodes of a segment, on [-1, 1]: those of the Chebyshev polynomial of degree 4, stretched until the outer
# ones are the ends. So neighbours meet, and the error is at most 1.4 times that of the best cubic.
NODES = (-1.0, -math.tan(math.pi / 8), math.tan(math.pi / 8), 1.0)

HEADER = '''"""The quantile of the normal distribution as a table of cubics. Written by scripts/normal_table.py.

Of v in [1, 2**31], the x that a standard normal value exceeds in size with the probability v / 2**31: by the
row of v, x = c0 + c1 v + c2 v^2 + c3 v^3. Rows go by the float32 bits of v, shifted right by SHIFT, from FIRST
on: by the exponent, so that segments halve towards the tail, and by three bits of the fraction. The last row is
that of v = 2**31 alone, x = 0.
"""

from __future__ import annotations

__all__ = ["FIRST", "ROWS", "SHIFT"]

SHIFT = 20  # of float32's 23 bits of fraction three stay
FIRST = 127 << 3  # that of v = 1
ROWS = (
'''


def quantile(v: float) -> float:
    """The x >= 0 with erfc(x / sqrt(2)) = v / 2**31, to some 1e-15."""
    if v == ONE:
        return 0.0
    log_p = math.log(v / ONE)
    x = math.sqrt(-2 * log_p)
    # Newton on the logarithm, which is concave: from the right it comes down to the root and does not pass it.
    for _ in range(100):
        tail = math.erfc(x / math.sqrt(2))
        slope = -math.sqrt(2 / math.pi) * math.exp(-x * x / 2) / tail
        step = (math.log(tail) - log_p) / slope
        x -= step
        if abs(step) <= 1e-15 * x:
            break
    return x


def float32(number: float | Fraction) -> float:
    """The nearest float32."""
    return struct.unpack("f", struct.pack("f", float(number)))[0]


def shortest(number: float) -> str:
    """The shortest decimal that is this float32."""
    return next(text for d in range(1, 18) if float32(float(text := f"{number:.{d}g}")) == number)


def cubic(low: float, high: float) -> tuple[float, ...]:
    """The float32 coefficients of the cubic on a segment, the lowest power first."""
    nodes = [Fraction((low + high) / 2 + (high - low) / 2 * node) for node in NODES]
    differences = [Fraction(quantile(float(node))) for node in nodes]
    for order in range(1, len(nodes)):
        for i in reversed(range(order, len(nodes))):
            differences[i] = (differences[i] - differences[i - 1]) / (nodes[i] - nodes[i - order])
    powers = [Fraction(0)] * len(nodes)
    for node, difference in zip(
        reversed(nodes), reversed(differences), strict=True
    ):  # p <- p (v - node) + difference
        times_v = [Fraction(0), *powers[:-1]]
        powers = [up - node * same for up, same in zip(times_v, powers, strict=True)]
        powers[0] += difference
    return tuple(map(float32, powers))


def rows() -> list[tuple[float, ...]]:
    """All rows of the table."""
    table = []
    for octave in range(OCTAVES):
        width = 2.0**octave / PARTS
        begin = 2.0**octave
        table += [cubic(begin + part * width, begin + (part + 1) * width) for part in range(PARTS)]
    return [*table, (0.0,) * len(NODES)]


def main() -> None:
    """Writes the module."""
    lines = [f"    ({', '.join(map(shortest, row))}),\n" for row in rows()]
    TARGET.write_text(f"{HEADER}{''.join(lines)})  # fmt: skip\n")


if __name__ == "__main__":
    main()
