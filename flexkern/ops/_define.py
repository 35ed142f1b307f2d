"""Defines each operator once: one schema, its fake kernel, and a dispatcher entry for each kind of backend.

``flexkern::name`` is the compiled operator (the extension's libraries register its CPU and CUDA kernels);
``flexkern::name_reference`` and ``flexkern::name_triton`` are the same operator in Python. The schemas live
here and not in C++ because the operators exist, and trace under ``torch.compile``, without the extension too.

What a schema gives a default for comes last, and is left out where it has it: an argument that is passed costs
up to 0.2 microseconds, one that is not 0.04, and an empty list 0.4. So a list that may be empty is
``Tensor[]?``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Operator", "compiled_overload"]

_library = torch.library.Library("flexkern", "DEF")


def _join(name: str, suffix: str) -> str:
    # An in-place operator keeps its trailing underscore: metaplastic_sgd_ -> metaplastic_sgd_triton_.
    return f"{name[:-1]}_{suffix}_" if name.endswith("_") else f"{name}_{suffix}"


def _is_optional_list(argument: Any) -> bool:
    kind = argument.type
    return isinstance(kind, torch.OptionalType) and isinstance(kind.getElementType(), torch.ListType)


def _complete(implementation: Callable[..., Any], overload: Any) -> Callable[..., Any]:
    """``implementation`` with every argument of the schema, and an empty tuple for each list that is None.

    The dispatcher does not hand trailing arguments that have their defaults to Python.
    """
    arguments = [(a.default_value, _is_optional_list(a)) for a in overload._schema.arguments]

    def run(*given: Any) -> Any:
        values = [*given, *(default for default, _ in arguments[len(given) :])]
        return implementation(
            *(() if v is None and is_list else v for v, (_, is_list) in zip(values, arguments, strict=True))
        )

    return run


def _check_devices(given: Sequence[Any]) -> None:
    """All tensors are where the first one is, or numbers on the CPU.

    The dispatcher calls the fake kernel also where a single argument is on the meta device; the compiled
    operators look at devices themselves.
    """
    values = (v for value in given for v in (value if isinstance(value, (list, tuple)) else (value,)))
    tensors = [v for v in values if isinstance(v, Tensor)]
    for tensor in tensors:
        if tensor.device != tensors[0].device and not (tensor.numel() == 1 and tensor.device.type == "cpu"):
            raise RuntimeError(f"one argument is on {tensors[0].device}, another on {tensor.device}")


def compiled_overload(name: str, schema: str) -> Any:
    """An overload ``flexkern::name`` that only the compiled CPU library has, for what is tried first (see
    flexkern.ops._step): it needs no fake kernel, as nothing that traces comes there."""
    _library.define(name + schema)
    _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    return getattr(getattr(torch.ops.flexkern, name.split(".")[0]), name.split(".")[1])


class Operator:
    """One operator in all backends.

    Args:
        name: as in ``torch.ops.flexkern``.
        schema: arguments and results, without the name.
        fake: the results for fake tensors (shapes and dtypes only). Like the other implementations it is called
            with every argument of the schema, by position, and () for a list that is None.
        reference: the implementation in plain PyTorch.
        triton: imports and returns the Triton implementation; called at its first use, so that importing
            flexkern imports no Triton.
        recorded: whether autograd looks at calls, and warns in a backward pass that goes through one that no
            autograd.Function made. Else the operator is constant to it, as a step is, and it costs no time.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        fake: Callable[..., Any],
        reference: Callable[..., Any],
        triton: Callable[[], Callable[..., Any]],
        recorded: bool = False,
    ) -> None:
        self.name = name

        def run_triton(*args: Any) -> Any:
            return triton()(*args)

        def run_fake(*args: Any) -> Any:
            _check_devices(args)
            return fake(*args)

        self._calls: dict[str, Any] = {}
        implementations = {"": None, "reference": reference, "triton": run_triton}
        for suffix, implementation in implementations.items():
            full_name = _join(name, suffix) if suffix else name
            _library.define(full_name + schema)
            call = getattr(torch.ops.flexkern, full_name).default
            if implementation is not None:
                _library.impl(full_name, _complete(implementation, call), "CompositeExplicitAutograd")
            if not recorded:
                _library.impl(full_name, torch.library.fallthrough_kernel, "Autograd")
            torch.library.register_fake(f"flexkern::{full_name}", _complete(run_fake, call), lib=_library)
            self._calls[suffix] = call
        self.compiled = self._calls.pop("")
        self._calls["cpu"] = self._calls["cuda"] = self.compiled

    def on(self, backend: str) -> Any:
        """The dispatcher entry that runs on ``backend``."""
        return self._calls[backend]
