"""``python -m flexkern.benchmarks.publish``: README.md and docs/results/benchmarks from the newest results."""

from __future__ import annotations

from pathlib import Path

from flexkern.benchmarks import record
from flexkern.benchmarks.figures import draw
from flexkern.benchmarks.tables import page, with_table

__all__ = ["publish"]

ROOT = Path(__file__).resolve().parent.parent


def publish(root: Path) -> list[Path]:
    """Writes the table of ``root``/README.md, and the page with all cases and its pictures; returns the files.

    Raises:
        ValueError: if there are no results in ``root``/benchmarks/results.
    """
    runs = record.newest(root / "benchmarks" / "results")
    readme = root / "README.md"
    readme.write_text(with_table(readme.read_text(), runs))
    folder = root / "docs" / "results" / "benchmarks"
    written = [readme]
    for device, run in runs.items():
        written += draw(run, folder / device)
    (folder / "README.md").write_text(page(runs))
    return [*written, folder / "README.md"]


if __name__ == "__main__":
    for file in publish(ROOT):
        print(f"written: {file}")
