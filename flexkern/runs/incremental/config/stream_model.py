"""``[stream]``: which classes and images come when."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from flexkern.runs.incremental.config.sentences import Said, strict
from flexkern.runs.incremental.config.values import LARGEST_ORDER, NUMBERS_AND_RANGES, Count, numbers

__all__ = ["LATER_STREAM", "StreamConfig"]

LATER_STREAM: dict[str, Any] = {
    "kind": "class-incremental",
    "tasks": None, "disjoint": 0.5, "blur": 0.1,
    "experiences": None, "classes_per_experience": None, "probability": None,
    "shuffle_domains": False,
    "online": 0,
}  # fmt: skip
"""Keys that came later: where they say nothing new, a configuration is the one that older results have."""
# Keys of [stream] that one kind of stream has.
_OF_KIND: dict[str, tuple[str, ...]] = {
    "class-incremental": ("increment", "base"),
    "domain-incremental": ("shuffle_domains",),
    "blurry": ("tasks", "disjoint", "blur"),
    "class-repetition": ("experiences", "classes_per_experience", "probability"),
}


@strict
class StreamConfig:
    """``[stream]``: which classes come when (docs/streams.md)."""

    increment: Annotated[
        Count | None,
        Field(description="classes of a task: the N of B0-IncN; needed by class-incremental streams"),
    ] = None
    base: Annotated[
        int, Ge(0), Le(2**31), Field(description="classes of the first task, if not as many: the m of Bm-IncN")
    ] = 0
    seed: Annotated[
        Annotated[int, Ge(0), Le(LARGEST_ORDER)] | Literal["run"],
        Field(description="of the order of the classes and of the choice of images; 'run': that of each run"),
    ] = 1993
    order: Annotated[
        tuple[int, ...] | None,
        BeforeValidator(partial(numbers, "order")),
        WithJsonSchema(NUMBERS_AND_RANGES),
        Said("a list of labels, and of ranges such as '50-99'"),
        Field(description="labels in the order of learning, in place of the seed's. No others take part"),
    ] = None
    kind: Annotated[
        Literal["class-incremental", "domain-incremental", "blurry", "class-repetition"],
        Field(
            description="new classes in each task; the same classes in each, from another of data.domains; "
            "i-Blurry-N-M, where some images of other classes come too; or classes that come again. "
            "docs/streams.md says more of each"
        ),
    ] = "class-incremental"
    tasks: Annotated[Count | None, Field(description="of a blurry stream, which needs it")] = None
    disjoint: Annotated[
        float,
        Ge(0),
        Le(1),
        Said("a share from 0 to 1"),
        Field(
            description="of the classes of a blurry stream that come in one task only: the N of i-Blurry-N-M"
        ),
    ] = 0.5
    blur: Annotated[
        float,
        Ge(0),
        Lt(1),
        Said("a share from 0 to under 1"),
        Field(description="of the images of its other classes that come in other tasks: the M"),
    ] = 0.1
    experiences: Annotated[
        Count | None, Field(description="of a stream with repetition, which needs it: how many")
    ] = None
    classes_per_experience: Annotated[
        Count | None, Field(description="of a stream with repetition; this or probability")
    ] = None
    probability: Annotated[
        float | None,
        Ge(0),
        Le(1),
        Said("a probability from 0 to 1"),
        Field(description="with which a class that has come is in each later experience"),
    ] = None
    shuffle_domains: Annotated[
        bool, Field(description="whether the seed orders the domains, or data.domains does")
    ] = False
    online: Annotated[
        int,
        Ge(0),
        Le(2**31),
        Field(
            description="images come once, so many at a time, and methods learn them in one pass; 0: all of a "
            "task at once, for as many epochs as a method has"
        ),
    ] = 0

    @model_validator(mode="after")
    def _check(self) -> StreamConfig:
        for kind, keys in _OF_KIND.items():
            for name in keys:
                given = getattr(self, name)
                if kind != self.kind and given != type(self).__pydantic_fields__[name].default:  # type: ignore[attr-defined]
                    raise ValueError(f"{name} is for streams of kind {kind!r}; kind is {self.kind!r}")
        if self.kind == "domain-incremental" and self.order is not None:
            raise ValueError(
                "order is of classes, which a domain-incremental stream has all at once; data.domains is in "
                "the order of learning, and data.classes says which classes take part"
            )
        needed = {"class-incremental": "increment", "blurry": "tasks", "class-repetition": "experiences"}
        name = needed.get(self.kind, "kind")
        if getattr(self, name) is None:
            raise ValueError(f"{name} is missing")
        if self.kind == "class-repetition" and (self.classes_per_experience is None) == (
            self.probability is None
        ):
            raise ValueError(
                "a stream with repetition needs classes_per_experience or probability, one of them"
            )
        return self

    def check_classes(self, classes: int) -> None:
        """Raises ValueError if a stream of so many classes cannot be cut like that."""
        for name in ("base", "increment", "tasks", "classes_per_experience"):
            value = getattr(self, name)
            if value is not None and value > classes:
                raise ValueError(f"stream.{name} is {value}, but only {classes} classes take part")
