"""An operator in all backends, from its declaration; and the one way past the checks in Python.

``flexkern::name`` is the compiled operator (the extension's libraries register its CPU and CUDA kernels);
``flexkern::name_reference`` and ``flexkern::name_triton`` are the same operator in Python. The schemas come
from :mod:`flexkern.spec` and not from C++ because the operators exist, and trace under ``torch.compile``,
without the extension too.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from flexkern.backends import BackendError, choose, prefers_compiled_cpu, requested
from flexkern.backends.built import NAMESPACE
from flexkern.ops import checks
from flexkern.ops.direct import directly
from flexkern.ops.ordinary import check_real, negative_kernel
from flexkern.spec import SPECS, Arguments, Spec
from flexkern.spec.argument import single

__all__ = [
    "Attempt",
    "Operator",
    "are_numbers",
    "are_plain",
    "is_plain",
    "is_refusal",
    "is_tensor",
    "is_word",
    "tries_compiled",
]

_library = torch.library.Library(NAMESPACE, "DEF")
_PACKAGE = __name__.removesuffix(".ops.operator")
_R = TypeVar("_R")

# ------------------------------------------------------------------ what may be tried before the checks

# A subclass of Tensor may mean anything, and True is no number.
_TENSORS = frozenset({Tensor, torch.nn.Parameter})
_NUMBERS = frozenset({int, float})
# The compiled operators say that they refuse (csrc/bindings/arguments.h), and so does torch's dispatcher where
# an argument is not of the type in the schema, on a device or of a layout that has no kernel, a zero tensor
# that would be written, fake where others are not, or without sizes among others that have some (all looks at
# sizes come before the first write), and what stands between the two, of a tensor that it cannot pass on (which
# an operator sees before it writes anything).
_REFUSAL = re.compile(
    rf"flexkern refuses|^{NAMESPACE}::\S+(\(\) |: attempted to run)|^{NAMESPACE}\.\S+$"
    rf"|^Could not run '{NAMESPACE}::"
    r"|^ZeroTensors are immutable|^Please convert all Tensors to FakeTensors|_get_sizes\(.* failed"
    r"|torch/csrc/stable/|^unsupported tensor layout"
)


# A call of a compiled operator that may be made before the checks: the dispatcher entry, its arguments, and the
# tensors that it updates; or the direct call, its arguments, and nothing. (A plain tuple: one with names takes
# 0.3 microseconds to make.)
Attempt = tuple[Any, tuple[Any, ...], Sequence[Tensor]]


def tries_compiled() -> bool:
    """Whether to try the compiled operator before the checks in Python, if ``are_plain`` agrees.

    The checks take several times as long as the operator with a small tensor, and it makes sure itself, before
    it writes, of all that they look at but for types, a few words and inference tensors.
    """
    return not torch.compiler.is_compiling()


def is_tensor(value: object) -> bool:
    """Whether it is a tensor of torch's own types, and no negative view: the dispatcher does not look at lists
    that may be missing, and the compiled operators cannot tell."""
    return type(value) in _TENSORS and not value.is_neg()  # type: ignore[attr-defined]


def are_numbers(values: Sequence[object]) -> bool:
    """Whether all are of type int or float."""
    return _NUMBERS.issuperset(map(type, values))


def is_word(value: object, words: Sequence[str]) -> bool:
    """Whether it is one of these words. (An array compares with a word element by element.)"""
    return type(value) is str and value in words


def are_plain(written: Sequence[Any], operator: Operator, name: str | None = None) -> bool:
    """Whether these are tensors that the compiled operator may update at once: none is of a subclass (fake
    tensors are), none a negative view or an inference tensor, and none float64, which is the reference's; and
    the compiled kernels are those that serve on the device of the first. The operator looks at all devices.

    ``name`` is the public function, where it is not the operator's.
    """
    for tensor in written:
        if type(tensor) not in _TENSORS or tensor.is_neg() or tensor.is_inference():
            return False
    return len(written) > 0 and written[0].dtype is not torch.float64 and operator.serves(written[0], name)


def is_plain(read: object, operator: Operator, name: str | None = None) -> bool:
    """As ``are_plain``, for the one tensor that decides on the device of a call that writes none."""
    return type(read) in _TENSORS and not read.is_neg() and operator.serves(read, name)  # type: ignore[attr-defined, arg-type]


def is_refusal(error: Exception) -> bool:
    """Whether an operator did not take its arguments. Any other error is a fault, and must be seen."""
    return _REFUSAL.search(str(error)) is not None


# ------------------------------------------------------------------ operators


def _join(name: str, suffix: str) -> str:
    # An in-place operator keeps its trailing underscore: metaplastic_sgd_ -> metaplastic_sgd_triton_.
    return f"{name[:-1]}_{suffix}_" if name.endswith("_") else f"{name}_{suffix}"


def _implementation(spec: Spec, package: str) -> Callable[[Arguments], Any]:
    """The operator's function in its family's file of a package, which takes either the declared arguments in
    their order, or all of them as one: ``given``. Imported at its first use."""
    name = spec.name if spec.rule is None else f"{spec.family}_step_"  # one function serves every rule
    known: tuple[Callable[..., Any], bool] | None = None  # the function, and whether it takes all as one

    def run(given: Arguments) -> Any:
        nonlocal known
        if known is None:
            function = getattr(importlib.import_module(f"{package}.{spec.family}"), name)
            # In one piece: another thread may be here too.
            known = function, list(inspect.signature(function).parameters) == ["given"]
        function, takes_all = known
        return function(given) if takes_all else function(*given.values())

    return run


class Operator:
    """One operator in all backends; the implementations in Python are found by name: in flexkern/reference and
    triton_kernels, in the file of its family.

    Autograd does not look at calls, because a step is constant to it, and it costs no time; unless the
    declaration says ``recorded``: then it warns in a backward pass that goes through a call that no
    autograd.Function made.

    Args:
        name: of a declaration in :mod:`flexkern.spec`.

    Attributes:
        spec: the declaration.
        compiled: the dispatcher entry of the compiled kernels.
        compiled_one: that of the overload of one tensor, where the declaration has one. Only the compiled
            libraries have it: it needs no fake kernel, as nothing that traces comes there. (A list of one costs
            0.5 microseconds more than a tensor, and a step has four.)
        direct, direct_one: the same past the dispatcher (flexkern/ops/direct.py); None where that cannot be.
    """

    def __init__(self, name: str) -> None:
        self.spec = spec = SPECS[name]
        self._calls: dict[str, Any] = {}
        implementations = {
            "": None,
            "reference": _implementation(spec, f"{_PACKAGE}.reference"),
            "triton": _implementation(spec, f"{_PACKAGE}.triton_kernels"),
        }
        for suffix, implementation in implementations.items():
            full_name = _join(name, suffix) if suffix else name
            self._calls[suffix] = self._define(full_name, spec.schema)
            if implementation is not None:
                at_the_door = _at_the_door(implementation, reads_memory=suffix == "triton")
                _library.impl(full_name, _from_call(spec, at_the_door), "CompositeExplicitAutograd")
            fake = _from_call(spec, _fake)
            torch.library.register_fake(f"{NAMESPACE}::{full_name}", fake, lib=_library)
        self.compiled = self._calls.pop("")
        self.compiled_one = self._define(f"{name}.one", spec.schema_of_one) if spec.one else None
        self.direct: Any = directly(name, spec.arguments)
        self.direct_one = directly(f"{name}.one", [single(a) for a in spec.arguments]) if spec.one else None
        # By what is asked for, the number of a GPU and the public name: whether the CUDA kernels serve there.
        self._on_gpus: dict[tuple[str, int, str | None], bool] = {}
        self._calls["cpu"] = self._calls["cuda"] = self.compiled

    def _define(self, name: str, schema: str) -> Any:
        _library.define(name + schema)
        base, _, overload = name.partition(".")
        call = getattr(getattr(getattr(torch.ops, NAMESPACE), base), overload or "default")
        for key in ("Negative", "Conjugate"):
            _library.impl(name, negative_kernel(self.spec, call), key)
        if not self.spec.recorded:
            _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        return call

    def on(self, backend: str) -> Any:
        """The dispatcher entry that runs on ``backend``."""
        return self._calls[backend]

    def __call__(self, attempt: Attempt | None, checked: Callable[..., _R], *given: Any) -> Any | _R:
        """The result of the compiled operator, if it takes these arguments; else that of ``checked(*given)``,
        which finds out why not and says so, or calls another implementation.

        Raises:
            RuntimeError: what the compiled operator raises, unless it refuses its arguments.
        """
        if attempt is not None:
            call, arguments, written = attempt
            try:
                result = call(*arguments)
            except (RuntimeError, AssertionError) as error:
                if not is_refusal(error):
                    raise
            except (OverflowError, ValueError):  # the dispatcher's, of an int that no double holds
                pass
            else:
                if written:
                    torch.autograd.graph.increment_version(written)
                if result is not NotImplemented:
                    return result
        return checked(*given)

    def goes_direct(self, first: Any) -> bool:
        """Whether an attempt may be ``direct`` or ``direct_one``, which look at the types of all that is
        passed, by the first tensor. (float64 is the reference's.)"""
        return (
            self.direct is not None
            and type(first) in _TENSORS
            and first.is_cpu
            and first.dtype is not torch.float64
            and prefers_compiled_cpu()
        )

    def serves(self, like: Tensor, name: str | None = None) -> bool:
        """Whether :meth:`choose` takes the compiled kernels of the device of this tensor, for what they can do.

        Not for code that torch.compile traces.
        """
        if like.is_cpu:
            return prefers_compiled_cpu()
        if not like.is_cuda:
            return False
        key = requested(), like.get_device(), name
        known = self._on_gpus.get(key)
        if known is None:
            try:
                known = choose(name or self.spec.name, like.device, self.spec.has_no_kernel) == "cuda"
            except BackendError:
                known = False
            self._on_gpus[key] = known
        return known

    def choose(
        self, like: Tensor, supported: Callable[[str], str | None] | None = None, name: str | None = None
    ) -> str:
        """The backend for a call on tensors like this one.

        Args:
            like: decides the device, and for floating-point tensors the dtype.
            supported: backend to None, or why it cannot take these arguments.
            name: the public function, in messages and in the tuning table, where it is not the operator's.

        Raises:
            BackendError: if a backend was asked for by name and cannot serve.
        """

        def serves(name: str) -> str | None:
            why = self.spec.has_no_kernel(name) or checks.native_dtypes(name, like.dtype)
            return why or (None if supported is None else supported(name))

        return choose(name or self.spec.name, like.device, serves)

    def run(self, given: Arguments, backend: str) -> Any:
        """Calls it with arguments that have been checked.

        The kernels index memory in row-major order: written tensors of other layouts go through dense copies.

        Raises:
            ValueError: if a written tensor that is not contiguous shares memory with another argument (the
                operators themselves check contiguous ones).
            RuntimeError: if a written tensor is an inference tensor.
        """
        writes = given.writes()
        written = [tensor for _, tensor in writes]
        checks.check_writes(writes, given.reads())
        dense = checks.contiguous(written)
        with torch.no_grad():
            result = self._run_checked(given.replaced(dense) if writes else given, backend)
            for target, values in zip(written, dense, strict=True):
                if target is not values:
                    target.copy_(values)
        if written:
            # Operators outside ATen do not tell autograd that they wrote: a backward through an old value must
            # raise.
            torch.autograd.graph.increment_version(written)
        return result

    def _run_checked(self, given: Arguments, backend: str) -> Any:
        call = self._calls[backend]
        if torch.compiler.is_compiling():
            return call(*given.values())
        try:
            return call(*given.values())
        except RuntimeError as error:
            if not is_refusal(error):
                raise
            # Something that the operator's own checks do not look at, or not by name: the declaration has it.
            given.check_memory()
            given.check_tensors()
            given.check_numbers()
            why = str(error).partition("flexkern refuses: ")[2].partition("\n")[0]
            raise ValueError(f"{self.spec.name}: {why or error}") from error


def _from_call(spec: Spec, implementation: Callable[[Arguments], Any]) -> Callable[..., Any]:
    def run(*given: Any) -> Any:
        return implementation(spec.record.of_call(given))

    return run


def _at_the_door(
    implementation: Callable[[Arguments], Any], *, reads_memory: bool
) -> Callable[[Arguments], Any]:
    """With the checks that keep a call of torch.ops from ending half-way, which a kernel makes itself."""

    def run(given: Arguments) -> Any:
        given.check_given()
        writes, reads = given.writes(), given.reads()
        for name, tensor in (*writes, *reads):
            checks.check_dense(tensor, name)
            check_real(tensor, name)
            if reads_memory and not tensor.is_contiguous():
                raise ValueError(f"{name} must be contiguous")
        if not reads_memory:  # launches have checks of their own, which say more
            given.check_tensors()
        for name, tensor in writes:
            checks.check_writable(tensor, name)
        checks.check_writes(writes, reads)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not writes):
            return implementation(given)

    return run


def _fake(given: Arguments) -> Any:
    """The results for fake tensors: shapes and dtypes only.

    The dispatcher calls it also where a single argument is on the meta device.
    """
    try:
        given.check_tensors()
    except (TypeError, ValueError) as error:
        raise RuntimeError(f"flexkern refuses: {error}") from None
    like = next(t for _, t in [*given.writes(), *given.reads()])
    results = []
    for dtype, shape in given.results():
        results.append(
            like.new_empty(tuple(shape), dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        )
    return None if not results else results[0] if len(results) == 1 else tuple(results)
