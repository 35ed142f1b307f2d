"""What a class-incremental run is: the tables of its TOML file."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import BeforeValidator, Field, model_validator

from flexkern.runs.incremental.config.data_model import LATER_DATA, DataConfig
from flexkern.runs.incremental.config.sentences import Said, strict
from flexkern.runs.incremental.config.stream_model import LATER_STREAM, StreamConfig
from flexkern.runs.incremental.config.values import LARGEST_ORDER, Count, Percent, Text, listed
from flexkern.runs.start import path_given

__all__ = ["RESERVED", "BackboneConfig", "Config", "DataConfig", "MethodConfig", "Paper", "StreamConfig"]

RESERVED = ("backbone", "device", "seed", "input_shape", "classes")
"""What the runner itself hands to every learner: not options of one."""
# Learners make 64 bits of theirs.
_LARGEST_SEED = 2**53 - 1
_DEEPEST = 20  # tables in tables of a method's options
_DIGITS = 10  # classes of the bundled ones
# Keys that came later: where they say nothing new, a configuration is the one that older results have.
_LATER_PAPER: dict[str, Any] = {"shuffled": True}


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
    family: Annotated[
        Literal["vit", "mlp"] | None,
        Field(
            description="of the network that learns: 'vit', a vision transformer, or 'mlp', a multi-layer "
            "perceptron on features. Only needed for a name that both have, which is the transformer's without"
        ),
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
    methods: Annotated[tuple[MethodConfig, ...], BeforeValidator(listed)]
    title: Annotated[Text, Field(description="of the table and the picture")] = "class-incremental"
    backbone: Text = "small"
    seeds: Annotated[
        tuple[Annotated[int, Ge(0), Le(_LARGEST_SEED)], ...],
        BeforeValidator(listed),
        Said("a list of at least one number"),
        Field(min_length=1, description="of the runs: every method learns the stream once with each"),
    ] = (0,)
    device: Annotated[Text, Field(description="auto, cpu, cuda, cuda:1, ...")] = "auto"
    precision: Annotated[
        Text | None, Field(description="float32 or bfloat16, for all methods on a transformer; see the option")
    ] = None
    out: Annotated[Text, Field(description="folder for results.json, picture.png and checkpoints")] = (
        "out/class_incremental"
    )

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.stream.seed == "run" and max(self.seeds) > LARGEST_ORDER:
            raise ValueError(f"seeds must be at most {LARGEST_ORDER}, got {max(self.seeds)}")
        if not self.methods:
            raise ValueError("methods must have at least one entry: [[methods]]")
        for what, values in (("seeds", self.seeds), ("methods: name", [m.name for m in self.methods])):
            if len(set(values)) < len(values):
                raise ValueError(f"{what} must not occur twice, got {list(values)}")
        if self.stream.order is not None and self.data.classes is not None:
            raise ValueError("stream.order and data.classes exclude each other: the order says which take part")
        if (self.stream.kind == "domain-incremental") != self.data.of_domains:
            raise ValueError(
                "stream.kind and data.domains go together: a domain-incremental stream needs data.domains, and "
                f"no other stream has them; kind is {self.stream.kind!r}"
            )
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
        for method in values["methods"]:
            if method["family"] is None:  # a key that came later, too
                del method["family"]
        papers = [method["paper"] for method in values["methods"] if method["paper"] is not None]
        of_tables = ((values["data"], LATER_DATA), (values["stream"], LATER_STREAM))
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
            if self.data.bundled:
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
