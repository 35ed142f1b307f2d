"""Defines each operator once: one schema, its fake kernel, and a dispatcher entry for each kind of backend.

``flexkern::name`` is the compiled operator (the extension's libraries register its CPU and CUDA kernels);
``flexkern::name_reference`` and ``flexkern::name_triton`` are the same operator in Python. The schemas live
here and not in C++ because the operators exist, and trace under ``torch.compile``, without the extension too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Operator"]

_library = torch.library.Library("flexkern", "DEF")


def _join(name: str, suffix: str) -> str:
    # An in-place operator keeps its trailing underscore: metaplastic_sgd_ -> metaplastic_sgd_triton_.
    return f"{name[:-1]}_{suffix}_" if name.endswith("_") else f"{name}_{suffix}"


class Operator:
    """One operator in all backends.

    Args:
        name: as in ``torch.ops.flexkern``.
        schema: arguments and results, without the name.
        fake: the results for fake tensors (shapes and dtypes only).
        reference: the implementation in plain PyTorch.
        triton: imports and returns the Triton implementation; called at its first use, so that importing
            flexkern imports no Triton.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        fake: Callable[..., Any],
        reference: Callable[..., Any],
        triton: Callable[[], Callable[..., Any]],
    ) -> None:
        self.name = name

        def run_triton(*args: Any) -> Any:
            return triton()(*args)

        self._calls: dict[str, Any] = {}
        implementations = {"": None, "reference": reference, "triton": run_triton}
        for suffix, implementation in implementations.items():
            full_name = _join(name, suffix) if suffix else name
            _library.define(full_name + schema)
            if implementation is not None:
                _library.impl(full_name, implementation, "CompositeExplicitAutograd")
            torch.library.register_fake(f"flexkern::{full_name}", fake, lib=_library)
            self._calls[suffix] = getattr(torch.ops.flexkern, full_name).default
        self._calls["cpu"] = self._calls["cuda"] = self._calls.pop("")

    def on(self, backend: str) -> Any:
        """The dispatcher entry that runs on ``backend``."""
        return self._calls[backend]
