"""Random modules of :mod:`flexkern.nn`: sizes, dtypes, calls that are right and calls that are wrong.

What is refused must be refused by a TypeError or ValueError (or, before anything is learned, a RuntimeError)
that names the argument, and must leave the module's state as it was. What is answered has its shape and dtype,
and a copy, a state_dict and a pickle answer the same.
"""

# ruff: noqa: B023 - what is made in a loop is called at once

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexkern.nn import (
    AdapterBank,
    AdaptiveThreshold,
    ExpertHead,
    FeatureStatistics,
    GateOptions,
    LDAHead,
    MetaplasticLinear,
    PrototypeClassifier,
    RidgeHead,
    SilentLinear,
    SynapseGate,
)
from fuzz.harness import fuzzer

FLOATS = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
REFUSED = (TypeError, ValueError)


def _pick(rng: np.random.Generator, among: Any) -> Any:
    return among[int(rng.integers(len(among)))]


def _normal(rng: np.random.Generator, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape)).to(dtype or _pick(rng, FLOATS))


def _state(module: nn.Module) -> dict[str, Any]:
    return {
        name: (t.dtype, t.shape, t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        if t.numel()
        else (t.dtype, t.shape)
        for name, t in module.state_dict().items()
    }


def _refused(module: nn.Module, call: Callable[[], Any], *names: str, also: tuple[Any, ...] = ()) -> str:
    before = _state(module)
    try:
        call()
    except (*REFUSED, *also) as error:
        if not any(name in str(error) for name in names):
            raise AssertionError(f"none of {names} in: {error!r}") from error
    else:
        raise AssertionError(f"{type(module).__name__}: not refused ({names})")
    assert _state(module) == before, "a refusal changed the state"
    return "refused"


def _copies(rng: np.random.Generator, module: nn.Module, fresh: Callable[[], nn.Module]) -> nn.Module:
    """The same module by another way."""
    how = int(rng.integers(3))
    if how == 0:
        other = copy.deepcopy(module)
    elif how == 1:
        other = pickle.loads(pickle.dumps(module))
    else:
        other = fresh()
        other.load_state_dict(module.state_dict())
    assert _state(other) == _state(module)
    return other


def _bad_features(rng: np.random.Generator, x: Tensor) -> Any:
    """No features like ``x``, of two or three dimensions; with at least one sample."""
    spoiled = x.float().clone()
    spoiled.view(-1)[int(rng.integers(spoiled.numel()))] = _pick(rng, (math.nan, math.inf))
    return _pick(
        rng, (x.long(), x > 0, x[..., :-1], x[0], x.unsqueeze(0), x.float().tolist(), None, "x", spoiled)
    )


def _bad_labels(rng: np.random.Generator, y: Tensor) -> Any:
    return _pick(rng, (y.float(), y[:-1], y - 1000, y.tolist(), None, y[:, None], y > 0, y.to(torch.uint8)))


# --------------------------------------------------------------------------- heads


def _ridge(rng: np.random.Generator) -> str:
    width, features = int(rng.integers(1, 8)), _pick(rng, (0, 3, np.int64(12)))
    options = {
        "features": features,
        "ridge": _pick(rng, ("auto", 0.5, np.float32(2.0))),
        "intercept": bool(rng.random() < 0.5),
        "seed": int(rng.integers(99)),
    }
    head = RidgeHead(width, **options)
    if rng.random() < 0.2:
        return _refused(head, lambda: head.logits(torch.zeros(2, width)), "no class", also=(RuntimeError,))
    n = int(rng.integers(1, 12))
    for _ in range(int(rng.integers(1, 4))):
        x, y = _normal(rng, n, width), torch.from_numpy(rng.integers(0, 4, n))
        if rng.random() < 0.3:
            bad = _bad_features(rng, x)
            _refused(head, lambda: head.update(bad, y), "h0")
        elif rng.random() < 0.3:
            labels = _bad_labels(rng, y)
            _refused(head, lambda: head.update(x, labels), "labels")
        head.update(x, y)
    if not bool(head.gram.any()):
        return "nothing to fit"
    asked = _normal(rng, int(rng.integers(0, 5)), width)
    logits = head.logits(asked)
    assert logits.shape == (len(asked), head.classes)
    assert logits.isfinite().all()
    other = _copies(rng, head, lambda: RidgeHead(width, **options))
    assert torch.equal(other.logits(asked), logits)
    assert head.predict(asked).dtype is torch.int64
    return "ridge"


def _lda(rng: np.random.Generator) -> str:
    width = int(rng.integers(1, 8))
    options = {
        "shrinkage": _pick(rng, ("oas", "gcv", 0.5, np.float32(1.0))),
        "priors": _pick(rng, ("uniform", "counts")),
        "per_class": bool(rng.random() < 0.3),
        "dtype": _pick(rng, (torch.float32, torch.float64)),
    }
    head, other, whole = (LDAHead(width, **options) for _ in range(3))
    if rng.random() < 0.2:
        return _refused(head, lambda: head.logits(torch.zeros(2, width)), "no class", also=(RuntimeError,))
    n = int(rng.integers(1, 12))
    learned = []
    for i in range(int(rng.integers(1, 4))):
        x, y = _normal(rng, n, width), torch.from_numpy(rng.integers(0, 4, n))
        bad, labels = _bad_features(rng, x), _bad_labels(rng, y)
        if rng.random() < 0.3:
            _refused(head, lambda: head.update(bad, y), "h0")
        elif rng.random() < 0.3:
            _refused(head, lambda: head.update(x, labels), "labels")
        (other if i == 1 else head).update(x, y)
        learned.append((x.double(), y))
    head.merge(other)
    x, y = (torch.cat(parts) for parts in zip(*learned, strict=True))
    if rng.random() < 0.3:
        label = int(y[0])
        _refused(head, lambda: head.forget(label, x[:0]), "h0")
        _refused(head, lambda: head.forget(9), "label")
        head.forget(label, x[y == label])
        x, y = x[y != label], y[y != label]
    whole.update(x, y)
    seen = y.unique()
    assert torch.equal(head.count[: whole.classes], whole.count)
    assert int(head.freedom.sum()) == int(whole.freedom.sum()) == len(y) - len(seen)
    if int(whole.freedom.sum()):
        one, two = head.covariance(), whole.covariance()
        size = float(two.diagonal().max()) + float(x.square().max())  # what was forgotten leaves its rounding
        assert float((one - two).abs().max()) <= 1e-5 * size
    if not len(seen):
        return "all forgotten"
    asked = _normal(rng, int(rng.integers(0, 5)), width)
    logits = head.logits(asked)
    assert logits.shape == (len(asked), head.classes)
    assert logits[:, seen].isfinite().all()
    assert int(logits.isfinite().sum()) == len(asked) * len(seen)
    again = _copies(rng, head, lambda: LDAHead(width, **options))
    assert torch.equal(again.logits(asked), logits)
    assert head.predict(asked).dtype is torch.int64
    return "lda"


def _statistics(rng: np.random.Generator) -> str:
    width = int(rng.integers(1, 7))
    shrinkage = _pick(rng, ("oas", 0.5, np.float32(1.0)))
    module = FeatureStatistics(width, shrinkage=shrinkage)
    for _ in range(int(rng.integers(1, 4))):
        n = int(rng.integers(2, 9))
        x, y = _normal(rng, n, width), torch.from_numpy(rng.integers(0, 3, n))
        if rng.random() < 0.3:
            bad = _bad_features(rng, x)
            _refused(module, lambda: module.update(bad, y), "h0")
        if rng.random() < 0.3:
            labels = _bad_labels(rng, y)
            _refused(module, lambda: module.update(x, labels), "labels")
        module.update(x, y)
    if module.degrees_of_freedom() < 1:
        return _refused(module, module.cholesky, "two samples", also=(RuntimeError,))
    other: Any = _copies(rng, module, lambda: FeatureStatistics(width, shrinkage=shrinkage))
    x = _normal(rng, int(rng.integers(0, 4)), width)
    one, two = module.whiten(x), other.whiten(x)
    assert one.features.shape == x.shape
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(one, two, strict=True))
    return "statistics"


def _prototypes(rng: np.random.Generator) -> str:
    dim, base = int(rng.integers(1, 6)), bool(rng.random() < 0.5)
    options = {
        "base": base, "weight": float(rng.random()), "base_weight": _pick(rng, (0.0, np.float32(0.5))),
        "reweighting": _pick(rng, ("code", "paper")), "completion": _pick(rng, ("later", "new", "none")),
    }  # fmt: skip
    head = PrototypeClassifier(dim, **options)
    if not base and rng.random() < 0.2:
        return _refused(
            head,
            lambda: head.update(torch.zeros(2, 0, dim), torch.zeros(2).long()),
            "subspace",
            also=(RuntimeError,),
        )
    classes = 0
    for _ in range(int(rng.integers(1, 4))):
        head.add_subspace()
        n = int(rng.integers(1, 8))
        x = _normal(rng, n, head.subspaces, dim)
        y = classes + torch.from_numpy(rng.integers(0, 2, n))
        if rng.random() < 0.3:
            bad = _bad_features(rng, x)
            _refused(head, lambda: head.update(bad, y), "features")
        if rng.random() < 0.3:
            labels = _bad_labels(rng, y)
            _refused(head, lambda: head.update(x, labels), "labels")
        head.update(x, y)
        classes = head.classes
    x = _normal(rng, int(rng.integers(0, 5)), head.subspaces, dim)
    openings = torch.from_numpy(rng.integers(0, 2, (len(x), head.subspaces))).float()
    logits = head.logits(x, _pick(rng, (None, openings)))
    assert logits.shape == (len(x), classes)
    assert logits.isfinite().all()
    other = _copies(rng, head, lambda: PrototypeClassifier(dim, **options))
    assert torch.equal(other.complete(), head.complete())
    return "prototypes"


def _experts(rng: np.random.Generator) -> str:
    width, head = int(rng.integers(1, 6)), None
    head = ExpertHead(width, temperature=_pick(rng, (1.0, np.float64(20.0))))
    for task in range(int(rng.integers(1, 4))):
        n, first = int(rng.integers(2, 9)), head.classes
        y = first + torch.arange(n) % _pick(rng, (1, 2))
        x, own = _normal(rng, n, width), _normal(rng, n, width)
        if rng.random() < 0.3:
            bad = _bad_features(rng, x)
            _refused(head, lambda: head.learn(bad, own, y), "h0")
        if rng.random() < 0.3:
            bad = _bad_features(rng, x)
            _refused(head, lambda: head.learn(x, bad, y), "own")
        if rng.random() < 0.3:
            labels = _pick(rng, (_bad_labels(rng, y), y + 1, y[:0]))
            _refused(head, lambda: head.learn(x, own, labels), "labels")
        head.learn(x, own, y)
        assert head.tasks == task + 1
    n = int(rng.integers(0, 5))
    scores, spaces = _normal(rng, n, head.classes), _normal(rng, n, 1 + head.tasks, width)
    openings = torch.from_numpy(rng.integers(0, 2, (n, head.tasks))).float()
    logits = head.logits(scores, spaces, openings)
    assert logits.shape == (n, head.classes)
    assert logits.isfinite().all()
    other: Any = _copies(rng, head, lambda: ExpertHead(width, temperature=head.temperature))
    assert torch.equal(other.logits(scores, spaces, openings), logits)
    return "experts"


# --------------------------------------------------------------------------- gates

_BAD = ["3x", True, math.nan, -1, [1], object(), torch.tensor([1, 2]), math.inf]
_NUMBERS = (
    "theta",
    "holdout",
    "lr",
    "weight_decay",
    "keep",
    "hidden",
    "epochs",
    "batch",
    "neighbours",
    "features",
)
_NAMES = ("gate", "gating", "threshold", "negatives", "positives", "inputs", "first", "calibration", "seed")


def _gate(rng: np.random.Generator) -> str:
    width = int(rng.integers(1, 6))
    if rng.random() < 0.3:
        name, value = _pick(rng, (*_NUMBERS, *_NAMES, "k", "target", "gain")), _pick(rng, _BAD)
        if name == "seed" and type(value) is int:
            value = 0.5
        try:
            GateOptions(**{"gating": "soft", "threshold": "adaptive", name: value})
        except REFUSED as error:
            if name in str(error):
                return "refused"
            raise AssertionError(f"no {name!r} in: {error}") from error
        raise AssertionError(f"{name}={value!r} was not refused")
    choices: dict[str, tuple[Any, ...]] = {
        "gate": ("mlp", "none", "oracle", "energy", "mahalanobis", "knn", "likelihood_ratio", "ridge"),
        "gating": ("hard", "soft", "topk"),
        "threshold": ("fixed", "quantile", "adaptive"),
        "negatives": ("gaussian", "replay"),
        "refresh": (False, False, True),
        "calibration": (None, None, "none", "platt", "softmax"),
        "first": ("trained", "open"),
        "inputs": ("standard", "whitened"),
    }
    options: dict[str, Any] = {name: _pick(rng, among) for name, among in choices.items()}
    options |= {"hidden": 3, "features": 6, "epochs": 1, "holdout": np.float32(0.5)}
    options |= {"theta": float(rng.uniform(0.01, 0.99)), "seed": int(rng.integers(99))}
    gate = SynapseGate(width, **options)
    _refused(
        gate,
        lambda: gate.evidence(torch.zeros(2, width), torch.zeros(2).long()),
        "no task",
        also=(RuntimeError,),
    )
    for _ in range(int(rng.integers(1, 4))):
        first, each = gate.recall.classes, int(rng.integers(1, 12))
        y = first + torch.arange(2).repeat_interleave(each)
        x = _normal(rng, len(y), width, dtype=torch.float32)
        if rng.random() < 0.2:
            bad = _bad_features(rng, x)
            _refused(gate, lambda: gate.learn(bad, y), "h0", "labels")
        if rng.random() < 0.2:
            labels = _pick(rng, (_bad_labels(rng, y), y + 1, y[:0]))
            _refused(gate, lambda: gate.learn(x, labels), "labels", "h0")
        before = _state(gate)
        try:
            gate.check_labels(y)
        except ValueError:
            return _refused(gate, lambda: gate.learn(x, y), "h0")
        try:
            gate.learn(x, y)
        except RuntimeError:  # a covariance that is singular: nothing was learned
            assert _state(gate) == before
            return "singular"
    n = int(rng.integers(0, 5))
    x, task = _normal(rng, n, width), torch.from_numpy(rng.integers(0, gate.tasks, n))
    openings = gate(x, task)
    assert openings.shape == (n, gate.tasks)
    assert bool(((openings >= 0) & (openings <= 1)).all())
    other: Any = _copies(rng, gate, lambda: SynapseGate(width, **options))
    assert torch.equal(other(x, task), openings)
    return "gate"


# --------------------------------------------------------------------------- layers


def _bank(rng: np.random.Generator) -> str:
    sizes = [int(n) for n in rng.integers(1, 5, 3)]
    if rng.random() < 0.3:
        name, value = _pick(rng, ("layers", "width", "rank", "capacity", "scale", "dropout")), _pick(rng, _BAD)
        if name == "scale" and type(value) is int:
            value = math.inf
        try:
            AdapterBank(**{"layers": 1, "width": 2, "rank": 2, name: value})
        except REFUSED as error:
            if name in str(error):
                return "refused"
            raise AssertionError(f"no {name!r} in: {error}") from error
        raise AssertionError(f"{name}={value!r} was not refused")
    bank = AdapterBank(*sizes, capacity=int(rng.integers(1, 3)), dropout=0.0)
    for _ in range(int(rng.integers(1, 5))):
        bank.add_task(generator=torch.Generator().manual_seed(int(rng.integers(99))))
    with torch.no_grad():
        for p in bank.parameters():
            p.copy_(_normal(rng, *p.shape, dtype=p.dtype))
    n = int(rng.integers(0, 4))
    x = _normal(rng, n, 2, sizes[1], dtype=torch.float32)
    task = _pick(rng, (0, torch.from_numpy(rng.integers(-1, bank.tasks, n))))
    layer = int(rng.integers(sizes[0]))
    with torch.no_grad():
        out = bank(layer, x, task)
        assert out.shape == x.shape
        assert torch.equal(_copies(rng, bank, lambda: AdapterBank(*sizes, dropout=0.0))(layer, x, task), out)
    return "bank"


def _layer(rng: np.random.Generator) -> str:
    n_in, n_out = (int(n) for n in rng.integers(1, 7, 2))
    silent = rng.random() < 0.6
    if rng.random() < 0.3:
        name = _pick(
            rng,
            (
                "in_features",
                "out_features",
                "window",
                *(("silent", "eta", "prune", "threshold") if silent else ()),
            ),
        )
        value = _pick(rng, ["3x", True, math.nan, -1, [1], object(), torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])])
        kind: Any = SilentLinear if silent else MetaplasticLinear
        try:
            kind(**{"in_features": n_in, "out_features": n_out, name: value})
        except REFUSED as error:
            if name in str(error):
                return "refused"
            raise AssertionError(f"no {name!r} in: {error}") from error
        raise AssertionError(f"{name}={value!r} was not refused")

    def fresh() -> nn.Module:
        if not silent:
            return MetaplasticLinear(np.int64(n_in), n_out)
        return SilentLinear(
            n_in, torch.tensor(n_out), silent=share, threshold=threshold, rule=rule, insert=insert
        )

    share, rule, insert = float(rng.random()), _pick(rng, ("rate", "hebbian")), _pick(rng, ("init", "hebbian"))
    threshold = _pick(rng, (np.float32(0.25), torch.tensor(0.5), 1, AdaptiveThreshold()))
    layer: Any = fresh()
    x = _normal(rng, int(rng.integers(0, 6)), n_in, dtype=torch.float32)
    y = layer(x)
    assert y.shape == (len(x), n_out)
    if silent:
        if len(x):
            y.sum().backward()
            quiet = layer.weight == 0
            assert not layer.weight.grad[quiet].any()
            layer.convert()
        assert layer.silent_count.sum() == (layer.weight == 0).sum()
    layer.eval()
    other = _copies(rng, layer, fresh).eval()
    assert torch.equal(other(x), layer(x))
    return "layer"


KINDS = (_ridge, _lda, _statistics, _prototypes, _experts, _gate, _gate, _bank, _layer, _layer)


@fuzzer("modules", quick=250, full=4_000)
def modules(rng: np.random.Generator) -> str:
    """One module's life."""
    torch.set_num_threads(1)
    return _pick(rng, KINDS)(rng)
