"""``python -m flexkern`` and the ``flexkern`` command."""

from __future__ import annotations

import sys

# What the `cli` and `vit` extras bring; the package itself works without.
_EXTRA = {
    "typer", "rich", "click", "matplotlib", "sklearn", "safetensors", "tomli", "transformers", "PIL",
}  # fmt: skip


def main() -> None:
    """Runs the command line, or says what to install for it."""
    try:
        from flexkern.cli import app

        app()
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        sys.exit(
            f"flexkern: the command line needs {missing}, which is not installed: "
            "pip install 'flexkern[cli,vit]'"
        )


if __name__ == "__main__":
    main()
