"""Results as JSON files that are whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

__all__ = ["write_json"]


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Puts the values in place in one step: who reads the file finds the old one or the new one.

    A list of numbers is on one line: it is a row of a matrix. What a process leaves that is killed while it
    writes is named ``.NAME*.tmp``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=1, allow_nan=False)
    text = re.sub(r"\[[-\d.e,\s]+\]", lambda row: " ".join(row[0].split()), text)
    temporary = path.with_name(f".{path.stem}{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
