"""``python -m flexkern`` and the ``flexkern`` command."""

from __future__ import annotations

import sys

# What the extras bring; the package itself works without.
_CLI = ("typer", "rich", "click", "pydantic", "matplotlib", "sklearn", "safetensors", "tomli")
_EXTRA = dict.fromkeys(_CLI, "cli") | dict.fromkeys(("transformers", "PIL"), "vit")


def main() -> None:
    """Runs the command line, or says what to install for it."""
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
