"""What a layer with silent synapses has recorded since the last step, and its sum over several processes.

The sums are no buffers: DistributedDataParallel gives all processes the buffers of the first one before each
forward pass, and each has recorded samples of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexkern.distributed import Sums, group_of, start_sum
from flexkern.dtensors import is_sharded
from flexkern.fields import Field
from flexkern.nn.silent.spread import OwnRows
from flexkern.ops.checks import exact_dtype
from flexkern.reference import activity

__all__ = ["Recorder", "share"]

_RECORDED = ("_pre", "_post", "_samples", "_coincidence")


class Recorder(nn.Module):
    """A linear layer, as far as it records the activity of its units; see :class:`flexkern.nn.SilentLinear`.

    Sums over samples, and how many there were: in the weight's exact dtype, on its device.
    """

    in_features: int
    out_features: int
    weight: Tensor
    threshold: Tensor
    fused_step: bool
    processes: Any
    init: Field
    rule: str
    process_group: Any = None  # also of layers that were pickled before they knew of groups
    total: Total | None = None
    _same_field: bool = False  # whether all processes have been seen to have one field
    _pre: Tensor
    _post: Tensor
    _samples: Tensor
    _coincidence: Tensor | None

    def _begin_records(self, device: torch.device, exact: torch.dtype) -> None:
        self._pre = torch.zeros(self.in_features, dtype=exact, device=device)
        self._post = torch.zeros(self.out_features, dtype=exact, device=device)
        self._samples = torch.zeros((), dtype=exact, device=device)
        self._coincidence = None

    @torch.no_grad()
    def _record(self, x: Tensor, y: Tensor) -> None:
        exact = exact_dtype(self.weight)
        pre = activity(x).reshape(-1, self.in_features)
        post = activity(y).reshape(-1, self.out_features)
        self._samples += len(pre)
        if self.rule == "rate":
            self._pre += pre.sum(0, dtype=exact)
            self._post += post.sum(0, dtype=exact)
            return
        if self._coincidence is None:
            self._coincidence = self._no_coincidence()
        self._coincidence.addmm_(post.to(exact).T, pre.to(exact))

    def _forget(self) -> None:
        # Where forward passes are: fully_shard may keep a weight elsewhere between them.
        of = self.threshold if is_sharded(self.weight) else self.weight
        device, exact = of.device, exact_dtype(self.weight)
        for name in ("_pre", "_post", "_samples"):
            recorded = getattr(self, name)
            if (recorded.device, recorded.dtype) == (device, exact):
                recorded.zero_()
            else:  # of a layer whose weight was assigned, from another device
                setattr(self, name, torch.zeros_like(recorded, device=device, dtype=exact))
        self._coincidence = self.total = None

    def _move_records(self, device: torch.device) -> None:
        """To where the layer is now, as exact as they were."""
        for name in _RECORDED:
            value = getattr(self, name)
            if value is not None:
                made = torch.zeros_like(value, device=device) if value.is_meta else value
                setattr(self, name, made.to(device, exact_dtype(self.weight)))
        self.total = None

    def _take_old_records(self) -> None:
        """In earlier versions they were buffers."""
        for name in _RECORDED:
            if name in self._buffers:
                setattr(self, name, self._buffers.pop(name))
                self._non_persistent_buffers_set.discard(name)

    # ------------------------------------------------------------------ over all processes

    def check_group(self) -> None:
        """Raises RuntimeError for what would have synapses convert on some processes only."""
        if group_of(self.process_group) is None:
            return
        who = f"{type(self).__name__}({self.in_features}, {self.out_features})"
        if self.fused_step:
            if self.processes is not None:
                return  # the step has the samples of all
            raise RuntimeError(
                f"{who} with fused_step on several processes: each would step and convert by its own samples; "
                "give fuse_into_backward the process_group, set fused_step = False on the layer, or train "
                "inside of flexkern.distributed.alone()"
            )
        wrapper: Any = nn.parallel.DistributedDataParallel
        joined = getattr(wrapper._get_active_ddp_module(), "_join_config", None)
        if joined is not None and joined.enable and not joined.throw_on_early_termination:
            raise RuntimeError(
                f"{who} inside of DistributedDataParallel.join(): a process that has run out of data would "
                "leave the others waiting for what it has recorded; give all processes as many batches (empty "
                "ones count for nothing), or pass join(throw_on_early_termination=True)"
            )

    def recorded(self) -> dict[str, Tensor]:
        """Means since the last step, over all processes: pre [in] and post [out], or coincidence [out, in].

        Without a sample they are NaN, which converts nothing. On several processes all must call it.
        """
        if self.total is None:
            share([self])
        total, self.total = self.total, None  # the next call adds up anew
        if total is None:
            sums = [self._pre, self._post] if self._coincidence is None else [self._coincidence]
            samples = self._samples
        else:
            *sums, samples, field = total.wait()
            if not self._same_field:
                self._check_field(field)
        means = [of_all / samples for of_all in sums]
        return {"coincidence": means[0]} if len(means) == 1 else {"pre": means[0], "post": means[1]}

    def sums(self) -> list[Tensor]:
        """What this process has recorded since the last step, to be added to what others have: sums, the number
        of samples, and a number that tells the field of the weights."""
        field = self._samples.new_tensor(_number_of(self.init))
        if self.rule == "rate":
            return [self._pre, self._post, self._samples, field]
        own = self._coincidence
        if own is None:  # no sample has come here, and may have come to others
            own = self._no_coincidence()
        return [own, self._samples, field]

    def _no_coincidence(self) -> Tensor:
        return self._samples.new_zeros(self.out_features, self.in_features)

    def _check_field(self, total: Tensor) -> None:
        """Raises RuntimeError unless all processes draw weights from one field. Waits for the device."""
        processes = torch.distributed.get_world_size(group_of(self.process_group))
        if float(total) != _number_of(self.init) * processes:
            raise RuntimeError(
                f"{type(self).__name__}({self.in_features}, {self.out_features}): the processes draw its "
                "weights from different fields, so that a synapse that becomes functional would get another "
                "weight on each; give it the same seed, stream and init on all"
            )
        self._same_field = True


class Total:
    """The sums of one layer over all processes, within a sum that may be under way."""

    def __init__(self, sums: Sums, first: int, count: int) -> None:
        self._sums, self._places = sums, slice(first, first + count)

    def wait(self) -> list[Tensor]:
        """What all processes have recorded, in the order of :meth:`Recorder.sums`."""
        return self._sums.wait()[self._places]


def share(layers: Iterable[Any]) -> None:
    """Begins to add up what layers, or those that some rows belong to, have recorded on all processes, in one
    operation; each waits for its ``total`` when it is needed. Without a group of processes nothing happens."""
    alike: dict[Any, list[Recorder]] = {}
    for synapses in layers:
        layer = synapses
        if isinstance(synapses, OwnRows):
            synapses.check_group()
            layer = synapses.layer
        group = group_of(layer.process_group) if isinstance(layer, Recorder) else None
        if group is not None:
            alike.setdefault((group, layer._samples.dtype, layer._samples.device), []).append(layer)
    for (group, _, _), of_kind in alike.items():
        _share(of_kind, group)


def _share(layers: Sequence[Recorder], group: Any) -> None:
    sums = [layer.sums() for layer in layers]
    started = start_sum([tensor for of_one in sums for tensor in of_one], group)
    first = 0
    for layer, of_one in zip(layers, sums, strict=True):
        layer.total = Total(started, first, len(of_one))
        first += len(of_one)


def _number_of(field: Field) -> float:
    """A number that two fields share as a rule only if they are the same; float32 holds its sums exactly."""
    return float(zlib.crc32(repr(field.source()).encode()) % 4093)
