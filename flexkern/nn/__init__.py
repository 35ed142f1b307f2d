"""Layers whose synapses are metaplastic, silent or functional; adapters, gates and heads for frozen
transformers."""

from flexkern.nn.adapted import AdaptedModel, AdapterPoint, Parts, attach_adapters
from flexkern.nn.adapter_bank import AdapterBank
from flexkern.nn.experts import ExpertHead
from flexkern.nn.gates import SynapseGate
from flexkern.nn.linear import MetaplasticLinear
from flexkern.nn.prototype import PrototypeClassifier
from flexkern.nn.ridge import RidgeHead
from flexkern.nn.silent import SilentLinear
from flexkern.nn.statistics import FeatureStatistics
from flexkern.nn.threshold import AdaptiveThreshold

__all__ = [
    "AdaptedModel",
    "AdapterBank",
    "AdapterPoint",
    "AdaptiveThreshold",
    "ExpertHead",
    "FeatureStatistics",
    "MetaplasticLinear",
    "Parts",
    "PrototypeClassifier",
    "RidgeHead",
    "SilentLinear",
    "SynapseGate",
    "attach_adapters",
]
