"""A layer with silent synapses of whose weight each process has some rows (fully_shard).

Each process steps its own rows. The mask is whole on all, a 32nd of a float32 weight: after a pass all get the
rows that the others have stepped, and count conversions alike.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flexkern import ops
from flexkern.distributed import group_of
from flexkern.dtensors import here, is_sharded, place
from flexkern.fields import Field
from flexkern.nn.silent.state import mended
from flexkern.ops.checks import exact_dtype

__all__ = ["OwnRows", "check_whole", "convert", "own_rows"]

_WHAT_TO_DO = (
    "silent synapses convert by whole rows, those of fully_shard(model): leave the layer out of "
    "parallelize_module, distribute_module and shard_placement_fn, or train by DistributedDataParallel"
)


class OwnRows:
    """The rows of a layer's weight that this process has, as an optimizer asks for synapses; see
    :class:`flexkern.nn.silent.layer_of_weight.SilentSynapses`.

    Args:
        layer: the whole, a :class:`flexkern.nn.SilentLinear`.
        weight: its weight [out, in], a DTensor.

    Raises:
        ValueError: if it is not cut by rows.
    """

    def __init__(self, layer: Any, weight: Any) -> None:
        by_rows = all(
            getattr(placement, "dim", 0) == 0
            and getattr(placement, "split_factor", 1) == 1
            and not placement.is_partial()
            for placement in weight.placements
        )
        if not by_rows:
            raise ValueError(
                f"{_who(layer)}: its weight is a DTensor with placements {tuple(weight.placements)}, and "
                f"{_WHAT_TO_DO}"
            )
        self.layer, self._weight = layer, weight
        rows = place(weight)[0]
        assert isinstance(rows, range)
        self.rows = slice(rows.start, rows.stop)
        self._words: Tensor | None = None

    # Of the whole layer.

    @property
    def init(self) -> Field:
        """The field of the whole weight."""
        return self.layer.init

    @property
    def rule(self) -> str:
        """ "rate" or "hebbian"."""
        return self.layer.rule

    @property
    def began_as_init(self) -> bool | None:
        """Of the whole layer, as all processes have found it together."""
        return self.layer.began_as_init

    @began_as_init.setter
    def began_as_init(self, value: bool | None) -> None:
        self.layer.began_as_init = value

    def may_convert(self) -> bool:
        """As the layer says."""
        return self.layer.may_convert()

    def end_item(self) -> None:
        """An item ends, on all processes."""
        self.layer.end_item()

    # Of the rows that are here.

    @property
    def silent(self) -> Tensor:
        """int32 words [rows here, ceil(in / 32)], which a step updates."""
        if self._words is None:
            self._mend()
            # A view, except where weights lie elsewhere (CPUOffloadPolicy).
            self._words = self.layer._words[self.rows].to(here(self._weight).device)
        return self._words

    def _mend(self) -> None:
        """As the layer does, of the rows that are here: something may have been written into the weight."""
        layer, part = self.layer, here(self._weight)
        # What writes into a DTensor counts there, and what writes into its part, as steps do, counts there.
        if layer._last_seen.unchanged(layer._words, part, self._weight):
            return
        words, count = layer._words[self.rows], layer.silent_count[self.rows]
        right, counted = mended(part.to(words.device), words, count)
        words.copy_(right)
        count.copy_(counted)

    def insertion(self) -> dict[str, Any]:
        """As the layer's, with the thresholds of the units that are here."""
        insertion = dict(self.layer.insertion())
        theta = insertion["threshold"]
        if theta.numel() > 1:
            theta = theta[self.rows]
        return insertion | {"threshold": theta.to(here(self._weight).device)}

    def recorded(self) -> dict[str, Tensor]:
        """Means over all samples of all processes, of the units that are here; ``pre`` is whole."""
        if self.layer.total is None:
            self.check_group()
        device = here(self._weight).device
        return {
            name: (mean if name == "pre" else mean[self.rows]).to(device)
            for name, mean in self.layer.recorded().items()
        }

    def passed(self, conversions: ops.Conversions) -> ops.Conversions:
        """A pass over these rows did this: all processes get the rows of all.

        Returns:
            What the passes of all processes did, int32 [out].
        """
        layer, own = self.layer, self.silent
        width, device = own.shape[1], layer._words.device
        counts = torch.stack((conversions.converted, conversions.pruned), 1)
        before = layer.silent_count[self.rows, None].to(torch.int32)
        of_all = self._gathered(torch.cat((own.to(device), before, counts.to(device)), 1))
        layer._words.copy_(of_all[:, :width])
        layer.silent_count.copy_(of_all[:, width])
        whole = ops.Conversions(of_all[:, width + 1], of_all[:, width + 2])
        layer.passed(whole)
        layer._last_seen.note(layer._words, here(self._weight), self._weight)
        self._words = None
        return whole

    def _gathered(self, rows: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        weight, shape = self._weight, torch.Size((self._weight.shape[0], rows.shape[1]))
        spread: Any = DTensor.from_local(
            rows, weight.device_mesh, weight.placements, run_check=False, shape=shape, stride=(shape[1], 1)
        )
        return spread.full_tensor()

    def check_group(self) -> None:
        """Raises RuntimeError unless those that add up what they have recorded are those that have the rows."""
        group = group_of(self.layer.process_group)
        size, sharing = 1 if group is None else dist.get_world_size(group), self._weight.device_mesh.size()
        if size != sharing:
            raise RuntimeError(
                f"{_who(self.layer)}: fully_shard has spread its weight over {sharing} processes, and what "
                f"synapses convert by is added up over {size}: give the layer the process_group of the mesh, "
                "and step outside of flexkern.distributed.alone() and within() of another group"
            )


def own_rows(layer: Any, weight: Tensor) -> Any:
    """Of a layer and its weight what a step here works on: the layer, or an :class:`OwnRows`."""
    return OwnRows(layer, weight) if is_sharded(weight) else layer


def check_whole(layer: Any) -> None:
    """Before a training pass. Raises RuntimeError if it would multiply by a part of the weight: fully_shard
    gives a layer the whole one for as long as it runs, other ways do not."""
    if is_sharded(layer.weight):
        raise RuntimeError(
            f"{_who(layer)}: in a training pass its weight is a DTensor with placements "
            f"{tuple(layer.weight.placements)} (parallelize_module, distribute_module, or a call past the "
            f"module that fully_shard was given), and {_WHAT_TO_DO}; eval() works as it is"
        )


@torch.no_grad()
def convert(layer: Any) -> ops.Conversions:
    """A pass over a layer's synapses that leaves the weights of functional ones; what it did in the whole."""
    weight, synapses = here(layer.weight), own_rows(layer, layer.weight)
    first = synapses.rows.start if synapses is not layer else 0
    init, exact = layer.init.shard(first * layer.in_features), exact_dtype(weight)
    anchor = ops.materialize(init, weight.shape, device=weight.device).to(exact)
    arguments: dict[str, Any] = {
        **synapses.recorded(),
        **synapses.insertion(),
        "master": weight.to(exact, copy=True),
    }
    conversions = ops.synapse_step_(
        weight, torch.zeros_like(weight), anchor, 1.0, synapses.silent, lr=0.0, scale=1.0, **arguments
    )
    assert isinstance(conversions, ops.Conversions)
    return synapses.passed(conversions)


def _who(layer: Any) -> str:
    return f"{type(layer).__name__}({layer.in_features}, {layer.out_features})"
