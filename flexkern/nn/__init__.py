"""Layers whose synapses are metaplastic, silent or functional; adapters, gates and heads for frozen
transformers."""

from flexkern.nn.adapters.adapted_model import AdaptedModel, AdapterPoint, Parts, attach_adapters
from flexkern.nn.adapters.bank import AdapterBank
from flexkern.nn.adapters.paged_bank import PagedAdapterBank
from flexkern.nn.feature_statistics import FeatureStatistics
from flexkern.nn.fused.linear import MetaplasticLinear
from flexkern.nn.gates.options import GateOptions
from flexkern.nn.gates.synapse_gate import SynapseGate
from flexkern.nn.heads.discriminant import LDAHead
from flexkern.nn.heads.experts import ExpertHead
from flexkern.nn.heads.prototype import PrototypeClassifier
from flexkern.nn.heads.ridge import RidgeHead
from flexkern.nn.heads.selected import SelectedLDA
from flexkern.nn.not_learned import NotLearnedError
from flexkern.nn.silent.adaptive_threshold import AdaptiveThreshold
from flexkern.nn.silent.insertion import Insertion
from flexkern.nn.silent.linear import SilentLinear
from flexkern.nn.together import learning_together

__all__ = [
    "AdaptedModel",
    "AdapterBank",
    "AdapterPoint",
    "AdaptiveThreshold",
    "ExpertHead",
    "FeatureStatistics",
    "GateOptions",
    "Insertion",
    "LDAHead",
    "MetaplasticLinear",
    "NotLearnedError",
    "PagedAdapterBank",
    "Parts",
    "PrototypeClassifier",
    "RidgeHead",
    "SelectedLDA",
    "SilentLinear",
    "SynapseGate",
    "attach_adapters",
    "learning_together",
]
