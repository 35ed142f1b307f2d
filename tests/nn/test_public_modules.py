"""Every public module survives the meta device, swapped parameters, copies and pickles."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from flexkern.nn import (
    AdapterBank,
    ExpertHead,
    FeatureStatistics,
    LDAHead,
    MetaplasticLinear,
    PrototypeClassifier,
    RidgeHead,
    SilentLinear,
    SynapseGate,
)

MODULES: dict[str, Callable[[], nn.Module]] = {
    "MetaplasticLinear": lambda: MetaplasticLinear(6, 4),
    "SilentLinear": lambda: SilentLinear(6, 4, silent=0.5, threshold=0.1),
    "AdapterBank": lambda: AdapterBank(2, 8, 4),
    "ExpertHead": lambda: ExpertHead(8),
    "FeatureStatistics": lambda: FeatureStatistics(8),
    "LDAHead": lambda: LDAHead(8),
    "LDAHead, per class": lambda: LDAHead(8, per_class=True),
    "PrototypeClassifier": lambda: PrototypeClassifier(8),
    "RidgeHead": lambda: RidgeHead(8),
    "SynapseGate": lambda: SynapseGate(8),
}
modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def same_state(left: nn.Module, right: nn.Module) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@modules
def test_made_on_the_meta_device(make: Callable[[], nn.Module]) -> None:
    module = make()
    with torch.device("meta"):
        emptied, assigned = make(), make()
    emptied = emptied.to_empty(device="cpu")
    emptied.load_state_dict(module.state_dict())
    assigned.load_state_dict(module.state_dict(), assign=True)
    assert same_state(module, emptied)
    assert same_state(module, assigned)


@pytest.fixture
def _swapped() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@modules
@pytest.mark.usefixtures("_swapped")
def test_parameters_are_swapped(make: Callable[[], nn.Module]) -> None:
    module, other = make(), make()
    other.load_state_dict(module.state_dict())
    assert same_state(module, other)
    other.double()
    assert all(p.dtype is torch.float64 for p in other.parameters())
    other.float()
    assert same_state(module, other)  # through float64 and back is exact


def through_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "file": through_file}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@modules
def test_copies_are_equal_and_apart(make: Callable[[], nn.Module], copied: Callable) -> None:
    module = make()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    other = copied(module)
    assert same_state(module, other)
    with torch.no_grad():
        for p in (*other.parameters(), *(b for b in other.buffers() if b.is_floating_point())):
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
