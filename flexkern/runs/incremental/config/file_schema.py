"""All keys that a configuration's file may have, as one model and its JSON schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Union

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from flexkern.runs.incremental.config.method_options import ELSEWHERE, FAMILIES, method_model
from flexkern.runs.incremental.config.models import (
    BackboneConfig,
    Config,
    DataConfig,
    MethodConfig,
    StreamConfig,
)
from flexkern.runs.incremental.config.sentences import STRICT

__all__ = ["file_model", "file_schema", "own_keys"]


def own_keys(of: Any) -> dict[str, FieldInfo]:
    """The keys of a table that is no model: a pydantic dataclass."""
    return dict(of.__pydantic_fields__)


def file_model() -> type[BaseModel]:
    """The whole file: what :func:`flexkern.runs.incremental.config.parse_config` takes, of shipped methods."""
    keys: dict[str, Any] = _fields(own_keys(Config))
    keys["backbone"] = (BackboneConfig, Field(default=None, description="the pre-trained network"))
    keys["data"] = (DataConfig, Field(description="which images"))
    keys["stream"] = (StreamConfig, Field(description="which classes come when"))
    keys["learner"] = (
        _shared("learner", "vit"), Field(default=None, description="options of all methods on a transformer")
    )  # fmt: skip
    keys["mlp"] = (
        _shared("mlp", "mlp"), Field(default=None, description="options of all methods on a perceptron")
    )  # fmt: skip
    entries = tuple(_entry(method, family) for family, methods in FAMILIES.items() for method in methods)
    keys["methods"] = (
        list[Union[entries]],  # type: ignore[valid-type] # noqa: UP007 - made from a list
        Field(min_length=1, description="what is compared; options here come before those of [learner]"),
    )
    return create_model("class-incremental", __config__=STRICT, __doc__="A class-incremental run.", **keys)


def file_schema() -> dict[str, Any]:
    """The JSON schema of the file."""
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return draft | file_model().model_json_schema()


def _fields(of: Mapping[str, FieldInfo]) -> dict[str, Any]:
    return {name: (field.annotation, field) for name, field in of.items()}


def _shared(table: str, family: str) -> type[BaseModel]:
    every: dict[str, FieldInfo] = {}
    for method in FAMILIES[family]:
        every = method_model(method, family).model_fields | every
    # Without defaults: they are not the same for all methods.
    of_all: dict[str, Any] = {
        name: (field.annotation, Field(default=None, description=field.description))
        for name, field in every.items()
        if name not in ELSEWHERE
    }
    return create_model(table, __config__=STRICT, **of_all)


def _entry(method: str, family: str) -> type[BaseModel]:
    """One of ``[[methods]]``, with the options of that method."""
    own = _fields({k: f for k, f in own_keys(MethodConfig).items() if k != "options"})
    own["method"] = (Literal[method], Field(description="what learns"))
    model, meant = method_model(method, family), {f for f, methods in FAMILIES.items() if method in methods}
    alone = len(meant) == 1
    if alone or family == next(iter(FAMILIES)):
        own["family"] = (Literal[family] | None, own["family"][1])  # type: ignore[operator]
    else:
        own["family"] = (Literal[family], Field(description=own["family"][1].description))
    title = method if alone or family == "vit" else f"{method} ({family})"
    return create_model(
        title, __config__=STRICT, __doc__=model.__doc__, **(own | _fields(model.model_fields))
    )  # fmt: skip
