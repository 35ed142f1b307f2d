"""The example of several processes, with each framework: two of them have the network that one has."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from helpers.groups import start
from helpers.nets import mlp
from helpers.optimizers import MAKERS
from helpers.ranks_optimizers import LR, learn, whole
from helpers.scripts import load_file

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
]


def _learn(framework: str) -> dict[str, Any]:
    sys.path.insert(0, str(EXAMPLES))
    return load_file(EXAMPLES / "processes_digits.py").learn(framework, items=3, epochs=1)


def _rank(rank: int, framework: str, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    # As torchrun sets it.
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
    torch.save(_learn(framework), f"{folder}/{rank}.pt")
    if framework == "accelerate":
        torch.save({kind: _sharded(kind, rank) for kind in MAKERS}, f"{folder}/sharded{rank}.pt")


def _sharded(kind: str, rank: int) -> dict[str, Any]:
    """Trained by accelerate's plugin for FSDP2, which accelerate itself has for GPUs only: it is told that this
    is one."""
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=10, reshard_after_forward=True
    )
    plain = mlp()
    metaplastic = MAKERS[kind](plain.named_parameters(), lr=LR, scale="auto", seed=3)
    model, optimizer = accelerator.prepare(plain, metaplastic)
    assert all(hasattr(p, "device_mesh") for p in model.parameters())
    learn(model, optimizer, shares=(2, rank), consolidate=metaplastic.consolidate)
    return {"weights": list(map(whole, model.parameters())), "scales": metaplastic.scales()}


@pytest.mark.parametrize(("framework", "package"), [("accelerate", "accelerate"), ("fabric", "lightning")])
def test_two_processes_train_as_one(
    framework: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start(_rank, (framework, port, str(tmp_path)), 2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    monkeypatch.setattr(sys, "path", list(sys.path))
    alone = _learn("alone")
    for found in both:
        assert all(map(torch.equal, found["weights"], both[0]["weights"]))
        assert found["scales"] == pytest.approx(alone["scales"], rel=1e-4)
        for mine, theirs in zip(found["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    if framework == "accelerate":
        _check_sharded([torch.load(tmp_path / f"sharded{rank}.pt", weights_only=True) for rank in (0, 1)])


def _check_sharded(both: list[dict[str, Any]]) -> None:
    """Every optimizer has the network of one process."""
    for kind, maker in MAKERS.items():
        model = mlp()
        alone = maker(model.named_parameters(), lr=LR, scale="auto", seed=3)
        learn(model, alone)
        for found in (of_one[kind] for of_one in both):
            assert all(map(torch.equal, found["weights"], both[0][kind]["weights"]))
            assert found["scales"] == pytest.approx(alone.scales(), rel=1e-4)
            for mine, theirs in zip(found["weights"], model.parameters(), strict=True):
                torch.testing.assert_close(mine, theirs.detach(), rtol=1e-4, atol=1e-5)
