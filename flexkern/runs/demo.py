"""The demo: three networks learn ten two-digit items one after the other; which still knows the first?

The network and the rule are those of arXiv 2407.07133; data, features and sizes are small, so that it takes
less than a minute on two idle cores: scikit-learn's bundled digits, one frozen layer of random convolutions.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import flexkern
from flexkern.features import RandomConvolutions, extract
from flexkern.files import write_json
from flexkern.learners import MetaplasticMLP
from flexkern.metrics import AccuracyMatrix, memorised
from flexkern.runs import awakening
from flexkern.runs.seeds import LARGEST_OF_NUMPY, as_list, checked, said_seeds, united
from flexkern.streams import Stream, bundled_digits, two_digit_stream
from flexkern.streams.digits import Digits

__all__ = ["EXPERIMENT", "NETWORKS", "DemoConfig", "digit_features", "read_known", "run", "write"]

EXPERIMENT = "two-digit items, bundled digits, frozen random convolutions"  # in its results

NETWORKS = ("conventional", "hybrid", "stable")


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo. A run of each seed has its own items, their order, and networks.

    Raises:
        ValueError: naming the argument. (Items, epochs and the like are checked where they are used.)
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    items: int = 10
    epochs: int = 2
    train_per_item: int = 500
    test_per_item: int = 200
    lr: float = 5e-3
    batch_size: int = 50
    width: int = 256
    channels: int = 32
    grid: int = 8
    scale: float | str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", checked(self.seeds, most=LARGEST_OF_NUMPY))

    def steps(self, known: dict[str, Any] | None = None) -> int:
        """How often :func:`run` reports progress."""
        new = [seed for seed in self.seeds if known is None or seed not in {r["seed"] for r in known["runs"]}]
        # And once more through the first seed's stream, with a reserve.
        return len(new) * (1 + len(NETWORKS) * self.items) + (self.items if known is None else 0)


def run(
    config: DemoConfig,
    progress: Callable[[str], None] = lambda _: None,
    *,
    known: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains all networks on all seeds, and one with a reserve of silent synapses on the first.

    Args:
        config: the sizes.
        progress: called ``config.steps(known)`` times with what was just done.
        known: of :func:`read_known`: results of other seeds, which stay, and come first.

    Returns:
        What :func:`write` writes: plain lists and numbers.
    """
    start = time.perf_counter()
    digits = bundled_digits()
    runs: list[dict[str, Any]] = [] if known is None else list(known["runs"])
    alive: dict[str, Any] = {} if known is None else known["awakening"]
    if known is not None:
        config = replace(config, seeds=united([r["seed"] for r in runs], config.seeds))
    for seed in config.seeds[len(runs) :]:
        features = digit_features(digits, config, seed)
        progress(f"seed {seed}: features")
        networks = {name: _learn(name, features, config, seed, progress) for name in NETWORKS}
        if not runs:
            options = _options(config, seed) | {"network": "hybrid"}
            alive = awakening.run(features, config.epochs, progress, **options)
        runs.append({"seed": seed, "items": features.names, "networks": networks})
    return {
        "experiment": EXPERIMENT,
        "source": "arXiv 2407.07133",
        "configuration": _configuration(config),
        "chance": 1 / config.items,
        "versions": _versions(),
        "seconds": round(time.perf_counter() - start + (0 if known is None else known["seconds"]), 1),
        "summary": {name: _summary([r["networks"][name] for r in runs]) for name in NETWORKS},
        "awakening": alive,
        "runs": runs,
    }


class Sizes(Protocol):
    """What :func:`digit_features` needs to know of a configuration."""

    @property
    def items(self) -> int: ...
    @property
    def train_per_item(self) -> int: ...
    @property
    def test_per_item(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def grid(self) -> int: ...


def digit_features(digits: Digits, sizes: Sizes, seed: int) -> Stream:
    """Two-digit items as features of frozen random convolutions, all of them by one seed.

    Args:
        digits: single digits, of which the items are put together.
        sizes: of the stream and of the convolutions.
        seed: of items, their order, and convolutions.
    """
    stream = two_digit_stream(
        *digits,
        items=sizes.items,
        train_per_item=sizes.train_per_item,
        test_per_item=sizes.test_per_item,
        seed=seed,
    )
    extractor = RandomConvolutions(sizes.channels, grid=sizes.grid, seed=seed)
    # Unlabelled images of the first item: nothing is known of the stream before it begins.
    return extract(stream, extractor.calibrate(stream[0].train_inputs))


def _options(config: DemoConfig, seed: int) -> dict[str, Any]:
    """What all networks have in common."""
    return {
        "widths": (config.width, config.width),
        "lr": config.lr,
        "scale": config.scale,
        "batch_size": config.batch_size,
        "seed": seed,
    }


def _learn(
    network: str, stream: Stream, config: DemoConfig, seed: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """One network through the stream: its accuracy matrix, and how many items it remembers after each."""
    learner = MetaplasticMLP(stream.input_shape, stream.classes, network=network, **_options(config, seed))
    matrix = AccuracyMatrix()
    remembered = []
    for item in stream:
        learner.learn(item, epochs=config.epochs)
        evaluation = learner.evaluate(stream)
        matrix.add(evaluation.accuracies)
        remembered.append(int(memorised(evaluation.confusion, learned=range(item.number + 1)).sum()))
        progress(f"seed {seed}: {network}, item {item.number + 1} of {len(stream)}")
    return {
        "accuracy": [[round(a, 4) for a in row] for row in matrix.tolist()],
        "memorised": remembered,
        "last": matrix.last,
        "average": matrix.average,
        "forgetting": matrix.forgetting,
        "backward_transfer": matrix.backward_transfer,
        "scale": learner.optimizer.scales()[0],
    }


def _summary(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds."""
    values = {
        "accuracy": [n["accuracy"][-1] for n in networks],
        "memorised": [n["memorised"] for n in networks],
        **{key: [n[key] for n in networks] for key in ("last", "average", "forgetting", "backward_transfer")},
    }
    spread = 1 if len(networks) > 1 else 0  # one seed has no spread: 0, not NaN
    return {
        key: {
            "mean": np.round(np.mean(v, axis=0), 4).tolist(),
            "std": np.round(np.std(v, axis=0, ddof=spread), 4).tolist(),
        }
        for key, v in values.items()
    }


def _versions() -> dict[str, str]:
    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {
        "flexkern": flexkern.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": installed("scikit-learn"),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "backends": ", ".join(name for name, status in flexkern.backends().items() if status.available),
    }


def _configuration(config: DemoConfig) -> dict[str, Any]:
    return asdict(config) | {"seeds": list(config.seeds)}


def read_known(out: Path, config: DemoConfig, *, restart: bool = False) -> dict[str, Any] | None:
    """Results of the same demo that ``out`` holds, to which seeds can be added; None if there are none, or they
    are to be discarded.

    Raises:
        ValueError: if ``out`` holds results of something else, or of other settings or versions.
    """
    known: Any
    try:
        known = json.loads((out / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, dict) or known.get("experiment") != EXPERIMENT:
        raise ValueError(f"out: {str(out)!r} holds results of something else; give another folder with --out")
    if restart:
        return None
    before = as_list(known["configuration"]) | known["versions"]
    now = _configuration(config) | _versions()
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in before | now
        if key != "seeds" and before.get(key) != now.get(key)
    ]
    if changed:
        raise ValueError(
            f"out: {str(out)!r} holds another demo ({'; '.join(changed)}), of seeds "
            f"{said_seeds(before['seeds'])}. Give another folder with --out, or discard it with --restart"
        )
    return known | {"configuration": as_list(known["configuration"])}


def write(results: dict[str, Any], out: Path) -> tuple[Path, Path, Path]:
    """Writes ``results.json``, ``memory.png`` and ``awakening.png`` into ``out`` and returns their paths.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    from flexkern.runs.demo_pictures import draw_awakening, draw_memory

    out.mkdir(parents=True, exist_ok=True)
    paths = out / "results.json", out / "memory.png", out / "awakening.png"
    write_json(paths[0], results)
    draw_memory(results, paths[1])
    draw_awakening(results["awakening"], paths[2])
    return paths
