"""Layers whose synapses are metaplastic, silent or functional."""

from flexkern.nn.linear import MetaplasticLinear
from flexkern.nn.silent import SilentLinear
from flexkern.nn.threshold import AdaptiveThreshold

__all__ = ["AdaptiveThreshold", "MetaplasticLinear", "SilentLinear"]
