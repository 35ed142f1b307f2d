"""Triton's interpreter, less slow: the language is made ready once a launch, not once a call within it.

Before a kernel runs, the interpreter replaces the functions of triton.language by its own and afterwards puts
them back. It replaces them again, to the same effect, in each call of a function of the kernel, and looks at
every member of several modules for it: 40 % of the time of the tests here.
"""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["quicken"]


def quicken() -> None:
    """From here on calls within a launch leave alone what its beginning has replaced."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    patch = getattr(interpreter, "_patch_lang", None)
    if patch is None or getattr(patch, "once_a_launch", False):
        return
    replaced: set[Any] = set()  # the modules whose functions are the interpreter's now
    seen: dict[int, set[Any]] = {}  # by the globals of a file: those of the modules that it has names for

    def patch_once(function: Any) -> Any:
        names = function.__globals__
        modules = seen.get(id(names))
        if modules is None:
            modules = {m for m in names.values() if inspect.ismodule(m) and m in (tl, tl.core)}
            seen[id(names)] = modules
        if replaced and modules <= replaced:
            return interpreter._LangPatchScope()  # with nothing to put back
        scope = patch(function)
        if replaced or not hasattr(scope, "restore"):
            return scope
        restore = scope.restore

        def end() -> None:
            replaced.clear()
            restore()

        scope.restore = end
        replaced.update(modules)
        return scope

    patch_once.once_a_launch = True  # type: ignore[attr-defined]
    interpreter._patch_lang = patch_once
