"""``flexkern check``: whether something can be used, and what it is, before any work."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from flexkern.backbones.facts import RANK, BackboneFacts, backbone_facts
from flexkern.cli.terminal import console, explained

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _check() -> None:
    """Says whether something can be used, and what it is."""


@app.command()
def backbone(
    source: Annotated[
        str, typer.Argument(help="'small', a folder, a name on the Hugging Face hub, or one of timm's.")
    ],
    image_size: Annotated[
        int | None, typer.Option(help="Pixels of each side of the images. Default: its own.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Plain data, for a script.")] = False,
) -> None:
    """Loads a vision transformer, tries it on one image, and says how learners use it."""
    command = "flexkern check backbone"
    with explained(command):
        facts = backbone_facts(source, size=image_size, dtype=dtype)
    if as_json:
        typer.echo(json.dumps(asdict(facts), indent=1))
    else:
        console.print(_table(facts))


def _table(facts: BackboneFacts) -> Table:
    table = Table(title=f"Backbone {facts.source}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    patches = "" if facts.patch_size is None else f", patches of {facts.patch_size} x {facts.patch_size}"
    for what, value in (
        ("family", f"{facts.family} ({facts.kind})"),
        ("size", f"{facts.parameters:,} parameters in {facts.dtype}, {facts.blocks} blocks"),
        ("images", f"{facts.image_size} x {facts.image_size} pixels{patches}"),
        ("tokens", f"{facts.tokens}, of which {facts.prefix_tokens} before the patches'"),
        ("feature", f"{facts.feature}, {facts.width} numbers"),
        ("normalised by", _normalised(facts)),
        (
            "adapters",
            f"fit: {facts.bytes_per_task:,} bytes a task at rank {RANK}, in all {facts.blocks} blocks",
        ),
        ("one image", f"{facts.seconds * 1e3:.1f} ms"),
    ):
        table.add_row(what, value)
    return table


def _normalised(facts: BackboneFacts) -> str:
    if facts.mean is None or facts.std is None:
        return "nothing: no numbers are kept with it, and images stay in [0, 1]"
    mean, std = (", ".join(f"{n:.4g}" for n in numbers) for numbers in (facts.mean, facts.std))
    return f"mean {mean}; standard deviation {std}"
