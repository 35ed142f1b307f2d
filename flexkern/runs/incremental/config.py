"""What a class-incremental run is: a TOML file, checked key by key."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexkern.plain import nearest
from flexkern.streams.packs import MOST_CLASSES

__all__ = [
    "Config",
    "DataConfig",
    "MethodConfig",
    "Paper",
    "StreamConfig",
    "find_config",
    "read_config",
    "shipped",
]

KINDS = ("pack", "folder", "digits")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# What the runner itself hands to every learner: not options of one.
_RESERVED = ("backbone", "device", "seed")
# NumPy's RandomState, which orders classes, takes no larger one; and learners make 64 bits of theirs.
_LARGEST_ORDER, _LARGEST_SEED = 2**32 - 1, 2**53 - 1
_DEEPEST = 20  # tables in tables of a method's options


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: which images.

    kind: "pack" (:func:`flexkern.streams.packs.image_pack`), "folder"
        (:func:`flexkern.streams.packs.image_folders`) or "digits" (scikit-learn's, bundled).
    path: of the archive or the folder; may be left to the command line.
    size: pixels that images are resized to when they are read; needed for folders. Learners resize for
        themselves what their backbone needs, so this is about memory.
    classes: labels that take part, numbers or ranges like "50-99". Default: all.
    train_per_class, test_per_class: so many images of each class. Default: all.
    """

    kind: str = "pack"
    path: str | None = None
    size: int | None = None
    classes: tuple[int, ...] | None = None
    train_per_class: int | None = None
    test_per_class: int | None = None

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        for name in ("size", "train_per_class", "test_per_class"):
            _whole(name, getattr(self, name), least=1, optional=True)
        _text("path", self.path, optional=True)
        if self.classes is not None:
            object.__setattr__(self, "classes", _numbers("classes", self.classes))
        if self.kind == "folder" and self.size is None:
            raise ValueError("size is needed for folders of images: the pixels that they are resized to")


@dataclass(frozen=True)
class StreamConfig:
    """``[stream]``: which classes come when (:func:`flexkern.streams.class_incremental`).

    increment, base: B0-IncN, Bm-IncN.
    seed: of the class order and of the choice of images, or "run": that of each run.
    order: labels in the order of learning, in place of the seed's.
    """

    increment: int
    base: int = 0
    seed: int | str = 1993
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _whole("increment", self.increment, least=1)
        _whole("base", self.base, least=0)
        if self.seed != "run":
            _whole("seed", self.seed, least=0, most=_LARGEST_ORDER, also="or 'run'")
        if self.order is not None:
            object.__setattr__(self, "order", _numbers("order", self.order))


@dataclass(frozen=True)
class Paper:
    """``paper`` of a method: the published figure, in percent, and under which conditions it was measured."""

    average: float
    last: float
    source: str
    backbone: str | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        for name in ("average", "last"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
                raise ValueError(f"{name} must be an accuracy in percent, 0 to 100, got {value!r}")
        _text("source", self.source)
        _text("backbone", self.backbone, optional=True)
        _whole("epochs", self.epochs, least=1, optional=True)


@dataclass(frozen=True)
class MethodConfig:
    """One ``[[methods]]``: ``name`` is its label, ``method`` a learner's; other keys are options of that."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    paper: Paper | None = None

    def __post_init__(self) -> None:
        _text("name", self.name)
        _text("method", self.method)
        reserved = [key for key in self.options if key in _RESERVED]
        if reserved:
            raise ValueError(f"{reserved[0]} is not an option of a method: all methods of a run share it")
        for name, value in self.options.items():
            _option(name, value)


@dataclass(frozen=True)
class Config:
    """A whole run: every method on every seed.

    Raises:
        ValueError: naming the key.
    """

    data: DataConfig
    stream: StreamConfig
    methods: tuple[MethodConfig, ...]
    title: str = "class-incremental"
    backbone: str = "small"
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    precision: str | None = None
    out: str = "out/class_incremental"

    def __post_init__(self) -> None:
        for name in ("title", "backbone", "device", "out"):
            _text(name, getattr(self, name))
        _text("precision", self.precision, optional=True)
        if not isinstance(self.seeds, tuple) or not self.seeds:
            raise ValueError(f"seeds must be a list of at least one number, got {self.seeds!r}")
        for seed in self.seeds:
            most = _LARGEST_ORDER if self.stream.seed == "run" else _LARGEST_SEED
            _whole("seeds", seed, least=0, most=most)
        if not self.methods:
            raise ValueError("methods must have at least one entry: [[methods]]")
        for what, values in (("seeds", self.seeds), ("methods: name", [m.name for m in self.methods])):
            if len(set(values)) < len(values):
                raise ValueError(f"{what} must not occur twice, got {list(values)}")
        if self.stream.order is not None and self.data.classes is not None:
            raise ValueError("stream.order and data.classes exclude each other: the order says which take part")

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return _plain(dataclasses.asdict(self))

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
            changes["data"] = dataclasses.replace(self.data, path=data)
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})


def shipped() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}


def find_config(name: str) -> Path:
    """The file of that path, or of that name among those shipped.

    Raises:
        FileNotFoundError: if there is neither.
    """
    known = shipped()
    path = Path(name)
    if path.is_file():
        return path
    if name in known:
        return known[name]
    hint = nearest(name, known) or f"; shipped ones are {', '.join(known)}"
    raise FileNotFoundError(f"no configuration at {name!r}{hint}")


def read_config(path: Path) -> Config:
    """Reads and checks a TOML file.

    Raises:
        ValueError: naming the file and the key.
        ImportError: on Python 3.10 without tomli, which has no reader of TOML of its own.
    """
    try:
        return parse_config(_toml().loads(path.read_text(encoding="utf-8")))
    except RecursionError as error:
        raise ValueError(f"{path}: its tables or lists are nested too deeply") from error
    except ValueError as error:  # of TOML's reader too
        raise ValueError(f"{path}: {error}") from error


def _toml() -> Any:
    for module in ("tomllib", "tomli"):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise ImportError(
        "Python 3.10 cannot read TOML by itself: pip install tomli, or use Python 3.11", name="tomli"
    )


def parse_config(table: Mapping[str, Any]) -> Config:
    """Checks what TOML's reader gave.

    ``[learner]`` has options of all methods; those of a method come before them. ``[backbone]`` has one key,
    ``name``: "small" (embedded), a folder, or a name on the Hugging Face hub.

    Raises:
        ValueError: naming the key.
    """
    keys = {f.name for f in dataclasses.fields(Config)} | {"learner"}
    _known(table, keys, "")
    for key in ("data", "stream", "methods"):
        if key not in table:
            raise ValueError(f"{'[[methods]]' if key == 'methods' else f'[{key}]'} is missing")
    if not isinstance(table["methods"], list):
        raise ValueError("methods must be a list of tables: [[methods]]")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    common = _table(values.pop("learner", {}), "learner")
    reserved = [key for key in common if key in (*_RESERVED, "precision", "name", "method", "paper")]
    if reserved:
        raise ValueError(f"[learner]: {reserved[0]} has a place of its own, outside of [learner]")
    values["data"] = _section(DataConfig, values["data"], "data")
    values["stream"] = _section(StreamConfig, values["stream"], "stream")
    values["methods"] = tuple(
        _method(entry, common, f"methods, entry {i + 1}") for i, entry in enumerate(values["methods"])
    )
    if "backbone" in values:
        backbone = _table(values["backbone"], "backbone")
        _known(backbone, {"name"}, "[backbone]: ")
        values["backbone"] = backbone.get("name", "small")
    return Config(**values)


def _method(entry: Any, common: Mapping[str, Any], where: str) -> MethodConfig:
    options = dict(_table(entry, where))
    for key in ("name", "method"):
        if key not in options:
            raise ValueError(f"{where}: {key} is missing")
    paper = options.pop("paper", None)
    own = {key: options.pop(key) for key in ("name", "method")}
    own["paper"] = None if paper is None else _section(Paper, paper, f"{where}, paper")
    try:
        return MethodConfig(**own, options={**common, **options})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _section(section: Any, value: Any, where: str) -> Any:
    """A dataclass from a table, with the section's name in what it says of mistakes."""
    values = _table(value, where)
    fields = dataclasses.fields(section)
    _known(values, {f.name for f in fields}, f"[{where}]: ")
    for f in fields:
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and f.name not in values:
            raise ValueError(f"[{where}]: {f.name} is missing")
    try:
        return section(**values)
    except ValueError as error:
        raise ValueError(f"[{where}]: {error}") from error


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a table ([{where}]), got {value!r}")
    return value


def _known(table: Mapping[str, Any], keys: set[str], where: str) -> None:
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"{where}unknown key {key!r}{hint}; allowed are {', '.join(sorted(keys))}")


# --------------------------------------------------------------------------- values


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _text(name: str, value: Any, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{name} must be a text, got {value!r}")


def _whole(
    name: str, value: Any, *, least: int, most: int = 2**31, optional: bool = False, also: str = ""
) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}{also and f' {also}'}, got {value!r}"
        )
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


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


def _numbers(name: str, entries: Any) -> tuple[int, ...]:
    """[3, "5-8"] as (3, 5, 6, 7, 8)."""
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


def _plain(value: Any) -> Any:
    """JSON's lists for tuples, so that what is written and read again is equal; no NaN or infinity."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
