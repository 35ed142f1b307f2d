"""What happens in a run, as it happens: a line of JSON for each event, and a row of a table for each task.

Both lie beside ``results.json``, which is written first and is the truth. A run that is killed between the two
lacks its last lines here, or has half a line: that is mended when it goes on. No line is there twice, however
often a run is stopped, and one that grows adds to what it has.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flexkern.distributed import is_lead
from flexkern.files import append, replace_file

__all__ = ["EVENTS", "ROWS", "TENSORBOARD", "EventLog", "Learned", "Place", "Sink"]

EVENTS, ROWS = "events.jsonl", "results.csv"
"""Names of the files, of a run that has a folder to itself."""
TENSORBOARD = "tensorboard"
"""A folder beside them, where that is told too."""
_LEARNED = ("task", "network")  # events of units, which results.json has too
_KEY = ("event", "seed", "method", "task")  # of an event
_FIRST = "seed,method,"  # that any table begins with


class Learned(NamedTuple):
    """A unit of a run has ended: a task is learned and tested, or a network has seen its whole schedule.

    event: what happened, plain data: ``event`` ("task" or "network"), ``seed``, ``method``, what it came to.
    rows: of the table, by column.
    """

    event: dict[str, Any]
    rows: list[dict[str, Any]]


class Place(NamedTuple):
    """Where a run is.

    folder: of the run, or of its file.
    prefix: of the names of what is noted there.
    id: the run's, whatever its folder is called; another one after a restart.
    """

    folder: Path
    prefix: str
    id: str


class Sink(Protocol):
    """Another place that is told the same: see :mod:`flexkern.runs.sinks`."""

    name: str

    def open(self, place: Place, known: Sequence[Learned], late: Sequence[Learned]) -> None:
        """The run begins or goes on.

        Args:
            place: of the run.
            known: all that its results have.
            late: those of them that are noted only now.
        """

    def began(self, event: Mapping[str, Any]) -> None:
        """What is, or was, to be learned, with which configuration."""

    def learned(self, unit: Learned) -> None:
        """A unit has ended."""

    def close(self) -> None:
        """Nothing more comes."""


class EventLog:
    """The two files of a run. Of several processes the first one writes.

    Args:
        folder: of the run.
        columns: of the table; the first ``keys`` of them name a row.
        keys: how many.
        prefix: of the names of both files, where the folder is not the run's alone.
        sinks: are told too.
    """

    def __init__(
        self, folder: Path, columns: Sequence[str], keys: int, *, prefix: str = "", sinks: Iterable[Sink] = ()
    ) -> None:
        self.columns, self.keys = tuple(columns), keys
        self.place = Place(folder, prefix, secrets.token_hex(4))
        self.events, self.table = folder / f"{prefix}{EVENTS}", folder / f"{prefix}{ROWS}"
        self.sinks = list(sinks)
        self._last: dict[tuple[Any, ...], dict[str, Any]] = {}  # what the file says last of each key
        self._rows: dict[tuple[str, ...], str] = {}
        self._began = False

    def check(self) -> None:
        """Raises ValueError if one of the files is there and somebody else's."""
        for path, is_ours in ((self.table, _is_table), (self.events, _is_events)):
            if path.is_file() and not is_ours(path):
                raise ValueError(
                    f"out: {os.fspath(path)!r} is in the way, and was not written by flexkern: the run notes "
                    "there what it learns. Move it, or give another --out"
                )

    def open(self, known: Iterable[Learned], *, anew: bool = False) -> None:
        """The run begins or goes on: lines that were cut off or lack are mended.

        Args:
            known: units that the results have, in order.
            anew: the run has no results; what the files hold was another one's.
        """
        if not is_lead():
            return
        if anew:
            self.discard()
        units = [] if anew else list(known)
        late = self._mend_events(units)
        self._mend_table([row for unit in units for row in unit.rows])
        began = self._last.get(_key({"event": "began"}))
        if began is not None:
            self.place = self.place._replace(id=str(began.get("id")))
            self._tell(lambda sink: sink.began(began))
        self._tell(lambda sink: sink.open(self.place, units, late))

    def discard(self) -> None:
        """Removes both files, and what sinks have left: they were of another run."""
        of_sinks = (self.place.folder / f"{self.place.prefix}{TENSORBOARD}").glob("*/events.out.tfevents.*")
        for path in (self.events, self.table, *of_sinks):
            path.unlink(missing_ok=True)
        self._last.clear()
        self._rows.clear()

    def began(self, **what: Any) -> None:
        """Something is to be learned; said once by each process that does."""
        if self._began or not is_lead():
            return
        self._began = True
        event = _plain({"event": "began", "id": self.place.id, **what})
        self._write(event, _now())
        self._tell(lambda sink: sink.began(event))

    def learned(self, unit: Learned) -> None:
        """A unit has ended, and the results have it. Nothing is written of what the files have already."""
        if not is_lead():
            return
        event = _plain(unit.event)
        known = self._last.get(_key(event)) == event
        if not known:
            self._write(event, _now())
        self._add_rows(unit.rows)
        if not known:
            self._tell(lambda sink: sink.learned(unit))

    def ended(self, **what: Any) -> None:
        """All that was asked for has been learned."""
        event = _plain({"event": "ended", **what})
        if is_lead() and self._last.get(_key(event)) != event:
            self._write(event, _now())

    def close(self) -> None:
        """Nothing more comes from this process."""
        self._tell(lambda sink: sink.close())
        self.sinks.clear()

    # -------------------------------------------------------------- events

    def _mend_events(self, known: Sequence[Learned]) -> list[Learned]:
        """Leaves out half lines and units that the results lack; adds and returns those that the file lacks."""
        lines, whole = _lines(self.events)
        wanted = {_key(unit.event) for unit in known}
        kept = []
        for line in lines:
            event = _read(line)
            if event is None or (event.get("event") in _LEARNED and _key(event) not in wanted):
                continue
            kept.append(line)
            event.pop("time", None)
            self._last[_key(event)] = event
        if kept != lines or not whole:
            replace_file(self.events, _joined(kept))
        late = [unit for unit in known if self._last.get(_key(unit.event)) != _plain(unit.event)]
        for unit in late:
            self._write(_plain(unit.event), None)  # nobody noted when it was
        return late

    def _write(self, event: dict[str, Any], time: str | None) -> None:
        self._last[_key(event)] = event
        _append(self.events, [json.dumps({"time": time, **event}, allow_nan=False)])

    # -------------------------------------------------------------- rows

    def _mend_table(self, known: Sequence[dict[str, Any]]) -> None:
        """Rows that are right stay where they are; others are left out, and those that lack are added."""
        lines, whole = _lines(self.table)
        head = _row(self.columns)
        wanted = {self._key_of(row): self._line_of(row) for row in known}
        keys = {line: key for key, line in wanted.items()}
        self._rows = {keys[line]: line for line in lines if line in keys}
        self._rows |= {key: line for key, line in wanted.items() if key not in self._rows}
        new = [head, *self._rows.values()] if self._rows or lines or not whole else []
        if whole and lines == new[: len(lines)]:
            _append(self.table, new[len(lines) :])
        else:
            replace_file(self.table, _joined(new))

    def _add_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        head = [] if self._rows or self.table.exists() else [_row(self.columns)]
        new, changed = [], False
        for row in rows:
            key, line = self._key_of(row), self._line_of(row)
            if key not in self._rows:
                new.append(line)
            changed |= self._rows.get(key, line) != line  # a task that was tested again
            self._rows[key] = line
        if changed:
            replace_file(self.table, _joined([_row(self.columns), *self._rows.values()]))
        else:
            _append(self.table, head + new)

    def _key_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(_cell(row.get(name)) for name in self.columns[: self.keys])

    def _line_of(self, row: Mapping[str, Any]) -> str:
        return _row([_cell(row.get(name)) for name in self.columns])

    # -------------------------------------------------------------- others

    def _tell(self, say: Callable[[Sink], None]) -> None:
        """A place that cannot be reached does not end a run: it is named, and left out from then on."""
        for sink in list(self.sinks):
            try:
                say(sink)
            except Exception as error:
                self.sinks.remove(sink)
                warnings.warn(
                    f"log: {sink.name} has failed ({type(error).__name__}: {error}). The run goes on without "
                    f"it; {self.events.name} and {self.table.name} have everything",
                    stacklevel=3,
                )


# ------------------------------------------------------------------ lines


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _plain(event: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file; JSON has no NaN and no infinity."""
    return json.loads(json.dumps(event), parse_constant=lambda _: None)


def _key(event: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(event.get(name) for name in _KEY)


def _read(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _lines(path: Path) -> tuple[list[str], bool]:
    """The whole lines of a file, and whether it has no other."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return [], True
    *lines, rest = text.split("\n")
    return lines, not rest


def _joined(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _append(path: Path, lines: Sequence[str]) -> None:
    if lines:
        append(path, _joined(lines))


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(len(_FIRST))
    return _FIRST.encode().startswith(begin)  # it may have been cut off in the first line


def _is_events(path: Path) -> bool:
    lines, _ = _lines(path)
    return not lines or _read(lines[0]) is not None


def _row(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _cell(value: Any) -> str:
    """A value as the table has it: on one line, and nothing where there is none."""
    if isinstance(value, (list, tuple)):
        return " ".join(_cell(v) or "nan" for v in value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return " ".join(str(value).splitlines())
