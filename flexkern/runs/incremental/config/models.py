"""What a class-incremental run is: the tables of its TOML file."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from flexkern.runs.incremental.config.sentences import Said, strict
from flexkern.runs.start import path_given
from flexkern.streams.packs import MOST_CLASSES

__all__ = ["RESERVED", "BackboneConfig", "Config", "DataConfig", "MethodConfig", "Paper", "StreamConfig"]

RESERVED = ("backbone", "device", "seed")
"""What the runner itself hands to every learner: not options of one."""
# NumPy's RandomState, which orders classes, takes no larger one; and learners make 64 bits of theirs.
_LARGEST_ORDER, _LARGEST_SEED = 2**32 - 1, 2**53 - 1
_DEEPEST = 20  # tables in tables of a method's options
_DIGITS = 10  # classes of the bundled ones
# Keys that came later: where they say nothing new, a configuration is the one that older results have.
_LATER_DATA: dict[str, Any] = {"test_share": None, "broken": "raise", "in_memory": "auto"}
_LATER_STREAM: dict[str, Any] = {
    "kind": "class-incremental",
    "tasks": None, "disjoint": 0.5, "blur": 0.1,
    "experiences": None, "classes_per_experience": None, "probability": None,
    "shuffle_domains": False,
    "online": 0,
}  # fmt: skip
# Keys of [stream] that one kind of stream has.
_OF_KIND: dict[str, tuple[str, ...]] = {
    "class-incremental": ("increment", "base"),
    "domain-incremental": ("shuffle_domains",),
    "blurry": ("tasks", "disjoint", "blur"),
    "class-repetition": ("experiences", "classes_per_experience", "probability"),
}
_LATER_PAPER: dict[str, Any] = {"shuffled": True}


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise PydanticCustomError("text", "no text")
    return value


def _listed(value: Any) -> Any:
    """TOML's lists, where a tuple is kept."""
    return tuple(value) if isinstance(value, list) else value


def _numbers(name: str, entries: Any) -> tuple[int, ...] | None:
    """[3, "5-8"] as (3, 5, 6, 7, 8)."""
    if entries is None:
        return None
    if not isinstance(entries, (list, tuple)) or not entries:
        raise ValueError(f"{name} must be a list of numbers and ranges such as '50-99', got {entries!r}")
    numbers: list[int] = []
    for entry in entries:
        span = re.fullmatch(r"([0-9]{1,20})-([0-9]{1,20})", entry) if isinstance(entry, str) else None
        if span and int(span[1]) <= int(span[2]):
            first, last = int(span[1]), int(span[2])
        elif isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0:
            first = last = entry
        else:
            raise ValueError(f"{name}: {entry!r} is neither a number nor a range such as '50-99'")
        if last >= MOST_CLASSES:
            raise ValueError(f"{name} must be labels under {MOST_CLASSES}, got {entry!r}")
        numbers += range(first, last + 1)
        if len(numbers) > MOST_CLASSES:
            raise ValueError(f"{name} must name each class once")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{name} must name each class once")
    return tuple(numbers)


_NUMBERS_AND_RANGES = {
    "type": "array", "minItems": 1, "uniqueItems": True,
    "items": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MOST_CLASSES - 1},
                        {"type": "string", "pattern": "^[0-9]+-[0-9]+$"}]},
}  # fmt: skip
Text = Annotated[str, PlainValidator(_text), WithJsonSchema({"type": "string", "minLength": 1})]
Count = Annotated[int, Ge(1), Le(2**31)]
Percent = Annotated[float, Ge(0), Le(100), Said("an accuracy in percent, 0 to 100")]


@strict
class DataConfig:
    """``[data]``: which images."""

    kind: Annotated[
        Literal["pack", "folder", "digits"],
        Field(
            description="an archive of images (flexkern.streams.image_pack), a folder that has the folders "
            "train and test and in these one folder for each class (or, with test_share, only the latter), or "
            "scikit-learn's digits, which are bundled"
        ),
    ] = "pack"
    path: Annotated[
        Text | None,
        Field(description="of the archive or the folder; what --data says comes before it"),
    ] = None
    size: Annotated[
        Count | None,
        Field(
            description="pixels of each side that images are resized to when they are read; needed for folders."
            " Learners resize for themselves what their backbone needs, so this is about memory"
        ),
    ] = None
    classes: Annotated[
        tuple[int, ...] | None,
        BeforeValidator(partial(_numbers, "classes")),
        WithJsonSchema(_NUMBERS_AND_RANGES),
        Said("a list of labels, and of ranges such as '50-99'"),
        Field(description="that take part, by their labels. Without it all"),
    ] = None
    train_per_class: Annotated[
        Count | None, Field(description="training images of each class. Without it all")
    ] = None
    test_per_class: Annotated[Count | None, Field(description="test images of each class. Without it all")] = (
        None
    )

    test_share: Annotated[
        float | None,
        Gt(0),
        Lt(1),
        Said("a share between 0 and 1"),
        Field(
            description="of the images of each class that are for tests, always the same: of a folder that has "
            "one folder for each class, and no test images of its own"
        ),
    ] = None
    broken: Annotated[
        Literal["raise", "skip"],
        Field(
            description="what becomes of a file in a folder that is damaged: it ends the run, by its name, or "
            "is left out, named and counted"
        ),
    ] = "raise"
    in_memory: Annotated[
        Literal["auto"] | bool,
        Field(
            description="whether the images of a folder are decoded once and kept in memory, or each time that "
            "they are needed, by worker processes. 'auto': they are kept where they take no more than 2 GiB"
        ),
    ] = "auto"

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.kind == "folder" and self.size is None:
            raise ValueError("size is needed for folders of images: the pixels that they are resized to")
        for name, default in _LATER_DATA.items():
            if self.kind != "folder" and getattr(self, name) != default:
                raise ValueError(f"{name} is for folders of images; kind is {self.kind!r}")
        return self


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
        Annotated[int, Ge(0), Le(_LARGEST_ORDER)] | Literal["run"],
        Field(description="of the order of the classes and of the choice of images; 'run': that of each run"),
    ] = 1993
    order: Annotated[
        tuple[int, ...] | None,
        BeforeValidator(partial(_numbers, "order")),
        WithJsonSchema(_NUMBERS_AND_RANGES),
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


@strict
class BackboneConfig:
    """``[backbone]``: the pre-trained network."""

    name: Annotated[
        Text, Field(description="'small', which is bundled, a folder, or a name on the Hugging Face hub")
    ] = "small"


@strict
class Paper:
    """``paper`` of a method: the published figure, and under which conditions it was measured."""

    average: Annotated[Percent, Field(description="accuracy averaged over the tasks, in percent")]
    last: Annotated[Percent, Field(description="accuracy after the last task, in percent")]
    source: Annotated[Text, Field(description="where it is published")]
    backbone: Annotated[Text | None, Field(description="that it was measured with")] = None
    epochs: Annotated[Count | None, Field(description="that it was trained for")] = None
    shuffled: Annotated[
        bool, Field(description="false: its classes came in the order of this file, not in that of a seed")
    ] = True


@strict
class MethodConfig:
    """One ``[[methods]]``: ``name`` is its label, ``method`` a learner's; other keys are options of that."""

    name: Annotated[Text, Field(description="in tables and pictures; each method has its own")]
    method: Annotated[Text, Field(description="what learns")]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    paper: Annotated[
        Paper | None, Field(description="the published figure that the table shows beside ours")
    ] = None

    @model_validator(mode="after")
    def _check(self) -> MethodConfig:
        reserved = [key for key in self.options if key in RESERVED]
        if reserved:
            raise ValueError(f"{reserved[0]} is not an option of a method: all methods of a run share it")
        for name, value in self.options.items():
            _option(name, value)
        return self


@strict
class Config:
    """A whole run: every method on every seed.

    Raises:
        ValueError: naming the key.
    """

    data: DataConfig
    stream: StreamConfig
    methods: Annotated[tuple[MethodConfig, ...], BeforeValidator(_listed)]
    title: Annotated[Text, Field(description="of the table and the picture")] = "class-incremental"
    backbone: Text = "small"
    seeds: Annotated[
        tuple[Annotated[int, Ge(0), Le(_LARGEST_SEED)], ...],
        BeforeValidator(_listed),
        Said("a list of at least one number"),
        Field(min_length=1, description="of the runs: every method learns the stream once with each"),
    ] = (0,)
    device: Annotated[Text, Field(description="auto, cpu, cuda, cuda:1, ...")] = "auto"
    precision: Annotated[
        Text | None, Field(description="float32 or bfloat16, for all methods; see the option")
    ] = None
    out: Annotated[Text, Field(description="folder for results.json, picture.png and checkpoints")] = (
        "out/class_incremental"
    )

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.stream.seed == "run" and max(self.seeds) > _LARGEST_ORDER:
            raise ValueError(f"seeds must be at most {_LARGEST_ORDER}, got {max(self.seeds)}")
        if not self.methods:
            raise ValueError("methods must have at least one entry: [[methods]]")
        for what, values in (("seeds", self.seeds), ("methods: name", [m.name for m in self.methods])):
            if len(set(values)) < len(values):
                raise ValueError(f"{what} must not occur twice, got {list(values)}")
        if self.stream.order is not None and self.data.classes is not None:
            raise ValueError("stream.order and data.classes exclude each other: the order says which take part")
        known = self.stream.order or self.data.classes or (range(_DIGITS) if self.data.kind == "digits" else ())
        if known:
            self.stream.check_classes(len(known))
        return self

    @property
    def folder(self) -> Path:
        """``out``, as a path; ``~`` is a home."""
        return path_given(self.out, "out")

    @property
    def network(self) -> str:
        """``backbone``, as learners take it; ``~`` is a home."""
        return os.path.expanduser(self.backbone)

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        values = _plain(dataclasses.asdict(self))  # type: ignore[call-overload]
        papers = [method["paper"] for method in values["methods"] if method["paper"] is not None]
        of_tables = ((values["data"], _LATER_DATA), (values["stream"], _LATER_STREAM))
        for table, later in (*of_tables, *((paper, _LATER_PAPER) for paper in papers)):
            for name, default in later.items():
                if table[name] == default:
                    del table[name]
        return values

    def override(
        self,
        *,
        data: str | None = None,
        backbone: str | None = None,
        seeds: Iterable[int] | None = None,
        device: str | None = None,
        out: str | None = None,
    ) -> Config:
        """This configuration with what the command line says in place of what the file says."""
        changes: dict[str, Any] = {"backbone": backbone, "device": device, "out": out}
        changes["seeds"] = tuple(seeds) if seeds is not None else None
        if data is not None:
            if self.data.kind == "digits":
                raise ValueError("data: the digits are bundled, there is no path to give")
            path_given(data, "data")
            changes["data"] = dataclasses.replace(self.data, path=data)  # type: ignore[type-var]
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})  # type: ignore


def _option(name: str, value: Any, depth: int = 0) -> None:
    """An option of a method: what JSON has too, since results and checkpoints hold it."""
    if depth > _DEEPEST:
        raise ValueError(f"{name.split('.')[0]} is nested too deeply")
    if isinstance(value, dict):
        for key, part in value.items():
            _option(f"{name}.{key}", part, depth + 1)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _option(name, part, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    elif isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError(f"{name} must be a number of 64 bits, got {value}")
    elif not isinstance(value, (str, int, float)):
        raise ValueError(f"{name} must be a text, a number or a list or table of these, got {value!r}")


def _plain(value: Any) -> Any:
    """JSON's lists for tuples, so that what is written and read again is equal; no NaN or infinity."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
