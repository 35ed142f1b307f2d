"""``python -m flexkern`` and the ``flexkern`` command."""

from __future__ import annotations

import codecs
import io
import os
import sys

# What the extras bring; the package itself works without.
_CLI = ("typer", "rich", "click", "pydantic", "matplotlib", "sklearn", "safetensors", "tomli")
_EXTRA = dict.fromkeys(_CLI, "cli") | dict.fromkeys(("transformers", "PIL"), "vit")


_PLAIN = {"±": "+-", "…": "...", "→": "->"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is written where the terminal's encoding (ASCII, for one) lacks a character: no reason to end."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in lacking), error.end


def main() -> None:
    """Runs the command line, or says what to install for it."""
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files: another one may not even be there
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    try:
        from flexkern.cli.app import app

        app()
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        sys.exit(
            f"flexkern: the command line needs {missing}, which is not installed: "
            f"pip install 'flexkern[{_EXTRA[missing]}]'"
        )


if __name__ == "__main__":
    main()
