"""Results of the demo as a table, and in words."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from flexkern.runs.seeds import as_list

__all__ = ["reserve", "table"]


def table(results: dict[str, Any]) -> Table:
    """Accuracy of each item after the stream, average and memorised items: mean ± spread over the seeds."""
    summary, configuration = results["summary"], as_list(results["configuration"])
    items, seeds = configuration["items"], len(configuration["seeds"])
    table = Table(
        title=f"Accuracy after {items} items: mean ± standard deviation of {seeds} "
        f"seed{'s' if seeds > 1 else ''}; chance is {results['chance']:.1%}; {results['seconds']:.0f} s",
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


def reserve(alive: dict[str, Any]) -> str:
    """How much of a reserve of silent synapses came alive, in a sentence."""
    first, last = alive["functional"][0], alive["functional"][-1]
    layers = ", ".join(
        f"{name} hidden layer {before:.0%} -> {now:.0%}"
        for name, before, now in zip(("first", "second"), first, last, strict=True)
    )
    return f"A reserve comes alive (functional synapses, one run): {layers}"
