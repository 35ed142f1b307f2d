"""``[data]``: which images a run learns from."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from flexkern.runs.incremental.config.sentences import Said, strict
from flexkern.runs.incremental.config.values import NUMBERS_AND_RANGES, Count, Text, listed, numbers
from flexkern.streams.domains import hand_and_look
from flexkern.streams.looks import look_of

__all__ = ["LATER_DATA", "DataConfig"]

# Of folders only.
_OF_FILES: dict[str, Any] = {"test_share": None, "broken": "raise", "in_memory": "auto"}
LATER_DATA: dict[str, Any] = _OF_FILES | {"domains": None}
"""Keys that came later: where they say nothing new, a configuration is the one that older results have."""


@strict
class DataConfig:
    """``[data]``: which images."""

    kind: Annotated[
        Literal["pack", "folder", "digits", "domainnet", "core50"],
        Field(
            description="an archive of images (flexkern.streams.image_pack), a folder that has the folders "
            "train and test and in these one folder for each class (or, with test_share, only the latter), "
            "scikit-learn's digits, which are bundled, or the folder of DomainNet or of CORe50, as they are "
            "published (docs/streams.md)"
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
        BeforeValidator(partial(numbers, "classes")),
        WithJsonSchema(NUMBERS_AND_RANGES),
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

    domains: Annotated[
        tuple[Text, ...] | None,
        BeforeValidator(listed),
        Said("a list of names of domains"),
        Field(
            description="for a domain-incremental stream, in the order of learning. Of digits: hands and "
            "looks, as 'digits', 'digits:inverted', 'mnist:rotated:2' (path is then MNIST's archive); of a "
            "pack: looks, as 'clean', 'gaussian_noise:3'; of a folder: the folders in it, each with train and "
            "test or, with test_share, one folder for each class; of domainnet and core50: some of theirs. "
            "docs/streams.md lists the looks",
        ),
    ] = None

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        files = self.kind not in ("pack", "digits")
        if files and self.size is None:
            raise ValueError("size is needed for folders of images: the pixels that they are resized to")
        for name, default in _OF_FILES.items():
            allowed = self.kind == "folder" if name == "test_share" else files
            if not allowed and getattr(self, name) != default:
                raise ValueError(f"{name} is for folders of images; kind is {self.kind!r}")
        if self.domains == ():
            raise ValueError("domains must name at least one")
        for i, domain in enumerate(self.domains or ()):
            if domain in self.domains[:i]:  # type: ignore[index]
                raise ValueError(f"domains must name each once, got {domain!r} twice")
            if self.kind == "pack":
                look_of(domain, f"domains[{i}]")
            elif self.kind == "digits":
                hand_and_look(domain, f"domains[{i}]")
        if self.kind == "digits" and self.domains is not None and self.size is not None:
            raise ValueError("size: digits in several hands are 32 pixels wide; leave it out")
        return self

    @property
    def of_domains(self) -> bool:
        """Whether these are images of several domains."""
        return self.domains is not None or self.kind in ("domainnet", "core50")

    @property
    def bundled(self) -> bool:
        """Whether all images come with the packages: no path is needed."""
        return self.kind == "digits" and not any(d.partition(":")[0] == "mnist" for d in self.domains or ())
