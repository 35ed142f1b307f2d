"""Two processes train to the same bits as one, whichever way torch spreads the network over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from flexkern.optim.flexibilities import stream_of_name
from helpers import ranks, ranks_by_name
from helpers.nets import mlp
from helpers.optimizers import KINDS, same_bits

pytestmark = [*ranks.marks, pytest.mark.usefixtures("one_thread")]  # as the processes have
kinds = pytest.mark.parametrize("kind", KINDS)
options = pytest.mark.parametrize("name", ranks_by_name.OPTIONS)


@kinds
@options
@pytest.mark.parametrize("way", ranks_by_name.WAYS)
def test_the_same_training(found: list[dict[str, Any]], way: str, kind: str, name: str) -> None:
    judge = ranks_by_name.alone(kind, ranks_by_name.OPTIONS[name])
    both = ranks.of_case(found, f"{way}-{kind}-{name}")
    assert same_bits(both[0]["weights"], both[1]["weights"])
    if way != "ZeRO":  # there each process has its own parameters only
        assert all(of["flexibilities"] == judge["flexibilities"] for of in both)
    else:
        drawn = [f for of in both for f in of["flexibilities"]]
        assert sorted(map(repr, drawn)) == sorted(map(repr, judge["flexibilities"]))
    assert both[0]["scales"] == both[1]["scales"]
    if (way, name) == ("FSDP2", "auto"):
        # A mean of n = 85 displacements: n roundings of the sum at most, in any order, in either; then a few in
        # float64. Speed and displacement both are such means, and the scale is at most 2 + the rest of it off.
        scale, expected = both[0]["scales"][0], judge["scales"][0]
        assert scale == pytest.approx(expected, rel=30 * 85 * 2.0**-24)
        return
    assert both[0]["scales"] == judge["scales"]
    assert same_bits(both[0]["weights"], judge["weights"])


@kinds
@pytest.mark.parametrize("name", ["item", "step"])
def test_one_optimizer_for_each_parameter(kind: str, name: str) -> None:
    options = ranks_by_name.OPTIONS[name]
    judge, each = ranks_by_name.alone(kind, options), ranks_by_name.one_for_each(kind, options)
    assert each["flexibilities"] == judge["flexibilities"]
    assert same_bits(each["weights"], judge["weights"])


@kinds
@options
@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")
def test_a_sharded_checkpoint_goes_on_in_one_process(
    launched: tuple[Path, list[dict[str, Any]]], kind: str, name: str
) -> None:
    folder, found = launched
    expected = ranks.of_case(found, f"FSDP2-{kind}-{name}")[0]["weights"]
    model = mlp()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-3.0)
    optimizer = KINDS[kind](model.named_parameters(), lr=1.0, scale=1.0)
    given = ranks_by_name.MORE[kind] | ranks_by_name.OPTIONS[name]
    optimizer.param_groups[0].update(given)  # which state there is depends on them
    saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(saved, checkpoint_id=folder / f"FSDP2-{kind}-{name}", no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
    ranks_by_name.learn(model, optimizer.step, optimizer.consolidate, ranks_by_name.STOP, ranks_by_name.LAST)
    assert same_bits([p.detach() for p in model.parameters()], expected)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.module.", "_forward_module.", "_forward_module.module.", "_fsdp_wrapped_module."],
)
def test_what_wrappers_put_before_a_name_does_not_count(prefix: str) -> None:
    assert stream_of_name(f"{prefix}0.weight") == stream_of_name("0.weight")
    assert stream_of_name("0.module.weight") != stream_of_name("0.weight")
