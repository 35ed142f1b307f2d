"""In which blocks should an adapter open? What held-out images say of one that opens in the last blocks only.

    python -m studies.block_evidence --cifar100 cifar100.npz --mnist mnist.npz --characters characters \\
        --backbone small --backbone other --out docs/results/artsy/block_evidence.json

``ArtsyViT.best()`` keeps a task's adapter if held-out images are likelier with it, beyond chance. Here each
trained adapter is judged so with its rows in all blocks, and with those of the last blocks alone, the others at
0: a choice of blocks by evidence would take the best of them.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexkern.backbones import image_size, load_backbone
from flexkern.environment import environment
from flexkern.files import write_json
from flexkern.learners import ArtsyViT, Recipe
from flexkern.learners.vit.artsy import BEST
from flexkern.nn import ExpertHead
from studies.method_study.settings import REDUCED, Setting
from studies.method_study.streams import STREAMS

__all__ = ["Judge", "main"]


class Judge(ArtsyViT):
    """Learns as :meth:`flexkern.learners.ArtsyViT.best`, and notes for each task what evidence would say.

    Args:
        last: numbers of blocks, counted from the end.
        options: of the learner.
    """

    def __init__(self, *args: Any, last: Sequence[int], **options: Any) -> None:
        super().__init__(*args, **options)
        self.last, self.noted = last, list[dict[int, float]]()

    def _finish_experts(self, experts: ExpertHead, images: Any, labels: Tensor) -> None:
        before = copy.deepcopy(experts), copy.deepcopy(self.gate)
        gains = {}
        for blocks in self.last:
            tried, self.gate = copy.deepcopy(before)
            with _only_last(self.bank, blocks):
                # A bank that throws the adapter away changes the list of its rows; it is put back.
                rows = self.bank.rows
                super()._finish_experts(tried, images, labels)
                self.bank.rows = rows
            gains[blocks] = round(float(tried.gain[-1]), 4)
        self.gate = before[1]
        self.noted.append(gains)
        super()._finish_experts(experts, images, labels)


@contextmanager
def _only_last(bank: Any, blocks: int) -> Iterator[None]:
    """The newest adapter adds nothing before the last ``blocks`` blocks."""
    layers = len(bank.rows[-1]._parameters) // 4
    ups = [
        parameter.data
        for name, parameter in bank.rows[-1].named_parameters()
        if name.startswith("up") and int(name.rsplit("_", 1)[1]) < layers - blocks
    ]
    kept = [up.clone() for up in ups]
    try:
        for up in ups:
            up.zero_()
        yield
    finally:
        for up, values in zip(ups, kept, strict=True):
            up.copy_(values)


def judge(name: str, path: str, backbone: str, seed: int, setting: Setting) -> dict[str, Any]:
    """For each task of a stream the gain in nats, less 1.645 standard errors, by number of blocks."""
    network = load_backbone(backbone)
    stream = STREAMS[name].make(path, seed, image_size(network), setting)
    recipe: Recipe = setting.recipe
    learner = Judge(
        network, last=(6, 3, 2, 1), recipe=recipe, rank=setting.rank, adapter_scale=setting.adapter_scale,
        seed=seed, calibration_images=0, **BEST,
    )  # fmt: skip
    for item in stream:
        learner.learn(item)
        print(f"{name}, {Path(backbone).name}: task {item.number + 1}: {learner.noted[-1]}", flush=True)
    return {"stream": name, "backbone": Path(backbone).name, "seed": seed, "gains": learner.noted}


def main(arguments: Sequence[str] | None = None) -> None:
    """Judges on one seed, and writes what was found."""
    parser = argparse.ArgumentParser(prog="python -m studies.block_evidence", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    for option in ("--cifar100", "--mnist", "--characters"):
        parser.add_argument(option, help="as of studies.method_study")
    parser.add_argument("--backbone", action="append")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--only", action="append", choices=STREAMS)
    parser.add_argument("--out", type=Path, default=Path("out/block_evidence.json"))
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    found = []
    for name in given.only or STREAMS:
        path = getattr(given, STREAMS[name].data)
        for backbone in (given.backbone or ["small"]) if path else ():
            found.append(judge(name, path, backbone, given.seed, REDUCED[name]))
            write_json(given.out, {"units": found, "versions": environment()["versions"]})


if __name__ == "__main__":
    main()
