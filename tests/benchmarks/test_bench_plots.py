"""Pictures of a run: what is drawn is what was measured, nothing overlaps, and what is missing is left out."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flexkern.benchmarks import record
from flexkern.benchmarks.case import at_most, faster, under
from flexkern.benchmarks.figures import about, draw
from flexkern.benchmarks.plot_bars import MET, NEUTRAL, NOT_MET
from flexkern.benchmarks.plot_growth import counted, draw_growth, spread, styles
from flexkern.benchmarks.plot_roofline import dots, draw_roofline, shares
from flexkern.benchmarks.plot_speedups import draw_speedups, goal_as_speedup, panels
from flexkern.runs.drawing import log_ticks
from helpers.pictures import check_can_be_read, check_no_overlap

COPY, PRODUCT = 25e9, {"float32": 150e9, "bfloat16": 600e9}
MACHINE = {
    "cpu": "A Processor", "cores": 2, "gpus": [], "versions": {"torch": "2.13.0"}, "commit": "0123456789",
    "date": "2026-01-02T03:04:05",
}  # fmt: skip


def peer(name: str, ours_ms: float, speedup: float, goal: Any = None, agreed: str = "yes") -> dict[str, Any]:
    seconds = ours_ms / 1e3
    return {
        "name": name, "median_ms": ours_ms * speedup, "q1_ms": 0.9 * ours_ms * speedup,
        "q3_ms": 1.2 * ours_ms * speedup, "speedup": speedup, "speedup_q1": 0.95 * speedup,
        "speedup_q3": 1.1 * speedup, "goal": None if goal is None else str(goal),
        "met": None if goal is None else goal.met(speedup, seconds), "agreed": agreed,
    }  # fmt: skip


def row(
    name: str,
    title: str,
    ms: float,
    peers: list[dict[str, Any]],
    *,
    size: float = 0,
    operations: float = 0,
    **more: Any,
) -> dict[str, Any]:
    dtype = more.pop("dtype", "float32")
    work = {"bytes": size, "operations": operations, "dtype": dtype}
    work |= {"bytes_per_s": size / (ms / 1e3), "share_of_copy": size / (ms / 1e3) / COPY}
    ours = {"median_ms": ms, "q1_ms": 0.9 * ms, "q3_ms": 1.3 * ms}
    return {
        "case": name, "device": "cpu", "backend": "auto", "pages": "huge", "title": title, "ours": ours,
        "work": work, "peers": peers, **more,
    }  # fmt: skip


STEP = row(
    "metaplastic/step", "step, 16.8 M float32", 10.0,
    [
        peer("torch.compile", 10.0, 2.5, faster(2.2)), peer("eager", 10.0, 24.0, faster(25)),
        peer("plain SGD", 10.0, 0.6, at_most(1.8), agreed="not compared: another rule"),
        peer("addcmul", 10.0, 0.9),
    ],
    size=2e8,
)  # fmt: skip
LINEAR = row(
    "linear/step", "linear_step_, 256", 20.0, [peer("product, update", 20.0, 1.5, faster(1.3))],
    size=1e8, operations=2e9,
)  # fmt: skip
CALL = row("overhead/sgd", "a call of sgd_", 0.006, [peer("add_", 0.006, 0.2, under(8e-6))])
GROWTH = {
    "series": "growth/parameters", "device": "cpu", "title": "A step", "x": "parameters", "y": "seconds",
    "flat": False,
    "lines": {
        "flexkern": [[1e3, 1e-5, 2e-5, 3e-5], [1e5, 1e-4, 2e-4, 4e-4]],
        "eager": [[1e3, 2e-5, 3e-5, 5e-5], [1e5, 1e-3, 2e-3, 3e-3]],
    },
}  # fmt: skip
MEMORY = {
    "series": "growth/item-memory", "device": "cpu", "title": "Memory", "x": "item number", "y": "MB",
    "flat": True, "lines": {"flexkern": [[20.0, 1.9, 2.0, 2.1], [980.0, 2.0, 2.0, 2.2]]},
}  # fmt: skip
SKIPPED = {"case": "artsy/inference", "device": "cpu", "backend": "auto", "skipped": "no transformers"}
FAILED = {"case": "seeds/batched", "device": "cpu", "backend": "auto", "failed": "ValueError: no"}


def make_run(rows: list[dict[str, Any]], series: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    ceilings = {"huge": {"copy": COPY, "product": PRODUCT}}
    run = {
        "device": "cpu",
        "quick": False,
        "machine": MACHINE,
        "ceilings": ceilings,
        "rows": rows,
        "series": series,
    }
    return {**run, **changes}


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    return figure


# ---------------------------------------------------------------------- speed-ups


def test_bars_reach_the_speedups() -> None:
    (axes,) = drawn(draw_speedups(make_run([STEP, SKIPPED, FAILED], []), "here")).axes
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == pytest.approx([2.5, 24, 0.6, 0.9])
    assert [bar.get_x() for bar in axes.patches] == [1, 1, 1, 1]
    from matplotlib.colors import to_hex

    assert [to_hex(bar.get_facecolor()).upper() for bar in axes.patches] == [MET, NOT_MET, MET, NEUTRAL]
    whiskers = [line for line in axes.lines if line.get_color() == "#222222"]
    assert [list(line.get_xdata()) for line in whiskers] == [
        pytest.approx([0.95 * s, 1.1 * s]) for s in (2.5, 24, 0.6, 0.9)
    ]
    goals = [line.get_xdata()[0] for line in axes.lines if line.get_color() == "black"]
    assert goals == pytest.approx([2.2, 25, 1 / 1.8])
    written = [text.get_text() for text in axes.texts]
    assert "2.50×" in written  # noqa: RUF001
    assert "24×" in written  # noqa: RUF001
    assert "step, 16.8 M float32" in written


def test_overhead_is_drawn_in_microseconds() -> None:
    (panel,) = panels(make_run([CALL], []))
    (bar,) = panel.groups[0][1]
    assert (bar.name, bar.value, bar.goal, bar.mark) == ("sgd_", pytest.approx(6), 8, pytest.approx(1.2))
    assert bar.colour == MET
    (axes,) = drawn(draw_speedups(make_run([CALL], []), "here")).axes
    assert axes.patches[0].get_width() == pytest.approx(6)
    assert axes.get_xscale() == "linear"


@pytest.mark.parametrize(
    ("goal", "expected"), [(faster(2.2), 2.2), (at_most(1.8), 1 / 1.8), (under(8e-6), None), (None, None)]
)
def test_goals_are_read_as_they_are_written(goal: Any, expected: float | None) -> None:
    assert goal_as_speedup(peer("p", 1.0, 1.0, goal)) == pytest.approx(expected)


def test_small_pages_are_named() -> None:
    small = {**STEP, "pages": "small"}
    (panel,) = panels(make_run([STEP, small], []))
    assert [heading for heading, _ in panel.groups] == [
        "step, 16.8 M float32",
        "step, 16.8 M float32, small pages",
    ]


def many_rows() -> list[dict[str, Any]]:
    rng = random.Random(0)
    rows = []
    for family, cases in {
        "metaplastic": 6,
        "synapse": 2,
        "linear": 5,
        "adapter": 8,
        "learner": 2,
        "seeds": 3,
    }.items():
        for i in range(cases):
            ms = 10 ** rng.uniform(-2, 3)
            names = (
                "torch.compile of the formula",
                "the formula with torch._foreach_*",
                "torch.optim.SGD(fused=True)",
            )
            goals = (faster(2.2), None, at_most(1.8))
            peers = [
                peer(name, ms, 10 ** rng.uniform(-0.5, 1.5), goal)
                for name, goal in zip(names[: 1 + i % 3], goals[: 1 + i % 3], strict=True)
            ]
            with_product = family in ("linear", "adapter", "learner")
            title = f"{family}_step_, batch 256, 4096 to 4096, a third silent, number {i}"
            size = ms * COPY * rng.uniform(0.2, 0.9) / 1e3
            operations = ms * rng.uniform(0.3, 0.9) * 150e6 if with_product else 0
            rows.append(row(f"{family}/{i}", title, ms, peers, size=size, operations=operations))
    rows += [{**CALL, "case": f"overhead/{i}", "title": f"a call of operator_{i}_, 8 x 8"} for i in range(12)]
    return rows


def test_nothing_overlaps_in_a_whole_run() -> None:
    run = make_run([*many_rows(), SKIPPED, FAILED], [])
    check_can_be_read(drawn(draw_speedups(run, "here")))
    check_can_be_read(drawn(draw_roofline(run, "here")))


def test_the_newest_results_can_be_read() -> None:
    for run in record.newest(Path(__file__).parents[2] / "benchmarks" / "results").values():
        for picture in (draw_speedups, draw_roofline, draw_growth):
            check_can_be_read(drawn(picture(run, about(run))))


def test_no_bar_lies_under_a_heading() -> None:
    rows = [
        {**STEP, "title": "a heading of so many words that it reaches over the names and over the axes, " * 2}
    ]
    figure = drawn(draw_speedups(make_run(rows, []), "here"))
    (axes,) = figure.axes
    headings = [t.get_window_extent() for t in axes.texts if t.get_weight() == "bold"]
    assert len(headings) == 2
    for bar in axes.patches:
        box = bar.get_window_extent()
        assert all(box.y1 <= text.y0 or text.y1 <= box.y0 for text in headings)


@pytest.mark.parametrize(
    ("low", "high"), [(0.95, 1.7), (0.99, 1.1), (0.2, 45), (1e-6, 5), (700, 1.3e5), (1, 1e9)]
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)
    assert all(float(f"{tick:.3g}") == pytest.approx(tick) for tick in ticks)


# ---------------------------------------------------------------------- roofline


def test_shares_are_of_the_copy_and_leave_out_other_work() -> None:
    panel = shares(make_run([STEP, LINEAR, CALL, SKIPPED], []))
    ((heading, bars),) = panel.groups
    assert heading == STEP["title"]
    # 2e8 bytes in 10 ms are 20 GB/s of 25; plain SGD, which was not compared, does not appear.
    assert [(bar.name, round(bar.value, 6)) for bar in bars] == [
        ("flexkern", 0.8), ("torch.compile", 0.32), ("eager", round(0.8 / 24, 6)),
        ("addcmul", round(0.8 / 0.9, 6)),
    ]  # fmt: skip
    assert bars[0].low == pytest.approx(0.8 / 1.3)
    assert bars[0].high == pytest.approx(0.8 / 0.9)


def test_roofline_has_measured_roofs_and_rates() -> None:
    figure = drawn(draw_roofline(make_run([LINEAR, STEP], []), "here"))
    (axes,) = (axes for axes in figure.axes if axes.get_xscale() == "log")
    at = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
    assert at["1"] == pytest.approx((20, 1e11))  # 2e9 operations on 1e8 bytes in 20 ms
    assert at["1a"] == pytest.approx((20, 1e11 / 1.5))
    flat = {
        line.get_ydata()[0]
        for line in axes.lines
        if np.ptp(line.get_ydata()) == 0 and len(line.get_xdata()) == 2
    }
    assert flat == set(PRODUCT.values())
    slope = next(line for line in axes.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_ydata()) > 0)
    assert slope.get_ydata() / slope.get_xdata() == pytest.approx([COPY, COPY])
    ours, theirs = dots(make_run([LINEAR], []))
    assert ours.share == pytest.approx(1e11 / 150e9)  # under the flat roof: 20 * 25e9 is more than 150e9
    assert theirs.share == pytest.approx(1e11 / 150e9 / 1.5)


def test_roof_of_few_operations_a_byte_is_the_copy() -> None:
    slow = row("linear/thin", "thin", 20.0, [], size=1e8, operations=2e8)
    (dot,) = dots(make_run([slow], []))
    assert dot.share == pytest.approx(1e10 / (2 * COPY))


def test_dots_with_small_pages_are_left_out_only_where_the_roofs_are_of_the_others() -> None:
    rows = [LINEAR, {**LINEAR, "pages": "small"}]
    ceilings = {"copy": COPY, "product": PRODUCT}
    assert len(dots(make_run(rows, [], ceilings={"huge": ceilings, "small": ceilings}))) == 2
    assert len(dots(make_run(rows[1:], [], ceilings={"small": ceilings}))) == 2


# ---------------------------------------------------------------------- growth


def test_growth_draws_medians_and_bands() -> None:
    failed = {"series": "growth/tasks-time", "device": "cpu", "failed": "ValueError: no"}
    figure = drawn(draw_growth(make_run([], [GROWTH, failed, MEMORY]), "here"))
    steps, memory = figure.axes
    assert (steps.get_xscale(), memory.get_xscale()) == ("log", "linear")
    for line in steps.lines:
        points = GROWTH["lines"][line.get_label()]  # type: ignore[index]
        assert list(line.get_xdata()) == [point[0] for point in points]
        assert list(line.get_ydata()) == [point[2] for point in points]
    assert {line.get_label() for line in steps.lines} == {"flexkern", "eager"}
    for band, points in zip(steps.collections, GROWTH["lines"].values(), strict=True):  # type: ignore[attr-defined]
        edges = {(x, y) for x, y in band.get_paths()[0].vertices}
        assert {(x, low) for x, low, _, _ in points} | {(x, high) for x, _, _, high in points} == edges
    assert memory.get_ylim()[0] == 0  # what is flat is seen against nothing
    check_no_overlap(figure)


def test_names_of_lines_that_end_together_do_not_overlap() -> None:
    lines = {
        f"peer number {i}, with a name that is rather long": [[1, 1, 1, 1], [50, 2, 2, 2]] for i in range(4)
    }
    lines |= {"flexkern": [[1, 1, 1, 1], [50, 2, 2, 2]]}
    both = [{**GROWTH, "lines": lines}, {**MEMORY, "lines": lines}]
    check_can_be_read(drawn(draw_growth(make_run([], both), "here")))


@pytest.mark.parametrize("points", [[[1000, 1e-5, 2e-5, 3e-5]], [[1, 2, 2, 2], [1, 2, 2, 2]]])
def test_one_point_is_drawn_too(points: list[list[float]]) -> None:
    series = [{**kind, "lines": {"flexkern": points}} for kind in (GROWTH, MEMORY)]
    figure = drawn(draw_growth(make_run([], series), "here"))
    assert [list(axes.lines[0].get_ydata()) for axes in figure.axes] == [[p[2] for p in points]] * 2


def test_a_variant_is_dashed_in_the_colour_of_its_line() -> None:
    looks = styles(["flexkern, stored", "EASE", "flexkern, stored, parameters alone", "flexkern, drawn", "SGD"])
    assert looks["flexkern, stored, parameters alone"]["color"] == looks["flexkern, stored"]["color"]
    assert looks["flexkern, stored, parameters alone"]["linestyle"] != "-"
    solid = [look["color"] for look in looks.values() if look["linestyle"] == "-"]
    assert len(set(solid)) == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (50, "50"),
        (1e3, "1000"),
        (1e4, "$10^{4}$"),
        (1e6, "$10^{6}$"),
        (1e9, "$10^{9}$"),
        (2e5, r"$2\cdot 10^{5}$"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert counted(value) == text


def test_spread_moves_no_more_than_it_must() -> None:
    assert spread([0.1, 0.5, 0.9], [0.1] * 3) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], [0.1, 0.3]) == pytest.approx([0.4, 0.6])
    rng = random.Random(1)
    for _ in range(200):
        places = sorted(rng.random() for _ in range(8))
        sizes = [rng.uniform(0.02, 0.2) for _ in places]
        found = spread(places, sizes, 0.0)
        edges = [(p - s / 2, p + s / 2) for p, s in zip(found, sizes, strict=True)]
        assert edges[0][0] >= -1e-9
        assert all(low[1] <= high[0] + 1e-9 for low, high in itertools.pairwise(edges))


# ---------------------------------------------------------------------- files


def test_draw_writes_three_pictures(tmp_path: Path) -> None:
    paths = draw(make_run([STEP, LINEAR, CALL, SKIPPED, FAILED], [GROWTH, MEMORY]), tmp_path / "new")
    assert [path.name for path in paths] == ["speedups.png", "roofline.png", "growth.png"]
    for path in paths:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_pictures_with_nothing_on_them_are_not_written(tmp_path: Path) -> None:
    assert (
        draw(make_run([SKIPPED, FAILED], [{"series": "growth/x", "device": "cpu", "skipped": "no"}]), tmp_path)
        == []
    )
    (only,) = draw(make_run([], [GROWTH]), tmp_path)
    assert only.name == "growth.png"
    assert [path.name for path in draw(make_run([CALL], []), tmp_path)] == ["speedups.png"]
    one_sided = [path.name for path in draw(make_run([LINEAR], []), tmp_path)]
    assert one_sided == ["speedups.png", "roofline.png"]


def test_a_quick_run_says_so() -> None:
    assert "quick" not in about(make_run([], []))
    quick = make_run([CALL, LINEAR], [GROWTH], quick=True)
    assert "--quick" in about(quick)
    for picture in (draw_speedups, draw_roofline, draw_growth):  # in the narrowest pictures too
        check_no_overlap(drawn(picture(quick, about(quick))))
