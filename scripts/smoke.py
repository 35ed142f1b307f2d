"""A wheel after it was installed: it is whole, computes as the reference does, and says what is wrong.

    python scripts/smoke.py

Runs in the environment that the wheel was installed into, and needs only what the wheel itself needs.
"""

from __future__ import annotations

import sys
from pathlib import Path

if Path(sys.path[0]) == Path(__file__).resolve().parent:
    del sys.path[0]  # only what is installed

import torch

import flexkern
from flexkern import Field, ops, optim
from flexkern.backends.built import LIBRARY_DIR, build_info
from flexkern.ops import direct


def main() -> None:
    status = flexkern.backends()
    assert status["cpu"].available, status["cpu"].reason
    assert (lacks := direct.lacks()) is None, lacks
    has_cuda = (LIBRARY_DIR / "libflexkern_cuda.so").exists()
    info = build_info()
    assert info is not None
    assert bool(info["cuda_architectures"]) == has_cuda, info
    if has_cuda and torch.version.cuda is not None:
        torch.ops.load_library(str(LIBRARY_DIR / "libflexkern_cuda.so"))

    results = []
    for backend in ("cpu", "reference"):
        with flexkern.use_backend(backend):
            torch.manual_seed(0)
            net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
            step = optim.MetaplasticSGD(net.parameters(), lr=0.1, scale=5.0, momentum=0.9, gate="step")
            for seed in range(5):
                x = ops.flexibility_field((8, 20), seed=seed)
                step.zero_grad()
                net(x).square().sum().backward()
                step.step()
            results.append((ops.materialize(Field.normal(3), (1000,)), [p.detach() for p in net.parameters()]))
    (field, trained), (expected, as_expected) = results
    assert torch.equal(field, expected)
    for ours, theirs in zip(trained, as_expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    # An exception of the compiled code crosses from its libstdc++ to that of torch.
    try:
        torch.ops.flexkern.fill_field_(torch.empty(3), [99, 0, 0, 0, 0], [0.0, 1.0])
    except RuntimeError as error:
        refusal = str(error)
    else:
        refusal = "none"
    assert "kind" in refusal, f"a field of kind 99 was refused so: {refusal}"

    cuda = (
        f"with CUDA kernels for sm_{info['cuda_architectures'].replace(';', ', sm_')}"
        if has_cuda
        else "for CPUs"
    )
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"flexkern {flexkern.__version__} {cuda} works: torch {torch.__version__}, Python {python}")


if __name__ == "__main__":
    main()
