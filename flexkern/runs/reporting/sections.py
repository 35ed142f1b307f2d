"""Of each kind of results a section of the page: tables, pictures, and what decided the numbers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from flexkern.runs import demo_tables
from flexkern.runs.fitting import tables as fit_tables
from flexkern.runs.fitting.fit_rows import method_of
from flexkern.runs.found import Found, UnusableError, flat
from flexkern.runs.incremental import tables as incremental_tables
from flexkern.runs.incremental.growth import config_of
from flexkern.runs.metaplasticity import tables as experiment_tables
from flexkern.runs.reporting.markup import Markup, element, facts, folded, picture, table
from flexkern.runs.seeds import as_list, said_seeds

__all__ = ["Section", "section"]

_BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError)  # of results that lack something


class Section(NamedTuple):
    """What the page says of one run.

    title: of the run; kind: what it is; state: how far it has come.
    parts: below the title.
    """

    title: str
    kind: str
    state: str
    parts: list[Markup]


def section(found: Found) -> Section:
    """The section of a run.

    Raises:
        UnusableError: if its results lack what such results have.
    """
    try:
        return _MADE[found.kind](found)
    except _BROKEN as error:
        raise UnusableError(
            f"{os.fspath(found.path)!r} is no whole results file of its kind ({found.kind}; "
            f"{type(error).__name__}: {error})"
        ) from error


# ------------------------------------------------------------------ class-incremental


def _class_incremental(found: Found) -> Section:
    results = found.results
    config, summary = config_of(results["configuration"]), results["summary"]
    parts = []
    if summary:
        parts += [table(incremental_tables.method_table(config, results))]
        parts += _pictures(found, {"picture.png": _incremental_words(results)}, _draw_incremental)
        parts += [table(incremental_tables.measures_table(config, results))]
        parts += [element("p", note, class_="faint") for note in incremental_tables.notes(config, results)]
    runs = [run for run in results["runs"] if run["tasks"]]
    parts += [
        folded(f"each task of {run['method']}, seed {run['seed']}", table(incremental_tables.task_table(run)))
        for run in runs
    ]
    parts += _decided(results["configuration"], results["environments"])
    tasks = sum(len(run["tasks"]) for run in runs)
    state = "ended" if results["finished"] else f"not ended: {_count(tasks, 'task')} learned so far"
    return Section(
        config.title, "class-incremental learning", f"{state}, seeds {said_seeds(config.seeds)}", parts
    )


def _incremental_words(results: dict[str, Any]) -> str:
    last = ", ".join(f"{name} {100 * of['last']['mean']:.1f} %" for name, of in results["summary"].items())
    return f"Lines of accuracy over the classes seen so far, one for each method. After the last task: {last}."


def _draw_incremental(results: dict[str, Any], path: Path) -> None:
    from flexkern.runs.incremental import pictures

    pictures.draw(results, path)


# ------------------------------------------------------------------ experiments, demo


def _experiment(found: Found) -> Section:
    results = found.results
    parts = []
    ended = results.get("finished", True) and "summary" in results
    if ended:
        if results["experiment"] in experiment_tables.ROWS:
            parts.append(table(experiment_tables.table(results)))
        parts += _pictures(found, {"picture.png": _experiment_words(results)}, _draw_experiment)
        parts.append(table(experiment_tables.claims_table(results)))
    parts += _decided(results["configuration"], [results.get("environment", {})])
    seeds = said_seeds(as_list(results["configuration"])["seeds"])
    state = f"{'ended' if ended else 'not ended'}, seeds {seeds}"
    return Section(results["title"], f"flexkern run {results['experiment']}", state, parts)


def _experiment_words(results: dict[str, Any]) -> str:
    verdicts = "; ".join(f"{claim['name']}: {claim['verdict']}" for claim in results["summary"]["claims"])
    return f"{results['title']}, one line or bar for each network; the table has the numbers. {verdicts}."


def _draw_experiment(results: dict[str, Any], path: Path) -> None:
    from flexkern.runs.metaplasticity import pictures

    pictures.draw(results, path)


def _demo(found: Found) -> Section:
    results = found.results
    said = ", ".join(f"{name} {100 * of['last']['mean']:.1f} %" for name, of in results["summary"].items())
    words = {
        "memory.png": f"Accuracy on each item after the last one, by network. Average: {said}.",
        "awakening.png": demo_tables.reserve(results["awakening"]),
    }
    parts = [table(demo_tables.table(results)), *_pictures(found, words)]
    parts += [element("p", demo_tables.reserve(results["awakening"]))]
    parts += _decided(results["configuration"], [results["versions"]])
    seeds = said_seeds(as_list(results["configuration"])["seeds"])
    return Section("Two-digit items, one after the other", "flexkern demo", f"ended, seeds {seeds}", parts)


# ------------------------------------------------------------------ fit, bench


def _fit(found: Found) -> Section:
    record = found.results
    parts = [table(fit_tables.table(record))] if record["tasks"] else []
    counts = record["images"]
    lines = [f"{_count(counts['train'], 'image')} to learn, {counts['test']} to test."]
    if record["left_out"]:
        lines.append(f"In no task, and so left out: {fit_tables.some(record['left_out'])}.")
    if record["skipped"]:
        skipped = fit_tables.some([path for path, _ in record["skipped"]])
        lines.append(f"Left out, as they cannot be read: {skipped}.")
    parts += [element("p", line) for line in lines]
    parts += _decided({**record["configuration"], "method": method_of(record)}, [])
    done, planned = len(record["tasks"]), len(record["planned"])
    state = "ended" if record["finished"] else f"not ended: {done} of {_count(planned, 'task')}"
    return Section(found.path.name, "flexkern fit", state, parts)


def _bench(found: Found) -> Section:
    run = found.results
    made = Table(title="Cases\nmedians; a speed-up is the peer's time over ours, with its quartiles")
    for head in ("case", "against"):
        made.add_column(head)
    for head in ("ours, ms", "peer, ms", "speed-up", "quartiles"):
        made.add_column(head, justify="right")
    made.add_column("goal")
    left_out = []
    for row in run["rows"]:
        if "ours" not in row:
            why = next(
                (f"{what}: {row[what]}" for what in ("skipped", "failed") if what in row), "not measured"
            )
            left_out.append(f"{row.get('case')}: {why}")
            continue
        for peer in row["peers"]:
            goal = "" if peer["goal"] is None else f"{peer['goal']}, {'met' if peer['met'] else 'not met'}"
            cells = [
                row["title"], peer["name"], f"{row['ours']['median_ms']:.4g}", f"{peer['median_ms']:.4g}",
                f"{peer['speedup']:.2f}", f"{peer['speedup_q1']:.2f} to {peer['speedup_q3']:.2f}", goal,
            ]  # fmt: skip
            made.add_row(*(cell.replace("[", "\\[") for cell in cells))
    parts = [table(made)] if made.rows else []
    for series in run["series"]:
        parts.append(folded(f"{series['title']}, over {series['x']}", _series(series)))
    parts += [element("p", line, class_="faint") for line in left_out]
    parts += _pictures(
        Found("bench", found.path.with_suffix("") / "results.json", run),
        {f"{name}.png": f"Picture of the {name} of all cases; the table has the numbers." for name in _DRAWN},
    )
    parts += _decided({k: run[k] for k in ("device", "quick", "only") if k in run}, [run["machine"]])
    state = "all cases" if run["complete"] else "quick sizes" if run["quick"] else "some cases"
    return Section(
        f"Speed, {run['machine']['date'][:10]}", "flexkern bench", f"{state} on {run['device']}", parts
    )


_DRAWN = ("speedups", "roofline", "growth")


def _series(series: dict[str, Any]) -> Markup:
    made = Table()
    made.add_column(series["x"].replace("[", "\\["), justify="right")
    lines = series.get("lines", {})
    for name in lines:
        made.add_column(f"{name}, {series['y']}".replace("[", "\\["), justify="right")
    points: dict[float, dict[str, str]] = {}
    for name, line in lines.items():
        for x, _, y, *_ in line:
            points.setdefault(x, {})[name] = f"{y:.3g}"
    for x, values in points.items():
        made.add_row(f"{x:g}", *(values.get(name, "") for name in lines))
    return table(made)


# ------------------------------------------------------------------ what all have


def _pictures(
    found: Found, words: dict[str, str], draw: Callable[[dict[str, Any], Path], None] | None = None
) -> list[Markup]:
    """The pictures beside the results that are there; of a run that has not drawn its own yet a new one."""
    made = []
    for name, said in words.items():
        png = _png(found.path.parent / name)
        if png is None and draw is not None:
            with tempfile.TemporaryDirectory() as folder:
                draw(found.results, Path(folder) / name)
                png = _png(Path(folder) / name)
        if png is not None:
            made.append(picture(png, said))
    return made


def _png(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content if content.startswith(b"\x89PNG\r\n\x1a\n") else None


def _decided(configuration: dict[str, Any], environments: Sequence[dict[str, Any]]) -> list[Markup]:
    """What the numbers depend on."""
    parts = [folded("Configuration", facts(list(flat(configuration))))]
    for i, environment in enumerate(environments):
        which = f" {i + 1}" if len(environments) > 1 else ""
        if environment:
            parts.append(folded(f"Environment and versions{which}", facts(list(flat(environment)))))
    return parts


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


_MADE: dict[str, Callable[[Found], Section]] = {
    "class-incremental": _class_incremental,
    "experiment": _experiment,
    "demo": _demo,
    "fit": _fit,
    "bench": _bench,
}
