"""Records of options: given as one object, or field by field as keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from flexkern.plain import nearest

__all__ = ["record_of"]

_Record = TypeVar("_Record")


def record_of(
    record: type[_Record], given: _Record | None, keywords: Mapping[str, Any], *, name: str, of: type
) -> _Record:
    """The options of an object: a record, with the fields that keyword arguments name replaced.

    Args:
        record: a frozen dataclass whose fields all have defaults.
        given: the record that was given; None: the defaults.
        keywords: values by the names of fields.
        name: of the argument that takes the record.
        of: the class whose arguments these are; the nearest of them is named for a keyword that is none.

    Raises:
        TypeError: if ``given`` is no such record, or a keyword is no field; and what the record's checks raise.
    """
    if given is not None and not isinstance(given, record):
        raise TypeError(f"{name} must be a flexkern.nn.{record.__name__} or None, got {type(given).__name__}")
    known = [field.name for field in fields(record)]  # type: ignore[arg-type]
    for keyword in keywords:
        if keyword not in known:
            own = inspect.signature(of).parameters.values()
            others = [p.name for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
            raise TypeError(f"{of.__name__} has no argument {keyword!r}{nearest(keyword, [*known, *others])}")
    return replace(given or record(), **keywords)  # type: ignore[type-var]
