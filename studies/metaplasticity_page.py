"""Writes tables and verdicts of committed results into ``docs/results/metaplasticity.md``.

The page's sentences are written by hand; between the lines ``<!-- results: FOLDER -->`` and ``<!-- end -->``
stands what the results say, and between ``<!-- verdicts -->`` and ``<!-- end -->`` a table of all verdicts.

    python -m studies.metaplasticity_page docs/results/metaplasticity.md
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexkern.runs.metaplasticity import tables
from flexkern.runs.metaplasticity.figures import EXPERIMENTS
from flexkern.runs.metaplasticity.protocol import RANDOM, protocol_for
from flexkern.runs.metaplasticity.runner import read
from studies.scale_study import ScaleStudy
from studies.scale_tables import register

__all__ = ["SHOWN", "fill", "main"]

# What has sections on the page.
SHOWN: dict[str, type[Any]] = {**EXPERIMENTS, ScaleStudy.name: ScaleStudy}

_BLOCK = re.compile(r"(<!-- (results: (?P<folder>[\w-]+)|verdicts) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, folder: Path) -> str:
    """The page with its blocks written anew from ``folder/NAME/results.json``.

    Raises:
        ValueError: if results that a block names are missing or not finished.
    """
    register()
    names = [m["folder"] for m in _BLOCK.finditer(page) if m["folder"]]
    results = {name: _load(folder / name / "results.json") for name in names}

    def block(match: re.Match[str]) -> str:
        name = match["folder"]
        text = _verdicts(results) if name is None else _section(name, results[name])
        return f"{match[1]}\n{text}\n{match[4]}"

    return _BLOCK.sub(block, page)


def _load(path: Path) -> dict[str, Any]:
    results = read(path)
    if results is None or not results["finished"]:
        raise ValueError(f"{path} is missing or not finished: run its command first")
    return results


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
    return (
        f"{check['what']}: {check['mean']:+.3f} ({check['low']:+.3f} to {check['high']:+.3f}, sd "
        f"{check['std']:.3f}, n {check['n']}, p {check['p']:.2g}): {check['found']}"
    )


def _verdicts(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| experiment | claim | verdict | checks met |", "| --- | --- | --- | --- |"]
    for name, r in results.items():
        for claim in r["summary"]["claims"]:
            met = sum(c["found"] == "met" for c in claim["checks"])
            lines.append(
                f"| {name} | {claim['claim']} | {claim['verdict']} | {met} of {len(claim['checks'])} |"
            )
    return "\n".join([*lines, ""])


def _command(name: str, results: dict[str, Any]) -> str:
    """The command that gives these results: what differs from its defaults."""
    c, kind = results["configuration"], SHOWN[results["experiment"]]
    random = c["features"] == RANDOM
    usual = protocol_for(items=c["items"], features=RANDOM if random else os.devnull)
    given = {key: value for key, value in c.items() if key not in ("options", "device")}
    given = {key: value for key, value in given.items() if value != getattr(usual, key)}
    for field in dataclasses.fields(kind):
        value = c["options"][field.name]
        several = isinstance(value, list)
        if (tuple(value) if several else value) != field.default:
            given[field.name] = ",".join(f"{v:g}" for v in value) if several else value
    words = [f"--{key.replace('_', '-')} {value}" for key, value in given.items()]
    return " ".join([kind.command(), *words, f"--out docs/results/metaplasticity/{name}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Fills the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.metaplasticity_page")
    parser.add_argument("page", type=Path)
    given = parser.parse_args(arguments)
    given.page.write_text(
        fill(given.page.read_text(encoding="utf-8"), given.page.with_suffix("")), encoding="utf-8"
    )
    print(f"wrote {given.page}")


if __name__ == "__main__":
    main()
