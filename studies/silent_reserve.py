"""Does a reserve of silent synapses help later items without hurting earlier ones?

A hybrid network learns two-digit items one after the other, with and without a reserve in its hidden layers. A
reserve also makes a network sparse, which changes what it learns from the first item on; so each reserve is
compared with no reserve, and with its control: the same synapses silent, and never converted.

How fast synapses convert is chosen in a pilot, on other seeds than those that are reported. Everything else
(learning rate, scale="auto" measured for each network, sizes) is the same for all networks.

    python -m studies.silent_reserve --out docs/results/silent_reserve
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flexkern.learners import MetaplasticMLP
from flexkern.metrics import AccuracyMatrix
from flexkern.runs.demo import digit_features
from flexkern.runs.statistics import paired
from flexkern.streams import Stream, bundled_digits
from studies.reserve_settings import CONTROL, METHODS, NEVER, NONE, StudyConfig, condition
from studies.reserve_tables import write

__all__ = ["main", "measures", "run", "summarise"]

MEASURES = ("early", "late", "last", "learned", "learned_late")


def run(config: StudyConfig, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The pilot, then all networks on all seeds.

    Args:
        config: the sizes.
        progress: called after each network with what came out.

    Returns:
        Plain lists and numbers, for JSON.
    """
    start = time.perf_counter()
    digits = bundled_digits()
    pilot = _pilot(config, digits, progress)
    chosen = _choose(pilot)
    progress(f"chosen targets: {chosen}")
    runs = []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        stream = digit_features(digits, config, seed)
        runs.append(_learn(config, stream, seed, NONE, 0.0, {}, progress))
        for share in config.shares:
            runs.append(_learn(config, stream, seed, CONTROL, share, {"threshold": NEVER}, progress))
            for method, options in METHODS.items():
                given = options | {"threshold": config.threshold(chosen[method])}
                runs.append(_learn(config, stream, seed, method, share, given, progress))
    return {
        "experiment": "a reserve of silent synapses, two-digit items",
        "configuration": asdict(config),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "seconds": round(time.perf_counter() - start),
        "methods": METHODS,
        "chosen_targets": chosen,
        "summary": summarise(runs),
        "pilot": pilot,
        "runs": runs,
    }


# --------------------------------------------------------------------------- networks


def _learn(
    config: StudyConfig,
    stream: Stream,
    seed: int,
    method: str,
    share: float,
    options: dict[str, Any],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """One network through the stream."""
    learner = MetaplasticMLP(
        stream.input_shape,
        stream.classes,
        widths=(config.width, config.width),
        lr=config.lr,
        batch_size=config.batch_size,
        seed=seed,
        silent_fraction=share,
        **options,
    )
    matrix = AccuracyMatrix()
    functional = [learner.functional_share()[:2]]
    for item in stream:
        learner.learn(item, epochs=config.epochs)
        matrix.add(learner.evaluate(stream).accuracies)
        functional.append(learner.functional_share()[:2])
    (scale,) = learner.optimizer.scales()
    assert scale is not None
    record: dict[str, Any] = {
        "seed": seed,
        "method": method,
        "share": share,
        "accuracy": [[round(a, 4) for a in row] for row in matrix.tolist()],
        "functional": [[round(s, 5) for s in of_item] for of_item in functional],  # of both hidden layers
        "conversions": [sum(of_item) for of_item in learner.conversions()],
        "scale": float(f"{float(scale):.6g}"),
    }
    shown = " ".join(f"{name} {value:.3f}" for name, value in measures(record).items())
    progress(f"seed {seed:3} {condition(method, share):28} {shown} converted {sum(record['conversions'])}")
    return record


# --------------------------------------------------------------------------- the pilot


def _pilot(config: StudyConfig, digits: Any, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every method with every target, on the pilot's seeds: last accuracy, and how much was converted."""
    results: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for seed in config.pilot():
        stream = digit_features(digits, config, seed)
        for method, options in METHODS.items():
            for target in config.targets:
                given = options | {"threshold": config.threshold(target)}
                record = _learn(config, stream, seed, method, config.pilot_share, given, progress)
                # Of both layers' synapses: the first is the larger.
                synapses = config.width * (stream.input_shape[0] + config.width)
                converted = sum(record["conversions"]) / (config.pilot_share * synapses)
                results.setdefault((method, target), []).append((measures(record)["last"], converted))
    return [
        {
            "method": method,
            "target": target,
            "last": round(float(np.mean([last for last, _ in of])), 4),
            "converted": round(float(np.mean([converted for _, converted in of])), 4),
        }
        for (method, target), of in results.items()
    ]


def _choose(pilot: list[dict[str, Any]]) -> dict[str, float]:
    """For each method the target with the best last accuracy, of those that convert a tenth of the reserve.

    Without that condition the best would be a reserve that is hardly used, which is the control. If none
    converts so much: the one that converts most.
    """
    chosen = {}
    for method in METHODS:
        of = [p for p in pilot if p["method"] == method]
        used = [p for p in of if p["converted"] >= 0.1]
        best = max(used, key=lambda p: p["last"]) if used else max(of, key=lambda p: p["converted"])
        chosen[method] = best["target"]
    return chosen


# --------------------------------------------------------------------------- statistics


def measures(record: dict[str, Any]) -> dict[str, float]:
    """Accuracies of a network, each a mean over items.

    early, late: after the stream, on the first and second half of the items (of an odd number, the one in the
    middle is late). last: on all. learned: on each item right after it was learned; learned_late: the same, on
    the second half.
    """
    matrix = np.array(record["accuracy"])
    half = len(matrix) // 2
    end, learned = matrix[-1], np.diag(matrix)
    values = (end[:half], end[half:], end, learned, learned[half:])
    return {name: float(v.mean()) for name, v in zip(MEASURES, values, strict=True)}


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each condition over the seeds, and its paired differences to no reserve and to its control."""
    by: dict[tuple[str, float], dict[str, NDArray[np.float64]]] = {}
    functional: dict[tuple[str, float], NDArray[np.float64]] = {}
    scales: dict[tuple[str, float], float] = {}
    for key in dict.fromkeys((r["method"], r["share"]) for r in runs):
        of = sorted((r for r in runs if (r["method"], r["share"]) == key), key=lambda r: r["seed"])
        of_seeds = [measures(r) for r in of]
        by[key] = {name: np.array([m[name] for m in of_seeds]) for name in MEASURES}
        functional[key] = np.array([r["functional"] for r in of]).mean(0)
        scales[key] = float(np.mean([r["scale"] for r in of]))
    summary = {}
    for (method, share), values in by.items():
        entry: dict[str, Any] = {
            name: {"mean": round(float(v.mean()), 4), "std": round(float(v.std(ddof=1)), 4)}
            for name, v in values.items()
        }
        entry["functional"] = np.round(functional[method, share], 4).tolist()
        entry["scale"] = round(scales[method, share], 1)
        if method != NONE:
            entry["to_none"] = {name: paired(v - by[NONE, 0.0][name]) for name, v in values.items()}
        if method not in (NONE, CONTROL):
            entry["to_control"] = {name: paired(v - by[CONTROL, share][name]) for name, v in values.items()}
        summary[condition(method, share)] = entry
    return summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study and writes its JSON, page and picture."""
    defaults = StudyConfig()
    parser = argparse.ArgumentParser(
        prog="python -m studies.silent_reserve", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("out/silent_reserve"))
    for field in dataclasses.fields(StudyConfig):
        if isinstance(field.default, (int, float)):
            name = "--" + field.name.replace("_", "-")
            parser.add_argument(name, type=type(field.default), default=getattr(defaults, field.name))
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    # These networks are too small for threads, which wait for each other on a busy machine.
    torch.set_num_threads(1)
    results = run(StudyConfig(**options), lambda line: print(line, flush=True))
    for path in write(results, out):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
