"""HTML in which nothing is markup that was not made as such, and a page that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence

from rich.errors import MarkupError
from rich.table import Table
from rich.text import Text

from flexkern.version import __version__

__all__ = ["Markup", "element", "facts", "folded", "page", "picture", "table"]

_VOID = ("img", "meta", "link")
# Control characters, and halves of characters, which no encoding has.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# The page may load nothing, run nothing and send nothing, whatever is in it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #fff; --faint: #59636e; --line: #d0d7de;
  --link: #00695c; }
@media (prefers-color-scheme: dark) { :root { --text: #e3e8ee; --page: #14181d; --faint: #9aa6b2;
  --line: #3a424c; --link: #5cc8ba; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--page); overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
a { color: var(--link); }
.faint { color: var(--faint); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: .5rem; position: sticky; left: 0;
  max-width: calc(100vw - 3rem); }
caption b { color: var(--text); }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; overflow-wrap: normal;
  border-bottom: 1px solid var(--line); }
td.value { min-width: 12rem; overflow-wrap: anywhere; }
th.right, td.right { text-align: right; white-space: nowrap; }
tr.strong { font-weight: 600; }
tr.italic { font-style: italic; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { color: var(--faint); }
details { margin: .5rem 0; }
summary { cursor: pointer; }
@media print { details { display: block; } body { max-width: none; } }
"""


class Markup(str):
    """Text that is markup already, of :func:`element`; all other text is escaped where it goes in."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str) -> Markup:
    """An element.

    Args:
        tag: its name.
        children: markup goes in as it is, all other text escaped.
        attributes: escaped; an underscore at the end of a name is none of it, and others are hyphens.
    """
    said = "".join(f' {k.rstrip("_").replace("_", "-")}="{_text(v)}"' for k, v in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{said}>")
    inside = "".join(child if isinstance(child, Markup) else _text(child) for child in children)
    return Markup(f"<{tag}{said}>{inside}</{tag}>")


def _text(value: str) -> str:
    return html.escape(_NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", value), quote=True)


def page(title: str, parts: Iterable[Markup]) -> str:
    """A whole page, in one file."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=f"flexkern {__version__}"),
        element("link", rel="icon", href="data:,"),  # else a browser asks for one
        element("title", title),
        Markup(f"<style>{_STYLE}</style>"),
    )
    body = element("body", element("main", *parts))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def table(made: Table) -> Markup:
    """A table as a terminal has it; its title's first line is its name, and the others say how to read it."""
    columns = made.columns
    sides = [{"class_": "right"} if column.justify == "right" else {} for column in columns]
    heads = element(
        "tr",
        *(
            element("th", _plain(c.header).replace("\n", " "), scope="col", **side)
            for c, side in zip(columns, sides, strict=True)
        ),
    )
    lines = []
    for row, cells in zip(made.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        said = str(row.style or "")
        kinds = [kind for word, kind in (("bold", "strong"), ("italic", "italic")) if word in said]
        style = {"class_": " ".join(kinds)} if kinds else {}
        inside = (element("td", _plain(cell), **side) for cell, side in zip(cells, sides, strict=True))
        lines.append(element("tr", *inside, **style))
    name, _, legend = _plain(made.title or "").partition("\n")
    caption = [element("caption", element("b", name), f" {legend}")] if name else []
    whole = element("table", *caption, element("thead", heads), element("tbody", *lines))
    return element("div", whole, class_="scroll")


def _plain(cell: object) -> str:
    """What a terminal would show, without its colours."""
    try:
        return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
    except MarkupError:  # a name with brackets in it, which a terminal would refuse
        return str(cell)


def facts(values: Sequence[tuple[str, str]]) -> Markup:
    """Names and values, a line each."""
    lines = [element("tr", element("th", k, scope="row"), element("td", v, class_="value")) for k, v in values]
    return element("div", element("table", element("tbody", *lines)), class_="scroll")


def folded(title: str, *inside: Markup) -> Markup:
    """What is shown when its title is chosen."""
    return element("details", element("summary", title), *inside)


def picture(png: bytes, words: str) -> Markup:
    """A PNG inside the page, with what it shows in words."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return element("figure", element("img", src=source, alt=words))
