"""``flexkern compare``: two runs, pair by pair."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flexkern.cli.terminal import console, explained, reader_gone
from flexkern.runs.seeds import said_seeds
from flexkern.runs.start import path_given
from flexkern.runs.tables import table_of

if TYPE_CHECKING:
    from flexkern.runs.comparing import Comparison

__all__ = ["compare"]

_LEGEND = (
    "in percent, means over the pairs; 95 %: confidence interval of the mean difference (Student's t); p: of "
    "the paired t-test, by Holm's correction for all rows; told: which is higher where p < 0.05, open where "
    "nothing is shown, same where no pair differs, too few where ranks of so few pairs could show nothing"
)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The folder of a run, or its file of results.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    match: Annotated[
        list[str] | None,
        typer.Option(help="'OF A=OF B': methods with other names to compare. May be repeated.", metavar="A=B"),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare runs that did not learn the same stream, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON, and nothing else.")] = False,
) -> None:
    """Compares two runs of one stream, by pairs of the same seed and method.

    Seeds are what a test counts: add some with --seeds where it says that
    there are too few pairs to tell.
    """
    with explained("flexkern compare"), reader_gone():
        from flexkern.runs.comparing import compare_runs
        from flexkern.runs.found import one

        found = [one(path_given(path, name)) for path, name in ((a, "A"), (b, "B"))]
        result = compare_runs(found[0], found[1], match=_matches(match), anyway=anyway)
        if as_json:
            rows = [row._asdict() for row in result.rows]
            print(json.dumps({"a": a, "b": b, **result._asdict(), "rows": rows}, indent=1, allow_nan=False))
        else:
            _show(a, b, result)


def _matches(given: list[str] | None) -> dict[str, str] | None:
    if not given:
        return None
    matches = {}
    for text in given:
        ours, equal, theirs = text.partition("=")
        if not (equal and ours.strip() and theirs.strip()):
            raise ValueError(f"match must be 'OF A=OF B', two names of methods, got {text!r}")
        matches[ours.strip()] = theirs.strip()
    return matches


def _show(a: str, b: str, result: Comparison) -> None:
    from flexkern.runs.comparing import ENOUGH

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(f"A: {a}\nB: {b}")
    for phrase in result.stream:
        say(f"what was learned differs: {phrase}")
    for phrase in result.how:
        say(f"differs: {phrase}")
    console.print(_table(result))
    for phrase in result.left_out:
        say(f"left out: {phrase}")
    counts = {(row.method, row.other): row.seeds for row in result.rows}
    for (ours, theirs), seeds in counts.items():
        name = ours if ours == theirs else f"{ours} and {theirs}"
        n = len(seeds)
        line = f"{name}: {n} pair{'s' * (n > 1)}, seed{'s' * (n > 1)} {said_seeds(seeds)}"
        if n < ENOUGH and not all(row.told == "same" for row in result.rows if row.method == ours):
            spread = (
                "one pair says nothing of the spread" if n == 1 else f"by ranks p is {2 / 2**n:.2g} at best"
            )
            line += f": too few to tell ({spread}; from {ENOUGH} pairs on it can be under 0.05)"
        say(line)


def _table(result: Comparison) -> Table:
    table = table_of("Differences of B from A", _LEGEND)
    table.add_column("method", overflow="fold")
    table.add_column("measure", overflow="fold")
    for head in ("A", "B", "B - A", "95 %", "p"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("told", no_wrap=True)
    for row in result.rows:
        means = [100 * sum(values) / len(values) for values in (row.a, row.b)]
        interval = "-" if row.low is None or row.high is None else f"{100 * row.low:+.2f} {100 * row.high:+.2f}"
        name = row.method if row.method == row.other else f"{row.method}, {row.other}"
        table.add_row(
            escape(name), escape(row.measure), f"{means[0]:.2f}", f"{means[1]:.2f}",
            f"{means[1] - means[0]:+.2f}", interval,
            "-" if row.p_holm is None else f"{row.p_holm:.2g}", row.told,
        )  # fmt: skip
    return table
