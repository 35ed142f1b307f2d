"""The kinds of source that an anchor or a flexibility has, for every language.

csrc/include/flexkern/field.h has them from here through build_tools/bindings.py.
"""

from __future__ import annotations

import enum

__all__ = ["NORMALS", "PARAMETERS", "Kind"]


class Kind(enum.IntEnum):
    """How a value is found. Checkpoints hold the numbers, so a kind keeps its number and its bits for good."""

    STORED = 0  # read from a tensor
    CONSTANT = 1  # one number for all
    UNIFORM = 2
    NORMAL = 3
    BIASED_HIGH = 4
    BIASED_LOW = 5
    NORMAL_TABLE = 6


# What the two parameters of a kind are called; those of the others mean nothing.
PARAMETERS = {
    Kind.UNIFORM: ("low", "high"),
    Kind.NORMAL: ("mean", "std"),
    Kind.NORMAL_TABLE: ("mean", "std"),
}
# The normal ones, and a number of standard deviations that no value of them reaches.
NORMALS = {Kind.NORMAL: 5.3, Kind.NORMAL_TABLE: 6.3}
