"""What a benchmark case is: ours and its peers at the same work; and the list of all cases and series."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

__all__ = [
    "CPU",
    "GPU",
    "Case",
    "Comparison",
    "Goal",
    "Peer",
    "Point",
    "Rotating",
    "Series",
    "Setting",
    "Skip",
    "Work",
    "at_most",
    "case",
    "cases",
    "faster",
    "modules",
    "rotation",
    "series",
    "under",
]

# The modules that register cases and series when they are imported: first these, in the order of the table,
# then any other whose name begins as theirs.
FIRST = (
    "bench_metaplastic", "bench_optimizers", "bench_synapse", "bench_linear", "bench_adapter",
    "bench_overhead", "bench_learner", "bench_artsy", "bench_artsy_training", "bench_offload",
    "causes", "bench_seeds", "growth_optimizer", "growth_items", "growth_tasks",
)  # fmt: skip
CPU, GPU = "cpu", "cuda"
# More than any last-level cache that a few cores can keep to themselves: the buffers of a case add up to this.
ROTATION_BYTES = 1 << 30


class Skip(Exception):  # noqa: N818 - not an error: the case cannot be measured here, and the message says why
    """Raised by a case that needs what is not here."""


@dataclass(frozen=True)
class Setting:
    """Where and how large a case is built.

    Attributes:
        device: "cpu" or "cuda".
        backend: of flexkern's operators, for a case that is measured on several; else "auto".
        quick: small sizes, to see in a minute that everything runs; the ratios mean little then.
    """

    device: str = CPU
    backend: str = "auto"
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def suffix(self) -> str:
        """For titles: names the backend where there is a choice."""
        return "" if self.backend == "auto" else f" ({self.backend})"


@dataclass(frozen=True)
class Goal:
    """A bound on a figure: "speed-up" (the peer's time / ours, at least), "time" (ours / the peer's, at most),
    or "seconds" (ours alone, at most)."""

    figure: str
    bound: float

    def met(self, speedup: float, seconds: float) -> bool:
        if self.figure == "seconds":
            return seconds <= self.bound
        return speedup >= self.bound if self.figure == "speed-up" else 1 / speedup <= self.bound

    def __str__(self) -> str:
        if self.figure == "seconds":
            return f"at most {self.bound * 1e6:g} us"
        return f"{self.figure} at {'least' if self.figure == 'speed-up' else 'most'} {self.bound:g}"


def faster(times: float) -> Goal:
    """Ours is to be ``times`` as fast as the peer."""
    return Goal("speed-up", times)


def at_most(times: float) -> Goal:
    """Ours is to take at most ``times`` the peer's time."""
    return Goal("time", times)


def under(seconds: float) -> Goal:
    """Ours is to take at most ``seconds``, whatever the peer takes."""
    return Goal("seconds", seconds)


@dataclass(frozen=True)
class Work:
    """What a call has to do, however it is done: the axes of the roofline.

    Attributes:
        bytes: that must be read and written at least (each operand once).
        operations: additions and multiplications of matrix products, a fused multiply-add counts as two; 0
            where there is no product.
        dtype: of the products, "float32" or "bfloat16": chooses the ceiling.
    """

    bytes: int = 0
    operations: int = 0
    dtype: str = "float32"


@dataclass
class Peer:
    """Another way to do the same.

    Attributes:
        name: as the table has it.
        call: does it once.
        check: raises AssertionError where its result is not ours; or the reason why there is nothing to compare
            (it computes something else, and is a yardstick of time).
        goal: what ours is to reach against it, or None.
    """

    name: str
    call: Callable[[], object]
    check: Callable[[], None] | str
    goal: Goal | None = None


@dataclass
class Comparison:
    """A case at its size, ready to be timed.

    Attributes:
        title: ours, in the table; says shapes and dtypes.
        ours: does it once.
        peers: at least one.
        work: of a call of ours.
        steady: each timed call follows an untimed one of its own, as a training step follows another:
            otherwise one would write back what the other left changed in the cache.
        graph: on a GPU, both are captured in CUDA graphs and replayed: for calls shorter than their launches.
        memory: whether peak memory is measured too (not where the work is done by other processes).
        profile: whether it is told where each call spends its time, see
            :func:`flexkern.benchmarks.profiling.profiles`.
        note: for the table's reader.
        close: called at the end, to give back what is not memory.
    """

    title: str
    ours: Callable[[], object]
    peers: Sequence[Peer]
    work: Work = Work()
    steady: bool = False
    graph: bool = False
    memory: bool = True
    profile: bool = False
    note: str = ""
    close: Callable[[], object] = field(default=lambda: None)


@dataclass(frozen=True)
class Case:
    """A named case of the registry: ``build(setting)`` makes the comparison, or raises :class:`Skip`.

    Attributes:
        devices: on which it is defined.
        backends: on a GPU it is measured on each of these.
        small_pages: on a CPU it is measured also with torch's default pages of 4 KB, in a process of its own.
        budget: whether it is one of the rows that the project promises: README.md has these.
    """

    name: str
    build: Callable[[Setting], Comparison]
    devices: tuple[str, ...] = (CPU,)
    backends: tuple[str, ...] = ("auto",)
    small_pages: bool = False
    budget: bool = False

    def settings(self, device: str, quick: bool) -> list[Setting]:
        if device not in self.devices:
            return []
        return [Setting(device, b, quick) for b in (self.backends if device == GPU else ("auto",))]


@dataclass(frozen=True)
class Point:
    """One measurement of a series: at ``x``, the values of its lines, each with its quartiles."""

    x: float
    values: dict[str, tuple[float, float, float]]  # line to (first quartile, median, third quartile)


@dataclass(frozen=True)
class Series:
    """Cost as work grows: ``measure(setting)`` yields points.

    Attributes:
        title, x, y: for the picture; ``y`` names a unit: "seconds", "MB".
        flat: whether the claim is that it does not grow: the axes are then linear.
    """

    name: str
    title: str
    x: str
    y: str
    measure: Callable[[Setting], Iterator[Point]]
    devices: tuple[str, ...] = (CPU,)
    flat: bool = False


_CASES: dict[str, Case | Series] = {}


def _register(entry: Case | Series) -> None:
    if entry.name in _CASES:
        raise ValueError(f"two cases are called {entry.name!r}")
    _CASES[entry.name] = entry


def case(
    name: str,
    *,
    devices: tuple[str, ...] = (CPU,),
    backends: tuple[str, ...] = ("auto",),
    small_pages: bool = False,
    budget: bool = False,
) -> Callable[[Callable[[Setting], Comparison]], Callable[[Setting], Comparison]]:
    """Registers a function that builds a comparison as the case ``name``, "family/what"."""

    def register(build: Callable[[Setting], Comparison]) -> Callable[[Setting], Comparison]:
        _register(Case(name, build, devices, backends, small_pages, budget))
        return build

    return register


def series(
    name: str, *, title: str, x: str, y: str, devices: tuple[str, ...] = (CPU,), flat: bool = False
) -> Callable[[Callable[[Setting], Iterator[Point]]], Callable[[Setting], Iterator[Point]]]:
    """Registers a function that measures points as the series ``name``."""

    def register(measure: Callable[[Setting], Iterator[Point]]) -> Callable[[Setting], Iterator[Point]]:
        _register(Series(name, title, x, y, measure, devices, flat))
        return measure

    return register


def modules() -> list[str]:
    """The names of the modules that register cases and series, in the order of the table."""
    found = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return [*FIRST, *(name for name in found if name.startswith(("bench_", "growth_")) and name not in FIRST)]


def _all() -> dict[str, Case | Series]:
    """By name, in the order of the table, whichever module was imported first."""
    order = [importlib.import_module(f"flexkern.benchmarks.{name}").__name__ for name in modules()]

    def place(entry: Case | Series) -> int:
        maker = entry.measure if isinstance(entry, Series) else entry.build
        home = getattr(maker, "func", maker).__module__  # func: of a partial
        return order.index(home) if home in order else len(order)

    return {entry.name: entry for entry in sorted(_CASES.values(), key=place)}


def cases(only: Sequence[str] = ()) -> list[Case | Series]:
    """All cases and series, or those that ``only`` names: whole names, parts of them, or patterns with \\*.

    Raises:
        ValueError: if one of ``only`` matches nothing; the message lists the names.
    """
    every = _all()
    chosen = []
    for pattern in only:
        found = [pattern] if pattern in every else [n for n in every if pattern in n or fnmatch(n, pattern)]
        if not found:
            raise ValueError(f"only: no case is called {pattern!r}; there are {', '.join(every)}")
        chosen += found
    return [entry for name, entry in every.items() if not only or name in chosen]


class Rotating:
    """Calls one function after the other, each with its own buffers, on and on."""

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self._calls = calls
        self._next = 0

    def __call__(self) -> None:
        call = self._calls[self._next % len(self._calls)]
        self._next += 1
        call()


def rotation(bytes_per_set: int, most: int = 64) -> int:
    """How many sets of buffers a case goes round in, so that no call finds its data in a cache."""
    return max(2, min(most, -(-ROTATION_BYTES // bytes_per_set)))
