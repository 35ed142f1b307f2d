"""The command line: ``flexkern demo``, ``run``, ``bench``, ``check`` and ``info``."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from flexkern.cli import bench, check
from flexkern.cli import run as runs
from flexkern.cli.fit import fit
from flexkern.cli.predict import predict
from flexkern.cli.run import show
from flexkern.cli.terminal import console, counting_bar, explained, folder_option, say
from flexkern.environment import environment
from flexkern.runs.demo import DemoConfig, refuse_others, write
from flexkern.runs.demo import run as run_demo
from flexkern.runs.folder import claim
from flexkern.runs.incremental.config import find_config, read_config
from flexkern.runs.incremental.run import RESULTS
from flexkern.runs.start import check_files
from flexkern.runs.torchrun import refuse_several

app = typer.Typer(
    help="Networks that learn one thing after the other and do not forget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
DEFAULTS = DemoConfig()
app.add_typer(runs.app, name="run")
app.add_typer(bench.app, name="bench")
app.command()(fit)
app.command()(predict)
app.add_typer(check.app, name="check")


@app.callback()
def _main() -> None:
    """Fused kernels for brain-inspired continual learning in PyTorch."""


def _scale(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"must be a number or 'auto', got {text!r}") from None


@app.command()
def demo(
    seeds: Annotated[
        int, typer.Option(min=1, help="How many times all networks are trained.")
    ] = DEFAULTS.seeds,
    items: Annotated[int, typer.Option(min=3, max=45, help="Items of the stream.")] = DEFAULTS.items,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over an item's images.")] = DEFAULTS.epochs,
    train_per_item: Annotated[int, typer.Option(min=1, help="Images of an item.")] = DEFAULTS.train_per_item,
    width: Annotated[int, typer.Option(min=1, help="Units of each hidden layer.")] = DEFAULTS.width,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = DEFAULTS.lr,
    scale: Annotated[str, typer.Option(help="How fast synapses get stiff: a number, or 'auto'.")] = "auto",
    first_seed: Annotated[int, typer.Option(min=0, help="The runs have this seed and those after it.")] = 0,
    artsy: Annotated[
        bool, typer.Option("--artsy/--no-artsy", help="Also show Artsy on digits, two classes at a time.")
    ] = True,
    out: Annotated[Path, folder_option("Folder for results and pictures.")] = Path("out/demo"),
) -> None:
    """Trains three networks on a stream of two-digit items and shows which of them remember.

    And one with a reserve of silent synapses, to show a layer coming alive. Then Artsy, EASE, SimpleCIL and
    fine-tuning learn digits two classes at a time on a small pre-trained transformer.
    """
    import matplotlib  # noqa: F401 - if it is missing, say so now and not after the training

    # These networks gain little from threads (4.9 s per seed with two, 6.4 s with one), and on a busy machine
    # threads that wait for each other take ten times as long.
    torch.set_num_threads(1)
    config = DemoConfig(
        seeds=seeds,
        first_seed=first_seed,
        items=items,
        epochs=epochs,
        train_per_item=train_per_item,
        width=width,
        lr=lr,
        scale=_scale(scale),
    )
    with explained("flexkern demo"):
        refuse_several("flexkern demo")
    with explained("flexkern demo"), claim(out):
        refuse_others(out)
        check_files(out, "results.json", "memory.png", "awakening.png")
        if artsy:
            check_files(out / "artsy", *RESULTS)
        with counting_bar() as bar:
            task = bar.add_task("features", total=config.steps)

            def tell(done: str) -> None:
                bar.update(task, advance=1, description=f"{done:<40}")
                say(done)

            results = run_demo(config, tell)
        written = write(results, out)
    console.print(_table(results))
    console.print(_awakening(results["awakening"]), highlight=False)
    for path in written:
        console.print(f"wrote {path}", markup=False)
    if artsy:
        _artsy(out / "artsy")


def _artsy(out: Path) -> None:
    """The shipped configuration for digits, and what Artsy's inference costs against EASE's."""
    if find_spec("transformers") is None:
        console.print("Artsy needs transformers: pip install 'flexkern[vit]', then run the demo again")
        return
    config = read_config(find_config("digits")).override(out=str(out))
    with explained("flexkern demo"):
        summary = show(config, restart=True, keep=False)["summary"]
    for name in ("Artsy", "Artsy, best", "EASE"):
        s = summary[name]
        passes, seconds = s["report"]["passes"]["mean"][-1], s["cost"]["predict_seconds"]["mean"]
        console.print(
            f"{name}: {passes:.1f} passes an image at the end, {seconds:.1f} s for all tests", highlight=False
        )


def _table(results: dict[str, Any]) -> Table:
    """Accuracy of each item after the stream, average and memorised items: mean ± spread over the seeds."""
    summary, configuration = results["summary"], results["configuration"]
    items, seeds = configuration["items"], configuration["seeds"]
    table = Table(
        title=f"Accuracy after {items} items",
        caption=f"mean ± standard deviation of {seeds} seed{'s' if seeds > 1 else ''}; chance is "
        f"{results['chance']:.1%}; {results['seconds']:.0f} s",
    )
    table.add_column("item, in order")
    for name in summary:
        table.add_column(name, justify="right", style="bold" if name == "hybrid" else None)

    def cell(value: dict[str, Any], item: int | None = None, form: str = ".1%") -> str:
        mean, std = (value[k] if item is None else value[k][item] for k in ("mean", "std"))
        return f"{mean:{form}} ± {std:{form}}"

    for i in range(items):
        table.add_row(
            str(i + 1), *(cell(s["accuracy"], i) for s in summary.values()), end_section=i == items - 1
        )
    table.add_row("average", *(cell(s["last"]) for s in summary.values()))
    table.add_row(f"memorised, of {items}", *(cell(s["memorised"], items - 1, ".1f") for s in summary.values()))
    return table


def _awakening(alive: dict[str, Any]) -> str:
    first, last = alive["functional"][0], alive["functional"][-1]
    layers = ", ".join(
        f"{name} hidden layer {before:.0%} -> {now:.0%}"
        for name, before, now in zip(("first", "second"), first, last, strict=True)
    )
    return f"A reserve comes alive (functional synapses, one run): {layers}"


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Plain data, for a bug report or a script.")] = False,
) -> None:
    """Says what is installed, what works here and why the rest does not, and what serves each operator."""
    here = environment()
    if as_json:
        typer.echo(json.dumps(here, indent=1))
        return
    versions = here["versions"]
    console.print(
        f"flexkern {versions['flexkern']}, torch {versions['torch']}, triton {versions['triton'] or 'none'}, "
        f"Python {versions['python']}",
        highlight=False,
    )
    build = here["build"]
    if build is None:
        console.print("no compiled extension: every operator runs in plain PyTorch", markup=False)
    else:
        made = build["cuda_architectures"].replace(";", ", sm_")
        compiler = build["cuda_compiler"].removeprefix("none: ")
        cuda = f"nvcc {compiler} for sm_{made}" if made else f"no CUDA kernels: {compiler}"
        console.print(
            f"built with {build['compiler']} (this processor: {build['instruction_set']}), {cuda}",
            markup=False,
            highlight=False,
        )
        if build["direct_calls"] != "yes":
            console.print(
                f"calls on the CPU go through torch's dispatcher, 1 to 3 us each: {build['direct_calls']}",
                markup=False,
                highlight=False,
            )
    if here["driver"] is not None:
        console.print(f"NVIDIA driver for CUDA {here['driver']}", highlight=False)
    for gpu in here["gpus"]:
        kind = f"sm_{gpu['capability'].replace('.', '')}"
        console.print(f"GPU: {gpu['name']}, {kind}, {gpu['memory_gib']} GiB", markup=False)
    backends = Table(title=f"Backends (asked for: {here['requested']})", title_justify="left")
    for column in ("backend", "works", "why"):
        backends.add_column(column, overflow="fold")
    for name, status in here["backends"].items():
        backends.add_row(name, "yes" if status["available"] else "no", escape(status["reason"]))
    console.print(backends)
    operators = Table(title="What serves each operator", title_justify="left")
    devices = next(iter(here["operators"].values()))
    for column in ("operator", *(f"on {device}" for device in devices), "what it lacks"):
        operators.add_column(column, overflow="fold")
    for name, serves in here["operators"].items():
        operators.add_row(name, *map(escape, serves.values()), "; ".join(here["lacking"][name].values()))
    console.print(operators)
