"""Every declared operator on every backend: what is declared of memory, layouts and results holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import ops
from flexkern.ops import metaplastic
from flexkern.ops.operator import is_refusal
from flexkern.spec import RULES, SPECS, Arguments
from helpers.calls import OPERATORS, dtypes_of, make_call, tensors_of
from helpers.judge import bits, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

BACKENDS = ("reference", "cpu", "triton")
CALLS = [(name, dtype) for name in sorted(SPECS) for dtype in dtypes_of(name)]


@pytest.fixture(params=BACKENDS)
def on(request: pytest.FixtureRequest) -> str:
    status = flexkern.backends()[request.param]
    if not status.available:
        pytest.skip(f"{request.param}: {status.reason}")
    return request.param


def copied(given: Arguments) -> Arguments:
    """The same call on tensors of its own."""

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        return [copy(v) for v in value] if isinstance(value, list) else value

    return type(given)(**{name: copy(value) for name, value in vars(given).items()})


def results_of(value: Any) -> list[Tensor]:
    return [] if value is None else [value] if isinstance(value, Tensor) else list(value)


@pytest.mark.parametrize(("name", "dtype"), CALLS, ids=str)
def test_only_what_is_declared_is_written_and_results_are_as_declared(
    name: str, dtype: torch.dtype, on: str
) -> None:
    given = make_call(name, dtype)
    before = copied(given)
    results = results_of(OPERATORS[name].run(given, on))
    assert [(r.dtype, tuple(r.shape)) for r in results] == [
        (getattr(torch, d) if isinstance(d, str) else d, tuple(shape)) for d, shape in given.results()
    ]
    written = {argument for argument, _ in given.writes()}
    changed = set()
    for (argument, _, after), (*_, old) in zip(tensors_of(given), tensors_of(before), strict=True):
        if not same_bits(after, old):
            changed.add(argument)
    assert changed <= written
    assert bool(changed) == bool(written)  # and something is


@pytest.mark.parametrize(("name", "dtype"), CALLS, ids=str)
def test_fake_kernels_give_the_same_shapes(name: str, dtype: torch.dtype, on: str) -> None:
    given = make_call(name, dtype)
    real = results_of(OPERATORS[name].run(copied(given), on))
    meta = type(given)(**{
        k: v.to("meta") if isinstance(v, Tensor) else [t.to("meta") for t in v]
        if isinstance(v, list) and v and isinstance(v[0], Tensor) else v
        for k, v in vars(given).items()
    })  # fmt: skip
    fake = results_of(OPERATORS[name].on(on)(*meta.values()))
    assert [(f.dtype, f.shape) for f in fake] == [(r.dtype, r.shape) for r in real]


WRITERS = [(n, d) for n, d in CALLS if any(a.written for a in SPECS[n].arguments)]


@pytest.mark.parametrize("layout", ["transposed", "every second"])
@pytest.mark.parametrize(("name", "dtype"), WRITERS, ids=str)
def test_written_tensors_of_any_layout(name: str, dtype: torch.dtype, on: str, layout: str) -> None:
    dense, given = make_call(name, dtype), make_call(name, dtype)

    def laid_out(tensor: Tensor) -> Tensor:
        if layout == "transposed" and tensor.dim() == 2:
            return tensor.t().contiguous().t()
        view = torch.zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]), dtype=tensor.dtype)[..., ::2]
        return view.copy_(tensor)

    odd = given.replaced([laid_out(t) for _, t in given.writes()])
    assert not any(t.is_contiguous() for _, t in odd.writes())
    expected = results_of(OPERATORS[name].run(dense, on))
    results = results_of(OPERATORS[name].run(odd, on))
    assert all(map(same_bits, results, expected))
    for (_, one), (_, other) in zip(odd.writes(), dense.writes(), strict=True):
        assert same_bits(one, other)


def overlapping(
    given: Arguments, first: tuple[str, int], second: tuple[str, int], nested: bool
) -> Arguments | None:
    """The call with two of its tensors in one memory: one inside the other, or the end of one in the other."""
    by_place = {(name, i): t for name, i, t in tensors_of(given)}
    a, b = by_place[first], by_place[second]
    if nested and b.nbytes > a.nbytes:
        return None
    step = 16
    start = (a.nbytes // 2 if nested and b.nbytes <= a.nbytes // 2 else 0) if nested else a.nbytes - 1
    start = start // step * step
    memory = torch.zeros(max(a.nbytes, start + b.nbytes) + step, dtype=torch.uint8)
    views = []
    for tensor, at in ((a, 0), (b, start)):
        view = memory[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        views.append(view.copy_(tensor))
    result = copied(given)
    for (name, i), view in zip((first, second), views, strict=True):
        value = getattr(result, name)
        if isinstance(value, list):
            value[i] = view
        else:
            setattr(result, name, view)
    return result


def pairs(name: str, dtype: torch.dtype, hebbian: bool) -> Iterator[tuple[Arguments, tuple, tuple, bool]]:
    """Pairs of a call's tensors, each both ways round, with whether one of the two is written."""
    given = make_call(name, dtype, hebbian=hebbian)
    # Told from the schema and from which call it is, not by the record that is under test: what is written
    # only sometimes is the anchor, which slides in a Hebbian call.
    written = {a.name for a in given.spec.arguments if a.written is True or (a.written and hebbian)}
    places = [(argument, i) for argument, i, _ in tensors_of(given)]
    for one, other in itertools.permutations(places, 2):
        yield given, one, other, one[0] in written or other[0] in written


@pytest.mark.parametrize("nested", [False, True], ids=["ends", "nested"])
@pytest.mark.parametrize("hebbian", [False, True], ids=["init", "hebbian"])
@pytest.mark.parametrize("name", sorted({n for n, _ in WRITERS}))
def test_what_is_written_shares_no_memory(name: str, hebbian: bool, nested: bool, on: str) -> None:
    call = OPERATORS[name].on(on)
    dtype = dtypes_of(name)[-1]  # with a master, where there is one
    tried = 0
    for given, one, other, is_written in pairs(name, dtype, hebbian):
        shared = overlapping(given, one, other, nested)
        if shared is None or not is_written:
            continue
        before = [bits(t).clone() for *_, t in tensors_of(shared)]
        with pytest.raises((RuntimeError, ValueError), match="shares memory with another argument"):
            call(*shared.values())
        assert all(torch.equal(bits(t), old) for (*_, t), old in zip(tensors_of(shared), before, strict=True))
        tried += 1
    assert tried or len(tensors_of(make_call(name, dtype))) == 1  # fill_field_ has nothing to share with


@pytest.mark.parametrize("name", ["metaplastic_sgd_", "synapse_step_", "linear_step_"])
def test_what_is_only_read_may_share_memory(name: str, on: str) -> None:
    given = make_call(name, torch.float32)
    given.flexibility = given.anchor
    OPERATORS[name].on(on)(*given.values())


def give_alpha(given: Arguments, kind: str) -> bool:
    """Gives the call an alpha, beside which anchor and flexibility are not read. An empty one says of a weight
    of a list that it moves freely, and is not read either. False: the operator takes none."""
    weights = vars(given).get("weight")
    if not hasattr(given, "alpha") or (kind == "empty" and not given.spec.name.startswith("metaplastic")):
        return False
    several = isinstance(weights, list)
    ones = [torch.ones(0 if kind == "empty" else w.shape) for w in (weights if several else [weights])]
    given.alpha = ones if several else ones[0]
    return True


@pytest.mark.parametrize("alpha", ["none", "stored", "empty"])
@pytest.mark.parametrize(("name", "dtype"), CALLS, ids=str)
def test_every_tensor_is_of_a_declared_dtype(name: str, dtype: torch.dtype, alpha: str, on: str) -> None:
    given = make_call(name, dtype)
    if alpha != "none" and not give_alpha(given, alpha):
        return
    declared = {a.name: a for a in SPECS[name].arguments if a.dtypes}
    of_argument = {a: [t for n, _, t in tensors_of(given) if n == a] for a in declared}
    for argument, other in itertools.product(declared, (torch.int16, torch.float16)):
        a, tensors = declared[argument], of_argument[argument]
        fits = "float16" in a.dtypes or (a.dtypes[0] in declared and dtype is torch.float16)
        if not tensors or (other is torch.float16 and fits):
            continue
        odd = [t.to(other) for t in tensors]
        call = copied(type(given)(**{**vars(given), argument: odd if a.is_list else odd[0]}))
        before = copied(call)
        with pytest.raises((RuntimeError, TypeError, ValueError), match="|".join((*declared, "words"))):
            OPERATORS[name].on(on)(*call.values())
        for (*_, after), (*_, old) in zip(tensors_of(call), tensors_of(before), strict=True):
            assert same_bits(after, old)


def test_every_rule_has_its_operators() -> None:
    for rule, family in itertools.product(RULES, ("metaplastic", "synapse", "linear")):
        spec = SPECS[rule.operator(family)]
        assert spec.rule is rule
        names = [a.name for a in spec.arguments]
        assert {*rule.STATES, *rule.__dataclass_fields__} - {"NAME", "STATES", "COUNTS_STEPS"} <= set(names)
        assert ("step" in names) == rule.COUNTS_STEPS


# ------------------------------------------------------------------ the one way past the checks


@pytest.fixture
def arguments() -> dict[str, Any]:
    weight = torch.ones(4, 4)
    return {"weight": weight, "grad": weight.clone(), "anchor": weight.clone(), "flexibility": 0.5, "lr": 0.1,
            "scale": 1.0}  # fmt: skip


def test_a_fault_of_the_compiled_operator_is_not_hidden(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flexkern.backends()["cpu"].available:
        pytest.skip("no compiled kernels")

    def fault(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    for name in ("direct_one", "compiled_one"):
        monkeypatch.setattr(metaplastic.SGD, name, fault)
    with flexkern.use_backend("auto"), pytest.raises(RuntimeError, match="mat1 and mat2"):
        ops.metaplastic_sgd_(**arguments)
    assert (arguments["weight"] == 1).all()


def test_a_refusal_leads_to_the_checks(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if not flexkern.backends()["cpu"].available:
        pytest.skip("no compiled kernels")

    def refuse(*_: object) -> None:
        raise RuntimeError("step, metaplastic.cpp:1, flexkern refuses: grad must be contiguous")

    for name in ("direct_one", "compiled_one"):
        monkeypatch.setattr(metaplastic.SGD, name, refuse)
    with flexkern.use_backend("auto"):
        ops.metaplastic_sgd_(**arguments)  # the checks find nothing, and the step is taken after all
    assert (arguments["weight"] < 1).all()


@pytest.mark.parametrize(
    ("message", "refuses"),
    [
        ("check_like, arguments.cpp:20, flexkern refuses: grad must be contiguous", True),
        ("flexkern::metaplastic_sgd_() Expected a value of type 'Tensor' for argument 'grad'", True),
        ("Could not run 'flexkern::metaplastic_sgd_' with arguments from the 'SparseCPU' backend", True),
        ("flexkern::metaplastic_sgd_.one: attempted to run this operator with Meta tensors", True),
        ("addmm_out() API call failed at csrc/cpu/adapter.cpp, line 150", False),
        ("linear_step_: no memory for 16777216 bytes of the gradient", False),
        ("a hook of the user: flexkern::metaplastic_sgd_() was called", False),
    ],
)
def test_refusals_are_told_from_faults(message: str, refuses: bool) -> None:
    assert is_refusal(RuntimeError(message)) is refuses
