"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

__all__ = ["replace_file", "write_json"]


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Puts the content in place in one step: who reads the file finds the old one or the new one.

    What a process leaves that is killed while it writes is named ``.STEM.*.tmp``, beside the file.
    """
    path = Path(os.path.abspath(path))
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Plain data as JSON, by :func:`replace_file`; folders on the way to the file are made.

    A list of numbers is on one line: it is a row of a matrix.

    Raises:
        ValueError: if there is a NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(values, indent=1, allow_nan=False)
    text = re.sub(r"\[\n[-\d.e,\s]+\]", lambda row: " ".join(row[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (text + "\n").encode())
