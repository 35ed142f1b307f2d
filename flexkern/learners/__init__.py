"""Learners: whole networks that take a stream, one experience after the other."""

from flexkern.learners.answers import Answer
from flexkern.learners.base import Learner
from flexkern.learners.given import picture_files
from flexkern.learners.mlp.closed_form import LDAMLP, RidgeMLP
from flexkern.learners.mlp.ewc import EWC
from flexkern.learners.mlp.joint import JointMLP
from flexkern.learners.mlp.metaplastic import MetaplasticMLP
from flexkern.learners.mlp.replay import ReplayMLP
from flexkern.learners.mlp.reserve import Reserve
from flexkern.learners.mlp.si import SI
from flexkern.learners.progress import BatchProgress, Progress
from flexkern.learners.registry import (
    METHODS,
    MLP_METHODS,
    load_learner,
    load_mlp,
    make_learner,
    register_method,
)
from flexkern.learners.scenarios import SCENARIOS
from flexkern.learners.vit.artsy import ArtsyViT
from flexkern.learners.vit.finetune import FinetuneViT
from flexkern.learners.vit.joint import JointViT
from flexkern.learners.vit.lda import LDA
from flexkern.learners.vit.memory_plan import MemoryPlan
from flexkern.learners.vit.ranpac import RanPAC
from flexkern.learners.vit.simplecil import SimpleCIL
from flexkern.learners.vit.training import Recipe
from flexkern.nn.not_learned import NotLearnedError

ElasticMLP, IntelligentMLP = EWC, SI  # their names of before

__all__ = [
    "EWC",
    "LDA",
    "LDAMLP",
    "METHODS",
    "MLP_METHODS",
    "SCENARIOS",
    "SI",
    "Answer",
    "ArtsyViT",
    "BatchProgress",
    "ElasticMLP",
    "FinetuneViT",
    "IntelligentMLP",
    "JointMLP",
    "JointViT",
    "Learner",
    "MemoryPlan",
    "MetaplasticMLP",
    "NotLearnedError",
    "Progress",
    "RanPAC",
    "Recipe",
    "ReplayMLP",
    "Reserve",
    "RidgeMLP",
    "SimpleCIL",
    "load_learner",
    "load_mlp",
    "make_learner",
    "picture_files",
    "register_method",
]
