"""The command line begins without torch: that takes seconds to import, and ``flexkern --help`` needs none."""

from __future__ import annotations

import importlib
import os
import sys

__all__ = ["import_all", "waits"]


def _is_command() -> bool:
    """Whether this process is ``flexkern`` or ``python -m flexkern``, and not one that these start."""
    words, script = sys.orig_argv[1:], sys.argv[0] if sys.argv else ""
    if script == "-m":  # what is to be run is still looked for
        return "flexkern" in words[words.index("-m") + 1 : words.index("-m") + 2]
    return script in words and os.path.basename(script) == "flexkern"


_waits = _is_command()


def waits() -> bool:
    """Whether ``import flexkern`` leaves all of it out, because a command line begins."""
    return _waits


def import_all() -> None:
    """Imports what ``import flexkern`` does everywhere else: a command is called."""
    global _waits
    if _waits:
        _waits = False
        importlib.reload(sys.modules["flexkern"])
