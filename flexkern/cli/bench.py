"""``flexkern bench``: what flexkern gains on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from flexkern.benchmarks import record, worker
from flexkern.benchmarks.case import CPU, GPU, Case, Series, cases
from flexkern.benchmarks.compare import Difference, compare, runs_of
from flexkern.benchmarks.tables import heading, row_lines
from flexkern.benchmarks.worker import Options
from flexkern.cli.terminal import Console, folder_option
from flexkern.files import check_writable

__all__ = ["app"]

app = typer.Typer(invoke_without_command=True)
console = Console(soft_wrap=True, highlight=False)
errors = Console(stderr=True, highlight=False)

Only = Annotated[
    list[str] | None,
    typer.Option(help="Cases with this in their name, or that match it with *. May be repeated."),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is a GPU.")]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes: to see in minutes that all runs.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="About how long the rounds of each case take.")]


def _options(only: list[str] | None, device: str | None, quick: bool, seconds: float) -> Options:
    device = device or (GPU if torch.cuda.is_available() else CPU)
    if device not in (CPU, GPU):
        raise typer.BadParameter(f"--device must be cpu or cuda, got {device!r}")
    if device == GPU and not torch.cuda.is_available():
        raise typer.BadParameter(
            "--device cuda needs an NVIDIA GPU that torch sees; torch.cuda.is_available() is False"
        )
    try:
        chosen = [entry for entry in cases(only or ()) if device in entry.devices]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not chosen:
        raise typer.BadParameter(f"--only: none of these cases is defined on {device}")
    return Options(device, only or (), quick, seconds)


@app.callback()
def bench(
    context: typer.Context,
    only: Only = None,
    device: Device = None,
    quick: Quick = False,
    seconds: Seconds = 12.0,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait before a case while others take memory's bandwidth.")
    ] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run as JSON, and nothing else.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw speed-ups, roofline and growth too.")] = False,
    out: Annotated[
        Path | None,
        folder_option("Folder for the results. Default: benchmarks/results of a checkout, else out/bench."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the cases, and measure nothing.")] = False,
) -> None:
    """Measures ours and its peers in one run: outputs compared first, then interleaved rounds.

    Each run is kept as a new results file, with the machine, versions and commit. `flexkern bench compare A B`
    compares two of them, or two git revisions.
    """
    if context.invoked_subcommand is not None:
        return
    options = replace(_options(only, device, quick, seconds), patience=patience)
    if listed:
        for entry in cases(options.only):
            console.print(_line(entry))
        return
    if plot:
        import matplotlib  # noqa: F401 - if it is missing, say so now and not after the measurement
    folder = out or record.default_folder()
    try:
        check_writable(folder / "run.json", folders=True)  # now, and not after the measurement
    except OSError as error:
        raise typer.BadParameter(f"--out: {error}") from None
    parts = _shown(worker.run(options), quiet=as_json)
    run = worker.collect(parts, options, lambda run: record.keep_draft(run, folder))
    path = record.write(run, folder)
    if as_json:
        print(json.dumps(run))
    else:
        console.print(f"written: {path}")
    if plot:
        from flexkern.benchmarks.figures import draw

        for picture in draw(run, path.with_suffix("")):
            (errors if as_json else console).print(f"written: {picture}")
    if any("failed" in part for part in run["rows"] + run["series"]):
        raise typer.Exit(1)


def _line(entry: Case | Series) -> str:
    what = entry.title if isinstance(entry, Series) else ""
    return f"{entry.name:<36} {', '.join(entry.devices):<10} {what}".rstrip()


def _shown(parts: Iterator[dict[str, Any]], *, quiet: bool) -> Iterator[dict[str, Any]]:
    """Passes parts on, and prints each as it comes; if quiet, only its name, to the other channel."""
    if not quiet:
        console.print(heading())
    for part in parts:
        for line in row_lines(part):
            (errors if quiet else console).print(line, markup=False)
        yield part


@app.command("compare")
def compare_command(
    before: Annotated[str, typer.Argument(help="A results file, or a git revision.")],
    after: Annotated[str, typer.Argument(help="Another one.")],
    only: Only = None,
    device: Device = None,
    quick: Quick = False,
    seconds: Seconds = 6.0,
    turns: Annotated[int, typer.Option(min=1, help="How often each git revision is measured.")] = 2,
) -> None:
    """Compares two results files, or builds two git revisions and measures them in turns.

    The yardstick is what the peers did between both: where it is not near 1, the machine was not the same.
    """
    options = _options(only, device, quick, seconds)
    try:
        first, second = runs_of((before, after), options, lambda text: errors.print(text), turns)
    except (ValueError, RuntimeError) as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(2) from None
    differences = compare(first, second)
    if not differences:
        errors.print("the two have no case in common")
        raise typer.Exit(2)
    console.print(_table(before, after, differences))


def _table(before: str, after: str, differences: list[Difference]) -> Table:
    table = Table(
        "case", f"{Path(before).name} ms", f"{Path(after).name} ms", "faster by", "yardstick", "clear"
    )
    for column in table.columns[1:5]:
        column.justify = "right"
    for d in differences:
        table.add_row(
            d.name, f"{d.before:.4g}", f"{d.after:.4g}", f"{d.factor:.3f}", f"{d.yardstick:.3f}",
            "yes" if d.clear else "no",
        )  # fmt: skip
    return table
