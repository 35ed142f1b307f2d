"""What training on 1 to 512 GPUs sends, keeps and takes, by arithmetic: nothing of it has been measured.

    python -m studies.scaling_figures

writes docs/results/scaling/figures.json and the table of docs/scaling.md. The figures of one GPU are those of
benchmarks/PREDICTIONS.md; the links are those of the datasheets of a machine with eight H200.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["GPUS", "SAMPLES", "WAYS", "Machine", "Network", "figures", "main", "table", "with_table"]

ROOT = Path(__file__).resolve().parent.parent
FILE, PAGE = ROOT / "docs" / "results" / "scaling" / "figures.json", ROOT / "docs" / "scaling.md"
GPUS = (1, 8, 64, 512)
WAYS = ("DDP", "DDP, fused", "FSDP2")
SAMPLES = (128, 1024)  # of a GPU in a step
_BEGIN, _END = "<!-- written by studies/scaling_figures.py -->", "<!-- to here -->"


@dataclass(frozen=True)
class Machine:
    """Rates are in units per second, of one GPU.

    flops: of a product of bfloat16, and the share of it that a product reaches.
    copy: bytes of its memory, as a copy reaches them.
    near, far: bytes to the other GPUs of its node, and to other nodes, in each direction.
    reached: the share of a link that a collective operation gets.
    near_wait, far_wait: seconds until a message has come, beside its bytes.
    node: GPUs of a node.
    """

    flops: float = 990e12
    of_flops: float = 2 / 3
    copy: float = 4.3e12
    near: float = 450e9
    far: float = 50e9
    reached: float = 0.8
    near_wait: float = 3e-6
    far_wait: float = 10e-6
    node: int = 8


@dataclass(frozen=True)
class Network:
    """A perceptron that learns with MetaplasticSGD: float32 weights and anchors, procedural flexibilities, and
    products in bfloat16.

    widths: of its layers; samples: that each GPU has in a step.
    """

    widths: tuple[int, ...]
    samples: int

    @property
    def layers(self) -> list[tuple[int, int]]:
        return list(itertools.pairwise(self.widths))

    @property
    def weights(self) -> int:
        return sum(n * m for n, m in self.layers)


_WIDTHS = (9216, 4096, 4096, 10)  # of the release, over its features
# Bytes per weight of a step: weight, anchor and gradient are read, and the weight is written; without gradient.
_STEP, _FUSED_STEP = 16, 12
_WEIGHT, _LOW = 4, 2


def _all_reduce(machine: Machine, gpus: int, size: float) -> tuple[float, float]:
    """Bytes that a GPU sends, and seconds: within the node first, then an eighth by each GPU between nodes."""
    near = min(gpus, machine.node)
    nodes = gpus // near
    inside, between = 2 * (near - 1) / near * size, 2 * (nodes - 1) / nodes * size / near
    return inside + between, _seconds(machine, near, nodes, inside, between, 2)


def _all_gather(machine: Machine, gpus: int, size: float) -> tuple[float, float]:
    """The same, of ``size`` bytes that each GPU has for all others: as many come as are sent."""
    near = min(gpus, machine.node)
    nodes = gpus // near
    inside, between = (near - 1) * nodes * size, (nodes - 1) * size
    return inside + between, _seconds(machine, near, nodes, inside, between, 1)


def _seconds(machine: Machine, near: int, nodes: int, inside: float, between: float, times: int) -> float:
    waits = machine.near_wait * math.log2(near) + machine.far_wait * math.log2(nodes)
    return inside / (machine.near * machine.reached) + between / (machine.far * machine.reached) + times * waits


def _row(machine: Machine, network: Network, way: str, gpus: int) -> dict[str, Any]:
    rows, rate, weights = network.samples, machine.flops * machine.of_flops, network.weights
    forward = sum(2 * rows * n * m / rate for n, m in network.layers)
    held: float = _LOW * rows * sum(network.widths)  # the inputs of all layers
    took = [_of_layer(machine, network, way, gpus, *layer) for layer in network.layers]
    sent, waited = (sum(of_layer[i] for of_layer in took) for i in (0, 1))
    last = took[0][1]  # the first layer's message is the last one: nothing is left to compute meanwhile
    if way == "DDP, fused":
        computed, hidden = forward, 0.0
        for n, m in network.layers:
            both = (2 * gpus * rows * n * m / rate, _FUSED_STEP * n * m / machine.copy)
            computed += 2 * rows * n * m / rate + max(both) + min(both) / 2  # one is half hidden by the other
        held += 2 * _WEIGHT * weights + max(_LOW * gpus * rows * (n + m) for n, m in network.layers)
    elif way == "DDP":
        computed = 3 * forward + _STEP * weights / machine.copy
        hidden = min(2 * forward, waited - last)
        held += 3 * _WEIGHT * weights  # weight, anchor, and a gradient that is a view of the wrapper's bucket
    else:
        computed = 3 * forward + _STEP * weights / gpus / machine.copy
        hidden = min(3 * forward, waited - last / 3)
        whole = _WEIGHT * max(n * m for n, m in network.layers)  # a layer's weight and gradient
        held += 3 * _WEIGHT * weights / gpus + (2 * whole if gpus > 1 else 0)
    seconds = computed + waited - hidden
    return {
        "way": way, "gpus": gpus, "samples": rows, "bytes sent": round(sent), "bytes held": round(held),
        "seconds computed": computed, "seconds on the wire": waited, "seconds": seconds,
        "samples per second": gpus * rows / seconds,
    }  # fmt: skip


def _of_layer(machine: Machine, network: Network, way: str, gpus: int, n: int, m: int) -> tuple[float, float]:
    """Bytes that a GPU sends for a layer in a step, and seconds."""
    if gpus == 1:
        return 0.0, 0.0
    if way == "DDP, fused":
        return _all_gather(machine, gpus, _LOW * network.samples * (n + m))
    sent, seconds = _all_reduce(machine, gpus, _WEIGHT * n * m)
    # fully_shard gathers a weight for each of both passes, and cuts its gradient up: three halves of this.
    return (sent, seconds) if way == "DDP" else (1.5 * sent, 1.5 * seconds)


def figures(machine: Machine | None = None, widths: tuple[int, ...] = _WIDTHS) -> dict[str, Any]:
    """Inputs, and a row for each way, number of samples and of GPUs; all times in seconds, of one step."""
    machine = Machine() if machine is None else machine
    rows = []
    for way in WAYS:
        for samples in SAMPLES:
            network = Network(widths, samples)
            one = _row(machine, network, "DDP", 1)["samples per second"]
            for gpus in GPUS:
                row = _row(machine, network, way, gpus)
                rows.append(row | {"of perfect scaling": row["samples per second"] / (gpus * one)})
    return {"machine": dataclasses.asdict(machine), "widths": list(widths), "rows": rows}


def table(found: dict[str, Any]) -> str:
    """The rows as they stand in the page."""
    lines = [
        "| way | samples | GPUs | sent | memory | computing | on the wire | step | of perfect |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        milliseconds = (row[f"seconds{of}"] * 1e3 for of in (" computed", " on the wire", ""))
        lines.append(
            f"| {row['way']} | {row['samples']:,} | {row['gpus']} | {row['bytes sent'] / 1e6:,.0f} MB | "
            f"{row['bytes held'] / 1e9:.2f} GB | "
            + " | ".join(f"{of_one:.2f} ms" for of_one in milliseconds)
            + f" | {row['of perfect scaling']:.0%} |"
        )
    return "\n".join(lines)


def with_table(page: str, found: dict[str, Any]) -> str:
    """The page with the table of these figures in its place."""
    before, rest = page.split(_BEGIN)
    return f"{before}{_BEGIN}\n\n{table(found)}\n\n{_END}{rest.split(_END)[1]}"


def main() -> None:
    found = figures()
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
