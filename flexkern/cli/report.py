"""``flexkern report``: results as one page."""

from __future__ import annotations

from typing import Annotated

import typer

from flexkern.cli.terminal import console, errors, explained
from flexkern.files import check_writable, replace_file
from flexkern.runs.start import path_given

__all__ = ["report"]

_COMMAND = "flexkern report"


def report(
    results: Annotated[
        list[str],
        typer.Argument(
            help="Folders of 'flexkern run' and 'demo', or of several; files of 'flexkern bench' and 'fit'.",
            metavar="DIR...",
        ),
    ],
    out: Annotated[str, typer.Option(help="The file of the page.")] = "out/report.html",
) -> None:
    """Writes results as one page: tables, pictures, configurations and versions, in a file that needs no other.

    What is no results is named, there and here, and the exit code is then 1.
    """
    with explained(_COMMAND):
        from flexkern.runs.reporting.making_pages import report_of

        path = path_given(out, "out")
        check_writable(path, folders=True)
        text, count, complaints = report_of([path_given(given, "DIR") for given in results])
        for line in complaints:
            errors.print(f"{_COMMAND}: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
        if count:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text.encode())
            what = f"{count} result{'s' * (count > 1)}"
            console.print(f"wrote {path}: {what}", markup=False, highlight=False, soft_wrap=True)
    if complaints:
        raise typer.Exit(1)
