"""``flexkern predict``: the names of what is on images."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.cells import cell_len

from flexkern.cli.terminal import errors, explained, reader_gone
from flexkern.plain import whole_number
from flexkern.runs.fitting.predicting import Answered, images_in, load
from flexkern.runs.start import usable_device

__all__ = ["predict"]

_COMMAND = "flexkern predict"


def predict(
    model: Annotated[str, typer.Argument(help="A file that 'flexkern fit', or save(), wrote.")],
    files: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders of them, or patterns such as 'photos/*.jpg'; - reads paths from standard "
            "input, one a line."
        ),
    ],
    backbone: Annotated[
        str | None,
        typer.Option(help="If it is no longer where it was when the model was made; the weights are compared."),
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to name for each image.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="A list of JSON, an image a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Lines of file,rank,name,probability.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="End with code 0 though a file could not be read.")
    ] = False,
) -> None:
    """Names what is on images, with the probability that the model gives it.

    In a pipe each line has the path, a tab, the name, a tab and the
    probability. What cannot be read is named on standard error, and the exit
    code is 1 after all others are answered.
    """
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other")
    with explained(_COMMAND), reader_gone():
        whole_number(top, "top")
        loaded = load(model, backbone=backbone, device=usable_device(device, auto=True))
        if loaded.note:
            _complain(loaded.note)
        table = _is_terminal()
        write = _json() if as_json else _csv() if as_csv else _table(loaded.learner) if table else _plain()
        broken = count = 0
        for one in loaded.answered(images_in(_given(files), _complain), top=top):
            count += 1
            if one.error:
                broken += 1
                _complain(one.error, "red")
            write(one)
        write(None)
    if broken:
        _complain(f"{broken} of {count} files could not be read")
    if broken and not skip_broken:
        raise typer.Exit(1)


def _complain(what: str, style: str | None = None) -> None:
    errors.print(f"{_COMMAND}: {what}", style=style, markup=False, highlight=False, soft_wrap=True)


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _given(files: list[str]) -> Iterator[str]:
    for name in files:
        if name != "-":
            yield name
            continue
        for line in sys.stdin:
            if line.rstrip("\r\n"):
                yield line.rstrip("\r\n")


_Writer = Callable[[Answered | None], None]  # None: there are no more


def _say(line: str) -> None:
    # A path may be of bytes that are no text.
    sys.stdout.buffer.write(os.fsencode(line + "\n"))
    sys.stdout.buffer.flush()  # as they come, also in a pipe


def _plain() -> _Writer:
    def write(one: Answered | None) -> None:
        if one is None:
            return
        for answer in one.answers:
            _say(f"{one.path}\t{answer.name}\t{answer.probability:.4f}")

    return write


def _csv() -> _Writer:
    def line(*values: Any) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(values)
        _say(text.getvalue())

    def write(one: Answered | None) -> None:
        if one is None:
            return
        for rank, answer in enumerate(one.answers, 1):
            line(one.path, rank, answer.name, f"{answer.probability:.6f}")

    line("file", "rank", "name", "probability")
    return write


def _json() -> _Writer:
    first = True

    def write(one: Answered | None) -> None:
        nonlocal first
        if one is None:
            _say("[]" if first else "]")
            return
        said: dict[str, Any] = {"file": one.path}
        if one.error:
            said["error"] = one.error
        else:
            said["answers"] = [{"name": a.name, "probability": round(a.probability, 6)} for a in one.answers]
        _say(("[" if first else ",") + json.dumps(said))
        first = False

    return write


def _table(learner: Any) -> _Writer:
    """Columns that are as wide as the longest name, so that lines can be shown as they come."""
    width = max(map(cell_len, learner.class_names), default=0)

    def write(one: Answered | None) -> None:
        if one is None:
            return
        for rank, answer in enumerate(one.answers):
            name = answer.name + " " * (width - cell_len(answer.name))
            path = one.path if rank == 0 else ""
            _say(f"{answer.probability:6.1%}  {name}  {path}".rstrip())

    return write
