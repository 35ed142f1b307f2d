"""``flexkern run``: experiments."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from flexkern.cli import metaplasticity
from flexkern.cli.dry_run import show_plan
from flexkern.cli.terminal import (
    ACCEPTS,
    DRY_RUN,
    console,
    counting_bar,
    explained,
    folder_option,
    given_seeds,
    log_option,
    say,
    seeds_option,
)
from flexkern.runs.incremental.config import Config, find_config, read_config
from flexkern.runs.incremental.config import shipped as shipped_configurations
from flexkern.runs.incremental.config.file_schema import file_schema
from flexkern.runs.incremental.config.method_options import family_of
from flexkern.runs.incremental.journal import checkpoint_path
from flexkern.runs.metaplasticity.figures import EXPERIMENTS
from flexkern.runs.sinks import sinks_named
from flexkern.runs.start import check_files
from flexkern.runs.torchrun import first, refuse_several

app = typer.Typer(no_args_is_help=True, invoke_without_command=True)


@app.callback()
def _run(
    listed: Annotated[
        bool, typer.Option("--list", help="Show all experiments and shipped configurations, and end.")
    ] = False,
) -> None:
    """Runs an experiment: class-incremental learning, or a figure of the metaplasticity paper."""
    if not listed:
        return
    console.print("experiments of the metaplasticity paper, each a command:", highlight=False)
    _lines({f"flexkern run {name}": kind.title for name, kind in EXPERIMENTS.items()})
    console.print("\nconfigurations, for flexkern run class-incremental NAME:", highlight=False)
    _lines(_titles())
    raise typer.Exit


def _titles() -> dict[str, str]:
    """What each shipped configuration is."""
    return {name: read_config(path).title for name, path in shipped_configurations().items()}


def _lines(titles: dict[str, str]) -> None:
    width = max(map(len, titles)) + 2
    for name, title in titles.items():
        console.print(f"{name:<{width}}{title}", highlight=False, markup=False, soft_wrap=True)


@app.command("class-incremental")
def class_incremental(
    config: Annotated[
        str | None, typer.Argument(help="A TOML file, or the name of a shipped one.", show_default=False)
    ] = None,
    shipped: Annotated[bool, typer.Option("--list", help="Show the shipped configurations, and end.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a configuration, and end.")
    ] = False,
    data: Annotated[str | None, typer.Option(help="Archive or folder of the images.")] = None,
    backbone: Annotated[str | None, typer.Option(help="'small', a folder, or a name on the hub.")] = None,
    seeds: Annotated[str | None, seeds_option("those of the file")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    out: Annotated[Path | None, folder_option("Folder for results, picture and checkpoints.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what the folder holds.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep each learner when its run has ended, and say how it is loaded.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Show a second table: plasticity, transfer, told tasks, top 5, ...")
    ] = False,
    accept_other_environment: Annotated[bool, typer.Option("--accept-other-environment", help=ACCEPTS)] = False,
    log: Annotated[list[str] | None, log_option()] = None,
    dry_run: Annotated[bool, DRY_RUN] = False,
) -> None:
    """Learns a data set some classes at a time, by several methods, and compares them.

    A run that was stopped goes on where it was when the same command is given again.
    """
    if shipped:
        _lines(_titles())
        return
    if schema:
        typer.echo(json.dumps(file_schema(), indent=1))
        return
    if config is None:
        raise typer.BadParameter(
            "name a TOML file, or a shipped configuration (see --list)", param_hint="CONFIG"
        )
    changes: dict[str, Any] = {
        "data": data,
        "backbone": backbone,
        "device": device,
        "out": None if out is None else str(out),
    }
    changes["seeds"] = given_seeds(seeds)
    command = "flexkern run class-incremental"
    with explained(command, stopped="stopped; the same command goes on from the last epoch"):
        wanted = read_config(find_config(config)).override(**changes)
        if dry_run:
            refuse_several(f"{command} --dry-run")
            show_plan(wanted, restart=restart, accept_other_environment=accept_other_environment)
            return
        show(
            wanted,
            restart=restart,
            keep=keep,
            every=every,
            accept_other_environment=accept_other_environment,
            log=log,
        )


def show(
    config: Config,
    *,
    restart: bool,
    keep: bool,
    every: bool = False,
    accept_other_environment: bool = False,
    log: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Runs a configuration, with a bar for all tasks and one for the epochs or parts of a task; returns the
    results. ``every``: whether to show all that was measured; ``log``: where to write it, too."""
    # matplotlib too: if it is missing, say so now and not after the training.
    from flexkern.runs.incremental import pictures, tables
    from flexkern.runs.incremental.run import RESULTS, Event, run

    sinks = sinks_named(log or ())
    if first():
        check_files(config.folder, *RESULTS)
    shown = config  # and all that the folder has beside it, as soon as that is known
    with counting_bar() as bar:
        whole = bar.add_task("making the methods", total=None)
        say("making the methods")
        task = bar.add_task("", total=None, visible=False)

        def observe(event: Event) -> None:
            nonlocal shown
            if event.kind == "reading":
                bar.update(whole, description="reading images")
                say("reading images")
                return
            if event.kind == "images":
                assert event.config is not None
                shown = event.config
                if event.added:
                    console.print(f"added to {config.folder}: {', '.join(event.added)}", markup=False)
                total = event.tasks * len(shown.methods) * len(shown.seeds)
                bar.update(whole, total=total, description="tasks")
                return
            if event.kind == "memory":
                console.print(f"{event.method}: {event.memory}", markup=False, highlight=False, soft_wrap=True)
                return
            assert event.record is not None
            name = f"{event.method}, seed {event.seed}, task {event.task + 1} of {event.tasks}"
            if event.kind in ("epoch", "part"):
                what = name if math.isnan(event.loss) else f"{name}, loss {event.loss:.3f}"
                bar.update(task, total=event.epochs, completed=event.epoch, description=what, visible=True)
                say(f"{what}, {event.kind} {event.epoch} of {event.epochs}", seldom=True)
            elif event.kind == "task":
                now = event.record["tasks"][-1]
                what = f"{name}: {now['seen']:.1%}, average {now['average']:.1%}"
                bar.update(whole, advance=1, description=what)
                say(what)
            else:
                place = [m.name for m in shown.methods].index(event.method)
                place += len(shown.methods) * shown.seeds.index(event.seed)
                bar.update(whole, completed=(place + 1) * event.tasks)  # tasks of an earlier call count too
                console.print(tables.task_table(event.record))

        results = run(
            config,
            restart=restart,
            keep=keep,
            accept_other_environment=accept_other_environment,
            observe=observe,
            sinks=sinks,
        )
        bar.update(task, visible=False)
    if not first():
        return results
    folder = config.folder
    pictures.draw(results, folder / "picture.png")
    console.print(tables.method_table(shown, results))
    if every:
        console.print(tables.measures_table(shown, results))
    for note in tables.notes(shown, results):
        console.print(note, markup=False, highlight=False)
    for name in RESULTS:
        console.print(f"wrote {folder / name}", markup=False)
    for line in _kept(shown) if keep else ():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return results


def _kept(config: Config) -> Iterator[str]:
    """Where each learner lies, and how it is loaded. One that had ended before it was to be kept is gone."""
    names = [method.name for method in config.methods]
    backbone = "" if config.backbone == "small" else f", backbone={config.network!r}"
    for name, method in zip(names, config.methods, strict=True):
        given = backbone
        if family_of(method) == "mlp":
            pixels = method.options.get("features") == "pixels"
            made = "Pixels()" if pixels else f"BackboneFeatures({config.network!r})"
            given = f", features=flexkern.features.{made}"
        for seed in config.seeds:
            path = checkpoint_path(config.folder, names, name, seed)
            if path.exists():
                yield f"kept {name}, seed {seed}: flexkern.learners.load_learner({os.fspath(path)!r}{given})"
            else:
                yield f"not kept {name}, seed {seed}: its run ended before, without --keep; see --restart"


metaplasticity.add_to(app)
