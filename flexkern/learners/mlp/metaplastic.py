"""The classifier of the metaplasticity paper (arXiv 2407.07133) as a continual learner."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexkern.features import FeatureCache
from flexkern.fields import Field
from flexkern.learners import schema
from flexkern.learners.mlp.base import MLPLearner
from flexkern.learners.mlp.network import build, linear_layers
from flexkern.learners.mlp.reserve import Reserve
from flexkern.learners.mlp.rows import Rows
from flexkern.learners.registry import register_method
from flexkern.learners.scenarios import FEW
from flexkern.nn import AdaptiveThreshold, SilentLinear
from flexkern.optim import MetaplasticSGD, fuse_into_backward
from flexkern.optim.scale import FirstItem
from flexkern.plain import choice, flag, nearest, number

__all__ = ["NETWORKS", "MetaplasticMLP"]

# The paper's three networks by the flexibility of their synapses.
NETWORKS: dict[str, str | float] = {"conventional": 1.0, "hybrid": "uniform", "stable": 0.3}
_MEASURED_STEPS = 20  # of scale="auto", over items of few inputs
_RESERVE = tuple(field.name for field in fields(Reserve))


@register_method("metaplastic")
class MetaplasticMLP(MLPLearner):
    """Linear layers on frozen features, trained item after item by flexible synapses.

    ReLU between them; Glorot-normal weights, zero bias, no dropout, plain cross-entropy over
    all classes of the stream, as in the paper. Each item is learned with the alpha that the weights had when it
    began; when it ends, the synapses are consolidated: the next item finds them as stiff as this one left them.
    The initial weights are procedural, so the optimizer needs no copy of them as anchors (on a CPU it keeps one
    with gate "step"). Weights are float32, whatever torch's default dtype is, or with ``precision="bfloat16"``
    roundings of float32 masters, on which the synapses step::

        learner = MetaplasticMLP(stream.input_shape, stream.classes, features=extractor)
        for item in stream:
            learner.learn(item)
            print(learner.evaluate(stream).accuracies)

    With ``silent_fraction`` the hidden layers have a reserve: synapses that are silent until the activity
    of their units passes a threshold; then they begin at their initial weight
    (:class:`flexkern.nn.SilentLinear`). On two-digit items that helps late items at the cost of early ones; the
    cost is least with ``insert="hebbian", eta=1e-3``. See ``docs/results/silent_reserve``.

    Args:
        input_shape, classes, widths, features, batch_size, seed, device, cuda_graph, features_cache,
            output_gate, precision: as in :class:`flexkern.learners.mlp.base.MLPLearner`; the paper: widths
            (4096, 4096), batch_size 1024. The seed is that of flexibility and of the choice of silent synapses,
            too.
        network: "conventional" (f = 1), "hybrid" (f uniform on (0, 1)), "stable" (f = 0.3), or any
            ``flexibility`` that :class:`flexkern.optim.MetaplasticSGD` takes.
        lr, scale, gate, momentum: of the optimizer. The paper: lr 1e-4, scale 4e5 for streams of 10 items,
            gate "item", no momentum. The scale "auto" is measured over the first item, which synapses of all
            flexibilities move in as plain SGD does. Items of fewer than 16 inputs, as of an online stream, are
            one item until they have had 20 steps.
        reserve: of silent synapses in the hidden layers. Default: none.
        fused_step: whether the backward pass steps the weights
            (:func:`flexkern.optim.fuse_into_backward`): the same weights up to rounding, and no gradient of a
            weight in memory.
        fields_of_reserve: silent_fraction, threshold, rule, insert, eta, prune: those of
            :class:`flexkern.learners.Reserve`, one by one, in place of ``reserve``.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    optimizer: MetaplasticSGD

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        widths: tuple[int, ...] = (512, 512),
        features: nn.Module | None = None,
        network: str | float | Tensor | np.ndarray | Field = "hybrid",
        lr: float = 1e-2,
        scale: float | str = "auto",
        gate: str = "item",
        momentum: float = 0.0,
        batch_size: int = 50,
        seed: int = 0,
        device: torch.device | str = "cpu",
        reserve: Reserve | None = None,
        fused_step: bool = False,
        cuda_graph: bool = False,
        features_cache: str | os.PathLike[str] | FeatureCache | None = None,
        output_gate: str = "none",
        precision: str = "float32",
        **fields_of_reserve: Any,
    ) -> None:
        if isinstance(network, str) and network not in {*NETWORKS, "uniform", "biased_high", "biased_low"}:
            raise ValueError(
                f"network must be one of {tuple(NETWORKS)} or a flexibility, got {network!r}"
                f"{nearest(network, NETWORKS)}"
            )
        if isinstance(network, (int, float, np.generic)) or (
            isinstance(network, (Tensor, np.ndarray)) and not network.ndim
        ):
            network = number(network, "network", kind="a name or a flexibility")
        scale = scale if isinstance(scale, str) and scale == "auto" else _scale(scale)
        gate, fused_step = choice(gate, "gate", ("item", "step")), flag(fused_step, "fused_step")
        self._flexibility: Any = NETWORKS.get(network, network) if isinstance(network, str) else network
        if scale == "auto" and self._flexibility != 1.0 and number(lr, "lr", 0) == 0:
            raise ValueError("lr must be > 0 with scale='auto', which is measured by how far weights move")
        self._scale, self._gate, self._fused_step = scale, gate, fused_step
        self._reserve = _reserve(reserve, fields_of_reserve)
        super().__init__(
            input_shape, classes, widths=widths, features=features, lr=lr, momentum=momentum,
            batch_size=batch_size, seed=seed, device=device, cuda_graph=cuda_graph,
            features_cache=features_cache, output_gate=output_gate, precision=precision,
        )  # fmt: skip
        self._configuration |= {
            "network": network if isinstance(network, (str, int, float)) else type(network).__name__,
            "scale": scale,
            "gate": gate,
            "fused_step": fused_step,
            **asdict(self._reserve),
        }

    def _build(self, sizes: Sequence[int], lr: float, momentum: float) -> tuple[nn.Sequential, MetaplasticSGD]:
        reserve = self._reserve.layer_options()
        if reserve is not None and len(sizes) == 2:
            raise ValueError(
                f"silent_fraction={self._reserve.silent_fraction}, prune={self._reserve.prune}: with "
                "widths=() there is no hidden layer to have silent synapses; give widths, or leave both out"
            )
        model, initial = build(sizes, self.seed, self.device, reserve, self._dtype)
        # Where each step takes anchors anew, a CPU reads them in a third of the time that drawing normal values
        # takes.
        stores_anchors = self._gate == "step" and self.device.type == "cpu"
        optimizer = MetaplasticSGD(
            model.parameters(),
            lr,
            scale=self._scale,
            flexibility=self._flexibility,
            seed=self.seed,
            gate=self._gate,
            momentum=momentum,
            # One entry per parameter; biases, between the weights, have no anchor: they move freely.
            anchor=None if stores_anchors else [a for field in initial for a in (field, None)],
        )
        if self._fused_step:
            fuse_into_backward(model, optimizer)
        return model, optimizer

    def _why_alone(self) -> str | None:
        if self._fused_step:
            return "a fused step has no gradient that could be added up; pass fused_step=False"
        return super()._why_alone()

    def _end(self, inputs: Tensor | Rows, labels: Tensor) -> None:
        if len(labels) < FEW and self.optimizer.measures_scale():
            steps = max(FirstItem(*group["first_item"]).steps for group in self.optimizer.param_groups)
            if steps < _MEASURED_STEPS:  # what a few inputs do says too little: the next item goes on from here
                return self._after_item(inputs, labels)
        return super()._end(inputs, labels)

    @classmethod
    def _arguments(cls, configuration: dict[str, Any]) -> dict[str, Any]:
        configuration = dict(configuration)
        network = configuration.get("network")
        if not isinstance(network, (str, int, float)):
            raise ValueError(f"network must be a name or a number, got {network!r}")
        if network not in NETWORKS:
            # The flexibility comes back with the optimizer's state, in whatever form it had.
            configuration["network"] = "hybrid"
        if isinstance(configuration.get("threshold"), dict):
            schema.check_configuration(AdaptiveThreshold, configuration["threshold"], "threshold.")
            configuration["threshold"] = AdaptiveThreshold(**configuration["threshold"])
        return configuration

    # ------------------------------------------------------------------ silent synapses

    def functional_share(self) -> list[float]:
        """Share of functional synapses in each linear layer, now; 1 where there is no reserve."""
        return [
            float(layer.functional_share().mean()) if isinstance(layer, SilentLinear) else 1.0
            for layer in linear_layers(self.model)
        ]

    def conversions(self) -> list[list[int]]:
        """For each item that has ended: how many synapses of each linear layer became functional in it."""
        counts = [
            layer.conversions if isinstance(layer, SilentLinear) else [0] * self.items_learned
            for layer in linear_layers(self.model)
        ]
        return [list(of_item) for of_item in zip(*counts, strict=True)]


def _scale(scale: object) -> float:
    return number(scale, "scale", 0, above=True, kind="'auto' or a finite number > 0")


def _reserve(reserve: Reserve | None, one_by_one: dict[str, Any]) -> Reserve:
    unknown = [name for name in one_by_one if name not in _RESERVE]
    if unknown:
        raise TypeError(
            f"MetaplasticMLP got an unexpected keyword argument {unknown[0]!r}"
            f"{nearest(unknown[0], [*_RESERVE, *inspect.signature(MetaplasticMLP).parameters])}"
        )
    if reserve is not None and not isinstance(reserve, Reserve):
        raise TypeError(f"reserve must be a flexkern.learners.Reserve or None, got {type(reserve).__name__}")
    if reserve is not None and one_by_one:
        raise TypeError(f"give reserve or {', '.join(one_by_one)}, not both")
    return Reserve(**one_by_one) if reserve is None else reserve
