"""How good is ``scale="auto"``? Against the best scale that can be found by trying, over many settings.

Each setting is a stream, features, a width, a learning rate and so on. The rule was found on two-digit items,
and most settings are of these. The others are class-incremental streams, whose items have no negatives: no
images of other items with wrong labels. The hybrid network learns the stream with the automatic scale, and with
that scale times powers of two; the best of these is the oracle, which nobody has in practice, because it is
chosen by the accuracy after the stream. The rule has to come close to it everywhere, with one constant. For
comparison: the conventional network, and the plain rule, a constant over the first layer's mean displacement,
with the constant that suits these settings best.

How accuracy goes with the scale in a few of them, by the protocol of the other experiments and with claims that
are put to the test, is the subject of ``studies.scale_study``.

Settings that the file has are not run again: after a change of the rule, begin with another file.

    python -m studies.auto_scale --out docs/results/auto_scale.json \\
        --mnist mnist.npz --squeezenet squeezenet1_1_features.npz --cifar100 cifar100_webp.npz
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexkern.features import BackboneFeatures, RandomConvolutions, extract
from flexkern.files import write_json
from flexkern.learners import MetaplasticMLP
from flexkern.runs.metaplasticity.items import two_digit_images
from flexkern.runs.metaplasticity.squeezenet import SqueezeNet
from flexkern.streams import Images, Stream, bundled_digits, class_incremental, image_pack

__all__ = ["SETTINGS", "Setting", "main", "run"]

FACTORS = tuple(2.0**e for e in range(-3, 4))  # times the automatic scale


def _by_classes(data: str) -> bool:
    return data.endswith("-classes")


@dataclass(frozen=True)
class Setting:
    """What is learned, and how. ``centred``: features less their mean over the first item's images."""

    # Two-digit items: digits, mnist (both through random convolutions), squeezenet (MNIST through SqueezeNet).
    # Class-incremental: digits-classes (random convolutions), cifar100-classes (its last 50, on the small
    # transformer that was pre-trained on the first 50); there train_per_item counts images of a class.
    data: str
    lr: float
    width: int = 256
    centred: bool = True
    epochs: int = 2
    train_per_item: int = 500
    batch_size: int = 50
    items: int = 10
    momentum: float = 0.0
    gate: str = "item"

    @property
    def by_classes(self) -> bool:
        """Whether it is a class-incremental stream."""
        return _by_classes(self.data)

    def __str__(self) -> str:
        changed = [
            f"{f.name} {getattr(self, f.name)}"
            for f in dataclasses.fields(self)
            if f.name not in ("data", "lr", "width") and getattr(self, f.name) != f.default
        ]
        return ", ".join([f"{self.data} lr {self.lr:g} width {self.width}", *changed])


SETTINGS = (
    *(Setting("digits", lr) for lr in (0.0015, 0.006, 0.025)),
    *(Setting("digits", lr, width=512) for lr in (0.003, 0.012)),
    Setting("digits", 0.01, width=64),
    Setting("digits", 0.001, batch_size=10),
    *(Setting("digits", lr, batch_size=200) for lr in (0.006, 0.025)),
    Setting("digits", 0.006, epochs=5),
    Setting("digits", 0.006, items=5),
    Setting("digits", 0.006, items=20),
    Setting("digits", 0.0006, momentum=0.9),
    Setting("digits", 0.006, gate="step"),
    Setting("digits", 0.006, centred=False),
    *(Setting("mnist", lr) for lr in (0.003, 0.01, 0.03)),
    Setting("mnist", 0.006, width=512),
    Setting("mnist", 0.006, centred=False),
    *(Setting("squeezenet", lr, train_per_item=250, epochs=4) for lr in (0.001, 0.003, 0.01)),
    Setting("squeezenet", 1e-4, train_per_item=250, epochs=4, centred=False),
    *(Setting("digits-classes", lr, train_per_item=100, items=5) for lr in (0.0015, 0.006, 0.025)),
    Setting("digits-classes", 0.006, train_per_item=100, items=5, epochs=5),
    Setting("digits-classes", 0.006, train_per_item=100, items=5, batch_size=10),
    # At lr 0.02 the split-cifar100 experiment has it, with a grid of scales.
    Setting("cifar100-classes", 0.004, train_per_item=100, epochs=5),
)


class _Sources:
    """Streams with features, each made once."""

    def __init__(
        self, mnist_path: str | None, squeezenet_path: str | None, cifar100_path: str | None = None
    ) -> None:
        self.mnist_path, self.squeezenet_path = mnist_path, squeezenet_path
        self.cifar100_path = cifar100_path
        self._made: tuple[tuple[Any, ...], Stream] | None = None  # the last one only: they are large
        self._cifar100: tuple[Images, Images] | None = None

    def has(self, setting: Setting) -> bool:
        needed = {
            "digits": [],
            "mnist": [self.mnist_path],
            "squeezenet": [self.mnist_path, self.squeezenet_path],
            "digits-classes": [],
            "cifar100-classes": [self.cifar100_path],
        }
        return all(needed[setting.data])

    def stream(self, setting: Setting, seed: int) -> Stream:
        key = (setting.data, setting.centred, setting.items, setting.train_per_item, seed)
        if self._made is None or self._made[0] != key:
            self._made = (key, self._make(setting, seed))
        return self._made[1]

    def _make(self, setting: Setting, seed: int) -> Stream:
        if setting.by_classes:
            return _standardised(self._classes(setting, seed), centre=setting.centred)
        images = two_digit_images(
            "digits" if setting.data == "digits" else str(self.mnist_path),
            items=setting.items, train_per_item=setting.train_per_item, test_per_item=100, seed=seed,
        )  # fmt: skip
        stream = images.stream()
        if setting.data == "squeezenet":
            assert self.squeezenet_path is not None
            features = extract(stream, SqueezeNet(self.squeezenet_path), batch_size=32)
            return _standardised(features) if setting.centred else features
        extractor: nn.Module = RandomConvolutions(32 if setting.data == "digits" else 16, seed=seed)
        features = extract(stream, extractor)
        return _standardised(features, centre=setting.centred)

    def _classes(self, setting: Setting, seed: int) -> Stream:
        """Features of a class-incremental stream."""
        sizes: dict[str, Any] = {"train_per_class": setting.train_per_item, "seed": seed}
        if setting.data == "digits-classes":
            images, labels = bundled_digits()
            order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
            names = [str(d) for d in range(10)]
            train, test = (Images(images[k], labels[k], names) for k in (order[:1350], order[1350:]))
            stream = class_incremental(train, test, increment=10 // setting.items, **sizes)
            return extract(stream, RandomConvolutions(32, seed=seed))
        if self._cifar100 is None:
            self._cifar100 = image_pack(str(self.cifar100_path))
        stream = class_incremental(
            *self._cifar100, increment=50 // setting.items, classes=range(50, 100), test_per_class=40, **sizes
        )
        return extract(stream, BackboneFeatures("small", mean=True))


def _standardised(stream: Stream, centre: bool = True) -> Stream:
    """Features less their mean, over their root mean square, both over the first item's training images."""
    first = stream[0].train_inputs
    mean = first.mean(0) if centre else torch.zeros(first.shape[1])
    size = (first - mean).square().mean().sqrt()

    def apply(x: Tensor) -> Tensor:
        return (x - mean) / size

    parts = [
        dataclasses.replace(e, train_inputs=apply(e.train_inputs), test_inputs=apply(e.test_inputs))
        for e in stream
    ]
    return Stream(parts, stream.classes)


def _learn(
    setting: Setting, stream: Stream, seed: int, network: str, scale: float | str
) -> tuple[float, dict[str, float]]:
    """Accuracy after the stream; scale and first-layer displacement after the first item."""
    learner = MetaplasticMLP(
        stream.input_shape,
        stream.classes,
        widths=(setting.width, setting.width),
        network=network,
        lr=setting.lr,
        scale=scale,
        gate=setting.gate,
        momentum=setting.momentum,
        batch_size=setting.batch_size,
        seed=seed,
    )
    first_layer = next(learner.model.parameters())
    start = first_layer.detach().clone()
    measured: dict[str, float] = {}
    for item in stream:
        learner.learn(item, epochs=setting.epochs)
        if not measured:
            measured["displacement"] = (first_layer.detach() - start).abs().mean().item()
            measured["scale"] = float(learner.optimizer.scales()[0] or 0.0)
    return float(learner.evaluate(stream).accuracies.mean()), measured


def _one(setting: Setting, stream: Stream, seed: int) -> dict[str, Any]:
    conventional, _ = _learn(setting, stream, seed, "conventional", 1.0)
    auto, measured = _learn(setting, stream, seed, "hybrid", "auto")
    curve = [
        auto if factor == 1 else _learn(setting, stream, seed, "hybrid", factor * measured["scale"])[0]
        for factor in FACTORS
    ]
    return {
        "seed": seed,
        "conventional": round(conventional, 4),
        "auto": round(auto, 4),
        "curve": [round(a, 4) for a in curve],
        **{key: float(f"{value:.4g}") for key, value in measured.items()},
    }


def run(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    sources: _Sources,
    known: Mapping[str, dict[str, Any]] | None = None,
) -> Iterator[dict[str, Any]]:
    """One record per setting, as soon as it is done; those that are known are not made again."""
    for setting in settings:
        if known and str(setting) in known:
            yield known[str(setting)]
        elif sources.has(setting):
            # One seed of these takes as long as all seeds of the others.
            of_setting = seeds[:1] if setting.data in ("squeezenet", "cifar100-classes") else seeds
            runs = [_one(setting, sources.stream(setting, seed), seed) for seed in of_setting]
            curve = np.mean([r["curve"] for r in runs], axis=0)
            yield {
                "setting": str(setting),
                "conventional": round(float(np.mean([r["conventional"] for r in runs])), 4),
                "auto": round(float(np.mean([r["auto"] for r in runs])), 4),
                "oracle": round(float(curve.max()), 4),
                "oracle_factor": FACTORS[int(curve.argmax())],
                "runs": runs,
                **asdict(setting),
            }


def _at(record: dict[str, Any], constant: float) -> float:
    """Accuracy with scale = constant / displacement, read off the curves; linear in the log of the scale."""
    values = []
    for r in record["runs"]:
        factor = constant / r["displacement"] / r["scale"]
        values.append(np.interp(np.log2(factor), np.log2(FACTORS), r["curve"]))
    return float(np.mean(values))


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Both rules relative to the oracle, for each kind of stream by itself."""
    kinds = {
        name: [r for r in records if _by_classes(r["data"]) == by_classes]
        for name, by_classes in (("two-digit items", False), ("class-incremental", True))
    }
    return {name: _summarise(of) for name, of in kinds.items() if of}


def _summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The worst setting, and the mean."""
    oracle = np.array([r["oracle"] for r in records])
    auto = np.array([r["auto"] for r in records]) / oracle
    plain = {c: np.array([_at(r, c) for r in records]) / oracle for c in 2.0 ** np.arange(-3, 5.5, 0.5)}
    best = max(plain, key=lambda c: plain[c].min() + plain[c].mean())
    for r, value in zip(records, plain[best] * oracle, strict=True):
        r["plain"] = round(float(value), 4)
    return {
        "auto": {"worst": round(float(auto.min()), 3), "mean": round(float(auto.mean()), 3)},
        # By what the best scale is larger than the automatic one.
        "best": {
            "geometric mean": round(float(np.exp(np.mean(np.log([r["oracle_factor"] for r in records])))), 2),
            "least": min(r["oracle_factor"] for r in records),
            "most": max(r["oracle_factor"] for r in records),
        },
        "plain": {
            "constant": round(float(best), 3),
            "worst": round(float(plain[best].min()), 3),
            "mean": round(float(plain[best].mean()), 3),
        },
        "conventional": {"mean": round(float(np.mean([r["conventional"] for r in records] / oracle)), 3)},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study and writes its JSON."""
    parser = argparse.ArgumentParser(prog="python -m studies.auto_scale", description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", help="MNIST as .npz; without it only the bundled digits are used")
    parser.add_argument("--squeezenet", help="weights of SqueezeNet 1.1 as .npz")
    parser.add_argument(
        "--cifar100", help="CIFAR-100 as .npz; without it there are fewer class-incremental streams"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[10, 11], help="not those that the rule was found with"
    )
    parser.add_argument("--only", type=int, help="only this many settings, for a quick look")
    parser.add_argument("--out", type=Path, default=Path("out/auto_scale.json"))
    options = parser.parse_args(arguments)
    sources = _Sources(options.mnist, options.squeezenet, options.cifar100)
    start = time.perf_counter()
    before = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    known = {r["setting"]: r for r in before["settings"]} if before.get("seeds") == options.seeds else {}
    records = []
    print(f"{'setting':62} {'conv.':>6} {'auto':>6} {'oracle':>6}  oracle's scale / auto")
    for record in run(SETTINGS[: options.only], options.seeds, sources, known):
        records.append(record)
        accuracies = " ".join(f"{record[key]:6.3f}" for key in ("conventional", "auto", "oracle"))
        print(f"{record['setting']:62} {accuracies}  {record['oracle_factor']:g}", flush=True)
    results = {
        "experiment": "scale='auto' against the best scale",
        "rule": "flexkern.optim.scale.auto_scale",
        "factors": FACTORS,
        "seeds": options.seeds,
        "seconds": round(time.perf_counter() - start + (before["seconds"] if known else 0)),
        "torch": torch.__version__,
        "summary": summarise(records),
        **({"note": before["note"]} if known and "note" in before else {}),
        "settings": records,
    }
    write_json(options.out, results)
    print(json.dumps(results["summary"]), f"wrote {options.out}", sep="\n")


if __name__ == "__main__":
    main()
