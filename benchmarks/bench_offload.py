"""Artsy's inference with the adapters of most tasks off the device, against all of them on it."""

from __future__ import annotations

import torch

from flexkern.benchmarks.bench_artsy import BACKENDS, Inference, described, mixed, shape
from flexkern.benchmarks.case import CPU, GPU, Comparison, Peer, Setting, at_most, case
from flexkern.nn import AdapterBank, PagedAdapterBank

RESIDENT = 8  # tasks that the device has room for


def offloaded(at: Setting, offload: str) -> Comparison:
    """Each image opens one synapse, and a batch nearly all of them: each call fetches most adapters anew."""
    tasks, (size, batch) = at.size(50, 5), shape(at)
    whole = Inference(tasks, size=size, batch=batch, device=at.device)
    paged = Inference(
        tasks, size=size, batch=batch, device=at.device, offload=offload, resident_tasks=at.size(RESIDENT, 2)
    )
    paged.bank.load_state_dict(whole.bank.state_dict())
    paged.images = whole.images

    def same() -> None:
        assert torch.equal(paged.ours(), whole.ours())

    where = "the host's memory" if offload == "cpu" else "a file"
    kept, every = (mib(one.bank) for one in (paged, whole))
    return Comparison(
        f"Artsy inference, {tasks} tasks, 1 open synapse per image, adapters in {where}, {described(at)}",
        mixed(at, paged.ours),
        [Peer("the same with all adapters on the device", mixed(at, whole.ours), same, at_most(1.25))],
        whole.work(),
        note=f"slots take {kept:.1f} MiB of the device, all adapters {every:.1f}",
    )


def mib(bank: AdapterBank) -> float:
    """Of the tensors in which adapters lie where they are used."""
    slots = bank.resident_tasks if isinstance(bank, PagedAdapterBank) else bank.tasks
    return slots * bank.parameters_per_task * bank.dtype.itemsize / 2**20


@case("artsy/offload-cpu", devices=(CPU, GPU), backends=BACKENDS)
def offload_cpu(at: Setting) -> Comparison:
    return offloaded(at, "cpu")


@case("artsy/offload-disk", devices=(CPU, GPU), backends=BACKENDS)
def offload_disk(at: Setting) -> Comparison:
    return offloaded(at, "disk")
