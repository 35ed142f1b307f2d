"""Masks of silent synapses, packed and unpacked, against a copy of as many bytes."""

from __future__ import annotations

from functools import partial

import torch

from flexkern import ops, reference
from flexkern.benchmarks.case import GPU, Comparison, Peer, Setting, Work, at_most, case
from flexkern.benchmarks.workloads import drawer

__all__ = ["compare"]

SHARE = 0.7  # of the copy's bytes per second that is wanted
COPY = "device-to-device copy of as many bytes"


def compare(packs: bool, at: Setting) -> Comparison:
    """``pack_mask``, or ``unpack_mask``, of a matrix a third of which is silent."""
    units = at.size(1 << 15, 1 << 7)
    device = torch.device(at.device)
    silent = drawer(device, 1)(units, units) > 0.43  # a third
    words = ops.pack_mask(silent)
    moved = silent.numel() + words.numel() * words.element_size()  # read and written
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    ours = partial(ops.pack_mask, silent) if packs else partial(ops.unpack_mask, words, units)

    def check() -> None:
        part = silent[:1024].cpu()
        assert torch.equal(words[:1024].cpu(), reference.pack_mask(part))
        assert torch.equal(ops.unpack_mask(words, units), silent)

    return Comparison(
        f"{'pack_mask' if packs else 'unpack_mask'}, {units} x {units}{at.suffix()}",
        ours,
        [Peer(COPY, lambda: target.copy_(source), check, at_most(1 / SHARE))],
        Work(moved),
    )


for _packs in (True, False):
    _name = f"mask/{'pack' if _packs else 'unpack'}"
    case(_name, devices=(GPU,), backends=("cuda", "triton"), budget=True)(partial(compare, _packs))
