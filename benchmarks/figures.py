"""Pictures of a run: speed-ups, how much of the machine is used, and cost as work grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flexkern.benchmarks.plot_growth import draw_growth
from flexkern.benchmarks.plot_roofline import draw_roofline
from flexkern.benchmarks.plot_speedups import draw_speedups
from flexkern.files import save_figure

__all__ = ["draw"]

PICTURES = {"speedups": draw_speedups, "roofline": draw_roofline, "growth": draw_growth}


def draw(run: dict[str, Any], folder: Path) -> list[Path]:
    """Writes speedups.png, roofline.png and growth.png, and returns their paths.

    What was skipped or failed is left out; a picture that would be empty is not written.

    Args:
        run: as :func:`flexkern.benchmarks.record.read` gives it.
        folder: is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, picture in PICTURES.items():
        figure = picture(run, about(run))
        if figure is not None:
            path = folder / f"{name}.png"
            save_figure(figure, path, facecolor="white")
            written.append(path)
    return written


def about(run: dict[str, Any]) -> str:
    """Where and when it was measured."""
    machine = run["machine"]
    gpus = machine["gpus"]
    processor = gpus[0]["name"] if run["device"] == "cuda" and gpus else machine["cpu"]
    parts = [
        f"{processor}, {machine['cores']} CPU cores", f"torch {machine['versions']['torch']}",
        machine["date"][:10], f"commit {(machine['commit'] or 'unknown')[:7]}",
    ]  # fmt: skip
    return "; ".join(parts) + (". SMALL SIZES (--quick): the ratios mean little." if run["quick"] else ".")
