"""Writes docs/notebooks/ten_minutes.ipynb from docs/ten_minutes.md: text as text, each block of code a cell.

    python scripts/notebook.py

tests/test_pages.py runs the page's code, and fails where the notebook is another.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, NOTEBOOK = DOCS / "ten_minutes.md", DOCS / "notebooks" / "ten_minutes.ipynb"


def notebook(page: str) -> dict[str, Any]:
    """A page of Markdown as a notebook; links to other pages lead to where they are from its folder."""
    parts = re.split(r"^```python\n(.*?)^```\n", page, flags=re.DOTALL | re.MULTILINE)
    cells = []
    for number, part in enumerate(parts):
        is_code = number % 2 == 1
        text = part.strip("\n") if is_code else _from_there(part.strip())
        if not text:
            continue
        cell: dict[str, Any] = {
            "cell_type": "code" if is_code else "markdown",
            "id": f"cell-{number}",
            "metadata": {},
        }
        if is_code:
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _from_there(text: str) -> str:
    """Links of the page, from the notebook's folder; the one to itself is none."""
    text = re.sub(r"\[([^\]]*)\]\(notebooks/[^)]*\)", r"\1", text)
    return re.sub(r"\]\((\w+\.md)", r"](../\1", text)


def as_text(page: str) -> str:
    """The file's text."""
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes the notebook."""
    NOTEBOOK.parent.mkdir(exist_ok=True)
    NOTEBOOK.write_text(as_text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
