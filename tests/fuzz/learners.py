"""Random lives of learners: good and bad experiences, interrupts, questions, copies and files in any order.

Each learner has a twin of which nothing bad is ever asked. After each event the two must be the same to the
bit, and what was refused must have changed nothing.
"""

# ruff: noqa: B023 - what is made in a loop is called at once

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.learners import METHODS, MLP_METHODS, NotLearnedError, load_learner, make_learner
from flexkern.streams import Experience
from fuzz.harness import fuzzer
from helpers.learner_state import fingerprint, interrupted
from helpers.tiny_vit import of_source

SIZE, CLASSES = 5, 4
REFUSED = (TypeError, ValueError, FileNotFoundError)


class StopError(Exception):
    """Out of a progress callback."""


def _pick(rng: np.random.Generator, among: Any) -> Any:
    return among[int(rng.integers(len(among)))]


# --------------------------------------------------------------------------- what is learned


def _item(rng: np.random.Generator, number: int) -> Experience:
    """Any classes, a few inputs each."""
    count, tests = int(rng.integers(1, 20)), int(rng.integers(1, 6))
    x, y = rng.normal(size=(count, SIZE)), rng.integers(0, CLASSES, count)
    dtype = _pick(
        rng, (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)
    )
    train = torch.from_numpy(np.abs(x) * 3 if dtype is torch.uint8 else x).to(dtype)
    test = torch.from_numpy(rng.normal(size=(tests, SIZE))).float()
    told, tested = torch.from_numpy(y), torch.from_numpy(rng.integers(0, CLASSES, tests))
    alike = told.unique().tolist() == tested.unique().tolist()  # else they are names of others, or of nobody
    names = _names(rng, told) if alike else ()
    return Experience(f"item {number}", number, train, told, test, tested, class_names=names)


def _names(rng: np.random.Generator, labels: Tensor) -> tuple[str, ...]:
    """None, or of each class its own, or nothing, or as a file may have it."""
    if rng.random() < 0.4:
        return ()
    return tuple(_pick(rng, (f"class {c}", f"class {c}", "", str(c))) for c in labels.unique().tolist())


@functools.cache
def _backbone() -> Any:
    from helpers.tiny_vit import backbone

    return backbone()


@functools.cache
def _tasks() -> list[Experience]:
    from helpers.tiny_vit import stream

    return list(stream())


@functools.cache
def _images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels, of all classes."""
    parts = ("train_inputs", "train_labels", "test_inputs", "test_labels")
    x, y, test_x, test_y = (torch.cat([getattr(e, part) for e in _tasks()]) for part in parts)
    return x, y, test_x, test_y


def _perceptron(rng: np.random.Generator) -> tuple[Callable[[], Any], Callable[[int, int], Experience]]:
    method = _pick(rng, list(MLP_METHODS))
    options: dict[str, Any] = {
        "widths": tuple(int(w) for w in rng.integers(1, 7, 2)), "lr": float(10 ** rng.uniform(-4, -1)),
        "momentum": _pick(rng, (0.0, 0.5, np.float32(0.9))), "batch_size": _pick(rng, (1, 3, np.int64(8), 50)),
        "seed": int(rng.integers(0, 2**63)), "output_gate": _pick(rng, ("none", "frequency")),
    }  # fmt: skip
    if method == "metaplastic":
        options["network"] = _pick(rng, ("hybrid", "stable", "conventional", "biased_high", 0.5))
        options["scale"] = _pick(rng, (1.0, 1e3, np.float64(10.0)))
        options["gate"] = _pick(rng, ("item", "step"))
        options["fused_step"] = bool(rng.random() < 0.3)
        if rng.random() < 0.4:
            options |= {
                "silent_fraction": float(rng.random()), "threshold": float(rng.random()),
                "insert": _pick(rng, ("init", "hebbian")), "rule": _pick(rng, ("rate", "hebbian")),
                "prune": _pick(rng, (0.0, 0.01)),
            }  # fmt: skip
    elif method in ("ewc", "si"):
        options["strength"] = float(10 ** rng.uniform(-3, 3))
    elif method == "replay":
        options |= {"memory": int(rng.integers(1, 12)), "replay_batch": _pick(rng, (None, 1, torch.tensor(4)))}
    elif method == "ridge":
        options |= {
            "random_features": int(rng.integers(0, 9)), "ridge": _pick(rng, ("auto", 0.1, np.float64(3.0))),
            "balanced": bool(rng.random() < 0.3), "intercept": bool(rng.random() < 0.5),
        }  # fmt: skip
    elif method == "lda":
        options |= {
            "shrinkage": _pick(rng, ("oas", "gcv", 0.2, 1)),
            "priors": _pick(rng, ("uniform", "counts")),
        }
    return lambda: MLP_METHODS[method]((SIZE,), CLASSES, **options), lambda n, _: _item(rng, n)


def _transformer(rng: np.random.Generator) -> tuple[Callable[[], Any], Callable[[int, int], Experience]]:
    method = _pick(rng, list(METHODS))
    options: dict[str, Any] = {"epochs": 1, "batch_size": 24, "seed": int(rng.integers(0, 2**63))}
    if method in ("artsy", "ease"):
        options["rank"] = int(rng.integers(1, 4))
        options["combine"] = _pick(rng, ("concat", "sum"))
        options["base_weight"] = _pick(rng, (0.0, 0.1))
    if method == "artsy":
        kind = _pick(rng, ("mlp", "energy", "mahalanobis", "knn", "likelihood_ratio", "ridge"))
        gate = {
            "gate": kind, "features": 8, "hidden": 3, "theta": float(rng.uniform(0.1, 0.95)),
            "threshold": _pick(rng, ("fixed", "quantile", "adaptive")),
            "gating": _pick(rng, ("hard", "soft", "topk")), "negatives": _pick(rng, ("gaussian", "replay")),
        }  # fmt: skip
        options["gate"] = gate
    if method == "ranpac":
        options["features"] = 8

    online = "online" in METHODS[method].takes

    def item(number: int, seen: int) -> Experience:
        """New classes, known ones again, or both; where a method takes that, sometimes a few images only."""
        x, y, test_x, test_y = _images()
        again = [int(c) for c in rng.permutation(seen)[: int(rng.integers(0, 4))]]
        new = range(seen, min(int(y.max()) + 1, seen + int(rng.integers(0, 3))))
        classes = [*again, *new]
        few = online and rng.random() < 0.4
        # A gate of energies needs two.
        spare = [c for c in range(int(y.max()) + 1) if c not in classes and c <= max([seen, *new]) + 1]
        classes += spare[: max(0, (1 if few else 2) - len(classes))]
        rows = torch.cat([(y == c).nonzero()[:, 0][torch.from_numpy(rng.permutation(18))] for c in classes])
        if few:
            rows = rows[::18]
        rows = rows[torch.from_numpy(rng.permutation(len(rows)))]
        labels, tests = y[rows], torch.isin(test_y, y[rows].unique())
        return Experience(
            f"item {number}", number, x[rows], labels, test_x[tests], test_y[tests],
            class_names=_names(rng, labels),
        )  # fmt: skip

    return lambda: make_learner(method, _backbone(), **options), item


# --------------------------------------------------------------------------- what is refused


def _bad_inputs(rng: np.random.Generator, x: Tensor) -> Any:
    """What no learner takes for inputs like ``x``."""
    x = x.float() / (255 if x.dtype is torch.uint8 else 1)
    spoiled = x.clone()
    spoiled.view(-1)[int(rng.integers(spoiled.numel()))] = _pick(rng, (math.nan, math.inf, -math.inf))
    return _pick(
        rng,
        (
            x.long(), x.int(), x > 0, x.to(torch.complex64), x[0], x[..., :-1, None], x.numpy(), x.tolist(),
            "x", None, spoiled, x.unsqueeze(1), x.to_sparse(), x.to("meta"),
        ),
    )  # fmt: skip


def _bad_item(rng: np.random.Generator, item: Experience, learner: Any) -> Any:
    x, y = item.train_inputs, item.train_labels
    kind = int(rng.integers(7))
    if kind == 0:
        return _pick(rng, ("item", None, (x, y), 3, [item]))
    if kind == 1:
        return dataclasses.replace(item, train_labels=y + 100)
    if kind == 2:
        return dataclasses.replace(item, train_labels=y - 100)
    if kind == 3:
        return dataclasses.replace(item, train_inputs=x[:0], train_labels=y[:0])
    if kind == 4:
        classes = len(y.unique())
        if classes == 1 and learner.family == "mlp":
            return "item"
        names = ("class 8", "class 9") if classes == 1 else ("class 9",) * classes
        return dataclasses.replace(item, class_names=names, test_labels=y[:1].repeat(len(item.test_labels)))
    bad = _bad_inputs(rng, x)
    while not (isinstance(bad, Tensor) and bad.dim() == x.dim() and len(bad) == len(x)):
        bad = _bad_inputs(rng, x)
    if bad.layout is not torch.strided:
        return "no experience"
    tests = len(item.test_labels)
    of_tests = bad.repeat(tests, *[1] * (bad.dim() - 1))[:tests]
    return dataclasses.replace(item, train_inputs=bad, test_inputs=of_tests)


def _refuses(learner: Any, call: Callable[[], Any], *names: str) -> None:
    """The call is refused, by name, and changes nothing."""
    before = fingerprint(learner)
    try:
        answer = call()
    except NotLearnedError:
        assert (learner.family, learner._progress().get("classes_seen")) == ("vit", 0)
    except REFUSED as error:
        if not any(name in str(error) for name in names):
            raise AssertionError(f"no {names} in: {error}") from error
    else:
        raise AssertionError(f"not refused: {type(answer).__name__}")
    assert fingerprint(learner) == before, "a refusal changed the learner"


# --------------------------------------------------------------------------- events


def _learn(rng: np.random.Generator, learner: Any, twin: Any, item: Experience) -> str:
    epochs = _pick(rng, (1, 2, np.int64(1), torch.tensor(2)))
    one_step = len(item.train_labels) <= learner.configuration().get("batch_size", 0) and int(epochs) == 1
    if "online" not in learner.takes and learner.family == "mlp" and len(item.train_labels) < 16 and one_step:
        _refuses(learner, lambda: learner.learn(item, epochs=epochs), "experience")
        return "refused"
    twin.learn(item, epochs=epochs)
    if learner.family == "vit" and rng.random() < 0.4:
        item = of_source(item)
    how = _pick(rng, ("straight", "straight", "stopped", "interrupted", "twice"))
    if how == "stopped":
        at = int(rng.integers(1, int(epochs) + 1))

        def stop(now: Any) -> None:
            if now.epoch == at:
                raise StopError

        try:
            learner.learn(item, epochs=epochs, progress=stop)
        except StopError:
            assert learner._begun is not None
            other = dataclasses.replace(item, name="another")
            _refuses(learner, lambda: learner.learn(other), "experience")
    for _ in range({"interrupted": 1, "twice": 2}.get(how, 0)):
        _interrupt(rng, learner, item, epochs)
    if learner.items_learned < twin.items_learned:
        learner.learn(item, epochs=epochs, watch=_pick(rng, (None, lambda now: torch.rand(now.done))))
    return how


def _interrupt(rng: np.random.Generator, learner: Any, item: Experience, epochs: Any) -> None:
    """At one of the first lines of the item's end."""
    if learner.items_learned > item.number:
        return
    end, error = type(learner)._end, _pick(rng, (KeyboardInterrupt, MemoryError, OSError))
    line, start, before = int(10 ** rng.uniform(0, 2.5)), fingerprint(learner), ""

    def stopped_end(*arguments: Any) -> None:
        nonlocal before
        before = fingerprint(learner)
        with interrupted(line, error):
            end(learner, *arguments)

    learner._end = stopped_end
    try:
        learner.learn(item, epochs=epochs)
    except error:
        # Where nothing is trained, the beginning is undone with the end.
        assert fingerprint(learner) == (before if learner._begun else start), (
            "an interrupted end was not undone"
        )
    finally:
        learner.__dict__.pop("_end", None)


def _ask(rng: np.random.Generator, learner: Any, item: Experience) -> None:
    x = item.test_inputs[: int(rng.integers(0, 4))]
    if learner.family == "vit" and not learner.classes_seen:
        return _refuses(learner, lambda: learner.predict(x), "learn an experience first")
    told = {"task": torch.zeros(len(x), dtype=torch.int64)} if learner.family == "vit" else {}
    logits, answers = learner.logits(x, **told), learner.predict(x, **told)
    classes = CLASSES if learner.family == "mlp" else learner.classes_seen
    assert (logits.dtype, tuple(logits.shape)) == (torch.float32, (len(x), classes))
    assert (answers.dtype, tuple(answers.shape)) == (torch.int64, (len(x),))
    assert bool(logits.isfinite().all())
    assert torch.equal(answers, logits.argmax(1)) or told
    likely, top = learner.probabilities(x, **told), int(rng.integers(1, 6))
    assert (likely.dtype, likely.shape) == (torch.float32, logits.shape)
    assert bool(((likely.sum(1) - 1).abs() < 1e-5).all())
    named = learner.predict(x, top=top, **told)
    assert [found[0].label for found in named] == likely.argmax(1).tolist()
    for found in named:
        assert len(found) == min(top, classes)
        assert all(answer.name == learner.class_names[answer.label] for answer in found)
    return None


def _through_file(learner: Any) -> Any:
    given = {"backbone": _backbone()} if learner.family == "vit" else {}
    with tempfile.TemporaryDirectory() as folder:
        learner.save(Path(folder) / "learner")
        return load_learner(Path(folder) / "learner", **given)


def _life(rng: np.random.Generator, make: Callable[[], Any], item_of: Callable[[int, int], Experience]) -> str:
    learner, twin, seen = make(), make(), set[str]()
    item = item_of(0, 0)
    for _ in range(int(rng.integers(2, 8))):
        event = _pick(rng, ("learn", "learn", "ask", "bad learn", "bad ask", "evaluate", "copy"))
        if event == "learn":
            item = item_of(learner.items_learned, getattr(learner, "classes_seen", 0))
            seen.add(_learn(rng, learner, twin, item))
        elif event == "ask":
            _ask(rng, learner, item)
        elif event == "bad learn":
            if rng.random() < 0.2:
                epochs = _pick(rng, (0, -1, 1.5, "1", True, math.nan))
                _refuses(learner, lambda: learner.learn(item, epochs=epochs), "epochs")
            else:
                bad = _bad_item(rng, item, learner)
                _refuses(learner, lambda: learner.learn(bad), "experience")
        elif event == "bad ask":
            x = _bad_inputs(rng, item.test_inputs)
            _refuses(learner, lambda: learner.predict(x), "x must be", "x: there is no file or folder 'x'")
        elif event == "evaluate":
            if learner.family == "mlp" or learner.classes_seen:
                evaluation = learner.evaluate([item])
                assert evaluation.confusion.sum() == len(item.test_labels)
                assert 0 <= evaluation.accuracies[0] <= 1
            nothing = dataclasses.replace(
                item, test_inputs=item.test_inputs[:0], test_labels=item.test_labels[:0]
            )
            stream: Any = _pick(rng, ([], [nothing], [item, nothing], item, ["item"], 3))
            _refuses(learner, lambda: learner.evaluate(stream), "stream")
        elif event == "copy":
            copied = _pick(rng, (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), _through_file))
            before, old = fingerprint(learner), learner
            learner = copied(learner)
            assert fingerprint(learner) == before, "a copy differs"
            assert fingerprint(old) == before
        assert fingerprint(learner) == fingerprint(twin), f"not as its twin after {event}"
    return _pick(rng, sorted(seen)) if seen else "not taught"


# --------------------------------------------------------------------------- options

_COUNTS = ("classes", "batch_size", "memory", "fisher_samples", "replay_batch", "random_features")
_OWN: dict[str, tuple[str, ...]] = {
    "metaplastic": ("scale", "silent_fraction", "threshold", "eta", "prune"),
    "ewc": ("strength", "decay", "fisher_samples"),
    "si": ("strength", "damping"),
    "replay": ("memory", "replay_batch"),
    "joint": (),
    "ridge": ("random_features", "ridge", "balanced", "intercept"),
    "lda": ("shrinkage", "priors"),
}


def _bad_option(rng: np.random.Generator) -> str:
    """One wrong option: refused by its name."""
    method = _pick(rng, list(MLP_METHODS))
    of_all = ("classes", "batch_size", "lr", "momentum", "seed", "widths", "input_shape", "output_gate")
    name = _pick(rng, (*of_all, *_OWN[method]))
    wrong = [
        "3x",
        True,
        math.nan,
        -1,
        [1.0, 2.0],
        torch.tensor([1, 2]),
        object(),
        np.float32(math.inf),
        -0.5,
        {},
    ]
    if name in ("widths", "input_shape"):
        wrong = ["34", 3, None, (0, 1), ("3", 3), (1.5, 2), (True, 3), (-1, 2), torch.tensor([0.5, 0.5])]
    elif name in _COUNTS or name == "seed":
        wrong += [1.5, np.float64(2.0), torch.tensor(2.0), 2**70]
    value = _pick(rng, wrong)
    given = {"input_shape": (SIZE,), "classes": CLASSES, "widths": (3, 3), name: value}
    shape, classes = given.pop("input_shape"), given.pop("classes")
    try:
        MLP_METHODS[method](shape, classes, **given)
    except REFUSED as error:
        if name in str(error):
            return "refused"
        raise AssertionError(f"no {name!r} in: {error}") from error
    raise AssertionError(f"{method}: {name}={value!r} was not refused")


@fuzzer("learners", quick=150, full=3_000)
def learners(rng: np.random.Generator) -> str:
    """A life, seldom on a transformer, or one wrong option."""
    torch.set_num_threads(1)
    kind = rng.random()
    if kind < 0.25:
        return _bad_option(rng)
    return _life(rng, *(_transformer if kind > 0.98 else _perceptron)(rng))
