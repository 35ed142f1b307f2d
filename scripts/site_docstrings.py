"""The docstrings' few words of reStructuredText, as Markdown, for the site: an extension of griffe.

A role such as ``:class:`` becomes a link where what it names has a place in the site, else code; ``::`` before
an example becomes a colon.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parent))
from site_hooks import MODULES, public

_ROLE = re.compile(r":(?:func|class|meth|attr|data|mod|exc):`(~?)([^`]+)`")
_LINKED = {f"{module}.{name}" for module in MODULES for name in public(module)}


def as_markdown(text: str) -> str:
    """A docstring in Markdown."""

    def role(found: re.Match[str]) -> str:
        short, name = found.groups()
        shown = name.rpartition(".")[2] if short else name
        return f"[`{shown}`][{name}]" if name in _LINKED else f"`{shown}`"

    return re.sub(r"::(?=\n\n)", ":", _ROLE.sub(role, text))


class Roles(griffe.Extension):
    """Rewrites each docstring that is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
