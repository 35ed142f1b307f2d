"""Seeds as they are given, kept and said."""

from __future__ import annotations

import numpy as np
import pytest

from flexkern.runs.seeds import as_list, checked, read_seeds, said_seeds, united


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", (3,)), ("0,1,2", (0, 1, 2)), ("0-4", (0, 1, 2, 3, 4)), (" 7, 1 - 3 ", (7, 1, 2, 3)), ("5-5", (5,))],
)
def test_numbers_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert read_seeds(text) == seeds
    assert read_seeds(said_seeds(seeds)) == seeds


def test_said_the_shortest_way() -> None:
    assert said_seeds([0, 1, 2, 5, 6, 3]) == "0-2,5,6,3"


@pytest.mark.parametrize("text", ["", "a", "1,", "1.0", "0-99999999", "1--2", "99999999999999999"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="seeds"):
        read_seeds(text)


def test_lists_of_seeds() -> None:
    assert checked(np.arange(3)) == (0, 1, 2)
    assert united((2, 0), (0, 1)) == (2, 0, 1)
    for wrong in ("01", 3, [1.5], [True]):
        with pytest.raises(TypeError, match="seeds must be"):
            checked(wrong)
    for mistaken in ([], [-1], [2**60], [1, 1]):
        with pytest.raises(ValueError, match="seeds must"):
            checked(mistaken)


def test_older_results_say_how_many() -> None:
    assert as_list({"seeds": 3, "first_seed": 2, "lr": 1}) == {"seeds": [2, 3, 4], "lr": 1}
    assert as_list({"seeds": [4]}) == {"seeds": [4]}
