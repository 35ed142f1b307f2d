"""torch's older wrapper, by which threads of one process train one network on several devices."""

from __future__ import annotations

import pytest
from torch import nn

from flexkern.optim import fuse_into_backward
from helpers.nets import mlp, optimizer_of


def spread(model: nn.Module, devices: list[int]) -> nn.DataParallel:
    """As DataParallel is on a machine with these GPUs; without one it forgets its devices."""
    wrapped = nn.DataParallel(model)
    wrapped.device_ids = devices
    return wrapped


def test_a_network_on_several_devices_is_refused() -> None:
    model = mlp()
    with pytest.raises(ValueError, match=r"DataParallel.*copies of the network would drift apart.*Leave"):
        fuse_into_backward(spread(model, [0, 1]), optimizer_of(model))
    assert all(type(layer) in (nn.Linear, nn.ReLU) for layer in model)  # nothing has changed


def test_one_that_is_wrapped_for_one_device_is_fused() -> None:
    model = mlp()
    assert fuse_into_backward(spread(model, [0]), optimizer_of(model)) == ["module.0", "module.2"]


def test_a_replica_of_a_fused_layer_is_refused_at_its_first_pass() -> None:
    """What DataParallel makes of a layer on each device: its weight is a copy that autograd made."""
    model = mlp()
    optimizer = optimizer_of(model)
    fuse_into_backward(model, optimizer)
    replica = model[0]._replicate_for_data_parallel()
    replica.weight, replica.bias = model[0].weight * 1, model[0].bias * 1
    with pytest.raises(RuntimeError, match="DataParallel"):
        replica(model[0].weight.detach()[:3])
