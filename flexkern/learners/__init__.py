"""Learners: whole networks that take a stream, one experience after the other."""

from flexkern.learners.artsy import ArtsyViT
from flexkern.learners.baselines import FinetuneViT, JointViT, RanPAC, SimpleCIL
from flexkern.learners.metaplastic import MetaplasticMLP
from flexkern.learners.methods import METHODS, load_learner, make_learner
from flexkern.learners.progress import Progress
from flexkern.learners.training import Recipe

__all__ = [
    "METHODS",
    "ArtsyViT",
    "FinetuneViT",
    "JointViT",
    "MetaplasticMLP",
    "Progress",
    "RanPAC",
    "Recipe",
    "SimpleCIL",
    "load_learner",
    "make_learner",
]
