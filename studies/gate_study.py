"""Which gate should open an adapter? Gates, thresholds and ways to combine, compared on the same adapters.

The paper (arXiv 2410.05899) leaves open whether its gate beats having none, which detector gates best, how
thresholds should be set, and whether gates should be trained again. Adapters do not depend on gates, so they
are trained once per seed; each variant then goes through the stream again on the stored features, task after
task, as the learner does.

    python -m studies.gate_study --data cifar100.npz --out docs/results/artsy

The archive is one that flexkern.streams.image_pack reads. Classes 50 to 99 of CIFAR-100 take part: the embedded
backbone has seen the others in its pre-training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexkern.environment import environment
from flexkern.files import write_json
from flexkern.learners.vit.training import Recipe
from flexkern.streams import Stream, class_incremental, image_pack
from studies.gate_features import SpaceFeatures, features_of_stream
from studies.gate_tables import write
from studies.heads import Head

__all__ = ["StudyConfig", "Variant", "main", "replay", "variants"]


@dataclass(frozen=True)
class Variant:
    """One way to answer from the stored features.

    Args:
        name: for tables, unique within its group.
        group: the question that it belongs to.
        gate: options of :class:`flexkern.nn.SynapseGate`; None: no gate (a head on E0 alone).
        head: of :class:`studies.heads.Head`.
        options: of the head.
        mean: whether the gate and a ridge head read the mean of E0's other tokens, too.
        told: whether the task is told, and only its classes are answered: the control of the oracle, which is
            told it too.
    """

    name: str
    group: str
    gate: dict[str, Any] | None = None
    head: str = "prototype"
    options: dict[str, Any] | None = None
    mean: bool = False
    told: bool = False

    @property
    def key(self) -> str:
        """Unique: in the results it stands for the variant."""
        return f"{self.group}: {self.name}"


FEATURES = 2000  # of RanPAC's random projection, and that of the experts
GATE_FEATURES = 500  # of the ridge gates that are compared with others: many are solved
DETECTORS = ("mlp", "energy", "mahalanobis", "knn", "likelihood_ratio", "ridge")
TOP1: dict[str, Any] = {"gating": "topk", "k": 1, "fill": True}
TOP2: dict[str, Any] = {"gating": "topk", "k": 2, "fill": True}


def _gate(name: str, **options: Any) -> dict[str, Any]:
    """Options of a refreshed gate."""
    small = {"features": GATE_FEATURES} if name == "ridge" else {}
    return {"gate": name, "refresh": True, **small, **options}


def variants() -> list[Variant]:
    """Everything that is compared, by question."""
    found = [
        Variant("EASE (no gate)", "baseline", {"gate": "none"}),
        Variant("oracle gate", "baseline", {"gate": "oracle"}),
        Variant("oracle's control (E0 alone, told the task)", "baseline", head="simplecil", told=True),
        Variant("SimpleCIL (E0)", "baseline", head="simplecil"),
        Variant("RanPAC (ridge on E0)", "baseline", head="ridge"),
        Variant("paper: mlp, hard, fixed 0.5", "baseline", {"gate": "mlp"}),
    ]
    for name in DETECTORS:
        found.append(Variant(f"{name}, hard", "detector", _gate(name)))
        found.append(Variant(f"{name}, one open", "detector", _gate(name, **TOP1)))
    for label, options in (
        ("mlp on whitened features", {"gate": "mlp", "inputs": "whitened"}),
        ("mahalanobis, softmax over tasks", {"gate": "mahalanobis", "calibration": "softmax"}),
        ("likelihood_ratio, softmax over tasks", {"gate": "likelihood_ratio", "calibration": "softmax"}),
    ):
        found.append(Variant(f"{label}, hard", "detector", {"refresh": True, **options}))
        found.append(Variant(f"{label}, one open", "detector", {"refresh": True, **options, **TOP1}))
    for theta in (0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        for name in ("mlp", "ridge"):
            found.append(Variant(f"{name}, fixed {theta}", "threshold", _gate(name, theta=theta)))
    for rule, targets in (("quantile", (0.7, 0.9, 0.95, 0.99)), ("adaptive", (0.05, 0.1, 0.2, 0.4))):
        for target in targets:
            for name in ("mlp", "ridge"):
                gate = _gate(name, threshold=rule, target=target)
                found.append(Variant(f"{name}, {rule} {target}", "threshold", gate))
    gatings: dict[str, dict[str, Any]] = {
        "hard": {}, "soft": {"gating": "soft"}, "one open": TOP1, "two open": TOP2,
        "soft, two open": {"gating": "soft", "k": 2},
    }  # fmt: skip
    for name in ("mlp", "ridge"):
        for gating, options in gatings.items():
            found.append(Variant(f"{name}, {gating}", "gating", _gate(name, **options)))
    for refresh in (False, True):
        for negatives in ("gaussian", "replay"):
            for gating, options in (("hard", {}), ("one open", TOP1)):
                label = f"{'refreshed' if refresh else 'trained once'}, {negatives}, {gating}"
                gate = {"gate": "mlp", "refresh": refresh, "negatives": negatives, **options}
                found.append(Variant(label, "refresh and negatives", gate))
    return found + _expert_variants()


def _expert_variants() -> list[Variant]:
    """Beyond the paper: a ridge head says which tasks open, and experts decide within them."""
    found = []
    for mean, reads in ((False, "class token"), (True, "class and mean tokens")):
        found.append(Variant(f"ridge on E0's {reads}, none open", "beyond the paper", head="ridge", mean=mean))
        for k, opened in ((1, "one open"), (2, "two open")):
            gate = {"gate": "ridge", "gating": "topk", "k": k, "fill": True}
            found.append(Variant(f"experts, {reads}, {opened}", "beyond the paper", gate, "experts", mean=mean))
    return found


# --------------------------------------------------------------------------- going through the stream again


def replay(features: SpaceFeatures, variant: Variant, *, seed: int) -> dict[str, Any]:
    """One variant through the stream: accuracies after each task, and how its gates did at the end.

    Returns:
        Plain numbers: ``matrix`` [T][T] (row: after task, column: on task), ``average``, ``last``, ``gates``
        (of :meth:`flexkern.nn.SynapseGate.report`), ``open_per_sample``, ``keeps_data``.
    """
    train_task, test_task = features.task_of(features.train_labels), features.task_of(features.test_labels)
    read_train, read_test = features.read(variant.mean)
    options = dict(variant.options or {})
    if variant.head == "ridge":
        options = {"features": FEATURES} | options
    head = Head(
        variant.head,
        features.train.shape[2],
        read_train.shape[1],
        gate=variant.gate,
        options=options,
        seed=seed,
    )
    matrix, after = [], []
    for task in range(features.tasks):
        rows = train_task == task
        head.learn(read_train[rows], features.train[rows, : task + 2], features.train_labels[rows])
        seen = test_task <= task
        logits = head.logits(read_test[seen], features.test[seen, : task + 2], test_task[seen])
        if variant.told:
            of_class = features.task_of(torch.arange(logits.shape[1]))
            logits = logits.masked_fill(of_class != test_task[seen, None], -torch.inf)
        answers = logits.argmax(1)
        right = (answers == features.test_labels[seen]).double()
        matrix.append([float(right[test_task[seen] == t].mean()) for t in range(task + 1)])
        after.append(float(right.mean()))
    return {
        "matrix": [[round(a, 4) for a in row] for row in matrix],
        "average": round(float(np.mean(after)), 4),
        "last": round(after[-1], 4),
        **_report(head, read_test, test_task),
    }


def _report(head: Head, read: Tensor, task: Tensor) -> dict[str, Any]:
    if head.gate is None:
        return {"open_per_sample": 0.0, "keeps_data": False}
    report = head.gate.report(read, task)
    kept = {k: report[k] for k in ("open_rate", "open_rate_own", "open_rate_other", "auroc_mean", "best_right")}
    return {"open_per_sample": report["open_per_sample"], "keeps_data": head.gate.keeps_data, "gates": kept}


# --------------------------------------------------------------------------- the whole study


@dataclass(frozen=True)
class StudyConfig:
    """Sizes of the study.

    Args:
        data: an archive of images, see :func:`flexkern.streams.image_pack`.
        backbone: as :func:`flexkern.backbones.load_backbone` takes it.
        first_class, classes, increment: of the stream: this many classes from the first on, so many a task.
        train_per_class, test_per_class: images.
        seeds: streams, each with its own order of classes, choice of images and training.
        first_seed: seeds are this one and those after it.
        rank, adapter_scale, epochs, lr, crop: of the adapters and their training.
    """

    data: str
    backbone: str = "small"
    first_class: int = 50
    classes: int = 50
    increment: int = 5
    train_per_class: int = 100
    test_per_class: int = 40
    seeds: int = 3
    first_seed: int = 0
    rank: int = 16
    adapter_scale: float = 1.0
    epochs: int = 20
    lr: float = 0.2
    crop: float = 0.35

    @property
    def recipe(self) -> Recipe:
        """How adapters are trained."""
        return Recipe(epochs=self.epochs, lr=self.lr, crop=(self.crop, 1.0), precision="bfloat16")


def streams(config: StudyConfig) -> Iterator[tuple[int, Stream]]:
    """Each seed and its stream."""
    train, test = image_pack(config.data)
    chosen = range(config.first_class, config.first_class + config.classes)
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        yield seed, class_incremental(
            train, test, increment=config.increment, classes=chosen, seed=1993 + seed,
            train_per_class=config.train_per_class, test_per_class=config.test_per_class,
        )  # fmt: skip


def run(config: StudyConfig, kept: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Trains what is not in ``kept`` yet, goes through all variants, and returns what is written."""
    start = time.perf_counter()
    runs: list[dict[str, Any]] = []
    for seed, stream in streams(config):
        features = features_of_stream(
            stream, seed, config.recipe, backbone=config.backbone, rank=config.rank,
            adapter_scale=config.adapter_scale, path=kept / f"seed{seed}.safetensors", progress=progress,
        )  # fmt: skip
        notes = kept / f"seed{seed}.json"  # a study that was stopped goes on with the next variant
        done = json.loads(notes.read_text()) if notes.exists() else {}
        digest = features.digest()
        for variant in variants():
            key = json.dumps({"features": digest, **asdict(variant)}, sort_keys=True)
            if key not in done:
                began = time.perf_counter()
                result = replay(features, variant, seed=seed)
                done[key] = {"seconds": round(time.perf_counter() - began, 2), **result}
                write_json(notes, done)
            runs.append({"seed": seed, "variant": variant.key, **done[key]})
            last, opened = done[key]["last"], done[key]["open_per_sample"]
            progress(f"seed {seed}: {variant.name}: last {last:.1%}, open {opened:.2f}")
    return {
        "experiment": "gates compared on the same adapters",
        "source": "arXiv 2410.05899",
        "configuration": asdict(replace(config, data=Path(config.data).name)),
        "variants": [{"key": v.key, **asdict(v)} for v in variants()],
        "summary": summarise(runs),
        "runs": runs,
        "versions": environment()["versions"],
        "seconds": round(time.perf_counter() - start, 1),
    }


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds of each variant, and paired differences to EASE and
    RanPAC."""
    by: dict[str, list[dict[str, Any]]] = {}
    for r in sorted(runs, key=lambda r: r["seed"]):
        by.setdefault(r["variant"], []).append(r)
    last = {name: np.array([r["last"] for r in of]) for name, of in by.items()}
    summary = {}
    for name, of in by.items():
        entry: dict[str, Any] = {"keeps_data": of[0]["keeps_data"]}
        for key in ("last", "average", "open_per_sample"):
            values = np.array([r[key] for r in of])
            std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            entry[key] = {"mean": round(float(values.mean()), 4), "std": round(std, 4)}
        if "gates" in of[0]:
            for key in of[0]["gates"]:
                known = [r["gates"][key] for r in of if r["gates"][key] is not None]
                entry[key] = round(float(np.mean(known)), 4) if known else None
        for label, peer in (
            ("to_ease", "baseline: EASE (no gate)"),
            ("to_ranpac", "baseline: RanPAC (ridge on E0)"),
        ):
            difference = last[name] - last[peer]
            entry[label] = {"mean": round(float(difference.mean()), 4), "all": np.round(difference, 4).tolist()}
        summary[name] = entry
    return summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study and writes its JSON, tables and pictures."""
    parser = argparse.ArgumentParser(prog="python -m studies.gate_study", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", required=True, help="an archive of CIFAR-100, see flexkern.streams.image_pack"
    )
    parser.add_argument("--out", type=Path, default=Path("out/artsy"))
    parser.add_argument(
        "--kept", type=Path, default=Path("out/artsy/features"), help="folder for stored features"
    )
    defaults = StudyConfig(data="")
    for name, value in asdict(defaults).items():
        if name != "data":
            parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    options = vars(parser.parse_args(arguments))
    out, kept = options.pop("out"), options.pop("kept")
    results = run(StudyConfig(**options), kept, lambda line: print(line, flush=True))
    out.mkdir(parents=True, exist_ok=True)
    for path in write(results, out):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
