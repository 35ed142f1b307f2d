"""A linear layer of which some synapses are silent until what they connect is active together.

See docs/design.md, Silent and functional synapses.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from flexkern import ops
from flexkern.dtensors import here, is_sharded
from flexkern.fields import Field, Purpose
from flexkern.nn.fused.linear import MetaplasticLinear
from flexkern.nn.records import record_of
from flexkern.nn.silent.adaptive_threshold import AdaptiveThreshold
from flexkern.nn.silent.insertion import Insertion
from flexkern.nn.silent.layer_of_weight import forget, register
from flexkern.nn.silent.mask import MaskGradient, check_silent, silent_mask
from flexkern.nn.silent.recorded import Recorder
from flexkern.nn.silent.spread import check_whole, convert, own_rows
from flexkern.nn.silent.state import LastSeen, began_of, decode, encode, mended
from flexkern.ops.checks import exact_dtype
from flexkern.plain import whole_number

__all__ = ["SilentLinear"]

_INTEGERS = ("silent", "silent_count", "changes")


class SilentLinear(Recorder, MetaplasticLinear):
    """A linear layer of which a share of synapses is silent: a reserve for what is still to be learned.

    A silent synapse has a weight of exactly 0, so the forward pass is a plain dense product. Its gradient is 0
    too, so its weight stays 0 with every torch optimizer, with weight decay and momentum. In training with
    gradients the layer records the activity of its units. At the optimizer's next step a silent synapse from
    unit i to unit j becomes functional where their coincidence reaches the threshold of j: it gets a weight,
    which is its anchor, and from then on it learns as others do.

    Synapses are converted by :class:`flexkern.optim.MetaplasticSGD`, which recognises the weights of such a
    layer by itself, with or without :func:`flexkern.optim.fuse_into_backward`. With another optimizer silent
    synapses stay silent, unless :meth:`convert` is called.

    Activity is the part of a value that is not negative: of the input (pre), and of the layer's own output,
    before any activation that follows (post). It is averaged over all samples, in all leading dimensions, of
    all training forward passes since the last step, so that accumulating gradients over micro-batches gives
    what one large batch gives, up to rounding.

    **Several processes** (DistributedDataParallel, fully_shard, or any training by which all processes take the
    same step): what they have recorded is added up before synapses convert, in one small all-reduce for all
    layers of an optimizer, so that a synapse converts by the mean over all processes' samples, on all processes
    or on none. An optimizer's ``step()`` and :meth:`convert` are calls of all processes then; forward and
    backward passes send nothing, so that one process may evaluate by itself. A process without a sample counts
    for nothing. With ``rule="hebbian"`` the sum is as large as a gradient. A fused step needs the
    ``process_group`` of :func:`flexkern.optim.fuse_into_backward`. With fully_shard each process steps its rows
    of the weight, and all have the whole mask. Not possible, and an error that says so:
    DistributedDataParallel's ``join()`` unless it ends training early, tensor parallelism, and a fully_shard
    that cuts columns. A process that trains such a layer by itself does so inside of
    :func:`flexkern.distributed.alone`.

    Initial weights and the choice of silent synapses are procedural, from ``seed`` and ``stream``: as long as
    the functional weights are what they began as when the optimizer first steps, no anchor is stored.

    Args:
        in_features, out_features, bias, device, dtype, fused_step, window: as in
            :class:`flexkern.nn.MetaplasticLinear`.
        silent: what begins silent: a share in [0, 1]; a tensor [out] with a share for each unit; or a bool
            mask [out, in], True: silent.
        insertion: when silent synapses become functional, and with what weight; None for the defaults of
            :class:`flexkern.nn.Insertion`.
        threshold, rule, insert, eta, prune: fields of ``insertion``, one by one; they replace its own.
        seed: 0 <= seed < 2**64.
        stream: give each layer of a network its own.
        init: the :class:`flexkern.Field` of the initial weights. Default: that of nn.Linear, uniform on +-1 /
            sqrt(in), with ``Purpose.ANCHOR``.

    **Averages** of layers (EMA, SWA, averaged state_dicts) are layers: a synapse is silent in the average if it
    is silent in all of them, which is where the averaged weight is exactly 0. A weight that is written by hand
    where a synapse is silent makes it functional.

    On the meta device it has no values until ``to_empty()`` and ``load_state_dict()``, or the latter with
    ``assign=True``.

    Attributes:
        silent: int32 words [out, ceil(in / 32)], bit = 1: silent (:func:`flexkern.ops.unpack_mask`).
        threshold: theta, float32 (float64 beside a float64 weight), one element or [out].
        conversions: list of int, for each item that has ended, how many synapses became functional in it. An
            item ends at the optimizer's ``consolidate()``, or by :meth:`end_item`.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: arXiv 2410.05899 for silent and functional synapses; the rules are those of docs/design.md, Silent
    and functional synapses.
    """

    threshold: Tensor
    silent_count: Tensor
    changes: Tensor
    began_as_init: bool | None = None  # whether its first step found the values of init; None: not known

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        silent: float | Tensor = 0.5,
        insertion: Insertion | None = None,
        seed: int = 0,
        stream: int = 0,
        init: Field | None = None,
        fused_step: bool = False,
        window: int = 1,
        process_group: Any = None,
        **insertion_fields: Any,
    ) -> None:
        how = record_of(Insertion, insertion, insertion_fields, name="insertion", of=SilentLinear)
        if init is not None and not isinstance(init, Field):
            raise TypeError(f"init must be a flexkern.Field or None, got {type(init).__name__}")
        in_features = whole_number(in_features, "in_features", least=0)
        out_features = whole_number(out_features, "out_features", least=0)
        seed, stream = (
            whole_number(n, name, least=None, most=None) for n, name in ((seed, "seed"), (stream, "stream"))
        )
        check_silent(silent, (out_features, in_features))
        theta = how.initial_threshold(out_features)
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        default = Field.uniform(seed, stream, low=-bound, high=bound, purpose=Purpose.ANCHOR)
        mask = silent_mask(silent, (out_features, in_features), seed, stream)
        super().__init__(in_features, out_features, bias, device, dtype, fused_step=fused_step, window=window)
        self.init = default if init is None else init
        self.rule, self.insert, self.eta, self.prune = how.rule, how.insert, float(how.eta), float(how.prune)
        self.adaptive = how.threshold if isinstance(how.threshold, AdaptiveThreshold) else None
        self.process_group = process_group
        self.conversions: list[int] = []
        self._last_seen = LastSeen()
        device, exact = self.weight.device, exact_dtype(self.weight)
        # The mask is on the CPU, where it can be packed also for a layer on the meta device. Not by
        # register_buffer, which refuses a name that the class has.
        self._buffers["silent"] = ops.pack_mask(mask).to(device)
        self.register_buffer("threshold", theta.to(device, exact))
        # Of each unit: silent synapses now; synapses converted, and pruned, in this item.
        self.register_buffer("silent_count", mask.sum(1).to(device))
        self.register_buffer("changes", torch.zeros((2, out_features), dtype=torch.int64, device=device))
        self._begin_records(device, exact)
        self._some_silent = bool(mask.any())
        self._draw(default)
        register(self.weight, self)

    def reset_parameters(self) -> None:
        """Does nothing: nn.Linear calls it before the fields are there from which the weights are drawn."""

    @torch.no_grad()
    def _draw(self, default: Field) -> None:
        """Initial weights and bias; torch's global generator is left as it is."""
        if self.weight.is_meta:
            return
        self.weight.copy_(ops.materialize(self.init, self.weight.shape, device=self.weight.device))
        self._silence()
        if self.bias is not None:
            # The default's values that come after the weight's own.
            field = default.shard(self.weight.numel())
            self.bias.copy_(ops.materialize(field, self.bias.shape, device=self.bias.device))

    @torch.no_grad()
    def _silence(self) -> None:
        weight, words = here(self.weight), self._words
        if is_sharded(self.weight):
            words = words[own_rows(self, self.weight).rows].to(weight.device)
        weight.masked_fill_(ops.unpack_mask(words, self.in_features), 0.0)

    # ------------------------------------------------------------------ the mask

    @property
    def _words(self) -> Tensor:
        """The mask's words as they are, without a look at the weight."""
        words = self._buffers["silent"]
        assert words is not None
        return words

    @property
    def silent(self) -> Tensor:
        """int32 words [out, ceil(in / 32)], bit = 1: silent."""
        self._mend()
        return self._words

    @torch.no_grad()
    def _mend(self) -> None:
        """Sees to it that mask and weight fit, where something was written into either since the last look.

        Of a weight that is spread over processes the next training pass does, which has it whole.
        """
        words = self._words
        if self.weight.is_meta or words.is_meta or is_sharded(self.weight):
            return
        if self._last_seen.unchanged(words, self.weight):
            return
        if words.is_inference() and not torch.is_inference_mode_enabled():
            return  # nothing may write into such tensors, and nobody trains them
        right, count = mended(self.weight, words, self.silent_count)
        words.copy_(right)
        self.silent_count.copy_(count)
        self._last_seen.note(words, self.weight)

    # ------------------------------------------------------------------ forward

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]; in training with gradients it records activities, see the class.

        Raises:
            RuntimeError: as :class:`flexkern.nn.MetaplasticLinear`; and if the weight is a DTensor while the
                layer trains, as tensor parallelism has it.
        """
        if not self._trains():
            return self._plain(x)
        check_whole(self)
        if not torch.compiler.is_compiling():
            register(self.weight, self)
            if not self._last_seen.unchanged(self._words):
                self._mend()
        may_convert = self.may_convert()
        if may_convert and not torch.compiler.is_compiling():
            self.check_group()
        if self._steps():
            return self._fused(x, keep_post=may_convert)
        if not may_convert:
            return linear(x, self.weight, self.bias)
        y = linear(x, MaskGradient.apply(self.weight, self._words), self.bias)
        self._record(x.detach(), y.detach())
        return y

    # ------------------------------------------------------------------ for the optimizer

    def may_convert(self) -> bool:
        """False only if no synapse is silent, now or after pruning.

        Known without waiting for the device: it becomes False at the end of an item.
        """
        return self._some_silent or self.prune > 0

    def insertion(self) -> dict[str, Any]:
        """How synapses convert: threshold, insert, eta and prune, as the operators take them."""
        return {"threshold": self.threshold, "insert": self.insert, "eta": self.eta, "prune": self.prune}

    @torch.no_grad()
    def passed(self, conversions: ops.Conversions) -> ops.Conversions:
        """A pass over the synapses did this, which is returned: counts it, adapts the thresholds, and begins to
        record anew."""
        if self.adaptive is not None:
            self.adaptive.update_(self.threshold, conversions.converted, self.silent_count)
        self.changes += torch.stack(tuple(conversions))
        self.silent_count += conversions.pruned - conversions.converted
        self._last_seen.note(self._words, self.weight)  # the pass has kept them in step
        self._forget()
        return conversions

    def end_item(self) -> None:
        """An item ends: its conversions are appended to ``conversions``. Waits for the device.

        ``MetaplasticSGD.consolidate()`` calls it for the layers of its weights.
        """
        self.conversions.append(int(self.changes[0].sum()))
        self.changes.zero_()
        self._some_silent = bool(self.silent_count.any())

    # ------------------------------------------------------------------ by hand

    def convert(self) -> ops.Conversions:
        """Converts (and prunes) as a step of MetaplasticSGD does, with what was recorded since the last time.

        For other optimizers: call it after their ``step()``, on all processes. Weights that are functional do
        not change.

        Returns:
            :class:`flexkern.ops.Conversions`.
        """
        return convert(self)

    # ------------------------------------------------------------------ state

    def functional_share(self) -> Tensor:
        """Share of each unit's synapses that are functional, float32 [out]."""
        self._mend()
        return 1 - self.silent_count.float() / max(self.in_features, 1)

    def extra_repr(self) -> str:
        silent, theta = "unknown", "adaptive"
        if not self.weight.is_meta:
            self._mend()
            silent = f"{self.silent_count.sum().item() / max(self.weight.numel(), 1):.1%}"
        if not self.adaptive:
            theta = "unknown" if self.threshold.is_meta else f"{self.threshold.mean().item():.4g}"
        prune = f", prune={self.prune:g}" if self.prune else ""
        return (
            f"{super().extra_repr()}, silent={silent}, threshold={theta}, rule={self.rule!r}, "
            f"insert={self.insert!r}{prune}"
        )

    def train(self, mode: bool = True) -> SilentLinear:
        """As :meth:`torch.nn.Module.train`; a mask that something else wrote into is made to fit the weight."""
        super().train(mode)
        if "_last_seen" in self.__dict__:
            self._mend()
        return self

    def get_extra_state(self) -> Tensor:
        """What :meth:`state_dict` holds beside the buffers: the field of the initial weights and the
        conversions, float64 [n], on the CPU."""
        return encode(self.init, self.conversions, self.began_as_init)

    def set_extra_state(self, state: Tensor | dict[str, Any]) -> None:
        """Takes what :meth:`get_extra_state` gave, also that of earlier versions, a dict.

        An average over layers with different initial fields says nothing of them: the layer keeps its own.
        """
        # set_model_state_dict has a placeholder for what is missing.
        if not isinstance(state, (Tensor, dict)) or (isinstance(state, Tensor) and state.is_meta):
            return
        init, self.conversions = decode(state)
        self.began_as_init, self._same_field = began_of(state), False
        self.init = self.init if init is None else init

    def _save_to_state_dict(self, *args: Any) -> None:
        self._mend()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        whole = f"{prefix}silent" in state_dict and f"{prefix}weight" in state_dict
        forget(self.weight)  # a weight with weak references cannot be swapped for another
        self._last_seen, self.began_as_init = LastSeen(), None
        of_mask = {name: state_dict[prefix + name] for name in _INTEGERS if prefix + name in state_dict}
        kept = {f"{prefix}{name}": _as_integers(value, name) for name, value in of_mask.items()}
        super()._load_from_state_dict({**state_dict, **kept}, prefix, *rest)
        register(self.weight, self)
        if self.weight.is_meta:
            return
        if not whole:  # the state of an nn.Linear has weights also where this layer is silent
            self._silence()
            self.began_as_init = None
        with torch.no_grad():
            if f"{prefix}silent_count" not in state_dict:
                self.silent_count.copy_(ops.unpack_mask(self._words, self.in_features).sum(1))
        self._mend()
        # Counts of a weight that is spread may not fit it yet.
        self._some_silent = is_sharded(self.weight) or bool(self.silent_count.any())
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_last_seen"] = LastSeen()  # weak references cannot be pickled, and a copy's tensors are its own
        # A sum that is under way belongs to this layer, and a group of processes to this process.
        return state | {"total": None, "process_group": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_last_seen": LastSeen(), **state})  # earlier versions had none
        self._take_old_records()
        register(self.weight, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> SilentLinear:
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        copied.process_group = self.process_group
        return copied

    def _apply(self, fn: Any, recurse: bool = True) -> SilentLinear:
        threshold = self.threshold
        forget(self.weight)
        self._last_seen = LastSeen()
        super()._apply(fn, recurse)
        # .to(bfloat16) is meant for weights: thresholds and sums stay as exact as a master.
        source = self.threshold if threshold.is_meta else threshold
        device = self.threshold.device
        self.threshold = source.to(device, exact_dtype(self.weight))
        self._move_records(device)
        register(self.weight, self)
        return self


def _as_integers(value: Tensor, name: str) -> Tensor:
    """A buffer of integers as a state has it, where averaging has made floating numbers of them."""
    if not value.is_floating_point() or value.is_meta:
        return value
    value = value.nan_to_num().round()
    # Words that were averaged say nothing; _mend finds what is silent by the weight.
    return value.to(torch.int64).to(torch.int32) if name == "silent" else value.to(torch.int64)
