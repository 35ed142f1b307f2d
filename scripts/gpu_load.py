"""What the machine is, which backends load, and whether an update on each gives the reference's values.

    python scripts/gpu_load.py --json load.json     with flexkern on PYTHONPATH

The second step of scripts/gpu_check.py: in seconds it tells whether the tests will have anything to test.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import flexkern
from flexkern import backends, ops, use_backend
from flexkern.benchmarks.machine import machine

BACKENDS = ("cuda", "triton")


def main() -> int:
    """Returns 1 where a backend gives wrong values, or none loads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where what was found goes")
    given = parser.parse_args()
    found: dict[str, Any] = {
        "package": str(Path(flexkern.__file__).parent), "machine": machine(),
        "backends": {name: status._asdict() for name, status in backends().items()}, "errors": {},
    }  # fmt: skip
    given.json.write_text(json.dumps(found, indent=1) + "\n")  # before anything can go wrong
    for name in BACKENDS:
        if backends()[name].available:
            try:
                found["errors"][name] = error(name)
            except Exception as failed:  # whatever a kernel that does not load raises
                found["errors"][name] = f"{type(failed).__name__}: {failed}"[:2000]
    given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["machine"]["gpus"]), found["machine"]["driver"], found["machine"]["versions"])
    for name, status in backends().items():
        print(f"{name:<10} {'there' if status.available else 'missing'}: {status.reason}")
    for name, off in found["errors"].items():
        print(f"{name:<10} an update: {off if isinstance(off, str) else f'off by {off:.1e} of the reference'}")
    right = [isinstance(off, float) and off < 1e-6 for off in found["errors"].values()]
    return 0 if right and all(right) else 1


def error(backend: str, device: str = "cuda", count: int = 4099) -> float:
    """The largest difference of an update from the reference's, of weights of order 1."""
    draw = torch.Generator().manual_seed(1)
    weight, grad, anchor = (torch.randn(count, generator=draw) for _ in range(3))
    flexibility = torch.rand(count, generator=draw)
    results = []
    for name, where in ((backend, device), ("reference", "cpu")):
        stepped, *others = (t.to(where, copy=True) for t in (weight, grad, anchor, flexibility))
        with use_backend(name):
            ops.metaplastic_sgd_(stepped, *others, lr=0.1, scale=2.0)
        results.append(stepped.cpu())
    assert not torch.equal(results[1], weight)
    return float((results[0] - results[1]).abs().max())


if __name__ == "__main__":
    sys.exit(main())
