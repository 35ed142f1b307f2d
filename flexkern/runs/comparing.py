"""Two runs of the same stream: pairs of one seed and one method, and what their differences say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexkern.plain import nearest
from flexkern.runs.fitting.fit_rows import method_of
from flexkern.runs.found import Found, flat
from flexkern.runs.seeds import as_list, said_seeds
from flexkern.runs.statistics import holm, paired, t_test, wilcoxon

__all__ = ["ENOUGH", "Comparison", "Row", "compare_runs"]

ENOUGH = 6
"""Pairs with which a test by ranks can have a p value under 0.05: 2 / 2**6."""
_LEVEL = 0.05
# Settings of the experiments and the demo that decide what is learned, and not how.
_STREAM = (
    "data", "features", "items", "train_per_item", "test_per_item", "as_released", "channels", "grid",
    "passes", "longer", "first_class", "backbone",
)  # fmt: skip
_FREE = ("seeds", "out", "title", "data.path", "data.in_memory")  # where things lie, and what they are called


class Row(NamedTuple):
    """A measure of a method in both runs.

    method: as A calls it; other: as B does.
    seeds: of the pairs; a, b: the values, in that order.
    low, high: 95 % confidence interval of the mean of b - a (Student's t); None with fewer than two pairs, and
        where all differ by the same, which says nothing of the spread.
    p, p_holm: of the paired t-test, in the second case of the ranks, and by Holm's correction over all rows.
    p_ranks: of Wilcoxon's signed-rank test.
    told: "B higher", "B lower", "open", "same" or "too few".
    """

    method: str
    other: str
    measure: str
    seeds: list[int]
    a: list[float]
    b: list[float]
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    p_ranks: float | None
    told: str


class Comparison(NamedTuple):
    """What two runs say of each other.

    rows: of all methods and measures.
    stream: how what was learned differs, a phrase each; nobody should compare then. how: how it was learned.
    left_out: what has no partner, a phrase each.
    """

    rows: list[Row]
    stream: list[str]
    how: list[str]
    left_out: list[str]


def compare_runs(
    first: Found, second: Found, *, match: Mapping[str, str] | None = None, anyway: bool = False
) -> Comparison:
    """Compares what both runs have: values of the same seed and the same method are a pair.

    Args:
        first, second: A and B.
        match: methods of A to methods of B that they are compared with. Default: those of the same name.
        anyway: compare runs of different streams, too: then pairs share no more than the number of their seed.

    Raises:
        ValueError: if they are no two of a kind, have no pair, or, without ``anyway``, another stream.
    """
    for found in (first, second):
        if found.kind == "bench":
            raise ValueError(f"{os.fspath(found.path)!r} is of flexkern bench: use flexkern bench compare A B")
    kinds = [_kind(found) for found in (first, second)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"A is of {kinds[0]} and B of {kinds[1]}: only runs of the same kind are compared")
    values = [_values(found) for found in (first, second)]
    matched = _matched(values, match)
    stream, how = _differ(first, second, matched)
    if stream and not anyway:
        raise ValueError(
            f"A and B did not learn the same ({'; '.join(stream)}), so a difference between them says nothing "
            "of how they learned. Compare runs of one stream, or go on with --anyway"
        )
    rows, left_out = [], []
    for ours, theirs in matched.items():
        name = ours if ours == theirs else f"{ours} and {theirs}"
        of_a, of_b = (
            {s: v for (m, s), v in of.items() if m == which}
            for of, which in zip(values, (ours, theirs), strict=True)
        )
        seeds = [seed for seed in of_a if seed in of_b]
        for which, of, other in (("A", of_a, of_b), ("B", of_b, of_a)):
            alone = [seed for seed in of if seed not in other]
            if alone:
                left_out.append(f"{name}: only {which} has seed{'s' * (len(alone) > 1)} {said_seeds(alone)}")
        if seeds:
            measures = [m for m in of_a[seeds[0]] if all(m in of[s] for of in (of_a, of_b) for s in seeds)]
            rows += [_row(ours, theirs, m, seeds, of_a, of_b) for m in measures]
    for which, known, names in (("A", values[0], matched.keys()), ("B", values[1], matched.values())):
        unmatched = [name for name in _methods(known) if name not in names]
        if unmatched and match is None:
            left_out.append(f"only {which} has {_listed(unmatched)}")
    if not rows:
        raise ValueError(f"A and B have no pair of one method and one seed ({'; '.join(left_out)})")
    return Comparison(_corrected(rows), stream, how, left_out)


def _kind(found: Found) -> str:
    if found.kind == "experiment":
        return f"flexkern run {found.results['experiment']}"
    return {"demo": "flexkern demo", "fit": "flexkern fit"}.get(found.kind, f"flexkern run {found.kind}")


# ------------------------------------------------------------------ values

_Values = dict[tuple[str, int], dict[str, float]]  # by method and seed, of each measure


def _values(found: Found) -> _Values:
    """What has ended.

    Raises:
        ValueError: if nothing has, or the file is not whole.
    """
    try:
        values = dict(_READ[found.kind](found.results))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{os.fspath(found.path)!r} is no whole results file ({type(error).__name__}: {error})"
        ) from error
    if not values:
        raise ValueError(f"{os.fspath(found.path)!r} has nothing that has ended")
    return values


def _of_incremental(results: dict[str, Any]) -> Iterator[tuple[tuple[str, int], dict[str, float]]]:
    for run in results["runs"]:
        tasks = run["tasks"]
        if tasks and len(tasks) == len(run.get("experiences", tasks)):
            last = tasks[-1]
            values = {"last": last["seen"], "average": last["average"], "forgetting": last["forgetting"]}
            yield (run["method"], run["seed"]), values


def _of_experiment(results: dict[str, Any]) -> Iterator[tuple[tuple[str, int], dict[str, float]]]:
    """Accuracy after the last presentation of each part, mean over the items of its test."""
    for run in results.get("runs", ()):
        parts = {name: float(np.mean(part["accuracy"][-1])) for name, part in run["parts"].items()}
        yield (run["network"], run["seed"]), parts


def _of_demo(results: dict[str, Any]) -> Iterator[tuple[tuple[str, int], dict[str, float]]]:
    for run in results["runs"]:
        for name, network in run["networks"].items():
            yield (name, run["seed"]), {m: network[m] for m in ("last", "average", "forgetting")}


def _of_fit(record: dict[str, Any]) -> Iterator[tuple[tuple[str, int], dict[str, float]]]:
    if record["finished"]:
        last = record["tasks"][-1]
        of = method_of(record), record["configuration"]["seed"]
        yield of, {"last": last["seen"], "average": last["average"]}


_READ = {
    "class-incremental": _of_incremental,
    "experiment": _of_experiment,
    "demo": _of_demo,
    "fit": _of_fit,
}


def _matched(values: Sequence[_Values], match: Mapping[str, str] | None) -> dict[str, str]:
    """Methods of A to those of B."""
    names = [_methods(of) for of in values]
    if match is None:
        both = {name: name for name in names[0] if name in names[1]}
        if not both:
            raise ValueError(
                f"A and B have no method in common: A has {_listed(names[0])}, B has {_listed(names[1])}. Say "
                "which are to be compared: --match 'OF A=OF B'"
            )
        return both
    for which, of, wanted in (("A", names[0], match.keys()), ("B", names[1], match.values())):
        for name in wanted:
            if name not in of:
                meant = nearest(name, of)
                raise ValueError(f"match: {which} has no method {name!r}{meant}; it has {_listed(of)}")
    return dict(match)


def _methods(values: _Values) -> list[str]:
    return list(dict.fromkeys(method for method, _ in values))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


# ------------------------------------------------------------------ what differs


def _differ(first: Found, second: Found, matched: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What was learned, and how."""
    if first.kind == "class-incremental":
        return _differ_incremental(first.results, second.results, matched)
    stream: list[str] = []
    how: list[str] = []
    for key, phrase in _phrases(_settings(first), _settings(second)):
        (stream if key.rpartition(".")[2] in _STREAM else how).append(phrase)
    if first.kind == "fit":
        known = [found.results for found in (first, second)]
        if known[0]["planned"] != known[1]["planned"]:
            stream.append("the tasks are other ones")
        elif known[0].get("data") != known[1].get("data"):
            stream.append("the images are other ones")
    return stream, how


def _settings(found: Found) -> dict[str, Any]:
    settings = as_list(found.results["configuration"])
    return {k: v for k, v in settings.items() if not (found.kind == "fit" and k == "seed")}


def _phrases(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each key that is not the same in two configurations, and how they differ."""
    of_a, of_b = (dict(flat(dict(settings))) for settings in (a, b))
    for key in sorted(of_a.keys() | of_b.keys()):
        if of_a.get(key) != of_b.get(key) and key not in _FREE and key.partition(".")[0] not in _FREE:
            yield key, f"{key} is {of_a.get(key, 'not set')} in A and {of_b.get(key, 'not set')} in B"


def _differ_incremental(
    a: dict[str, Any], b: dict[str, Any], matched: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    known = [results["configuration"] for results in (a, b)]
    shared = [{k: v for k, v in c.items() if k != "methods"} for c in known]
    stream: list[str] = []
    how: list[str] = []
    for key, phrase in _phrases(*shared):
        (stream if key.startswith(("data.", "stream.")) else how).append(phrase)
    of_a, of_b = ({m["name"]: m for m in c["methods"]} for c in known)
    for ours, theirs in matched.items():
        if ours in of_a and theirs in of_b:
            options = [
                {"method": m["method"], "family": m.get("family"), "options": m["options"]}
                for m in (of_a[ours], of_b[theirs])
            ]
            how += [f"{ours!r}: {phrase}" for _, phrase in _phrases(*options)]
    data = [{(r["method"], r["seed"]): r.get("data") for r in results["runs"]} for results in (a, b)]
    for (method, seed), digest in data[0].items():
        other = data[1].get((matched.get(method, ""), seed))
        if not stream and None not in (digest, other) and digest != other:
            stream.append(f"the images of seed {seed}, or their order, are other ones")
    return stream, how


# ------------------------------------------------------------------ tests


def _row(
    ours: str,
    theirs: str,
    measure: str,
    seeds: list[int],
    of_a: Mapping[int, Mapping[str, float]],
    of_b: Mapping[int, Mapping[str, float]],
) -> Row:
    a, b = ([float(of[seed][measure]) for seed in seeds] for of in (of_a, of_b))
    row = Row(ours, theirs, measure, seeds, a, b, None, None, None, None, None, "too few")
    difference = _differences(row)
    if len(seeds) < 2:
        return row
    p_ranks = wilcoxon(difference)
    if difference.any() and not np.ptp(difference):
        return row._replace(p=p_ranks, p_ranks=p_ranks)
    interval = paired(difference)
    return row._replace(low=interval["low"], high=interval["high"], p=t_test(difference), p_ranks=p_ranks)


def _differences(row: Row) -> NDArray[np.float64]:
    """B less A of each pair; what differs in last bits alone, as sums in another order do, does not differ."""
    return np.round(np.array(row.b, dtype=np.float64) - np.array(row.a, dtype=np.float64), 12)


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """With p values for as many tests as there are, and what they tell."""
    adjusted = iter(holm([row.p for row in rows if row.p is not None]))
    return [_told(row if row.p is None else row._replace(p_holm=next(adjusted))) for row in rows]


def _told(row: Row) -> Row:
    difference = _differences(row)
    if not difference.any():
        told = "same"
    elif row.p_holm is None or len(row.seeds) < ENOUGH:
        told = "too few"
    elif row.p_holm >= _LEVEL:
        told = "open"
    else:
        told = "B higher" if difference.mean() > 0 else "B lower"
    return row._replace(told=told)
