"""Pages of the documentation, the code that stands in them, and what they link to."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "all_pages", "blocks", "broken_links", "cells", "run"]

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def all_pages() -> list[str]:
    """Every page that people read, by its path in the repository."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(page.relative_to(ROOT).as_posix() for page in pages)


def blocks(page: str, language: str) -> list[str]:
    """The code of a page in one language, block by block; those with a title are files of the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        for indent, of, code in _FENCE.findall(text)
        if of == language
    ]


def cells(notebook: str) -> list[str]:
    """The code of a notebook, cell by cell."""
    read = json.loads((ROOT / notebook).read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in read["cells"] if cell["cell_type"] == "code"]


def run(code: list[str], name: str) -> tuple[str, dict[str, Any]]:
    """Runs blocks one after the other, as a reader does who types all of them: what they print, and leave."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, block in enumerate(code, 1):
            exec(compile(block, f"{name}, block {number}", "exec"), scope)
    return printed.getvalue(), scope


def _headings(text: str) -> Iterator[str]:
    """The anchors of a page's headings, as GitHub makes them; MkDocs checks its own."""
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken_links(page: str) -> list[str]:
    """The links of a page to files that there are not, or to headings that another page has not."""
    path = ROOT / page
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(((?!\w+:)[^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        there = path.parent / target if target else path
        made = page.startswith("docs/") and re.fullmatch(r"(\.\./)?(api/\w+|changelog)\.md", target)
        if made:  # when the site is built, which looks after these links
            continue
        if not there.exists() or (
            anchor and there.suffix == ".md" and anchor not in set(_headings(there.read_text(encoding="utf-8")))
        ):
            broken.append(link)
    return broken
