"""Where a call spends its time: torch's profiler, its operators sorted into a few categories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from flexkern.benchmarks.case import CPU, GPU, Comparison

__all__ = ["CATEGORIES", "profile", "profiles"]

CATEGORIES = (
    "products", "attention", "update", "product and update", "adapter", "elementwise", "data movement", "other",
)  # fmt: skip
_ROOT = "flexkern.benchmarks.profiling"
# Categories of all that runs inside one of these, whatever it is.
_RANGES = {
    "adapter": "adapter",
    "flexkern::gated_adapter": "adapter",
    "update": "update",
    "Optimizer.step#": "update",
}
_OPERATORS = {
    "products": "mm addmm addmv mv linear convolution _convolution mkldnn_convolution cudnn_convolution",
    "attention": "bmm baddbmm _softmax _softmax_backward_data softmax",
    "data movement": "copy_ _to_copy clone cat stack index index_select index_put_ _index_put_impl_ index_add_ "
    "gather empty empty_like empty_strided zeros zeros_like zero_ fill_ resize_ select_backward slice_backward "
    "new_zeros",
    "other": "view _unsafe_view reshape transpose t permute as_strided expand select slice unsqueeze squeeze "
    "detach detach_ alias item _local_scalar_dense set_ unbind split view_as result_type is_nonzero",
}
_CATEGORY = {name: category for category, names in _OPERATORS.items() for name in names.split()}


def profile(call: Callable[[], object], device: str = CPU) -> dict[str, float]:
    """Seconds of one call by category: on a CPU they add up to the time of the call; on a GPU, to its kernels'.

    Products are of matrices and convolutions; "attention" are batched products, softmax and fused attention;
    "update" is what moves weights, "product and update" a step inside the backward product, which is one
    operator; "adapter" all of an adapter, there and back.
    The profiler itself takes a few microseconds an operator, which count as the operator's.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == GPU else [])]
    call()  # what is first is slow
    with torch.profiler.profile(activities=activities) as recorded:
        with record_function(_ROOT):
            call()
        if device == GPU:
            torch.cuda.synchronize()
    events = [e for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CPU]
    if device == CPU:
        events = [e for e in events if any(above.name == _ROOT for above in _up(e))]
    # Operators of an adapter's backward pass have the sequence numbers of those of its forward pass.
    forward = [e for e in events if e.sequence_nr >= 0 and not _backward(e)]
    own = {e.sequence_nr for e in forward if _inside(e) == "adapter"}
    seconds = dict.fromkeys(CATEGORIES, 0.0)
    for event in events:
        spent = event.self_device_time_total if device == GPU else event.self_cpu_time_total
        seconds[_category(event, own)] += spent / 1e6
    return seconds


def profiles(comparison: Comparison, device: str) -> dict[str, dict[str, float]]:
    """Of ours, under "ours", and of each peer, under its name."""
    calls = {"ours": comparison.ours, **{peer.name: peer.call for peer in comparison.peers}}
    return {name: profile(call, device) for name, call in calls.items()}


def _up(event: Any) -> list[Any]:
    """The event and all that it runs in."""
    chain = []
    while event is not None:
        chain.append(event)
        event = event.cpu_parent
    return chain


def _inside(event: Any) -> str | None:
    for above in _up(event):
        for start, category in _RANGES.items():
            if above.name.startswith(start):
                return category
    return None


def _backward(event: Any) -> list[Any]:
    """The nodes of a backward pass that the event runs in."""
    return [above for above in _up(event) if above.name.startswith("autograd::engine::evaluate_function")]


def _category(event: Any, adapters: set[int]) -> str:
    inside = _inside(event)
    if inside is not None:
        return inside
    if any(node.sequence_nr in adapters for node in _backward(event)):
        return "adapter"
    library, _, name = event.name.partition("::")
    if library == "flexkern":
        return "product and update" if name.startswith("linear_step") else "update"
    if library != "aten":
        return "other"
    if "attention" in name:
        return "attention"
    return _CATEGORY.get(name, "elementwise")
