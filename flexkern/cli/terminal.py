"""What the commands of flexkern say, and how: progress, and mistakes in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["ACCEPTS", "console", "counting_bar", "errors", "explained"]

console = Console()
errors = Console(stderr=True)
ACCEPTS = "Go on with a run begun with other versions, threads or processor: not to the same bits."


def counting_bar() -> Progress:
    """A bar that says how many of how many are done, and how long the rest will take."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=console)


@contextmanager
def explained(command: str, *, stopped: str | None = None) -> Iterator[None]:
    """Ends the process with a sentence in place of a traceback where the user's input cannot be served.

    Args:
        command: that the sentence begins with.
        stopped: what to say after Ctrl-C. Default: leave that to others.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        errors.print(f"{command}: {error}", style="red", markup=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        if stopped is None:
            raise
        errors.print(stopped, markup=False)
        raise typer.Exit(130) from None
