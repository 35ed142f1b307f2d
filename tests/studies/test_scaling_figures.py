"""The arithmetic of docs/scaling.md: page, file and script say the same, and limits are what they must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studies import scaling_figures
from studies.scaling_figures import Machine, figures, with_table

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def test_page_and_file_have_what_the_script_computes() -> None:
    found = figures()
    assert json.loads(scaling_figures.FILE.read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    assert with_table(page, found) == page


def test_measured_numbers_of_the_page_are_those_of_the_file() -> None:
    ways = json.loads((DOCS / "results" / "scaling" / "fused.json").read_text(encoding="utf-8"))["ways"]
    memory = [f"{ways[way]['bytes'] / 2**20:.0f}" for way in ("fused", "plain", "bucket views")]
    seconds = [f"{ways[way]['seconds']:.1f}" for way in ("fused", "plain", "bucket views")]
    page = " ".join((DOCS / "scaling.md").read_text(encoding="utf-8").split())
    assert "had {} MiB at most in place of {}, or of {} with".format(*memory) in page
    assert "took {} s per step in place of {} and {} beside".format(*seconds) in page


def test_hand_computed_rows() -> None:
    # One layer of 1000 x 500, by hand: 2 MB of gradients; on 8 GPUs 7/8 of them twice.
    by = {(r["way"], r["samples"], r["gpus"]): r for r in figures(widths=(1000, 500))["rows"]}
    assert by["DDP", 128, 8]["bytes sent"] == 3_500_000
    assert by["DDP", 128, 64]["bytes sent"] == 3_500_000 + 2 * 7 / 8 * 2_000_000 / 8
    assert by["FSDP2", 128, 8]["bytes sent"] == 5_250_000
    assert by["DDP, fused", 128, 8]["bytes sent"] == 7 * 128 * 1500 * 2
    assert by["DDP, fused", 128, 1]["bytes held"] == 128 * 1500 * 2 * 2 + 2 * 2_000_000
    assert by["DDP", 128, 1]["bytes held"] == 128 * 1500 * 2 + 3 * 2_000_000
    assert by["DDP", 128, 8]["seconds on the wire"] == pytest.approx(3.5e6 / 360e9 + 2 * 3 * 3e-6)


def test_without_a_wire_ddp_scales_perfectly_and_a_fused_step_does_not() -> None:
    free = figures(Machine(near=1e30, far=1e30, near_wait=0.0, far_wait=0.0))
    for row in free["rows"]:
        if row["way"] == "DDP":
            assert row["of perfect scaling"] == pytest.approx(1.0)
        elif row["way"] == "DDP, fused" and row["gpus"] > 8:
            assert row["of perfect scaling"] < 0.5
