"""Random lives of the three optimizers beside a plain model in float64: steps, items, copies, refusals."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from flexkern import Field, ops
from fuzz.harness import fuzzer
from fuzz.optimizer_model import Model, Weight
from helpers.draw import LOW, chance, either, normal, uniform
from helpers.hostile import odd_number, odd_tensor, odd_value
from helpers.optimizers import MAKERS

_SHAPES = ((3, 4), (2, 5), (1, 7), (4,), (2, 2, 3), (0, 3), ())
_ERRORS = (TypeError, ValueError)


@fuzzer("optimizers", quick=1200, full=30_000)
def case(rng: np.random.Generator) -> str:
    torch.default_generator.manual_seed(int(rng.integers(1 << 31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimizers that end without consolidate()
        if chance(rng, 0.2):
            return _construct(rng)
        life = _Life(rng)
        for _ in range(rng.integers(2, 8)):
            event = _EVENTS[rng.integers(len(_EVENTS))]
            event(life)
        return f"right, {life.kind}"


# ------------------------------------------------------------------ what is made


def _options(rng: np.random.Generator, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "lr": either(rng, 0.125, 0.5, 0.03125),
        "scale": either(rng, 0.5, 8.0, 64.0, "auto"),
        "gate": either(rng, "item", "step"),
        "weight_decay": either(rng, 0.0, 0.0, 0.125),
        "maximize": chance(rng, 0.2),
        "flexible_vectors": chance(rng, 0.2),
        "seed": int(rng.integers(1 << 20)),
    }
    if kind == "AdamW":
        return options | {
            "betas": either(rng, (0.9, 0.999), (0.5, 0.75)),
            "amsgrad": chance(rng, 0.3),
            "eps": either(rng, 1e-8, 0.125),
        }
    options |= {"momentum": either(rng, 0.0, 0.5, 0.875), "dampening": 0.0, "nesterov": False}
    if options["momentum"]:
        options |= either(rng, {}, {"nesterov": True}, {"dampening": 0.25})
    return options


class _Life:
    """One optimizer and its model."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.kind = either(rng, *MAKERS)
        self.dtype = (
            torch.float32
            if self.kind == "wrapped"
            else either(rng, torch.float32, torch.float32, torch.bfloat16, torch.float64)
        )
        self.options = _options(rng, self.kind)
        self.params: list[Parameter] = []
        self.models: list[Model] = []
        self.flexibility = either(
            rng, "uniform", "biased_high", "biased_low", 0.5, 1.0, 0.0, "tensors", "field"
        )
        self.optimizer = MAKERS[self.kind](**self.new_group(rng.integers(1, 4)), **self.options)

    def new_group(self, count: int) -> dict[str, Any]:
        """Parameters and their flexibility, for a constructor or a further group."""
        params = [Parameter(normal(self.rng, either(self.rng, *_SHAPES)).to(self.dtype)) for _ in range(count)]
        given, values = self._flexibilities(params)
        weights = []
        for p, f in zip(params, values, strict=True):
            resists = (p.dim() >= 2 or self.options["flexible_vectors"]) and not bool(
                (f == 1).all() and given == 1.0
            )
            weights.append(Weight(p.detach().double().clone(), f.double() if resists else None))
        scale = None if self.options["scale"] == "auto" else self.options["scale"]
        self.models.append(Model(self.kind, {**self.options, "scale": scale}, weights))
        self.params += params
        return {"params": params, "flexibility": given}

    def _flexibilities(self, params: list[Parameter]) -> tuple[Any, list[Tensor]]:
        first, kind = len(self.params), self.flexibility
        if isinstance(kind, float):
            return kind, [torch.full(p.shape, kind) for p in params]
        if kind == "tensors":
            free = not self.options["flexible_vectors"]
            given: list[Any] = [0.5 if p.dim() < 2 and free else uniform(self.rng, p.shape) for p in params]
            return given, [
                f if isinstance(f, Tensor) else torch.full(p.shape, f)
                for f, p in zip(given, params, strict=True)
            ]
        if kind == "field":
            of = Field.biased_high(5, 7)
            return of, [ops.materialize(Field.biased_high(5, 7 + i), p.shape) for i, p in enumerate(params)]
        of_name = getattr(Field, kind)
        fields = [of_name(self.options["seed"], first + i) for i in range(len(params))]
        return kind, [ops.materialize(f, p.shape) for f, p in zip(fields, params, strict=True)]

    def grouped(self) -> list[tuple[Model, list[Parameter]]]:
        found, first = [], 0
        for model in self.models:
            found.append((model, self.params[first : first + len(model.weights)]))
            first += len(model.weights)
        return found

    def make_again(self, params: list[Parameter]) -> Any:
        """Another optimizer of the same kind with as many parameters in each group."""
        made, first = None, 0
        for model in self.models:
            count = len(model.weights)
            group = {"params": params[first : first + count]}
            if made is None:
                made = MAKERS[self.kind](params[:count], **{**self.options, "seed": 3})
            else:
                made.add_param_group(group)
            first += count
        return made


# ------------------------------------------------------------------ what happens


def _step(life: _Life) -> None:
    rng = life.rng
    grads: list[Tensor | None] = []
    for p in life.params:
        g = normal(rng, p.shape).to(p.dtype)
        if chance(rng, 0.1) and life.kind != "wrapped" and g.numel():
            g.view(-1)[rng.integers(g.numel())] = either(rng, np.nan, np.inf, -np.inf)
        grads.append(None if chance(rng, 0.15) else g)

    def closure() -> Tensor:
        for p, g in zip(life.params, grads, strict=True):
            p.grad = g
        return torch.tensor(2.5)

    if chance(rng, 0.2):
        assert life.optimizer.step(closure) == 2.5
    else:
        closure()
        assert life.optimizer.step() is None
    at = 0
    for model, params in life.grouped():
        of_group, at = grads[at : at + len(params)], at + len(params)
        sizes = model.step(of_group)
        for p, w, size in zip(params, model.weights, sizes, strict=True):
            _look(p, w, size)


def _look(p: Tensor, w: Weight, size: Tensor) -> None:
    """The weight is the model's, which then goes on from it; of a master, which nobody sees, it has its own."""
    got, unit = p.detach().double(), 2.0**-8 if p.dtype in LOW else 2.0**-23
    bound = 1e-3 * size + 4 * unit * w.exact.abs() + 1e-7
    off = (got - w.exact).abs()
    assert bool((off <= bound).all()), (
        f"got {got.tolist()}, the model {w.exact.tolist()}, bound {bound.tolist()}"
    )
    if p.dtype not in LOW:
        w.exact = got.clone()


def _consolidate(life: _Life) -> None:
    before = _bits(life.params, life.optimizer)
    try:
        life.optimizer.consolidate()
    except RuntimeError as error:
        if "scale='auto'" not in str(error) or _bits(life.params, life.optimizer) != before:
            raise
        return
    for model, scale in zip(life.models, life.optimizer.scales(), strict=True):
        was_unmeasured, model.options["scale"] = model.options["scale"] is None, scale
        flexible = any(w.f is not None for w in model.weights)
        if not (was_unmeasured and scale is None and flexible):
            model.consolidate()


def _write(life: _Life) -> None:
    """Weights are written from outside, as by loading a model."""
    for model, params in life.grouped():
        for p, w in zip(params, model.weights, strict=True):
            if not chance(life.rng, 0.5):
                continue
            new = (p.detach() + 0.25 * torch.sign(normal(life.rng, p.shape)).to(p.dtype)).to(p.dtype)
            w.exact = torch.where(new == p.detach(), w.exact, new.double())
            with torch.no_grad():
                p.copy_(new)


def _add_group(life: _Life) -> None:
    if len(life.models) < 3:
        # What it was made with is the default, and an optimizer that was loaded was made with another seed.
        life.optimizer.add_param_group(
            life.new_group(int(life.rng.integers(1, 3))) | {"seed": life.options["seed"]}
        )


def _reload(life: _Life) -> None:
    state: Any = life.optimizer.state_dict()
    if chance(life.rng, 0.5):
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    params = [Parameter(p.detach().clone()) for p in life.params]
    optimizer = life.make_again(params)
    optimizer.load_state_dict(state)
    life.params, life.optimizer = params, optimizer


def _copy(life: _Life) -> None:
    both = (life.params, life.optimizer)
    life.params, life.optimizer = (
        copy.deepcopy(both) if chance(life.rng, 0.5) else pickle.loads(pickle.dumps(both))
    )


def _sparse(life: _Life) -> None:
    """A sparse gradient is refused before anything changes."""
    i = next((i for i, p in enumerate(life.params) if p.dim() == 2 and p.numel()), None)
    if i is None or life.kind == "wrapped":
        return
    for p in life.params:
        p.grad = torch.ones_like(p)
    life.params[i].grad = torch.ones_like(life.params[i]).to_sparse()
    _refused(life.params, life.optimizer, "grad", life.optimizer.step)


def _odd_setting(life: _Life) -> None:
    """A setting of a group that is changed by hand holds, or is refused before anything changes."""
    params, optimizer = copy.deepcopy((life.params, life.optimizer))
    names = (
        "lr",
        "scale",
        "gate",
        "momentum",
        "weight_decay",
        "nonfinite",
        "alpha_dtype",
        "flexibility",
        "betas",
        "seed",
    )
    group = optimizer.param_groups[life.rng.integers(len(optimizer.param_groups))]
    name = either(life.rng, *[n for n in names if n in group])
    if life.kind == "wrapped" and name in ("lr", "momentum", "weight_decay"):
        return  # torch's own look at these, or do not
    group[name] = odd_number(life.rng)
    for p in params:
        p.grad = torch.ones_like(p)
    _refused(params, optimizer, name, optimizer.step)


def _odd_state(life: _Life) -> None:
    """What is no state of such an optimizer is refused, before anything changes; or it can be gone on from."""
    params, optimizer = copy.deepcopy((life.params, life.optimizer))
    state: Any = copy.deepcopy(optimizer.state_dict())
    _spoil(life.rng, state)
    if (
        not _refused(
            params, optimizer, "state_?dict|state dict|param_groups", lambda: optimizer.load_state_dict(state)
        )
        and life.kind != "wrapped"
    ):  # torch's own may take what it cannot go on from
        for p in params:
            p.grad = torch.ones_like(p)
        _refused(params, optimizer, "", optimizer.step)


def _spoil(rng: np.random.Generator, state: Any) -> None:
    """Something odd at a random place of a tree of dictionaries and lists."""
    while True:
        keys = list(state) if isinstance(state, dict) else list(range(len(state)))
        key = keys[rng.integers(len(keys))]
        value = state[key]
        if isinstance(value, (dict, list)) and len(value) and chance(rng, 0.85):
            state = value
            continue
        if isinstance(state, dict) and chance(rng, 0.1):
            del state[key]
        else:
            state[key] = odd_tensor(rng, value, []) if isinstance(value, Tensor) else odd_number(rng)
        return


def _construct(rng: np.random.Generator) -> str:
    """One argument of a constructor is odd."""
    kind = either(rng, *MAKERS)
    params = [Parameter(normal(rng, (3, 4))), Parameter(normal(rng, (4,)))]
    options = {
        **_options(rng, kind),
        "params": params,
        "flexibility": either(rng, 0.5, "uniform"),
        "anchor": None,
        "nonfinite": "skip",
        "alpha_dtype": torch.float32,
    }
    names = [
        n
        for n in options
        if not (
            kind == "wrapped"
            and n in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "params")
        )
    ]
    name = either(rng, *names)
    options[name] = odd_value(rng) if name == "params" else odd_number(rng)
    before = [p.detach().clone() for p in params]
    try:
        made = MAKERS[kind](**options)
    except _ERRORS as error:
        if not re.search(rf"\b{name}s?\b|nesterov", str(error)) and name != "params":
            raise AssertionError(f"{name}: {error}") from error
        assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
        return "refused"
    for p in params:
        p.grad = torch.ones_like(p)
    if name != "params":
        made.step()
    return "taken though odd"


# ------------------------------------------------------------------ refusals


def _bits(params: list[Parameter], optimizer: Any) -> bytes:
    """All weights and all state."""
    parts = [p.detach() for p in params]
    for p in params:
        parts += [v for _, v in sorted(optimizer.state.get(p, {}).items()) if isinstance(v, Tensor)]
    return b"".join(
        t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"|" for t in parts
    )


def _refused(params: list[Parameter], optimizer: Any, name: str, call: Any) -> bool:
    weights = [p.detach().clone() for p in params]
    states = {
        i: {n: v.clone() for n, v in optimizer.state.get(p, {}).items() if isinstance(v, Tensor)}
        for i, p in enumerate(params)
    }
    try:
        call()
    except _ERRORS as error:
        if not re.search(rf"\b({name})", str(error)):
            raise AssertionError(f"{name}: {error}") from error
        same = all(torch.equal(a, b) for a, b in zip(params, weights, strict=True))
        # State may have been added, as zeros, where there was none.
        same &= all(
            _equal(optimizer.state[params[i]].get(n), v) for i, of in states.items() for n, v in of.items()
        )
        if not same:
            raise AssertionError(f"{name}: changed by a refusal: {error}") from error
        return True
    return False


def _equal(a: Any, b: Tensor) -> bool:
    return isinstance(a, Tensor) and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


_EVENTS = (
    _step,
    _step,
    _step,
    _step,
    _step,
    _step,
    _consolidate,
    _consolidate,
    _write,
    _add_group,
    _reload,
    _copy,
    _sparse,
    _odd_setting,
    _odd_state,
)
