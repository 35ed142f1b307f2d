"""How the experiments of the metaplasticity paper are run: data, sizes, and the release's values."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

from flexkern.ops.choices import PRECISIONS
from flexkern.plain import choice
from flexkern.runs.seeds import LARGEST_OF_NUMPY, checked
from flexkern.runs.start import path_given

__all__ = ["RELEASE", "RELEASE_SCALES", "Network", "Protocol", "protocol_for"]

DIGITS, RANDOM = "digits", "random"
# The authors' code has these with AlexNet's features of 9,216 values, whose weights are not at hand. Here they
# are the defaults with SqueezeNet's, of 18,432, which that code does not have.
RELEASE: dict[str, Any] = {"width": 4096, "lr": 1e-4}
RELEASE_SCALES = {10: 4e5, 30: 2e5}
# A learning rate and a scale mean something only with the features that they were found for. These are for
# random convolutions, whose features have mean square 1, and for a width that suits two processor cores.
OF_RANDOM: dict[str, Any] = {"width": 256, "lr": 0.02, "scale": "auto"}


@dataclass(frozen=True)
class Protocol:
    """The settings that all networks of an experiment share. Defaults are the release's, but for the features.

    data: "digits" (scikit-learn's 1,797) or the path of an MNIST archive.
    features: "random" (frozen random convolutions) or the path of SqueezeNet's weights.
    items: of the stream, 3 to 45.
    train_per_item, test_per_item: images of an item; its training set has as many again from other items, with
        wrong labels.
    epochs, batch_size, lr: of training; plain SGD.
    scale: how fast synapses get stiff, or "auto"; alpha is taken once per item.
    width: units of each of the two hidden layers.
    seeds: with each of them everything is done once; a seed decides items, their order, features where they are
        random, initial weights and flexibility.
    device: where to compute.
    precision: of the networks, :class:`flexkern.learners.mlp.base.MLPLearner`'s.
    as_released: as the authors' code does it where these experiments do it otherwise: how items are put
        together (:class:`flexkern.streams.TwoDigitItems`), and what an experiment says of itself.

    Raises:
        ValueError: naming the setting.
    """

    data: str = DIGITS
    features: str = RANDOM
    items: int = 10
    train_per_item: int = 2000
    test_per_item: int = 1000
    epochs: int = 5
    batch_size: int = 1024
    lr: float = 1e-4
    scale: float | str = 4e5
    width: int = 4096
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"
    precision: str = "float32"
    as_released: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", checked(self.seeds, most=LARGEST_OF_NUMPY))
        for name in ("train_per_item", "test_per_item", "epochs", "batch_size", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 3 <= self.items <= 45:
            raise ValueError(f"items must be in [3, 45], got {self.items}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a finite number > 0, got {self.lr}")
        if self.scale != "auto" and (isinstance(self.scale, str) or not self.scale > 0):
            raise ValueError(f"scale must be a number > 0 or 'auto', got {self.scale!r}")
        choice(self.precision, "precision", PRECISIONS)
        for name, known in (("data", DIGITS), ("features", RANDOM)):
            value = getattr(self, name)
            if value != known and not os.path.exists(value):
                raise ValueError(f"{name} must be {known!r} or the path of an archive; there is no {value!r}")

    def asdict(self) -> dict[str, Any]:
        """For JSON; paths by their names only, so that a folder can move.

        Settings that came later are there only where they are not what had held before.
        """
        values = asdict(self)
        for name in ("precision", "as_released"):
            if values[name] == getattr(Protocol, name):
                del values[name]
        return values | {name: os.path.basename(values[name]) for name in ("data", "features")}


def protocol_for(**given: Any) -> Protocol:
    """A protocol: what is given, else what suits the features, else the release's values.

    With SqueezeNet's features the width, learning rate, and scale that the release has for AlexNet's: 4e5 for
    streams of up to 10 items, 2e5 for longer ones. With random convolutions width 256, lr 0.02, "auto": at
    the release's values features of that size would not be learned at all.

    Args:
        given: fields of :class:`Protocol`; None counts as not given.
    """
    known = {name: value for name, value in given.items() if value is not None}
    for name, ours in (("data", DIGITS), ("features", RANDOM)):
        if known.get(name, ours) != ours:
            known[name] = os.fspath(path_given(known[name], name))
    if known.get("features", RANDOM) == RANDOM:
        fitting = OF_RANDOM
    else:
        short, long = RELEASE_SCALES.values()
        fitting = RELEASE | {"scale": short if known.get("items", 10) <= 10 else long}
    return Protocol(**(fitting | known))


@dataclass(frozen=True)
class Network:
    """One of the learners that an experiment compares.

    method: of :data:`flexkern.learners.MLP_METHODS`.
    flexibility: of a metaplastic network: "conventional", "hybrid", "stable", a number, or a distribution that
        :func:`flexkern.runs.metaplasticity.flexibility.flexibility` knows.
    options: further arguments of the learner.
    changes: settings of the protocol that are other ones for this network.
    """

    method: str = "metaplastic"
    flexibility: str | float = "hybrid"
    options: tuple[tuple[str, Any], ...] = ()
    changes: tuple[tuple[str, Any], ...] = ()

    def protocol(self, protocol: Protocol) -> Protocol:
        """The protocol as this network has it."""
        return replace(protocol, **dict(self.changes))
