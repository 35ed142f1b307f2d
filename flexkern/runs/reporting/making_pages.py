"""The page of several results, in one file that needs no other."""

from __future__ import annotations

import datetime
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from flexkern.runs.found import UnusableError, find
from flexkern.runs.reporting.markup import Markup, element, page, table
from flexkern.runs.reporting.sections import Section, section
from flexkern.version import __version__

__all__ = ["report_of"]


def report_of(given: Iterable[Path]) -> tuple[str, int, list[str]]:
    """The page of the results in folders and files.

    Args:
        given: folders of runs, or files of results.

    Returns:
        The page, as HTML; how many results it has; and a sentence for each of ``given``, or results in it, that
        it could not have.
    """
    sections: list[tuple[Path, Section]] = []
    complaints: list[str] = []
    seen: set[Path] = set()
    for place in given:
        try:
            all_found, unusable = find(place)
            complaints += unusable
        except UnusableError as error:
            complaints.append(str(error))
            continue
        for found in all_found:
            if found.path.resolve() in seen:  # given twice, or in a folder that was given, too
                continue
            seen.add(found.path.resolve())
            try:
                sections.append((found.path, section(found)))
            except UnusableError as error:
                complaints.append(str(error))
    titles = Counter(one.title for _, one in sections)
    sections = [  # runs of one configuration have one title
        (path, one if titles[one.title] == 1 else one._replace(title=f"{one.title} ({_where(path)})"))
        for path, one in sections
    ]
    title = sections[0][1].title if len(sections) == 1 else "Results of flexkern"
    parts = [element("h1", title), _made()]
    parts += [_contents(sections)] if len(sections) > 1 else []
    parts += [element("p", f"Not on this page: {line}.") for line in complaints]
    for i, (path, one) in enumerate(sections):
        head = [element("h2", one.title, id=f"r{i + 1}")] if len(sections) > 1 else []
        where = element("p", f"{one.kind}; {one.state}; {os.fspath(path)}", class_="faint")
        parts.append(element("section", *head, where, *one.parts))
    return page(title, parts), len(sections), complaints


def _where(path: Path) -> str:
    """A run's folder; files of fits and benchmarks may lie in one."""
    return os.fspath(path.parent if path.name == "results.json" else path)


def _made() -> Markup:
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return element("p", f"Made by flexkern report, version {__version__}, on {now}.", class_="faint")


def _contents(sections: Iterable[tuple[Path, Section]]) -> Markup:
    made = Table(title="On this page")
    for head in ("run", "what it is", "state"):
        made.add_column(head)
    for _, one in sections:
        made.add_row(escape(one.title), escape(one.kind), escape(one.state))
    links = [element("li", element("a", one.title, href=f"#r{i + 1}")) for i, (_, one) in enumerate(sections)]
    return element("nav", table(made), element("ol", *links), aria_label="results")
