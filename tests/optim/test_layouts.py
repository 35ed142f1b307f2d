"""The field of a weight that is spread over any number of processes: each in turn, without starting any."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from flexkern import Field, ops
from flexkern.optim import sharded

FIELD = Field.uniform(3, 5)
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


def each_rank(world: int) -> Iterator[int]:
    """This process as each of ``world`` in turn; what would be sent is not."""
    for rank in range(world):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        try:
            yield rank
        finally:
            dist.destroy_process_group()


def layer(rows: int, columns: int) -> nn.Linear:
    """Its weight holds the values of the field."""
    made = nn.Linear(columns, rows, bias=False)
    with torch.no_grad():
        made.weight.copy_(ops.materialize(FIELD, (rows, columns)))
    return made


def assert_same_part(p: torch.Tensor) -> int:
    part = sharded.here(p.detach())
    field = sharded.field_here(p, FIELD)
    values = field if isinstance(field, torch.Tensor) else ops.materialize(field, part.shape)
    assert torch.equal(values.reshape(part.shape), part)
    whole = ops.materialize(FIELD, p.shape)
    assert torch.equal(sharded.values_here(p, whole), part)
    return part.numel()


@pytest.mark.parametrize("rows", [1, 5, 7, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_rows_and_columns(rows: int, count: int) -> None:
    for dim in (0, 1):
        elements = 0
        for _ in each_rank(count):
            mesh = init_device_mesh("cpu", (count,))
            weight = distribute_tensor(layer(rows, 5).weight.detach(), mesh, [Shard(dim)], src_data_rank=None)
            elements += assert_same_part(weight)
        assert elements == rows * 5


@pytest.mark.parametrize("style", [ColwiseParallel, RowwiseParallel])
@pytest.mark.parametrize(
    ("rows", "shape"), [*itertools.product([1, 5, 6, 7, 9], [(2, 2), (3, 2), (2, 3)])], ids=str
)
def test_tensor_parallel_inside_of_fully_shard(rows: int, shape: tuple[int, int], style: type) -> None:
    """What fully_shard cuts is cut before; with parts of unequal size not where DTensor's placements say, read
    from left to right."""
    elements = 0
    for rank in each_rank(shape[0] * shape[1]):
        # Of equal meshes torch keeps the first, with the place that this process had in it.
        dp, tp = f"dp of {rank}", f"tp of {rank}"
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=(dp, tp))
        model = parallelize_module(layer(rows, 5), mesh[tp], style(), src_data_rank=None)
        fully_shard(model, mesh=mesh[dp])
        elements += assert_same_part(model.weight)
    assert elements == rows * 5


def test_large_fields_are_drawn_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "_DRAWN_AT_ONCE", 12)
    for _ in each_rank(2):
        mesh = init_device_mesh("cpu", (2,))
        weight = distribute_tensor(layer(7, 5).weight.detach(), mesh, [Shard(1)], src_data_rank=None)
        assert_same_part(weight)


def test_a_part_that_no_placement_explains_is_refused() -> None:
    from torch.distributed.tensor import DTensor

    for _ in each_rank(2):
        mesh = init_device_mesh("cpu", (2,))
        odd = DTensor.from_local(
            torch.ones(5, 5), mesh, [Shard(0)], run_check=False, shape=torch.Size((7, 5)), stride=(5, 1)
        )
        with pytest.raises(ValueError, match="cannot be told which positions"):
            sharded.field_here(odd, FIELD)
