"""Random calls of the CUDA kernels, which run on the host, each against the reference.

    python -m native.cuda_on_host.launches FIRST COUNT

scripts/sanitize.py builds the library and calls this with it in the place of the CPU library.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import flexkern
from flexkern import backends, ops
from flexkern.ops.layers import LayerGate
from flexkern.ops.null import null
from flexkern.ops.synapse import STEPS as SYNAPSE_STEPS
from flexkern.ops.synapse import synapse_step_by_rule
from fuzz.harness import Fuzzer, run_cases
from native.cuda_on_host.operands import (
    COLUMNS,
    DTYPES,
    LENGTHS,
    ROWS,
    SIZES,
    Places,
    Random,
    anchor,
    chance,
    choose,
    field,
    flexibility,
    normal,
    number,
    spoiled,
    unit,
)

__all__ = ["case", "main"]

ULPS = 2.0**-18  # 64 float32 roundings of what is added up


class Rule:
    """The numbers of a step, and its states for weights of these shapes."""

    def __init__(self, r: Random, shapes: list[tuple[int, ...]]) -> None:
        self.adamw = chance(r, 0.4)
        self.lr = choose(r, (1.0, 0.1, 0.01))
        self.numbers: dict[str, Any] = {
            "weight_decay": choose(r, (0.0, 0.1)),
            "maximize": chance(r, 0.3),
            "nonfinite": choose(r, ("skip", "propagate")),
        }
        self.states: dict[str, list[Tensor]] = {}
        if self.adamw:
            self.numbers["amsgrad"] = chance(r, 0.3)
            names = ["exp_avg", *(["max_exp_avg_sq"] if self.numbers["amsgrad"] else []), "exp_avg_sq"]
            for name in names:
                self.states[name] = [unit(r, s) if "sq" in name else normal(r, s) for s in shapes]
            self.counts = [torch.tensor(float(r.integers(1, 9))) for _ in shapes]
        elif chance(r, 0.4):
            nesterov = chance(r, 0.4)
            damping = 0.0 if nesterov else choose(r, (0.0, 0.3))
            self.numbers.update(momentum=0.9, nesterov=nesterov, dampening=damping)
            self.states["momentum_buffer"] = [normal(r, s) for s in shapes]

    def placed(self, place: Places) -> dict[str, Any]:
        states: dict[str, Any] = {name: place.all(values) for name, values in self.states.items()}
        return {**states, "step": list(self.counts)} if self.adamw else states

    def bound(self, weight: Tensor, grad: Tensor, i: int) -> Tensor:
        """How far a weight may be off: a share of what is added up."""
        moved = grad.double().abs() + weight.double().abs()
        if self.adamw:  # a direction of about 1, or of m over the root of a small v
            moved = 3 + self.states["exp_avg"][i].double().abs() + moved
            moved = moved / self.states["exp_avg_sq"][i].double().sqrt().clamp(1e-3)
        elif self.states:
            moved = moved + self.states["momentum_buffer"][i].double().abs()
        return (weight.double().abs() + 4 * self.lr * moved) * ULPS + 1e-30


def same(found: Tensor, expected: Tensor, bound: Any, what: str) -> None:
    a, b = found.double(), expected.double()
    finite = a.isfinite() & b.isfinite()
    off = torch.where(finite, (a - b).abs() > bound, ~((a == b) | (a.isnan() & b.isnan())))
    if off.any():
        at = tuple(int(i) for i in off.nonzero()[0])
        raise AssertionError(f"{what}{list(at)}: {float(a[at])}, the reference {float(b[at])}")


def same_bits(found: Tensor, expected: Tensor, what: str) -> None:
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32)), what


def both(call: Callable[[Places], Any], r: Random) -> tuple[Any, Any]:
    """What the kernels make of a call, and what the reference does."""
    results = []
    for backend in ("cpu", "reference"):
        place = Places(r)
        with flexkern.use_backend(backend):
            results.append(call(place))
        place.check()
    return results[0], results[1]


# ------------------------------------------------------------------ the operators


def step_case(r: Random) -> str:
    count = choose(r, LENGTHS)
    dtype, of_grad = choose(r, DTYPES)
    shapes = [(choose(r, SIZES) if count < 30 else choose(r, (0, 1, 3, 9, 40, 1030)),) for _ in range(count)]
    rule, low, held, scale = (
        Rule(r, shapes),
        dtype is not torch.float32,
        chance(r, 0.3),
        choose(r, (1.0, 20.0, 150.0)),
    )
    exact = [spoiled(r, normal(r, s)) for s in shapes]
    if low:
        exact = [e.to(dtype).float() if chance(r, 0.2) else e for e in exact]
    grads = [spoiled(r, normal(r, s)).to(of_grad) for s in shapes]
    alphas = [unit(r, s) for s in shapes]
    anchors, flexibilities = [anchor(r, e) for e in exact], [flexibility(r, s) for s in shapes]
    rate, size = number(r, rule.lr), number(r, scale)

    def call(place: Places) -> Any:
        weights = place.all([e.to(dtype) for e in exact])
        masters = place.all(exact) if low else None
        states = rule.placed(place)
        name = "adamw_" if rule.adamw else "sgd_"
        given = {**rule.numbers, **states, "lr": rate, "master": masters}
        if held:
            getattr(ops, f"gated_{name}")(weights, place.all_read(grads), place.all_read(alphas), **given)
        else:
            sources = place.all_read(anchors), place.all_read(flexibilities)
            getattr(ops, f"metaplastic_{name}")(weights, place.all_read(grads), *sources, scale=size, **given)
        return masters or weights, weights, states

    found, expected = both(call, r)
    for i in range(count):
        same(found[0][i], expected[0][i], rule.bound(exact[i], grads[i], i), f"weight[{i}]")
        if low:
            same(found[1][i], found[0][i].to(dtype), 0, f"rounding[{i}]")
        for name in rule.states:
            size_of = found[2][name][i].double().abs() + grads[i].double().abs() ** 2 + grads[i].double().abs()
            bound = (size_of + exact[i].double().abs() + 1) * ULPS
            same(found[2][name][i], expected[2][name][i], bound, f"{name}[{i}]")
    return "adamw" if rule.adamw else "sgd"


def displacement_case(r: Random) -> str:
    count = choose(r, LENGTHS)
    dtype, _ = choose(r, DTYPES)
    shapes = [(choose(r, SIZES) if count < 30 else choose(r, (0, 1, 3, 9, 40, 1030)),) for _ in range(count)]
    low, held, scale = dtype is not torch.float32, chance(r, 0.3), number(r, choose(r, (1.0, 20.0, 150.0)))
    exact = [normal(r, s) for s in shapes]
    after = [spoiled(r, e + normal(r, tuple(e.shape), 0.1)).to(dtype) for e in exact]
    alphas = [unit(r, s) for s in shapes]
    anchors, flexibilities = [anchor(r, e) for e in exact], [flexibility(r, s) for s in shapes]

    def call(place: Places) -> Any:
        weights, before = place.all(after), place.all_read([e.to(dtype) for e in exact])
        masters = place.all(exact) if low else None
        if held:
            ops.gated_displacement_(weights, before, place.all_read(alphas), master=masters)
        else:
            sources = place.all_read(anchors), place.all_read(flexibilities)
            ops.scale_displacement_(weights, before, *sources, scale=scale, master=masters)
        return masters or weights, weights

    found, expected = both(call, r)
    for i in range(count):
        moved = (after[i].double() - exact[i].double()).abs().nan_to_num(0, 0, 0)
        bound = (exact[i].double().abs() + moved) * ULPS + 1e-30
        if (
            low
        ):  # where alpha is 1 the master becomes w, and is next to that where alpha is 1 but for a rounding
            jumps = (found[0][i] == after[i].float()) | (expected[0][i] == after[i].float())
            bound = bound + torch.where(jumps, (exact[i] - exact[i].to(dtype).float()).abs().double(), 0.0)
        same(found[0][i], expected[0][i], bound, f"weight[{i}]")
    return "displacement"


def layer_case(r: Random) -> str:
    shape = rows, columns = choose(r, ROWS), choose(r, COLUMNS)
    dtype, of_grad = choose(r, DTYPES)
    rule, low, held = Rule(r, [shape]), dtype is not torch.float32, chance(r, 0.3)
    silent = torch.from_numpy(r.random(shape) < choose(r, (0.0, 0.3, 0.5, 1.0)))
    exact = normal(r, shape, 0.5) * ~silent
    for states in rule.states.values():
        states[0] = states[0] * ~silent
    grad = spoiled(r, normal(r, shape)).to(of_grad)
    hebbian, by_rate = chance(r, 0.4), chance(r, 0.5)
    of_anchor = normal(r, shape, 0.5) if hebbian or chance(r, 0.5) else field(r)
    flexible, alpha = flexibility(r, shape), unit(r, shape)
    pre, post, coincidence = (
        spoiled(r, t) for t in (normal(r, (columns,)), normal(r, (rows,)), unit(r, shape))
    )
    threshold = choose(r, (0.7, torch.tensor([0.7]), unit(r, (rows,)) * 1.5 if rows else 0.7))
    options = {"insert": "hebbian" if hebbian else "init", "eta": 0.5, "prune": choose(r, (0.0, 0.3))}

    def call(place: Places) -> Any:
        weight, master = place(exact.to(dtype)), place(exact) if low else None
        with flexkern.use_backend("reference"):
            words = place(ops.pack_mask(silent))
        a = place(of_anchor) if isinstance(of_anchor, Tensor) else of_anchor  # Hebbian synapses are written
        f = place.reads(flexible)
        states = {name: values[0] for name, values in rule.placed(place).items()}
        activities = (
            {"pre": place.reads(pre), "post": place.reads(post)}
            if by_rate
            else {"coincidence": place.reads(coincidence)}
        )
        gate = {"alpha": place.reads(alpha)} if held else {"scale": 20.0}
        f = None if held else f
        if rule.adamw:
            counts = adamw_pass(rule, weight, place.reads(grad), a, f, words, threshold, activities, gate,
                                states, master, options)  # fmt: skip
        else:
            given = {**rule.numbers, **states, **options, **activities, **gate, "lr": rule.lr, "master": master}
            counts = ops.synapse_step_(weight, place.reads(grad), a, f, words, threshold=threshold, **given)
        return weight if master is None else master, weight, words, a, states, counts

    found, expected = both(call, r)
    if not torch.equal(found[2], expected[2]):
        # A product at the threshold, or a weight at the bound, is on one side or the other of it by a rounding.
        differing = sum(bin(w & 0xFFFFFFFF).count("1") for w in (found[2] ^ expected[2]).flatten().tolist())
        assert differing <= 1, f"{differing} bits of the mask differ"
        return "at the threshold"
    same(found[0], expected[0], rule.bound(exact, grad, 0) + 1e-7, "weight")
    if low:
        same(found[1], found[0].to(dtype), 0, "rounding")
    for name in rule.states:
        size_of = found[4][name].double().abs() + grad.double().abs() ** 2 + grad.double().abs()
        bound = (size_of + exact.double().abs() + 1) * ULPS
        same(found[4][name], expected[4][name], bound, name)
    if hebbian:
        same(found[3], expected[3], 1e-6, "anchor")
    for a, b in zip(found[5], expected[5], strict=True):
        assert torch.equal(a, b), "counts"
    return "synapse by adamw" if rule.adamw else "synapse"


def adamw_pass(
    rule: Rule,
    weight: Tensor,
    grad: Tensor,
    anchor: Any,
    flexible: Any,
    words: Tensor,
    threshold: Any,
    activities: dict[str, Tensor],
    gate: dict[str, Any],
    states: dict[str, Any],
    master: Tensor | None,
    insertion: dict[str, Any],
) -> Any:
    """Has no public function of its own: modules call it."""
    numbers = dict(rule.numbers)
    nonfinite = numbers.pop("nonfinite")
    named = {name: states.get(name) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step")}
    given = (rule.lr, gate.get("scale"), named, master, nonfinite, numbers, insertion)
    of = {name: activities.get(name) for name in ("pre", "post", "coincidence")}
    return synapse_step_by_rule(
        SYNAPSE_STEPS["synapse_adamw_step_"], weight, grad, LayerGate(anchor, flexible, gate.get("alpha")),
        words, of["pre"], of["post"], of["coincidence"], threshold, given,
    )  # fmt: skip


def small_case(r: Random) -> str:
    size = (choose(r, SIZES),)
    source, weight, scale = field(r), spoiled(r, normal(r, size)), number(r, 20.0)
    of_anchor, flexible = anchor(r, weight), flexibility(r, size)
    mask = torch.from_numpy(r.random((choose(r, ROWS), choose(r, COLUMNS))) < 0.5)

    def call(place: Places) -> Any:
        gate = ops.metaplastic_gate(place.reads(weight), *place.all_read([of_anchor, flexible]), scale)
        bits = place.reads(mask.view(torch.uint8)).view(torch.bool)
        words = ops.pack_mask(bits)
        back = ops.unpack_mask(place.reads(words), mask.shape[1])
        return ops.materialize(source, size), gate, words, back, null(place.reads(weight), 0.5)

    found, expected = both(call, r)
    same_bits(found[0], expected[0], "field")
    same(found[1], expected[1], 2e-5, "gate")
    assert torch.equal(found[2], expected[2]), "words"
    assert torch.equal(found[3], mask), "mask"
    same(found[4], expected[4], 0, "null")
    return "field, gate, mask, null"


# Each kernel of csrc/cuda, the case that launches it, and how many variants it is compiled for (dtypes of
# weight and gradient, rules, sizes of tables). test_translate.py fails where one is not here, `main` where its
# case does not launch it.
KERNELS: dict[str, tuple[Callable[[Random], str], int]] = {
    "step_kernel": (step_case, 5 * 2 * 3),
    "displace_kernel": (displacement_case, 3 * 3),
    "synapse_kernel": (layer_case, 5 * 2),
    "fill_kernel": (small_case, 1),
    "gate_kernel": (small_case, 1),
    "null_kernel": (small_case, 1),
    "pack_kernel": (small_case, 1),
    "unpack_kernel": (small_case, 1),
}
CASES = (*dict.fromkeys(of for of, _ in KERNELS.values()), step_case, layer_case)  # more often what varies most
ENOUGH = 100, 1000  # cases, after which each kernel has been launched, and in each of its variants


def case(r: Random) -> str:
    """One random call, judged; its family."""
    return choose(r, CASES)(r)


def main(first: int, count: int) -> None:
    """Runs so many cases from number ``first`` on; ends the process with the first faults."""
    torch.set_num_threads(1)
    library = ctypes.CDLL(str(backends()["cpu"].reason))
    launches = library.cuda_on_host_launches
    launches.restype = ctypes.c_int64
    found = run_cases(Fuzzer("cuda_on_host", case, 0, 0), first, count)
    faults: Any = found["faults"]
    if faults:
        sys.exit("\n".join(f"case {f['case']}:\n{f['error']}" for f in faults[:3]) + f"\n{len(faults)} faults")
    assert launches() > count // 2, "the kernels did not run"
    library.cuda_on_host_launched.restype = ctypes.c_char_p
    lines = library.cuda_on_host_launched().decode().splitlines()
    variants = {kernel: int(number) for kernel, _, number in map(str.split, lines)}
    if count >= ENOUGH[0]:
        assert sorted(variants) == sorted(KERNELS), "these kernels were launched, and these have a case"
    if count >= ENOUGH[1]:
        expected = {kernel: number for kernel, (_, number) in KERNELS.items()}
        assert variants == expected, "these variants were launched, and these are expected"
    assert library.cuda_on_host_contexts() == 0b10, "there is a context on a GPU that has no tensors"
    print(json.dumps({"cases": count, "launches": launches(), "variants": variants,
                      "outcomes": found["outcomes"]}))  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
