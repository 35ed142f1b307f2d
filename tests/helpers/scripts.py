"""Files outside the package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["load_file"]


def load_file(path: Path) -> ModuleType:
    """The module of a file that lies in no package, by the name of the file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    known = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # while it is run: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        if known is None:
            del sys.modules[path.stem]
        else:
            sys.modules[path.stem] = known
    return module
