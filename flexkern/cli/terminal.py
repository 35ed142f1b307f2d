"""What the commands of flexkern say, and how: progress, and mistakes in one sentence."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import rich.console
import typer
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from flexkern.runs.folder import FolderInUseError
from flexkern.runs.seeds import read_seeds
from flexkern.runs.start import path_given
from flexkern.runs.torchrun import first, said, where

__all__ = [
    "ACCEPTS",
    "DRY_RUN",
    "Console",
    "console",
    "counting_bar",
    "errors",
    "explained",
    "folder_option",
    "given_seeds",
    "log_option",
    "number_or_auto",
    "progress_bar",
    "reader_gone",
    "say",
    "seeds_option",
]

_BAR = 16  # of a bar, in characters
_SILENT = 60.0  # seconds without a line of progress
_WIDEST = 200  # of a table in a file: cells of many words are broken there
# How a command ends that was stopped, as in a shell: 128 and the number of the signal; and sysexits' "try again
# later" where another run has the folder.
_INTERRUPTED, _TERMINATED, _PIPE_CLOSED, _IN_USE = 130, 143, 141, 75


class Console(rich.console.Console):
    """rich's, but that a reader who has gone (``flexkern run ... | head``) ends the command by its own code.

    How wide it is, is asked when something is shown, and not once when this module is imported.
    """

    def __init__(self, *, width: int | None = None, **options: Any) -> None:
        super().__init__(width=width, **options)
        self._width = width

    def print(self, *objects: Any, **options: Any) -> None:
        """In a file or a pipe a table has the width that its cells need: nobody can widen a window there."""
        tables = [o for o in objects if isinstance(o, Table)]
        own = self._width
        if tables and own is None and not self.is_terminal and "COLUMNS" not in os.environ:
            free = self.options.update(max_width=_WIDEST)
            self._width = max(self.width, *(Measurement.get(self, free, table).maximum for table in tables))
        try:
            super().print(*objects, **options)
        finally:
            self._width = own

    def on_broken_pipe(self) -> NoReturn:
        self.quiet = True
        _end_for_a_reader_gone()


def _end_for_a_reader_gone() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
    raise SystemExit(_PIPE_CLOSED)


@contextmanager
def reader_gone() -> Iterator[None]:
    """What is written to standard output without rich ends the command in the same way."""
    try:
        yield
    except BrokenPipeError:
        _end_for_a_reader_gone()


console = Console()
errors = Console(stderr=True)


def _folder(text: str | Path) -> Path:
    try:
        return path_given(text, "it")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def folder_option(help: str) -> Any:
    """An option that is a folder: ``~`` is a home, and nothing at all is refused."""
    return typer.Option(help=help, parser=_folder, metavar="PATH")


def seeds_option(default: str) -> Any:
    """``--seeds``, which means the same in every command: see :func:`given_seeds`."""
    return typer.Option(
        help="Which ones: numbers and ranges, as 0,1,2 or 0-4; 3 is seed 3 alone. Those that the folder does "
        f"not have are added to those that it has. Default: {default}.",
        metavar="SEEDS",
    )


def log_option() -> Any:
    """``--log``, which means the same in every command: see :func:`flexkern.runs.sinks.sinks_named`."""
    return typer.Option(
        "--log",
        help="Where to write what is measured, too: tensorboard or wandb. May be repeated.",
        metavar="NAME",
    )


def given_seeds(text: str | None) -> tuple[int, ...] | None:
    """What somebody gave with ``--seeds``; None if nothing."""
    if text is None:
        return None
    try:
        return read_seeds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--seeds") from None


def number_or_auto(text: str, name: str) -> float | str:
    """What somebody gave for an option that is a number, or "auto".

    Raises:
        ValueError: naming it, if it is neither.
    """
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number or 'auto', got {text!r}") from None


DRY_RUN = typer.Option("--dry-run", help="Say what would be done and about how long, and write nothing.")
ACCEPTS = "Go on with a run begun with other versions, threads or processor: not to the same bits."


def counting_bar() -> Progress:
    """A bar that says how many of how many are done, and how long the rest will take."""
    return progress_bar(MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar with its description before it; nothing where there is no terminal: see :func:`say`.

    Where all do not fit, the description is cut, and not the counts and times.
    """
    what = TextColumn(
        "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
    )
    silent = console.quiet or not console.is_terminal
    return Progress(what, BarColumn(bar_width=_BAR), *columns, console=console, disable=silent, expand=True)


_said = time.monotonic()  # when the last line was


def say(what: str, *, seldom: bool = False) -> None:
    """A line of progress where there is no terminal, and so no bar: in a log, or a pipe.

    Args:
        what: it says.
        seldom: only if nothing has been said for a minute: of steps that may be many and short.
    """
    global _said
    if console.is_terminal or (seldom and time.monotonic() - _said < _SILENT):
        return
    _said = time.monotonic()
    console.print(what.rstrip(), markup=False, highlight=False, soft_wrap=True)


class _Terminated(BaseException):
    """SIGTERM has come."""


@contextmanager
def explained(command: str, *, stopped: str | None = None) -> Iterator[None]:
    """Ends the process with a sentence in place of a traceback where the user's input cannot be served.

    Args:
        command: that the sentence begins with.
        stopped: what to say after Ctrl-C, SIGTERM, or when who reads the output has gone. Default: leave those
            to others.
    """
    try:
        with _terminable(stopped is not None), _only_the_first_speaks():
            yield
    except FolderInUseError as error:
        _refuse(command, str(error))
        raise typer.Exit(_IN_USE) from error
    except (ValueError, OSError, RuntimeError) as error:
        _refuse(command, _words(error))
        raise typer.Exit(1) from error
    except ImportError as error:
        if "pip install" not in str(error):
            raise  # main() says what to install
        _refuse(command, str(error))
        raise typer.Exit(1) from error
    except (KeyboardInterrupt, _Terminated, SystemExit) as end:
        gone = isinstance(end, SystemExit)
        if stopped is None or (gone and end.code != _PIPE_CLOSED):  # type: ignore[union-attr]
            raise
        errors.print(stopped, markup=False)
        code = _INTERRUPTED if isinstance(end, KeyboardInterrupt) else _PIPE_CLOSED if gone else _TERMINATED
        raise typer.Exit(code) from None


@contextmanager
def _only_the_first_speaks() -> Iterator[None]:
    """Of the processes that ``torchrun`` has started, one tells of progress and results."""
    quiet = console.quiet
    console.quiet = quiet or not first()
    try:
        yield
    finally:
        console.quiet = quiet


def _refuse(command: str, why: str) -> None:
    """One line, in a pipe too: a terminal wraps it by itself. Of several processes it says which one."""
    errors.print(f"{command}{where()}: {why}", style="red", markup=False, highlight=False, soft_wrap=True)


def _words(error: Exception) -> str:
    """Without the number of a system's error, which says nothing to who reads it."""
    if said() > 1 and "onnection" in str(error):  # gloo's and NCCL's words for it
        return f"another process has ended; given again, the same command goes on from the last epoch ({error})"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {os.fspath(error.filename)!r}"
    return str(error)


@contextmanager
def _terminable(wanted: bool) -> Iterator[None]:
    """SIGTERM, which batch systems and containers send before they kill, raises here, as Ctrl-C does."""
    # Only the main thread may; and whoever handles the signal already keeps it.
    main = threading.current_thread() is threading.main_thread()
    if not (wanted and main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL):
        yield
        return

    def terminate(*_: object) -> NoReturn:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
