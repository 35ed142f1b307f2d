"""Writes tables and verdicts of committed results into ``docs/results/metaplasticity.md``.

The page's sentences are written by hand; between the lines ``<!-- results: FOLDER -->`` and ``<!-- end -->``
stands what the results say, between ``<!-- verdicts -->`` and ``<!-- end -->`` a table of all verdicts, and
between ``<!-- ranking -->`` and ``<!-- end -->`` how the rivals rank. The p values are adjusted for the number
of checks on the page (Holm). A summary that older code wrote is made anew from the runs beside it.

    python -m studies.metaplasticity_page docs/results/metaplasticity.md
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexkern.files import write_json
from flexkern.runs.metaplasticity import tables
from flexkern.runs.metaplasticity.figures import EXPERIMENTS
from flexkern.runs.metaplasticity.protocol import RANDOM, Protocol, protocol_for
from flexkern.runs.metaplasticity.rivals import Rivals
from flexkern.runs.metaplasticity.runner import read
from flexkern.runs.seeds import as_list, said_seeds
from flexkern.runs.statistics import holm
from studies.scale_study import ScaleStudy
from studies.scale_tables import register

__all__ = ["SHOWN", "SIGNIFICANT", "fill", "main", "refresh", "summary"]

# What has sections on the page.
SHOWN: dict[str, type[Any]] = {**EXPERIMENTS, ScaleStudy.name: ScaleStudy}
SIGNIFICANT = 0.05  # the chance that is taken, with Holm's correction over the whole page, of any wrong finding

_BLOCK = re.compile(
    r"(<!-- (results: (?P<folder>[\w-]+)|verdicts|(?P<ranking>ranking)) -->\n).*?(<!-- end -->)", re.DOTALL
)


def fill(page: str, folder: Path) -> str:
    """The page with its blocks written anew from ``folder/NAME/results.json``.

    Raises:
        ValueError: if results that a block names are missing or not finished, or were summarised by older code.
    """
    register()
    results = {name: _load(folder / name / "results.json") for name in _folders(page)}
    _adjust(results)

    def block(match: re.Match[str]) -> str:
        name = match["folder"]
        if match["ranking"]:
            text = _ranking(results)
        else:
            text = _verdicts(results) if name is None else _section(name, results[name])
        return f"{match[1]}\n{text}\n{match[5]}"

    return _BLOCK.sub(block, page)


def refresh(page: str, folder: Path) -> list[Path]:
    """Makes the summaries of all results that a page names anew from their runs; the files that it changed."""
    paths = [folder / name / "results.json" for name in _folders(page)]
    changed = []
    for path in paths:
        results = _load(path)
        made = summary(results)
        if made != results["summary"]:
            write_json(path, results | {"summary": made})
            changed.append(path)
    return changed


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """What today's code makes of the runs of an experiment, as its JSON has it."""
    c = as_list(results["configuration"])
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in c["options"].items()}
    own = {f.name: c[f.name] for f in dataclasses.fields(Protocol) if f.name in c}
    # Data and weights are not read for this, and need not be there.
    protocol = Protocol(**{k: v for k, v in own.items() if k not in ("data", "features")})
    return json.loads(json.dumps(SHOWN[results["experiment"]](**options).summarise(results["runs"], protocol)))


def _folders(page: str) -> list[str]:
    return [m["folder"] for m in _BLOCK.finditer(page) if m["folder"]]


def _load(path: Path) -> dict[str, Any]:
    results = read(path)
    if results is None or not results["finished"]:
        raise ValueError(f"{path} is missing or not finished: run its command first")
    return results


def _checks(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """All checks of the page."""
    return [check for r in results.values() for claim in r["summary"]["claims"] for check in claim["checks"]]


def _adjust(results: dict[str, dict[str, Any]]) -> None:
    """Gives each check of more than one seed its "holm", the p value of its t-test adjusted for all of them."""
    tested = [check for check in _checks(results) if "low" in check]
    if any("p_t" not in check for check in tested):
        raise ValueError(
            "results: a check has no p_t, so it is of older code: python -m studies.metaplasticity_page"
        )
    for check, adjusted in zip(tested, holm([check["p_t"] for check in tested]), strict=True):
        check["holm"] = adjusted


def _stays(check: dict[str, Any]) -> bool:
    """Whether what a check found, met or refuted, is found after the correction too."""
    return check["found"] != "open" and check["holm"] < SIGNIFICANT


def _section(name: str, results: dict[str, Any]) -> str:
    heads, cells = tables.rows(results)
    lines = [f"`{_command(name, results)}`", "", f"{tables.setting(results)}.", ""]
    lines += [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *cells)]
    for claim in results["summary"]["claims"]:
        lines += ["", f"**{claim['claim']}** *{claim['verdict'].capitalize()}.*", ""]
        lines += [f"- {_check(check)}" for check in claim["checks"]]
    return "\n".join([*lines, "", f"![{results['title']}](metaplasticity/{name}/picture.png)", ""])


def _check(check: dict[str, Any]) -> str:
    if "low" not in check:
        return f"{check['what']}: {check['mean']:+.3f} (one seed): {check['found']}"
    found = (
        check["found"] if check["found"] == "open" or _stays(check) else f"{check['found']}, open after Holm"
    )
    return (
        f"{check['what']}: {check['mean']:+.3f} ({check['low']:+.3f} to {check['high']:+.3f}, sd "
        f"{check['std']:.3f}, n {check['n']}, p {check['p_t']:.2g}, Holm {check['holm']:.2g}, Wilcoxon "
        f"{check['p']:.2g}): {found}"
    )


def _verdicts(results: dict[str, dict[str, Any]]) -> str:
    lines = [_counts(_checks(results)), ""]
    lines += ["| experiment | claim | verdict | checks met | after Holm |", "| --- | --- | --- | --- | --- |"]
    for name, r in results.items():
        for claim in r["summary"]["claims"]:
            met = [c for c in claim["checks"] if c["found"] == "met"]
            of = len(claim["checks"])
            stay = sum(_stays(c) for c in met)
            lines.append(
                f"| {name} | {claim['claim']} | {claim['verdict']} | {len(met)} of {of} | {stay} of {of} |"
            )
    return "\n".join([*lines, ""])


def _ranking(results: dict[str, dict[str, Any]]) -> str:
    """Of the experiments with rivals: average accuracy after the stream and its 95 % interval, best first."""
    from scipy.stats import t

    lines = []
    for name, r in results.items():
        if not issubclass(SHOWN[r["experiment"]], Rivals):
            continue
        found = {}
        for network, measures in r["summary"]["measures"].items():
            m = measures["average_memory"]
            half = t.ppf(0.975, m["n"] - 1) * m["std"][-1] / m["n"] ** 0.5
            found[network] = m["mean"][-1], half
        best = sorted(found.items(), key=lambda item: -item[1][0])
        words = (f"{network} {100 * mean:.1f} ± {100 * half:.1f}" for network, (mean, half) in best)
        lines.append(f"- {name}: {'; '.join(words)}.")
    return "\n".join([*lines, ""])


def _counts(checks: list[dict[str, Any]]) -> str:
    """How many checks found what, before and after the correction."""
    met, refuted = ([c for c in checks if c["found"] == found] for found in ("met", "refuted"))
    stay, still = (sum(map(_stays, of)) for of in (met, refuted))
    lost = Counter(c["n"] for c in (*met, *refuted) if not _stays(c))
    seeds = ", ".join(f"{count} have {n} seeds" for n, count in sorted(lost.items()))
    rest = f" Of those that do not, {seeds}." if lost else ""
    left = len(checks) - len(met) - len(refuted)
    return (
        f"{len(checks)} checks: {len(met)} met, {len(refuted)} refuted, {left} open. After Holm's correction "
        f"over all of them {stay} stay met and {still} refuted.{rest}"
    )


def _command(name: str, results: dict[str, Any]) -> str:
    """The command that gives these results: what differs from its defaults."""
    c, kind = as_list(results["configuration"]), SHOWN[results["experiment"]]
    random = c["features"] == RANDOM
    usual = protocol_for(items=c["items"], features=RANDOM if random else os.devnull)
    given = {key: value for key, value in c.items() if key not in ("options", "device")}
    given["seeds"] = tuple(given["seeds"])
    given = {key: value for key, value in given.items() if value != getattr(usual, key)}
    if "seeds" in given:
        given["seeds"] = said_seeds(given["seeds"])
    for field in dataclasses.fields(kind):
        value = c["options"][field.name]
        several = isinstance(value, list)
        if (tuple(value) if several else value) != field.default:
            given[field.name] = ",".join(f"{v:g}" for v in value) if several else value
    # A flag has no value.
    words = [f"--{key.replace('_', '-')}" + ("" if v is True else f" {v}") for key, v in given.items()]
    return " ".join([kind.command(), *words, f"--out docs/results/metaplasticity/{name}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Fills the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.metaplasticity_page")
    parser.add_argument("page", type=Path)
    given = parser.parse_args(arguments)
    text, folder = given.page.read_text(encoding="utf-8"), given.page.with_suffix("")
    for path in refresh(text, folder):
        print(f"summarised anew: {path}")
    given.page.write_text(fill(text, folder), encoding="utf-8")
    print(f"wrote {given.page}")


if __name__ == "__main__":
    main()
