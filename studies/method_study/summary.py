"""What the units say together: means with intervals, paired differences, and Holm's correction over all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flexkern.runs.statistics import holm, paired, t_test
from studies.method_study.streams import STREAMS

__all__ = ["CONTROL", "RIVALS", "summarise"]

_FIELD = ("ranpac-2000", "ease", "artsy", "simplecil")
RIVALS = {
    "best": (*_FIELD, "lda-6", "ranpac-10000", "ranpac-2000-first", "finetune", "joint"),
    "lda-6": _FIELD,
}
"""By the method that they are compared with."""
CONTROL = "oracle's control"
# Compared where the task is told: ours, the rival, and what it is called.
TOLD = (("oracle", "simplecil", CONTROL), ("oracle-last-3", "oracle", "oracle"))
_VALUES = ("last", "average", "told", "task_right", "open_per_sample")


def summarise(units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summaries of all (stream, backbone, method), and the tests.

    Returns:
        methods: a list of {stream, backbone, method, n, bytes, and for each of last, average, told, task_right
            and open_per_sample {mean, low, high}}.
        tests: a list of {stream, backbone, ours, rival, n, mean, low, high, p, p_holm} of differences of last
            accuracy, corrected over all of the list; and those of oracles where the task is told.
    """
    by: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for u in sorted(units, key=lambda u: u["seed"]):
        by.setdefault((u["stream"], u["backbone"], u["method"]), []).append(u)
    methods = []
    for (stream, backbone, method), of in by.items():
        entry: dict[str, Any] = {"stream": stream, "backbone": backbone, "method": method, "n": len(of)}
        entry |= {key: _interval([u[key] for u in of]) for key in _VALUES}
        methods.append(entry | {"bytes": of[0]["bytes"]})
    tests = []
    for stream, backbone in dict.fromkeys((s, b) for s, b, _ in by):
        here = {m: of for (s, b, m), of in by.items() if (s, b) == (stream, backbone)}
        for ours, rivals in RIVALS.items():
            for rival in rivals:
                if ours in here and rival in here:
                    pair = _difference(here[ours], here[rival], "last")
                    tests.append({"stream": stream, "backbone": backbone, "ours": ours, "rival": rival, **pair})
        if STREAMS[stream].again:
            continue
        for ours, rival, title in TOLD:
            if ours in here and rival in here:
                pair = _difference(here[ours], here[rival], "told")
                tests.append({"stream": stream, "backbone": backbone, "ours": ours, "rival": title, **pair})
    tests = [t for t in tests if t["n"] > 2]  # of two seeds an interval says nothing
    for test, p in zip(tests, holm([t["p"] for t in tests]), strict=True):
        test["p_holm"] = p
    return {"methods": methods, "tests": tests}


def _interval(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"mean": values[0], "low": values[0], "high": values[0]}
    found = paired(values)
    return {key: found[key] for key in ("mean", "low", "high")}


def _difference(ours: list[dict[str, Any]], rival: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Ours less the rival's, of the seeds that both have."""
    of_rival = {u["seed"]: u[key] for u in rival}
    values = [u[key] - of_rival[u["seed"]] for u in ours if u["seed"] in of_rival]
    if len(values) < 2:
        return {"n": len(values)}
    found = paired(values)
    return {"n": len(values), **{k: found[k] for k in ("mean", "low", "high")}, "p": t_test(values)}
