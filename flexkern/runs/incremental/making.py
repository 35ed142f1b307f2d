"""Where the learners of a run come from: methods on a transformer, and on a perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from flexkern.features import BackboneFeatures, FeatureCache, Pixels, extract
from flexkern.learners import METHODS, MLP_METHODS, load_learner, make_learner
from flexkern.learners.registry import defaults_of
from flexkern.learners.vit.base import ViTLearner
from flexkern.learners.vit.memory_plan import MemoryPlan
from flexkern.plain import nearest, whole_number
from flexkern.runs.incremental.config import Config, MethodConfig
from flexkern.runs.incremental.config.method_options import family_of, mistake_in
from flexkern.streams import Experience, Stream

__all__ = ["Learners", "Making", "online"]

_UNSAVED = ("features_cache", "cuda_graph")  # arguments of a perceptron's learner that its checkpoint lacks
_TRIED = (3, 32, 32)  # of the images for which a perceptron's options are tried, before any are read


class Learners(NamedTuple):
    """Where learners come from.

    methods: the names that ``make`` takes.
    make: ``make(method, backbone, *, seed, device, **options)`` gives a learner.
    load: ``load(path, *, backbone, device)`` gives the one that was saved there.
    """

    methods: Sequence[str]
    make: Callable[..., Any]
    load: Callable[..., Any]


class Making:
    """Makes and loads the learners of a run.

    Args:
        config: the run.
        device: where to compute.
        learners: of the methods that are not on a perceptron.
    """

    def __init__(self, config: Config, device: torch.device, learners: Learners) -> None:
        self.config, self.device, self.learners = config, device, learners
        self._cache = FeatureCache(config.folder / "features")

    def check_names(self) -> None:
        """Whether there are such methods, with such options, and they take the run's kind of stream.

        Raises:
            ValueError: naming the method.
        """
        for method in self.config.methods:
            self._check_name(method)
        self._check_scenario()

    def check_options(self) -> None:
        """What a learner does not take is found now: before anything is said of what the folder holds, before
        images are read, and not after hours.

        Raises:
            ValueError: naming the method and the option.
        """
        for method in self.config.methods:
            self.make(method, self.config.seeds[0])

    def _check_name(self, method: MethodConfig) -> None:
        if not self.is_perceptron(method) and (
            method.family == "mlp" or method.method not in self.learners.methods
        ):
            families = {"vit": self.learners.methods, "mlp": tuple(MLP_METHODS)}
            known = [n for f, names in families.items() if method.family in (None, f) for n in names]
            allowed = ", ".join(dict.fromkeys(known))
            raise ValueError(
                f"methods: {method.name!r} has method {method.method!r}; allowed are {allowed}"
                f"{nearest(method.method, known)}"
            )
        shipped = self.learners.make is make_learner or self.is_perceptron(method)
        mistake = mistake_in(method) if shipped else None
        if mistake is not None:
            raise ValueError(f"methods: {method.name!r} ({method.method}): {mistake.sentence}")

    def _check_scenario(self) -> None:
        stream = self.config.stream
        wanted = (stream.kind, *(["online"] if online(self.config) else []))
        for method in self.config.methods:
            takes = self._takes(method)
            lacks = next((one for one in wanted if takes is not None and one not in takes), None)
            if lacks is None:
                continue
            names_of = {
                family: [name for name, of in methods.items() if set(wanted) <= set(of.takes)]
                for family, methods in (("vit", METHODS), ("mlp", MLP_METHODS))
            }
            able = {family: ", ".join(names) or "none" for family, names in names_of.items()}
            raise ValueError(
                f"methods: {method.name!r} ({method.method}) learns {', '.join(takes or ())} streams, and this "
                f"one is {lacks}. Methods that learn such: on a transformer {able['vit']}; on a perceptron "
                f"{able['mlp']}"
            )

    def _takes(self, method: MethodConfig) -> tuple[str, ...] | None:
        """The scenarios of a method; None where nobody says it."""
        if self.is_perceptron(method):
            return MLP_METHODS[method.method].takes
        if self.learners.make is not make_learner:
            return None
        return METHODS[method.method].takes

    def is_perceptron(self, method: MethodConfig) -> bool:
        """Whether the method learns with a perceptron, and not with a transformer."""
        if method.family is None and method.method in self.learners.methods:
            return False
        return family_of(method) == "mlp"

    # ------------------------------------------------------------------ learners

    def make(self, method: MethodConfig, seed: int, stream: Stream | None = None) -> Any:
        """A learner that has learned nothing; without a stream one to try its options.

        Raises:
            ValueError: naming the method and the option.
        """
        try:
            if self.is_perceptron(method):
                return self._perceptron(method, seed, stream)
            precision = {} if self.config.precision is None else {"precision": self.config.precision}
            return self.learners.make(
                method.method,
                self.config.network,
                seed=seed,
                device=self.device,
                **(precision | method.options),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"methods: {method.name!r} ({method.method}): {error}") from error

    def _perceptron(self, method: MethodConfig, seed: int, stream: Stream | None) -> Any:
        self.epochs(method)
        shape, classes = (_TRIED, 2) if stream is None else (stream.input_shape, stream.classes)
        options = defaults_of("mlp", method.method) | method.options
        own = {k: v for k, v in options.items() if k not in ("epochs", "features", *_UNSAVED)}
        return MLP_METHODS[method.method](
            shape, classes, seed=seed, device=self.device, **own, **self._given(method)
        )

    def load(self, method: MethodConfig, path: Path) -> Any:
        """The learner that was saved there.

        Raises:
            OSError, ValueError: as :func:`flexkern.learners.load_learner`.
        """
        if self.is_perceptron(method):
            return load_learner(path, device=self.device, **self._given(method))
        return self.learners.load(path, backbone=self.config.network, device=self.device)

    def epochs(self, method: MethodConfig) -> int | None:
        """Of each experience; None: as the learner has it."""
        if not self.is_perceptron(method) or "epochs" not in method.options:
            return None
        return whole_number(method.options["epochs"], "epochs")

    @staticmethod
    def memory(learner: Any, stream: Stream) -> MemoryPlan | None:
        """What a learner takes of its device's memory while it learns a stream; None of one on a perceptron."""
        if not isinstance(learner, ViTLearner):
            return None
        images, size = max(len(e.train_labels) for e in stream), stream.input_shape[-1]
        return learner.memory_plan(classes=stream.classes, tasks=len(stream), images=images, size=size)

    def keeps_features(self, method: MethodConfig) -> bool:
        """Whether its learner takes features of the frozen backbone from files that all such share."""
        options = method.options
        from_pixels = options.get("features", "backbone") == "pixels"
        return not (from_pixels or "features_cache" in options or online(self.config)) and self.is_perceptron(
            method
        )

    def take_features(self, experience: Experience) -> None:
        """Takes the features of an experience, and keeps them for the run."""
        extract(experience, self._seen, device=self.device, cache=self._cache)

    def forget_features(self) -> None:
        """Deletes the features that were kept for this run only."""
        self._cache.clear()
        if self._cache.folder.is_dir() and not any(self._cache.folder.iterdir()):
            self._cache.folder.rmdir()

    def _given(self, method: MethodConfig) -> dict[str, Any]:
        """What the checkpoint of a perceptron's learner does not hold."""
        given = {key: method.options[key] for key in _UNSAVED if key in method.options}
        if method.options.get("features", "backbone") == "pixels":
            return given | {"features": Pixels()}
        # A small part of a stream would be a file of its own.
        cache: dict[str, Any] = {} if online(self.config) else {"features_cache": self._cache}
        return cache | given | {"features": self._seen}

    @cached_property
    def _seen(self) -> nn.Module:
        """What the frozen backbone sees."""
        return BackboneFeatures(self.config.network).to(self.device)


def online(config: Config) -> int:
    """Images of each part of an online stream; 0 if the stream is none."""
    return config.stream.online
