"""The experiments of the metaplasticity paper as commands of ``flexkern run``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import TaskProgressColumn, TimeElapsedColumn

from flexkern.cli.dry_run import show_experiment
from flexkern.cli.terminal import (
    ACCEPTS,
    DRY_RUN,
    console,
    explained,
    folder_option,
    given_seeds,
    log_option,
    number_or_auto,
    progress_bar,
    say,
    seeds_option,
)
from flexkern.runs.events import EVENTS, ROWS
from flexkern.runs.metaplasticity.figures import EXPERIMENTS
from flexkern.runs.metaplasticity.protocol import Protocol, protocol_for
from flexkern.runs.metaplasticity.runner import run
from flexkern.runs.metaplasticity.schedule import Experiment
from flexkern.runs.sinks import sinks_named
from flexkern.runs.start import check_files
from flexkern.runs.torchrun import refuse_several

__all__ = ["add_to"]

# What all of them take. None: what suits the features, see flexkern.runs.metaplasticity.protocol.
_COMMON: dict[str, tuple[type, str]] = {
    "data": (str, "'digits' (scikit-learn's, the default) or an MNIST archive (.npz)."),
    "features": (str, "'random' convolutions (the default) or SqueezeNet's weights (.npz)."),
    "items": (int, "Of the stream. Default: 10."),
    "width": (int, "Units of each hidden layer. Default: the release's 4096 with SqueezeNet, else 256."),
    "train_per_item": (int, "Images of an item. Default: 2000."),
    "test_per_item": (int, "Test images of an item. Default: 1000."),
    "epochs": (int, "Passes over an item's images. Default: 5."),
    "batch_size": (int, "Images of a step. Default: 1024."),
    "lr": (float, "Learning rate. Default: the release's 1e-4 with SqueezeNet, else 0.02."),
    "scale": (str, "How fast synapses get stiff: a number, or 'auto'. Default: the release's 4e5 (over 10 "
                   "items: 2e5) with SqueezeNet, else 'auto'. The release has AlexNet in SqueezeNet's place."),
    "device": (str, "cpu, cuda, cuda:1, ... Default: cpu."),
    "precision": (str, "Of the networks: float32 (the default) or bfloat16."),
}  # fmt: skip
_RUNNING: dict[str, Any] = {
    "jobs": Annotated[int | None, typer.Option(min=1, help="Networks trained at once. Default: one per core.")],
    "out": Annotated[Path | None, folder_option("Folder for the results. Default: out/NAME.")],
    "cache": Annotated[Path | None, folder_option("Folder for features. Default: out/features.")],
    "restart": Annotated[bool, typer.Option("--restart", help="Discard what the folder holds.")],
    "accept_other_environment": Annotated[bool, typer.Option("--accept-other-environment", help=ACCEPTS)],
    "log": Annotated[list[str] | None, log_option()],
    "dry_run": Annotated[bool, DRY_RUN],
}
_AS_RELEASED = Annotated[
    bool,
    typer.Option(
        "--as-released",
        help="As the authors' code does it, where these experiments do it otherwise: how items are put "
        "together, and what is said above.",
    ),
]

_FLAGS = ("as_released", "restart", "accept_other_environment", "dry_run")


def add_to(app: typer.Typer, experiments: Iterable[type[Any]] = tuple(EXPERIMENTS.values())) -> None:
    """Adds one command for each experiment."""
    for experiment in experiments:
        app.command(experiment.name, help=_help(experiment))(_command(experiment))


def _help(experiment: type[Any]) -> str:
    """What the class says of itself, less its arguments; one paragraph per line, for the terminal to fill."""
    said = inspect.cleandoc(experiment.__doc__ or "").split("\n\nArgs:")[0]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in said.split("\n\n"))


def _command(experiment: type[Any]) -> Callable[..., None]:
    """A function with an option for each setting, those of the experiment included."""
    own = {f.name: f for f in dataclasses.fields(experiment)}
    annotations: dict[str, Any] = {}
    for name, (type_, text) in _COMMON.items():
        annotations[name] = Annotated[type_ | None, typer.Option(help=text)]  # type: ignore[valid-type]
    annotations["seeds"] = Annotated[str | None, seeds_option("0-2")]
    annotations["as_released"] = _AS_RELEASED
    for name, field in own.items():
        default: Any = field.default
        several = isinstance(default, tuple)
        of = type(default[0] if several else default)
        text = f"Default: {', '.join(f'{v:g}' for v in default) if several else default}."
        option = typer.Option(help=f"Numbers with commas between them. {text}" if several else text)
        annotations[name] = Annotated[(str if several else of) | None, option]  # type: ignore[valid-type]
    annotations |= _RUNNING

    def command(**given: Any) -> None:
        running = {name: given.pop(name) for name in _RUNNING}
        options = {name: given.pop(name) for name in own}
        with explained(experiment.command(), stopped="stopped; the same command goes on where it was"):
            refuse_several(experiment.command())
            given["seeds"] = given_seeds(given["seeds"])
            chosen = {k: _value(k, v, own[k].default) for k, v in options.items() if v is not None}
            _go(experiment(**chosen), given, **running)

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=False if name in _FLAGS else None, annotation=a
            )
            for name, a in annotations.items()
        ]
    )
    command.__annotations__ = annotations
    return command


def _value(name: str, given: Any, default: Any) -> Any:
    """An experiment's own option as its class takes it."""
    if not isinstance(default, tuple):
        return given
    try:
        return tuple(type(default[0])(part) for part in given.split(","))
    except ValueError:
        raise ValueError(f"{name} must be numbers with commas between them, got {given!r}") from None


def _go(
    experiment: Experiment, given: dict[str, Any], *, out: Path | None, dry_run: bool, **running: Any
) -> None:
    scale = given.pop("scale")
    if scale is not None:
        given["scale"] = number_or_auto(scale, "scale")
    folder = Path("out") / experiment.name if out is None else out
    if dry_run:
        del running["log"]  # nothing happens that could be told
    (show_experiment if dry_run else show)(experiment, protocol_for(**given), out=folder, **running)


def show(
    experiment: Experiment,
    protocol: Protocol,
    *,
    out: Path,
    cache: Path | None,
    jobs: int | None,
    restart: bool,
    accept_other_environment: bool,
    log: Iterable[str] | None,
) -> None:
    """Runs an experiment with a bar, then prints its tables and writes its picture."""
    # matplotlib too: if it is missing, say so now and not after the training.
    from flexkern.runs.metaplasticity import pictures, tables

    sinks = sinks_named(log or ())
    written = ("results.json", "picture.png", EVENTS, ROWS)
    check_files(out, *written)
    with progress_bar(TaskProgressColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task("starting", total=None)

        before = ""

        def observe(share: float, what: str) -> None:
            nonlocal before
            bar.update(task, completed=share, total=1.0, description=what)
            say(f"{share:4.0%} {what}", seldom=what == before)  # parts of the same work
            before = what

        results = run(
            experiment,
            protocol,
            out=out,
            cache=cache,
            jobs=jobs,
            restart=restart,
            accept_other_environment=accept_other_environment,
            observe=observe,
            sinks=sinks,
        )
    picture = out / "picture.png"
    pictures.draw(results, picture)
    console.print(tables.table(results))
    console.print(tables.claims_table(results))
    for name in written:
        console.print(f"wrote {out / name}", markup=False)
