"""What a step inside of backward is worth under DistributedDataParallel: memory and time of two processes.

    python -m studies.fused_processes --out docs/results/scaling/fused.json

Each way runs in fresh processes, on one thread each, over gloo. They take turns, several times, so that what
else the machine does comes to all of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from flexkern.optim import MetaplasticSGD, fuse_into_backward

__all__ = ["WAYS", "main", "measure"]

PROCESSES = 2
WAYS = ("plain", "bucket views", "fused")
_DDP = nn.parallel.DistributedDataParallel


def _peak() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _now() -> int:
    """Bytes of memory that it has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _process(rank: int, way: str, widths: tuple[int, ...], rows: int, steps: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    torch.manual_seed(0)
    before = _now()
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model: nn.Module = nn.Sequential(*layers[:-1])
    optimizer = MetaplasticSGD(model.named_parameters(), lr=0.01, scale=100.0, gate="step")
    if way == "fused":
        fuse_into_backward(model, optimizer, process_group=dist.group.WORLD)
    model = _DDP(model, gradient_as_bucket_view=way == "bucket views")
    times = []
    for step in range(steps + 2):
        x, y = torch.rand(rows, widths[0]), torch.randint(widths[-1], (rows,))
        dist.barrier()
        begun = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step >= 2:  # in the first ones state and buckets are made
            times.append(time.perf_counter() - begun)
    torch.save({"seconds": times, "bytes": _peak() - before}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def measure(widths: tuple[int, ...], rows: int, steps: int, rounds: int) -> dict[str, Any]:
    """Median seconds of a step, and bytes of memory that a process had at most, beyond those that it had before
    there was a model.

    Args:
        widths: of the perceptron's layers.
        rows: of a batch, on each process.
        steps: in each round.
        rounds: in how many fresh processes each way is measured.
    """
    mp.set_forkserver_preload(["torch", "torch._dynamo", "flexkern.optim"])  # imported once
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    peaks: dict[str, list[int]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                given = (way, widths, rows, steps, folder)
                mp.start_processes(_process, given, nprocs=PROCESSES, start_method="forkserver")
                found = [torch.load(f"{folder}/{rank}.pt") for rank in range(PROCESSES)]
            seconds[way] += [second for of_one in found for second in of_one["seconds"]]
            peaks[way] += [of_one["bytes"] for of_one in found]
    weights = sum(n * m for n, m in itertools.pairwise(widths))
    return {
        "widths": list(widths), "rows of a process": rows, "processes": PROCESSES, "weights": weights,
        "steps": steps, "rounds": rounds, "torch": torch.__version__, "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "ways": {
            way: {
                "seconds": statistics.median(seconds[way]),
                "fastest": min(seconds[way]),
                "bytes": int(statistics.median(peaks[way])),
            }
            for way in WAYS
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[3136, 4096, 4096, 10])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = measure(tuple(given.widths), given.rows, given.steps, given.rounds)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for way, of_way in found["ways"].items():
        print(f"{way}: {of_way['seconds']:.2f} s per step, {of_way['bytes'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
