"""Calls every operator with one argument after the other replaced by a tensor that is not what it seems.

    python -m helpers.foreign JOURNAL [WORD ...]

Run in a process of its own, as a fault may end that: JOURNAL then ends with the case that did. With words, only
the cases with all of them, and without those after a "-". The last line is how many there were; lines before it
are cases that went wrong.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from flexkern import ops
from flexkern.ops.null import null
from helpers.arguments import gated, linear_arguments, step_arguments, synapse_arguments
from helpers.calls import OPERATORS, make_call
from helpers.interpreter import quicken
from helpers.judge import same_bits

__all__ = ["KINDS", "cases", "main", "wrong"]


class Wrapped(Tensor):
    """A subclass of which torch knows nothing."""

    @staticmethod
    def __new__(cls: Any, t: Tensor) -> Any:
        return Tensor._make_subclass(cls, t)


class Opaque(Tensor):
    """A subclass that has no memory of its own, and no operators."""

    @staticmethod
    def __new__(cls: Any, t: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, t.shape, dtype=t.dtype, device=t.device)

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        return NotImplemented


def freed(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def cut(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(t.untyped_storage().nbytes() - 1)
    return t


def beyond(t: Tensor) -> Tensor:
    """With an offset that its storage does not have any more."""
    memory = torch.cat([torch.zeros(64, dtype=t.dtype), t.flatten()])
    view = memory[64:].view(t.shape)
    memory.untyped_storage().resize_(64 * t.element_size())
    return view


def overlapping(t: Tensor) -> Tensor | None:
    return t.flatten()[0].expand(t.shape) if t.numel() > 1 else None


def imaginary(t: Tensor) -> Tensor:
    """The imaginary part of a conjugate: negative, and every second element of its memory."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag


def floating(of: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor | None]:
    return lambda t: of(t) if t.dtype is torch.float32 else None


def quantized(t: Tensor) -> Tensor:
    return torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)


def parts(t: Tensor, layout: torch.layout) -> Tensor | None:
    return torch.nested.nested_tensor([t[:1], t[1:]], layout=layout) if t.dim() > 1 else None


_fake = FakeTensorMode()


class Kind(NamedTuple):
    """make: from an ordinary tensor; None: there is none of its dtype or shape. values: an ordinary tensor with
    the same values; None: a call must raise."""

    make: Callable[[Tensor], Tensor | None]
    values: Callable[[Tensor], Tensor] | None = None


KINDS: dict[str, Kind] = {
    "zero": Kind(lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype), torch.zeros_like),
    "negative": Kind(floating(lambda t: t.neg()._neg_view()), torch.clone),
    "imaginary": Kind(floating(imaginary), torch.clone),
    "wrapped": Kind(Wrapped, torch.clone),
    "freed": Kind(freed),
    "cut": Kind(cut),
    "beyond": Kind(beyond),
    "conjugate": Kind(floating(lambda t: torch.complex(t, t).conj())),
    "fake": Kind(_fake.from_tensor),
    "opaque": Kind(Opaque),
    "meta": Kind(lambda t: t.to("meta")),
    "sparse": Kind(floating(Tensor.to_sparse)),
    "compressed": Kind(lambda t: t.to_sparse_csr() if t.dim() == 2 and t.dtype is torch.float32 else None),
    "mkldnn": Kind(floating(lambda t: t.to_mkldnn() if t.dim() else None)),
    "quantized": Kind(floating(quantized)),
    "nested": Kind(lambda t: parts(t, torch.strided)),
    "jagged": Kind(lambda t: parts(t, torch.jagged)),
    "overlapping": Kind(overlapping, lambda t: t.flatten()[0].expand(t.shape).clone()),
}


# ------------------------------------------------------------------ calls

Call = tuple[Callable[..., Any], dict[str, Any]]


def _public() -> dict[str, Callable[[], Call]]:
    def adamw(count: int) -> dict[str, Any]:
        given = step_arguments(count=count)
        m = given.pop("momentum_buffer")
        del given["momentum"]
        squares = [t.abs() for t in m] if count > 1 else m.abs()
        step = [torch.tensor(3.0) for _ in range(count)] if count > 1 else torch.tensor(3.0)
        return {**given, "exp_avg": m, "exp_avg_sq": squares, "step": step}

    def displaced() -> dict[str, Any]:
        given = step_arguments()
        names = ("weight", "anchor", "flexibility", "scale")
        return {**{name: given[name] for name in names}, "before": given["grad"]}

    def gate() -> dict[str, Any]:
        given = step_arguments()
        return {name: given[name] for name in ("weight", "anchor", "flexibility", "scale")}

    def displaced_held() -> dict[str, Any]:
        given = displaced()
        return {"weight": given["weight"], "before": given["before"], "alpha": given["flexibility"]}

    def layer() -> dict[str, Any]:
        given = synapse_arguments()
        given["coincidence"] = given["grad"].abs()
        return {**{k: v for k, v in given.items() if k not in ("pre", "post")}, "insert": "hebbian"}

    def adapter() -> dict[str, Any]:
        given = make_call("gated_adapter", torch.float32)
        names = ("x", "down", "down_bias", "up", "up_bias", "index", "residual")
        return {name: getattr(given, name) for name in names}

    def tensors() -> dict[str, Any]:
        given = step_arguments(torch.bfloat16)
        return {**given, "lr": torch.tensor([0.1]), "scale": torch.tensor([20.0])}

    def numbers(*shape: int) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(7))

    prototypes = {"prototypes": numbers(4, 2, 3), "own_subspace": torch.tensor([0, 0, 1, 1])}
    calls: dict[str, Callable[[], Call]] = {
        "metaplastic_gate": lambda: (ops.metaplastic_gate, gate()),
        "metaplastic_sgd_": lambda: (ops.metaplastic_sgd_, step_arguments()),
        "metaplastic_sgd_ low": lambda: (ops.metaplastic_sgd_, tensors()),
        "metaplastic_sgd_ list": lambda: (ops.metaplastic_sgd_, step_arguments(count=3)),
        "gated_sgd_": lambda: (ops.gated_sgd_, gated(step_arguments())),
        "gated_sgd_ list": lambda: (ops.gated_sgd_, gated(step_arguments(count=3))),
        "metaplastic_adamw_": lambda: (ops.metaplastic_adamw_, adamw(1)),
        "gated_adamw_ list": lambda: (ops.gated_adamw_, gated(adamw(3))),
        "scale_displacement_": lambda: (ops.scale_displacement_, displaced()),
        "gated_displacement_": lambda: (ops.gated_displacement_, displaced_held()),
        "synapse_step_": lambda: (ops.synapse_step_, {**synapse_arguments(), "threshold": torch.tensor([0.5])}),
        "synapse_step_ hebbian": lambda: (ops.synapse_step_, layer()),
        "linear_step_": lambda: (ops.linear_step_, linear_arguments()),
        "gated_adapter": lambda: (ops.gated_adapter, adapter()),
        "prototype_logits": lambda: (ops.prototype_logits, {"features": numbers(5, 2, 3), **prototypes}),
        "complete_prototypes": lambda: (ops.complete_prototypes, dict(prototypes)),
        "pack_mask": lambda: (ops.pack_mask, {"mask": numbers(4, 6) < 0.5}),
        "unpack_mask": lambda: (ops.unpack_mask, {"words": torch.ones(4, 1, dtype=torch.int32), "columns": 6}),
        "null": lambda: (null, {"x": numbers(4, 6), "factor": 2.0}),
    }

    def without_master(make: Callable[[], Call]) -> Callable[[], Call]:
        def made() -> Call:
            call, given = make()
            weight = given.get("weight")
            if isinstance(weight, list) or (weight is not None and weight.dtype is torch.float32):
                given.pop("master", None)  # not looked at
            return call, given

        return made

    return {name: without_master(make) for name, make in calls.items()}


def _raw() -> dict[str, Callable[[], Call]]:
    calls: dict[str, Callable[[], Call]] = {}
    for name, operator in OPERATORS.items():

        def make(operator: Any = operator, name: str = name, backend: str = "cpu") -> Call:
            given = make_call(name, torch.float32)
            values = {a.name: getattr(given, a.name) for a in given.spec.arguments}
            if "amsgrad" in values:
                values["amsgrad"] = True
            for a in given.spec.arguments:
                if a.optional and a.is_list and not values[a.name]:
                    values[a.name] = None
            return operator.on(backend), values

        def make_one(make: Any = make, operator: Any = operator) -> Call:
            _, values = make()
            tensors = {a.name for a in operator.spec.arguments if a.type == "Tensor[]"}
            return operator.compiled_one, {k: v[0] if v and k in tensors else v for k, v in values.items()}

        def directly(make: Any, call: Any) -> Callable[[], Call]:
            return lambda: (_by_position(call), make()[1])

        for backend in ("cpu", "reference", "triton"):
            if operator.spec.has_no_kernel(backend) is None:
                calls[f"raw {name} {backend}"] = lambda make=make, backend=backend: make(backend=backend)
        if operator.direct is not None:
            calls[f"raw {name} direct"] = directly(make, operator.direct)
        if operator.compiled_one is not None:
            calls[f"raw {name} one"] = make_one
            if operator.direct_one is not None:
                calls[f"raw {name} direct one"] = directly(make_one, operator.direct_one)
    return calls


def _by_position(call: Callable[..., Any]) -> Callable[..., Any]:
    """Past the dispatcher a call has no names, and what is unusual is left to it."""

    def run(**given: Any) -> Any:
        result = call(*given.values())
        if result is NotImplemented:
            raise TypeError("unusual")
        return result

    return run


def _places(arguments: dict[str, Any]) -> Iterator[tuple[str, int | None]]:
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, None
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            yield name, len(value) - 1  # the last: what is before it must not be changed


def _with(arguments: dict[str, Any], name: str, place: int | None, tensor: Tensor) -> dict[str, Any]:
    value = tensor if place is None else [*arguments[name][:place], tensor, *arguments[name][place + 1 :]]
    return {**arguments, name: value}


def _at(arguments: dict[str, Any], name: str, place: int | None) -> Tensor:
    return arguments[name] if place is None else arguments[name][place]


# ------------------------------------------------------------------ judging


def cases() -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Name of each case, and what runs it and says what is wrong, if anything is."""
    for call_name, make in {**_public(), **_raw()}.items():
        for name, place in _places(make()[1]):
            for kind in KINDS:
                yield f"{call_name} {name} {kind}", lambda a=(make, name, place, kind): wrong(*a)


def _values(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _values(v)] if isinstance(value, (list, tuple)) else []


def _is_blind(call: Callable[..., Any], name: str) -> bool:
    """torch's dispatcher does not look into lists that may be missing, and a compiled operator cannot see that
    a view is negative: public functions look themselves."""
    schema = getattr(call, "_schema", None)
    if schema is None or call not in [operator.on("cpu") for operator in OPERATORS.values()]:
        return False
    return next(a for a in schema.arguments if a.name == name).type.kind() == "OptionalType"


@functools.lru_cache(maxsize=3)
def _expected(
    make: Callable[[], Call], name: str | None, place: int | None, values: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """What the arguments and the result are after a call in which an ordinary tensor has the values of a kind;
    without a name all arguments are as they are made, which several cases want."""
    call, given = make()
    if name is not None:
        given = _with(given, name, place, values(_at(given, name, place)))
    result = call(**given)
    return _values([*given.values(), result])


def wrong(make: Callable[[], Call], name: str, place: int | None, kind: str) -> str | None:
    """What is wrong with a call that has such a tensor in this place; None: nothing."""
    call, arguments = make()
    plain = _at(arguments, name, place)
    foreign = KINDS[kind].make(plain.clone())
    if foreign is None or (place is not None and kind in ("negative", "imaginary") and _is_blind(call, name)):
        return None
    given = _with(arguments, name, place, foreign)
    others = [t for n, p in _places(arguments) if (n, p) != (name, place) for t in [_at(arguments, n, p)]]
    before = [t.clone() for t in others]
    try:
        result = call(**given)
    except (TypeError, ValueError, RuntimeError, IndexError, AssertionError) as error:
        changed = not all(map(same_bits, others, before))
        # Assertions of torch are its own words for an argument that does not fit; internal ones are faults.
        internal = isinstance(error, RuntimeError) and "INTERNAL ASSERT" in str(error)
        if changed or internal or "but got None" in str(error):
            return f"{'changed an argument, then ' if changed else ''}{type(error).__name__}: {error}"
        return None
    values = KINDS[kind].values
    if values is None:
        # A call with nothing but shapes has only these as its result.
        only_shapes = all(t.is_meta or isinstance(t, FakeTensor) for t in _values(list(given.values())))
        return None if only_shapes else "no exception"
    key = (make, None, None) if values is torch.clone else (make, name, place)
    pairs = [*zip(_values([*given.values(), result]), _expected(*key, values), strict=True)]
    # Products of other layouts round otherwise, and so do the logits of a small head that one call works out.
    rounds = kind == "overlapping" or getattr(call, "__name__", "") == "prototype_logits"
    same = torch.allclose if rounds else torch.equal
    if not all(same(a, b) for a, b in pairs):
        return "another result than with ordinary tensors"
    return None


def main(journal: Path, words: list[str]) -> None:
    """Runs the cases, prints what went wrong, and counts them."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    quicken()
    count = 0
    with journal.open("w") as out:
        for case, run in cases():
            if any(word.lstrip("-") in case if word.startswith("-") else word not in case for word in words):
                continue
            print(case, file=out, flush=True)
            if (why := run()) is not None:
                print(f"{case}: {why.splitlines()[0][:200]}")
            count += 1
    print(count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
