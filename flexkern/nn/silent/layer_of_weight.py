"""Which layer a weight with silent synapses belongs to: how an optimizer finds the synapses that it steps."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from flexkern.dtensors import is_sharded
from flexkern.fields import Field
from flexkern.nn.silent.spread import own_rows
from flexkern.ops import Conversions

__all__ = ["SilentSynapses", "any_silent", "forget", "register", "silent_synapses"]


class SilentSynapses(Protocol):
    """What an optimizer has to know of a layer with silent synapses; :class:`flexkern.nn.SilentLinear` is one.

    silent: int32 words [out, ceil(in / 32)], bit = 1: silent; the step updates it.
    init: the field from which all synapses of the layer are drawn.
    rule: "rate" or "hebbian".
    began_as_init: whether the first step found the field's values in the weight, so that no anchor is stored;
        None: not known.
    """

    began_as_init: bool | None

    @property
    def init(self) -> Field: ...

    @property
    def rule(self) -> str: ...

    @property
    def silent(self) -> Tensor: ...

    def insertion(self) -> dict[str, Any]:
        """How synapses convert: threshold, insert, eta and prune, as the operators take them."""

    def may_convert(self) -> bool:
        """False only if no synapse is silent, now or after pruning."""

    def recorded(self) -> dict[str, Tensor]:
        """What was recorded since the last step: the means pre and post, or coincidence, as
        :func:`flexkern.ops.synapse_step_` takes them."""

    def passed(self, conversions: Conversions) -> Conversions:
        """A pass over the synapses was made and did this: counts it, and begins to record anew. What it did in
        the whole layer, where other processes have the rest."""

    def end_item(self) -> None:
        """An item (task) of the stream ends."""


# Both sides are weak: neither a layer nor its weight lives longer for being listed here. Layers enter
# themselves whenever they train, because moving, copying and loading may give them other Parameter objects.
_layers: Any = WeakIdKeyDictionary()
_known: weakref.WeakSet[Any] = weakref.WeakSet()  # all of them, also those whose weight was taken away


def register(weight: Tensor, layer: SilentSynapses) -> None:
    """Enters ``layer`` as the one that ``weight`` [out, in] belongs to."""
    known = _layers.get(weight)
    if known is None or known() is not layer:
        _layers[weight] = weakref.ref(layer)
        _known.add(layer)


def any_silent() -> bool:
    """Whether any layer with silent synapses is known."""
    return len(_known) > 0


def forget(weight: Tensor) -> None:
    """Takes ``weight`` out again: torch does not swap a parameter that has weak references.

    Any that are left, such as those of a layer that is gone, are torch's to refuse.
    """
    _layers.pop(weight, None)


def silent_synapses(weight: Tensor) -> SilentSynapses | None:
    """The layer that has silent synapses in ``weight``, or None; of a weight of which this process has some
    rows, those rows of it.

    Raises:
        ValueError: if the weight of such a layer is a DTensor that is cut otherwise.
    """
    if not len(_known):  # most programs have no such layer, and their optimizers ask at every step
        return None
    known = _layers.get(weight)
    layer = None if known is None else known()
    if not is_sharded(weight):
        return layer
    if layer is None:
        layer = _layer_of_sharded(weight)
    return None if layer is None else own_rows(layer, weight)


def _layer_of_sharded(weight: Tensor) -> Any:
    """fully_shard gives a layer another weight, and takes it away for each forward pass. So optimizers ask when
    they are made, and while the layer has it."""
    for layer in list(_known):
        if layer.weight is weight:
            register(weight, layer)
            return layer
    return None
