"""Frozen features: extractors, features taken once for many epochs and many learners, and a folder of them."""

from flexkern.features.backbone import BackboneFeatures
from flexkern.features.cache import CachedFeatures, FeatureCache
from flexkern.features.convolutions import RandomConvolutions
from flexkern.features.extraction import extract, extract_from
from flexkern.features.identity import add_tensors, fingerprint
from flexkern.features.pixels import Pixels

__all__ = [
    "BackboneFeatures",
    "CachedFeatures",
    "FeatureCache",
    "Pixels",
    "RandomConvolutions",
    "add_tensors",
    "extract",
    "extract_from",
    "fingerprint",
]
