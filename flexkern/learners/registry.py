"""Methods by name: for configurations, checkpoints, and whoever adds one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from flexkern.learners import checkpoint, restore
from flexkern.learners.base import Learner
from flexkern.plain import nearest

__all__ = [
    "METHODS",
    "MLP_METHODS",
    "Methods",
    "defaults_of",
    "load_learner",
    "load_mlp",
    "make_learner",
    "register_method",
]

_Class = TypeVar("_Class", bound=type[Learner])


class _Method(NamedTuple):
    learner: type[Learner]
    options: dict[str, Any]


_REGISTERED: dict[tuple[str, str], _Method] = {}  # by the family of the network and the name


def register_method(name: str, **options: Any) -> Callable[[_Class], _Class]:
    """Gives a learner's class the name by which it is made and loaded; a decorator::

        @register_method("mine")
        class Mine(ViTLearner):
            ...

    A class says in ``takes`` what kinds of streams it learns, where these are more than its family's.

    Args:
        name: not yet taken by another class of the same family of networks ("mlp" or "vit").
        options: of the constructor, where :func:`make_learner` is asked for this name. So a class can have
            several names; the first one is its ``method``, by which its checkpoints know it.

    Raises:
        TypeError: if the class is not a :class:`flexkern.learners.Learner`.
        ValueError: if another class has the name.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"name must be a string that is not empty, got {name!r}")

    def register(learner: _Class) -> _Class:
        if not (isinstance(learner, type) and issubclass(learner, Learner)):
            raise TypeError(f"method {name!r} must be a class that inherits from Learner, got {learner!r}")
        key = (learner.family, name)
        taken = _REGISTERED.get(key)
        # A module that is run again, as in a notebook, registers its classes again.
        if taken is not None and _path(taken.learner) != _path(learner):
            raise ValueError(f"method {name!r} is {_path(taken.learner)} already; choose another name")
        _REGISTERED[key] = _Method(learner, options)
        if "method" not in vars(learner):
            learner.method = name
        return learner

    return register


def _path(learner: type) -> str:
    return f"{learner.__module__}.{learner.__qualname__}"


class Methods(Mapping[str, type[Learner]]):
    """The classes of one family of networks by the names of their methods, those registered later included."""

    def __init__(self, family: str) -> None:
        self._family = family

    def __getitem__(self, name: str) -> type[Any]:
        return _REGISTERED[self._family, name].learner

    def __iter__(self) -> Iterator[str]:
        return (name for family, name in list(_REGISTERED) if family == self._family)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(tuple(self))


def defaults_of(family: str, name: str) -> dict[str, Any]:
    """What the constructor of a method is given where nothing else is said, by the name that it is made by."""
    return dict(_REGISTERED[family, name].options)


METHODS = Methods("vit")
"""Class-incremental methods on a vision transformer: what :func:`make_learner` makes."""
MLP_METHODS = Methods("mlp")
"""Methods on a multi-layer perceptron, such as :class:`flexkern.learners.MetaplasticMLP`."""


def make_learner(
    method: str,
    backbone: str | os.PathLike[str] | nn.Module = "small",
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Any:
    """A learner on a vision transformer by the name of its method.

    Args:
        method: one of ``METHODS``; "ease" is Artsy without gates (all adapters run, for every image).
        backbone: as :func:`flexkern.backbones.load_backbone` takes it.
        seed, device: of the learner.
        options: fields of :class:`flexkern.learners.Recipe` (epochs, lr, ...) and arguments of the method's
            class.

    Raises:
        ValueError: if the method or an option is not known, or a value is outside its range.
    """
    if method not in METHODS:
        of_mlp = MLP_METHODS.get(method) if isinstance(method, str) else None
        there = f"; on a perceptron it is flexkern.learners.{of_mlp.__name__}" if of_mlp else ""
        raise ValueError(f"method must be one of {METHODS}, got {method!r}{there or nearest(method, METHODS)}")
    learner: Any
    learner, defaults = _REGISTERED[METHODS._family, method]
    options = defaults | options
    known = learner.options()
    unknown = sorted(set(options) - set(known))
    if "recipe" in unknown:
        raise ValueError(
            "recipe: make_learner takes the fields of a Recipe by themselves, as epochs=20 and lr=0.025; a "
            f"whole one is for the class, {learner.__name__}(backbone, recipe=...)"
        )
    if unknown:
        raise ValueError(
            f"method {method!r} has no option {', '.join(map(repr, unknown))}; it has {sorted(known)}"
            f"{nearest(unknown[0], known)}"
        )
    return learner.make(backbone, seed=seed, device=device, **options)


def load_learner(path: str | os.PathLike[str], *, device: torch.device | str = "cpu", **given: Any) -> Any:
    """The learner that any method's ``save`` wrote; see :meth:`flexkern.learners.Learner.load`.

    Args:
        path: of the checkpoint.
        device: where to compute.
        given: what the file does not hold: ``backbone`` (default: "small") of a learner on a vision
            transformer, ``features``, ``features_cache`` and ``cuda_graph`` of one on a multi-layer perceptron.

    Raises:
        OSError, ValueError: as :meth:`flexkern.learners.Learner.load`.
    """
    return _load(path, (METHODS, MLP_METHODS), device=device, **given)


def load_mlp(
    path: str | os.PathLike[str], features: nn.Module | None = None, device: torch.device | str = "cpu"
) -> Any:
    """The learner that ``save`` of any of :data:`MLP_METHODS` wrote.

    Args:
        path: of the checkpoint.
        features: the extractor that the learner was made with, if it had one.
        device: where to compute.

    Raises:
        OSError, ValueError: as :meth:`flexkern.learners.Learner.load`.
    """
    return _load(path, (MLP_METHODS,), device=device, features=features)


def _load(path: str | os.PathLike[str], among: tuple[Methods, ...], **given: Any) -> Learner:
    with checkpoint.naming(path):
        record = restore.names(checkpoint.read_record(path))
    for methods in among:
        if record.get("family") == methods._family and record.get("method") in methods:
            return methods[record["method"]].load(path, **given)
    names = tuple(name for methods in among for name in methods)
    raise ValueError(f"path: {os.fspath(path)!r} holds {record.get('class')!r}, which is none of {names}")
