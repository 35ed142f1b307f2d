"""``flexkern fit``: a classifier from a folder of images, task after task."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from flexkern.cli.dry_run import show_fit
from flexkern.cli.terminal import DRY_RUN, console, counting_bar, explained, log_option, say
from flexkern.files import check_writable, write_json
from flexkern.runs.events import Sink
from flexkern.runs.fitting.tables import some, table
from flexkern.runs.sinks import sinks_named
from flexkern.runs.start import path_given
from flexkern.runs.torchrun import first, refuse_several

__all__ = ["fit"]

_COMMAND = "flexkern fit"
_STOPPED = "stopped; the same command goes on from the last epoch"


def _order(text: str) -> int | None:
    if text == "names":
        return None
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise typer.BadParameter(f"must be 'names', or the seed of a random order, got {text!r}")
    return int(text)


def _colour(text: str) -> tuple[int, ...]:
    names = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
    if text in names:
        return names[text]
    parts = text.split(",")
    if len(parts) != 3 or not all(re.fullmatch(r" *[0-9]{1,3} *", p) and int(p) < 256 for p in parts):
        raise typer.BadParameter(f"must be white, black, grey or R,G,B, each 0 to 255, got {text!r}")
    return tuple(map(int, parts))


def fit(
    folder: Annotated[
        str,
        typer.Argument(
            help="With the folders train and test (or val), or one folder for each class, or tar shards."
        ),
    ],
    out: Annotated[str, typer.Option(help="The file that the model is saved to, after each epoch.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="'small' (for images of 32 x 32), a folder, or a name of timm or the hub."),
    ] = None,
    increment: Annotated[
        int | None, typer.Option(help="Classes of a task. Without it and --tasks all are one task.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="A file with a line for each task: names of classes with commas between."),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="A model that learns the classes of the folder in addition.")
    ] = None,
    earlier: Annotated[
        str | None,
        typer.Option(
            help="With --from: a folder of classes that the model knows, to test them too. "
            "--test-share and --seed split it, so give those of before."
        ),
    ] = None,
    order: Annotated[str, typer.Option(help="Of the classes: 'names', or the seed of a random one.")] = "names",
    method: Annotated[
        str | None,
        typer.Option(help="artsy-best (the default), artsy, ease, simplecil, ranpac, lda, finetune, joint."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of a task. Default: the method's own.")] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Pixels that images are read at. Default: 8/7 of the network's."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Of the network. Default: its own.")] = None,
    normalize: Annotated[
        str | None, typer.Option(help="auto: inputs as the backbone was trained (the default), or none.")
    ] = None,
    test_share: Annotated[
        float | None,
        typer.Option(help="Of each class's images, for tests. Default: 0.2 where the folder has none."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of that choice, and of the training.")] = 0,
    broken: Annotated[str, typer.Option(help="What is no image stops the fit, or: skip.")] = "raise",
    background: Annotated[
        str, typer.Option(help="Of transparent pixels: white, black, grey, R,G,B.")
    ] = "white",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Processes that read images.")] = None,
    json_file: Annotated[str | None, typer.Option("--json", help="A file for the results, as JSON.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what --out holds.")] = False,
    log: Annotated[list[str] | None, log_option()] = None,
    dry_run: Annotated[bool, DRY_RUN] = False,
) -> None:
    """Learns to name what is on the images of a folder, some classes after the others.

    A fit that was stopped goes on where it was when the same command is
    given again. By default it trains adapters on the backbone, as
    ArtsyViT.best; --method ranpac trains nothing. See docs/images.md.
    """
    colour, seed_of_order = _colour(background), _order(order)
    with explained(_COMMAND, stopped=_STOPPED):
        from flexkern.runs.fitting.fit_config import FitConfig

        config = FitConfig(
            folder=folder, out=out, backbone=backbone, start=start, earlier=earlier,
            increment=increment, tasks=tasks, order=seed_of_order, method=method, epochs=epochs,
            size=size, image_size=image_size, normalize=normalize, test_share=test_share, seed=seed,
            broken=broken, background=colour, device=device, workers=workers,
        )  # fmt: skip
        if dry_run:
            refuse_several(f"{_COMMAND} --dry-run")
            show_fit(config, _begins, restart=restart)
            return
        json_file = json_file if first() else None
        if json_file is not None:
            check_writable(json_file, folders=True)  # now, and not after the training
        record = _show(config, restart=restart, sinks=sinks_named(log or ()))
        if json_file is not None:
            write_json(Path(json_file), record)
            console.print(f"wrote {json_file}", markup=False, highlight=False)


def _show(config: Any, *, restart: bool, sinks: list[Sink]) -> dict[str, Any]:
    """Fits with bars for the tasks, the epochs of one, and the images of an epoch; returns what came of it."""
    from flexkern.runs.fitting.run import Event, fit

    with counting_bar() as bar:
        whole = bar.add_task("looking at the images", total=None)
        epochs = bar.add_task("", total=None, visible=False)
        images = bar.add_task("", total=None, visible=False)

        def observe(event: Event) -> None:
            name = f"task {event.task + 1} of {event.tasks}"
            if event.kind == "begin":
                bar.update(whole, total=event.tasks, completed=len(event.record["tasks"]), description="tasks")
                for line in [*_begins(event.record), str(event.memory)]:
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
            elif event.kind == "images":
                if event.done < bar.tasks[images].completed:  # another pass
                    bar.reset(images)
                what = f"{name}, {event.doing}" if event.doing != "looking" else "looking at the images"
                bar.update(images, total=event.total, completed=event.done, description=what, visible=True)
                say(f"{what}: image {event.done} of {event.total}", seldom=True)
            elif event.kind == "epoch":
                if event.epoch == 1:
                    bar.reset(epochs)
                what = f"{name}, loss {event.loss:.3f}"
                bar.update(epochs, total=event.epochs, completed=event.epoch, description=what, visible=True)
                say(f"{what}, epoch {event.epoch} of {event.epochs}", seldom=True)
            else:
                now = event.record["tasks"][-1]
                bar.update(whole, advance=1)
                bar.update(epochs, visible=False)
                own, seen = now["accuracies"][-1], now["seen"]
                say(f"{name}, {some(now['classes'], 10)}: {own:.1%} of it right, {seen:.1%} of all so far")

        record = fit(config, restart=restart, observe=observe, sinks=sinks)
        for task in (epochs, images):
            bar.update(task, visible=False)
    console.print(table(record))
    for line in _ends(config, record):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return record


def _begins(record: dict[str, Any]) -> list[str]:
    """What is learned, a line each."""
    classes, tasks = sum(map(len, record["planned"])), len(record["planned"])
    counts = record["images"]
    lines = [
        f"{classes} class{'es' * (classes > 1)} in {tasks} task{'s' * (tasks > 1)}; "
        f"{counts['train']} images to learn, {counts['test']} to test"
    ]
    if record["earlier"]:
        lines.append(f"the model knows {len(record['earlier'])} classes already")
    if record["left_out"]:
        lines.append(f"in no task, and so left out: {some(record['left_out'])}")
    if record["skipped"]:
        lines.append(f"left out, as they cannot be read: {some([path for path, _ in record['skipped']])}")
    if record["tasks"]:
        lines.append(f"{len(record['tasks'])} of {tasks} tasks are learned")
    return lines


def _ends(config: Any, record: dict[str, Any]) -> list[str]:
    from flexkern.runs.fitting.run import log_of

    lines = ["right: of the test images, named among all classes that the model knows"]
    if record["earlier"] and record["tasks"][-1]["earlier"] is None:
        lines.append("the classes that it knew before are not tested: give a folder of theirs with --earlier")
    log = log_of(path_given(config.out, "out"))
    lines += [f"wrote {path}" for path in (config.out, log.table, log.events)]
    return [*lines, f"try it: flexkern predict {shlex.quote(config.out)} IMAGE ..."]
