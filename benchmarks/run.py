"""Measures cases: outputs compared first, then times and memory, weighed against the machine's ceilings."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from typing import Any

import torch

import flexkern
from flexkern.benchmarks.case import GPU, Case, Comparison, Peer, Point, Series, Setting, Skip
from flexkern.benchmarks.ceilings import Ceilings
from flexkern.benchmarks.profiling import profiles
from flexkern.benchmarks.timing import captured, quartiles, race
from flexkern.measure import peak_mb

__all__ = ["forget", "measure_case", "measure_series", "verify", "weigh"]


def verify(comparison: Comparison) -> None:
    """Every peer's result is ours.

    Raises:
        AssertionError: naming the peer.
    """
    for peer in comparison.peers:
        if isinstance(peer.check, str):
            continue
        try:
            peer.check()
        except AssertionError as error:
            raise AssertionError(
                f"{comparison.title}: {peer.name} does not agree with ours; {error}"
            ) from error


def measure_case(
    case: Case, setting: Setting, ceilings: Ceilings | None, seconds: float = 12.0
) -> dict[str, Any]:
    """One row of the table, as plain data; ``skipped`` says why there are no figures.

    Args:
        seconds: about how long its rounds may take.

    Raises:
        AssertionError: if a peer does not agree.
    """
    if setting.backend != "auto" and not flexkern.backends()[setting.backend].available:
        return {"skipped": flexkern.backends()[setting.backend].reason}
    with flexkern.use_backend(setting.backend):
        try:
            comparison = case.build(setting)
        except Skip as reason:
            return {"skipped": str(reason)}
        try:
            verify(comparison)
            calls = [comparison.ours, *(peer.call for peer in comparison.peers)]
            if comparison.graph and setting.device == GPU:
                calls = [captured(call) for call in calls]
            times = race(calls, setting.device, steady=comparison.steady, seconds=seconds)
            peaks: list[float | None] = [None] * len(calls)
            if comparison.memory:
                peaks = [peak_mb(call, setting.device) for call in calls]
            spent = {"profile": profiles(comparison, setting.device)} if comparison.profile else {}
        finally:
            comparison.close()
    return weigh(comparison, times, peaks, ceilings) | spent


def weigh(
    comparison: Comparison,
    times: Sequence[Sequence[float]],
    peaks: Sequence[float | None],
    ceilings: Ceilings | None,
) -> dict[str, Any]:
    """Times as figures: medians, quartiles, ratios in rounds, and what share of the ceilings was reached.

    Args:
        times: seconds of ours, then of each peer, a round each.
        peaks: memory in MiB, likewise.
    """
    ours = _summary(times[0], peaks[0])
    peers = [
        _against(peer, times[0], theirs, peak)
        for peer, theirs, peak in zip(comparison.peers, times[1:], peaks[1:], strict=True)
    ]
    work, seconds = comparison.work, statistics.median(times[0])
    rates: dict[str, Any] = {"bytes": work.bytes, "operations": work.operations, "dtype": work.dtype}
    if work.bytes:
        rates["bytes_per_s"] = work.bytes / seconds
    if work.operations:
        rates["operations_per_s"] = work.operations / seconds
    if ceilings is not None:
        rates["share_of_copy"] = work.bytes / seconds / ceilings.copy
        rates["share_of_product"] = work.operations / seconds / ceilings.product[work.dtype]
    return {"title": comparison.title, "note": comparison.note, "ours": ours, "work": rates, "peers": peers}


def _summary(seconds: Sequence[float], peak: float | None) -> dict[str, Any]:
    q1, q2, q3 = (1e3 * q for q in quartiles(seconds))
    return {"median_ms": q2, "q1_ms": q1, "q3_ms": q3, "rounds": len(seconds), "peak_mb": peak}


def _against(peer: Peer, ours: Sequence[float], theirs: Sequence[float], peak: float | None) -> dict[str, Any]:
    # Ratios of neighbours in time, so that what slows the whole machine cancels.
    q1, speedup, q3 = quartiles([p / o for o, p in zip(ours, theirs, strict=True)])
    met = None if peer.goal is None else peer.goal.met(speedup, statistics.median(ours))
    return {
        "name": peer.name,
        **_summary(theirs, peak),
        "speedup": speedup,
        "speedup_q1": q1,
        "speedup_q3": q3,
        "goal": None if peer.goal is None else str(peer.goal),
        "met": met,
        "agreed": "not compared: " + peer.check if isinstance(peer.check, str) else "yes",
    }


def measure_series(entry: Series, setting: Setting) -> dict[str, Any]:
    """A series as plain data: ``lines`` maps each line to its points [x, quartile, median, quartile]."""
    identity = {
        "series": entry.name, "device": setting.device, "title": entry.title, "x": entry.x, "y": entry.y,
        "flat": entry.flat,
    }  # fmt: skip
    lines: dict[str, list[list[float]]] = {}
    try:
        for point in entry.measure(setting):
            _add(lines, point)
    except Skip as reason:
        return {**identity, "skipped": str(reason)}
    return {**identity, "lines": lines}


def _add(lines: dict[str, list[list[float]]], point: Point) -> None:
    for line, (q1, q2, q3) in point.values.items():
        lines.setdefault(line, []).append([point.x, q1, q2, q3])


def forget() -> None:
    """Gives back what a case took, compiled code included, before the next one begins."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
