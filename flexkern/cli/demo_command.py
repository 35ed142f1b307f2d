"""``flexkern demo``: a stream in a minute, by networks that forget it and one that does not."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import typer

from flexkern.cli.run import show
from flexkern.cli.terminal import (
    console,
    counting_bar,
    explained,
    folder_option,
    given_seeds,
    number_or_auto,
    say,
    seeds_option,
)
from flexkern.runs.demo import DemoConfig, read_known, write
from flexkern.runs.demo import run as run_demo
from flexkern.runs.demo_tables import reserve, table
from flexkern.runs.folder import claim
from flexkern.runs.incremental.config import find_config, read_config
from flexkern.runs.incremental.run import RESULTS
from flexkern.runs.seeds import said_seeds
from flexkern.runs.start import check_files
from flexkern.runs.torchrun import refuse_several

__all__ = ["demo"]

DEFAULTS = DemoConfig()


def demo(
    seeds: Annotated[str | None, seeds_option(said_seeds(DEFAULTS.seeds))] = None,
    items: Annotated[int, typer.Option(min=3, max=45, help="Items of the stream.")] = DEFAULTS.items,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over an item's images.")] = DEFAULTS.epochs,
    train_per_item: Annotated[int, typer.Option(min=1, help="Images of an item.")] = DEFAULTS.train_per_item,
    width: Annotated[int, typer.Option(min=1, help="Units of each hidden layer.")] = DEFAULTS.width,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = DEFAULTS.lr,
    scale: Annotated[str, typer.Option(help="How fast synapses get stiff: a number, or 'auto'.")] = "auto",
    artsy: Annotated[
        bool, typer.Option("--artsy/--no-artsy", help="Also show Artsy on digits, two classes at a time.")
    ] = True,
    out: Annotated[Path, folder_option("Folder for results and pictures.")] = Path("out/demo"),
    restart: Annotated[bool, typer.Option("--restart", help="Discard the demo that it holds.")] = False,
) -> None:
    """Trains three networks on a stream of two-digit items and shows which of them remember.

    And one with a reserve of silent synapses, to show a layer coming alive. Then Artsy, EASE, SimpleCIL and
    fine-tuning learn digits two classes at a time on a small pre-trained transformer.
    """
    import matplotlib  # noqa: F401 - if it is missing, say so now and not after the training

    # These networks gain little from threads (4.9 s per seed with two, 6.4 s with one), and on a busy machine
    # threads that wait for each other take ten times as long.
    torch.set_num_threads(1)
    with explained("flexkern demo"):
        refuse_several("flexkern demo")
        config = DemoConfig(
            seeds=given_seeds(seeds) or DEFAULTS.seeds,
            items=items,
            epochs=epochs,
            train_per_item=train_per_item,
            width=width,
            lr=lr,
            scale=number_or_auto(scale, "scale"),
        )
    with explained("flexkern demo"), claim(out):
        known = read_known(out, config, restart=restart)
        check_files(out, "results.json", "memory.png", "awakening.png")
        if artsy:
            check_files(out / "artsy", *RESULTS)
        with counting_bar() as bar:
            task = bar.add_task("features", total=config.steps(known))
            if known is not None:
                there = said_seeds(known["configuration"]["seeds"])
                console.print(f"{out} has seeds {there} already; --restart discards them", markup=False)

            def tell(done: str) -> None:
                bar.update(task, advance=1, description=done)
                say(done)

            results = run_demo(config, tell, known=known)
        written = write(results, out)
    console.print(table(results))
    console.print(reserve(results["awakening"]), highlight=False)
    for path in written:
        console.print(f"wrote {path}", markup=False)
    if artsy:
        _artsy(out / "artsy", restart=restart)


def _artsy(out: Path, *, restart: bool) -> None:
    """The shipped configuration for digits, and what Artsy's inference costs against EASE's."""
    if find_spec("transformers") is None:
        console.print("Artsy needs transformers: pip install 'flexkern[vit]', then run the demo again")
        return
    config = read_config(find_config("digits")).override(out=str(out))
    with explained("flexkern demo"):
        summary = show(config, restart=restart, keep=False)["summary"]
    for name in ("Artsy", "Artsy, best", "EASE"):
        s = summary[name]
        passes, seconds = s["report"]["passes"]["mean"][-1], s["cost"]["predict_seconds"]["mean"]
        console.print(
            f"{name}: {passes:.1f} passes an image at the end, {seconds:.1f} s for all tests", highlight=False
        )
