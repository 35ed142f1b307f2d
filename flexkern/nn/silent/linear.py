"""A linear layer of which some synapses are silent until what they connect is active together.

See docs/design.md, Silent and functional synapses.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from flexkern import ops
from flexkern.fields import Field, Kind, Purpose
from flexkern.nn.fused.linear import MetaplasticLinear
from flexkern.nn.records import record_of
from flexkern.nn.silent.adaptive_threshold import AdaptiveThreshold
from flexkern.nn.silent.insertion import Insertion
from flexkern.nn.silent.layer_of_weight import register
from flexkern.nn.silent.mask import MaskGradient, check_silent, silent_mask
from flexkern.ops.checks import exact_dtype
from flexkern.reference import activity

__all__ = ["SilentLinear"]

# Buffers that keep the weight's exact dtype when the layer is cast.
_EXACT = ("threshold", "_pre", "_post", "_samples", "_coincidence")


class SilentLinear(MetaplasticLinear):
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

    silent: Tensor
    threshold: Tensor
    silent_count: Tensor
    changes: Tensor
    _pre: Tensor
    _post: Tensor
    _samples: Tensor
    _coincidence: Tensor | None

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
        **insertion_fields: Any,
    ) -> None:
        how = record_of(Insertion, insertion, insertion_fields, name="insertion", of=SilentLinear)
        if init is not None and not isinstance(init, Field):
            raise TypeError(f"init must be a flexkern.Field or None, got {type(init).__name__}")
        check_silent(silent, (out_features, in_features))
        theta = how.initial_threshold(out_features)
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        default = Field.uniform(seed, stream, low=-bound, high=bound, purpose=Purpose.ANCHOR)
        mask = silent_mask(silent, (out_features, in_features), seed, stream)
        super().__init__(in_features, out_features, bias, device, dtype, fused_step=fused_step, window=window)
        self.init = default if init is None else init
        self.rule, self.insert, self.eta, self.prune = how.rule, how.insert, float(how.eta), float(how.prune)
        self.adaptive = how.threshold if isinstance(how.threshold, AdaptiveThreshold) else None
        self.conversions: list[int] = []
        device, exact = self.weight.device, exact_dtype(self.weight)
        words = ops.pack_mask(mask.to(device))
        self.register_buffer("silent", words)
        self.register_buffer("threshold", theta.to(device, exact))
        # Of each unit: silent synapses now; synapses converted, and pruned, in this item.
        self.register_buffer("silent_count", mask.sum(1).to(device))
        self.register_buffer("changes", torch.zeros((2, out_features), dtype=torch.int64, device=device))
        # What was recorded since the last step: sums over samples, and how many there were.
        self.register_buffer("_pre", torch.zeros(in_features, dtype=exact, device=device), persistent=False)
        self.register_buffer("_post", torch.zeros(out_features, dtype=exact, device=device), persistent=False)
        self.register_buffer("_samples", torch.zeros((), dtype=exact, device=device), persistent=False)
        self.register_buffer("_coincidence", None, persistent=False)
        self._some_silent = bool(mask.any())
        self._draw(default)
        register(self.weight, self)

    def reset_parameters(self) -> None:
        """Does nothing: nn.Linear calls it before the fields are there from which the weights are drawn."""

    @torch.no_grad()
    def _draw(self, default: Field) -> None:
        """Initial weights and bias; torch's global generator is left as it is."""
        self.weight.copy_(ops.materialize(self.init, self.weight.shape, device=self.weight.device))
        self._silence()
        if self.bias is not None:
            # The default's values that come after the weight's own.
            field = default.shard(self.weight.numel())
            self.bias.copy_(ops.materialize(field, self.bias.shape, device=self.bias.device))

    @torch.no_grad()
    def _silence(self) -> None:
        self.weight.masked_fill_(ops.unpack_mask(self.silent, self.in_features), 0.0)

    # ------------------------------------------------------------------ forward

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]; in training with gradients it records activities, see the class.

        Raises:
            RuntimeError: as :class:`flexkern.nn.MetaplasticLinear`.
        """
        if not self._trains():
            return linear(x, self.weight, self.bias)
        if not torch.compiler.is_compiling():
            register(self.weight, self)
        may_convert = self.may_convert()
        if self.fused_step:
            return self._fused(x, keep_post=may_convert)
        if not may_convert:
            return linear(x, self.weight, self.bias)
        y = linear(x, MaskGradient.apply(self.weight, self.silent), self.bias)
        self._record(x.detach(), y.detach())
        return y

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
            self._coincidence = self.weight.new_zeros(self.weight.shape, dtype=exact)
        self._coincidence.addmm_(post.to(exact).T, pre.to(exact))

    # ------------------------------------------------------------------ for the optimizer

    def may_convert(self) -> bool:
        """False only if no synapse is silent, now or after pruning.

        Known without waiting for the device: it becomes False at the end of an item.
        """
        return self._some_silent or self.prune > 0

    def insertion(self) -> dict[str, Any]:
        """How synapses convert: threshold, insert, eta and prune, as the operators take them."""
        return {"threshold": self.threshold, "insert": self.insert, "eta": self.eta, "prune": self.prune}

    def recorded(self) -> dict[str, Tensor]:
        """Means since the last step: pre [in] and post [out], or coincidence [out, in].

        Without a sample pre and post are NaN, which converts nothing.
        """
        if self._coincidence is not None:
            return {"coincidence": self._coincidence / self._samples}
        return {"pre": self._pre / self._samples, "post": self._post / self._samples}

    @torch.no_grad()
    def passed(self, conversions: ops.Conversions) -> None:
        """A pass over the synapses did this: counts it, adapts the thresholds, and begins to record anew."""
        if self.adaptive is not None:
            self.adaptive.update_(self.threshold, conversions.converted, self.silent_count)
        self.changes += torch.stack(tuple(conversions))
        self.silent_count += conversions.pruned - conversions.converted
        self._forget()

    def _forget(self) -> None:
        for recorded in (self._pre, self._post, self._samples):
            recorded.zero_()
        self._coincidence = None

    def end_item(self) -> None:
        """An item ends: its conversions are appended to ``conversions``. Waits for the device.

        ``MetaplasticSGD.consolidate()`` calls it for the layers of its weights.
        """
        self.conversions.append(int(self.changes[0].sum()))
        self.changes.zero_()
        self._some_silent = bool(self.silent_count.any())

    # ------------------------------------------------------------------ by hand

    @torch.no_grad()
    def convert(self) -> ops.Conversions:
        """Converts (and prunes) as a step of MetaplasticSGD does, with what was recorded since the last time.

        For other optimizers: call it after their ``step()``. Weights that are functional do not change.

        Returns:
            :class:`flexkern.ops.Conversions`.
        """
        exact = exact_dtype(self.weight)
        anchor = ops.materialize(self.init, self.weight.shape, device=self.weight.device).to(exact)
        arguments: dict[str, Any] = {
            **self.recorded(),
            **self.insertion(),
            "master": self.weight.to(exact, copy=True),
        }
        no_grad = torch.zeros_like(self.weight)
        conversions = ops.synapse_step_(
            self.weight, no_grad, anchor, 1.0, self.silent, lr=0.0, scale=1.0, **arguments
        )
        assert isinstance(conversions, ops.Conversions)
        self.passed(conversions)
        return conversions

    # ------------------------------------------------------------------ state

    def functional_share(self) -> Tensor:
        """Share of each unit's synapses that are functional, float32 [out]."""
        return 1 - self.silent_count / max(self.in_features, 1)

    def extra_repr(self) -> str:
        theta = "adaptive" if self.adaptive else f"{self.threshold.mean().item():.4g}"
        silent = self.silent_count.sum().item() / max(self.weight.numel(), 1)
        prune = f", prune={self.prune:g}" if self.prune else ""
        return (
            f"{super().extra_repr()}, silent={silent:.1%}, threshold={theta}, rule={self.rule!r}, "
            f"insert={self.insert!r}{prune}"
        )

    def get_extra_state(self) -> dict[str, Any]:
        """Plain data that :meth:`state_dict` holds beside the buffers: the conversions and the field of the
        initial weights."""
        return {"conversions": list(self.conversions), "init": list(self.init.source())}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.conversions = [int(n) for n in state["conversions"]]
        (kind, seed, stream, offset, purpose), (p0, p1) = state["init"]  # of Field.source()
        self.init = Field(Kind(kind), seed % 2**64, stream, Purpose(purpose), offset, (p0, p1))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        # The state of an nn.Linear has weights also where this layer is silent.
        self._silence()
        self.silent_count.copy_(ops.unpack_mask(self.silent, self.in_features).sum(1))
        self._some_silent = bool(self.silent_count.any())
        self._forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        register(self.weight, self)

    def _apply(self, fn: Any, recurse: bool = True) -> SilentLinear:
        kept = {name: self._buffers[name] for name in _EXACT}
        super()._apply(fn, recurse)
        # .to(bfloat16) is meant for weights: thresholds and sums stay as exact as a master.
        for name, value in kept.items():
            moved = self._buffers[name]
            if value is not None and moved is not None:
                source = moved if value.is_meta else value
                self._buffers[name] = source.to(moved.device, exact_dtype(self.weight))
        register(self.weight, self)
        return self
