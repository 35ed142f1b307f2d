"""Learners: whole networks that take a stream, one experience after the other."""

from flexkern.learners.mlp.baselines import MLP_METHODS, load_mlp
from flexkern.learners.mlp.metaplastic import MetaplasticMLP
from flexkern.learners.mlp.penalties import ElasticMLP, IntelligentMLP
from flexkern.learners.mlp.rehearsal import JointMLP, ReplayMLP
from flexkern.learners.progress import Progress
from flexkern.learners.registry import METHODS, load_learner, make_learner
from flexkern.learners.vit.artsy import ArtsyViT
from flexkern.learners.vit.baselines import FinetuneViT, JointViT, RanPAC, SimpleCIL
from flexkern.learners.vit.training import Recipe

__all__ = [
    "METHODS",
    "MLP_METHODS",
    "ArtsyViT",
    "ElasticMLP",
    "FinetuneViT",
    "IntelligentMLP",
    "JointMLP",
    "JointViT",
    "MetaplasticMLP",
    "Progress",
    "RanPAC",
    "Recipe",
    "ReplayMLP",
    "SimpleCIL",
    "load_learner",
    "load_mlp",
    "make_learner",
]
