"""Pictures of the metaplasticity paper's experiments: they hold the data, and can be read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")  # of the `cli` extra

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.collections import LineCollection  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from flexkern.runs.drawing import curves  # noqa: E402
from flexkern.runs.metaplasticity import panels  # noqa: E402
from flexkern.runs.metaplasticity import pictures as plots  # noqa: E402
from flexkern.runs.metaplasticity.flexibility import DISTRIBUTIONS  # noqa: E402
from flexkern.runs.statistics import describe  # noqa: E402
from helpers.pictures import check_can_be_read  # noqa: E402
from studies import scale_tables  # noqa: E402
from studies.scale_study import ScaleStudy  # noqa: E402

THREE = ("conventional", "hybrid", "stable")
METHODS = (
    "hybrid", "hybrid, tuned, scale 30000", "all alike, tuned, scale 10000", "plain SGD",
    "EWC, strength 10000", "SI, strength 1000", "replay of 200", "joint", "plain SGD, class-gated error",
    "hybrid, class-gated error", "ridge head", "LDA head",
)  # fmt: skip
ATTACKS = ("clean", "deranged labels", "50% flipped labels", "50% foreign images", "noise of 1 spread")
LENGTHS = (10, 30)
SETTINGS = tuple(itertools.product(LENGTHS, ((512, 0.02), (128, 0.02), (512, 0.004))))
SCALES = [1e2, 1e3, 1e4, 1e5]


class Made:
    """Results of random numbers, each by ``describe`` of that many seeds."""

    def __init__(self, items: int = 10, seeds: int = 3) -> None:
        self.items, self.seeds = items, seeds
        self.rng = np.random.default_rng(5)

    def some(self, *shape: int, low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
        center = self.rng.uniform(low, high, shape)
        noise = self.rng.uniform(low, high, (self.seeds, *shape))
        return describe(0.8 * center + 0.2 * noise)

    def memory(self, items: int, counted: int | None = None) -> dict[str, Any]:
        shares = {key: self.some(items) for key in ("final", "learned", "average_memory")}
        memorised = self.some(items if counted is None else counted, high=items)
        return {**shares, "gross_memory": self.some(items, high=items), "memorised": memorised}

    def serial_position(self) -> dict[str, Any]:
        return {"measures": {name: self.memory(self.items) for name in THREE}}

    def with_longer(self, longer: int) -> dict[str, Any]:
        more = {name: self.memory(longer, longer - self.items) for name in THREE}
        return self.results("serial-position", self.serial_position() | {"longer": more})

    def hebb_repetition(self) -> dict[str, Any]:
        shapes = {"mean": (9,), "minimum": (9,), "items": (9, self.items), "memorised": (9,)}
        return {"measures": {n: {key: self.some(*s) for key, s in shapes.items()} for n in THREE}}

    def poisoning(self) -> dict[str, Any]:
        after = lambda: {attack: self.some() for attack in ATTACKS}  # noqa: E731
        return {"measures": {name: {"before": self.some(), "after": after()} for name in THREE}}

    def learning_frequency(self) -> dict[str, Any]:
        def one() -> dict[str, Any]:
            shares = {key: self.some(self.items) for key in ("by_frequency", "by_last_seen")}
            rhos = {f"correlation with {w}": self.some(low=-1) for w in ("frequency", "last seen")}
            return {**shares, **rhos, "average": self.some()}

        return {"measures": {name: one() for name in THREE}}

    def flexibility_distribution(self) -> dict[str, Any]:
        return {"measures": {name: self.memory(self.items) for name in DISTRIBUTIONS}}

    def rivals(self) -> dict[str, Any]:
        return {"measures": {name: self.memory(self.items) for name in METHODS}}

    split_cifar100 = rivals

    def scale_study(self) -> dict[str, Any]:
        def one(items: int, width: int, lr: float) -> dict[str, Any]:
            chosen = float(10 ** self.rng.uniform(2, 5))
            return {
                "items": items, "width": width, "lr": lr, "curve": self.some(len(SCALES)), "best": 0.9,
                "best_scale": 1e3, "auto": self.some(), "auto_scale": chosen,
            }  # fmt: skip

        measures = {f"{n} items, width {w}, lr {lr:g}": one(n, w, lr) for n, (w, lr) in SETTINGS}
        return {
            "measures": measures, "scales": SCALES, "one_scale": {"scale": 1e3, "mean_share_of_best": 0.93},
        }  # fmt: skip

    def results(self, name: str, summary: dict[str, Any] | None = None) -> dict[str, Any]:
        options = {
            "poisoning": {"passes": 9},
            "rivals": {"pilot": 2},
            "split-cifar100": {"pilot": 2, "first_class": 50, "backbone": "small"},
        }.get(name, {})
        return {
            "experiment": name,
            "title": "A title of some length for this picture",
            "configuration": {
                "options": options, "data": "digits", "features": "random", "items": self.items,
                "seeds": self.seeds, "first_seed": 0,
            },
            "summary": getattr(self, name.replace("-", "_"))() if summary is None else summary,
        }  # fmt: skip


scale_tables.register()
EXPERIMENTS = tuple(plots.FIGURES)
MADE: list[Callable[[int, int], dict[str, Any]]] = [
    *(lambda items, seeds, name=name: Made(items, seeds).results(name) for name in EXPERIMENTS),  # type: ignore[misc]
    lambda items, seeds: Made(items, seeds).with_longer(items + 20 if items == 10 else 45),
]
IDS = [*EXPERIMENTS, "serial-position, longer"]


def lines(axes: Axes) -> dict[str, list[float]]:
    """The heights of all named lines."""
    named = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    assert len({line.get_label() for line in named}) == len(named)
    return {str(line.get_label()): list(line.get_ydata()) for line in named}  # type: ignore[arg-type]


def means(measures: dict[str, Any], key: str, at: int | None = None) -> dict[str, Any]:
    return {n: m[key]["mean"] if at is None else m[key]["mean"][at] for n, m in measures.items()}


def chance(axes: Axes, *, vertical: bool = False) -> list[float]:
    """Where dotted lines of one height (or, vertical, place) are."""
    dotted = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    found = [line.get_xdata() if vertical else line.get_ydata() for line in dotted]
    return [float(v[0]) for v in found if v[0] == v[-1]]  # type: ignore[index]


def bar_heights(axes: Axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]


def errors(axes: Axes, axis: int) -> list[tuple[float, float]]:
    """The ends of the error bars along an axis (0 is x)."""
    drawn = [c for c in axes.collections if isinstance(c, LineCollection)]
    return [(float(s[0, axis]), float(s[1, axis])) for c in drawn for s in c.get_segments()]  # type: ignore[index]


def one_std(values: Sequence[dict[str, Any]], low: float, high: float) -> list[tuple[float, float]]:
    return [(max(low, v["mean"] - v["std"]), min(high, v["mean"] + v["std"])) for v in values]


# ----------------------------------------------------------------- all of them


@pytest.mark.parametrize("make", MADE, ids=IDS)
@pytest.mark.parametrize(("items", "seeds"), [(10, 3), (30, 1)])
def test_no_text_covers_another_or_leaves_the_picture(make: Any, items: int, seeds: int) -> None:
    results = make(items, seeds)
    drawing = plots.figure(results)
    check_can_be_read(drawing)
    small_print = " ".join(text.get_text() for text in drawing.texts).replace("\n", " ")
    cifar = results["experiment"] == "split-cifar100"
    data = "Classes 50 to 99" if cifar else "scikit-learn's handwritten digits"
    features = "the frozen transformer 'small'" if cifar else "frozen random convolutions"
    command = {ScaleStudy.name: ScaleStudy.command()}.get(
        results["experiment"], f"flexkern run {results['experiment']}"
    )
    for part in (
        results["title"], data, features,
        "Cho, Lee, Baek and Paik, arXiv 2407.07133", f"Made by `{command}`",
        "one seed" if seeds == 1 else "mean of 3 seeds",
    ):  # fmt: skip
        assert part in small_print
    assert ("standard deviation" in small_print) == (seeds > 1)
    assert all(not errors(axes, 0) for axes in drawing.axes) or seeds > 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_picture_is_written(name: str, tmp_path: Path) -> None:
    from matplotlib.image import imread

    results = Made().results(name)
    plots.draw(results, tmp_path / "picture.png")
    pixels = imread(tmp_path / "picture.png")
    assert (pixels[:, :, :3] == 1).all(2).mean() > 0.5  # a white ground
    inches = plots.figure(results).get_size_inches()
    assert pixels.shape[:2] == pytest.approx(tuple(150 * inches[::-1]), abs=1)


def test_other_data_are_named() -> None:
    results = Made().results("poisoning")
    results["configuration"] |= {"data": "mnist.npz", "features": "squeezenet.npz"}
    small_print = plots.figure(results).texts[-1].get_text().replace("\n", " ")
    assert "Two-digit items of mnist.npz, features: squeezenet.npz." in small_print


def test_an_unknown_experiment_is_named(tmp_path: Path) -> None:
    results = Made().results("poisoning") | {"experiment": "forgetting"}
    for attempt in (lambda: plots.figure(results), lambda: plots.draw(results, tmp_path / "picture.png")):
        with pytest.raises(ValueError, match="no picture of 'forgetting', only of serial-position, hebb"):
            attempt()
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------- each of them


@pytest.mark.parametrize("longer", [None, 30])
def test_serial_position(longer: int | None) -> None:
    made = Made()
    results = made.results("serial-position") if longer is None else made.with_longer(longer)
    measures, more = results["summary"]["measures"], results["summary"].get("longer")
    axes = plots.figure(results).axes
    assert len(axes) == (2 if longer is None else 3)
    assert lines(axes[0]) == means(measures, "final")
    assert chance(axes[0]) == [1 / 10]
    memorised = means(measures, "memorised")
    if more is not None:
        assert lines(axes[1]) == means(more, "final")
        assert chance(axes[1]) == [pytest.approx(1 / 30)]
        memorised = {n: memorised[n] + more[n]["memorised"]["mean"] for n in THREE}
        assert all(len(values) == 30 for values in memorised.values())
        ends = [line.get_xdata()[0] for panel in axes[1:] for line in panel.get_lines() if _upright(line)]
        assert ends == [10.5, 10.5]
    assert lines(axes[-1]) == memorised
    (diagonal,) = (line for line in axes[-1].get_lines() if line.get_linestyle() == ":")
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [1, longer or 10]


def _upright(line: Any) -> bool:
    return len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]


@pytest.mark.parametrize(("passes", "shown"), [(9, (1, 3, 6, 9)), (4, (1, 3, 4)), (2, (1, 2))])
def test_hebb_repetition(passes: int, shown: tuple[int, ...]) -> None:
    results = Made().results("hebb-repetition")
    measures = results["summary"]["measures"]
    for value in (v for m in measures.values() for v in m.values()):
        value |= {key: value[key][:passes] for key in ("mean", "std")}
    left, right = plots.figure(results).axes
    drawn = [line for line in left.get_lines() if not str(line.get_label()).startswith("_")]
    for key, solid in (("mean", True), ("minimum", False)):
        of = {
            str(line.get_label()): list(line.get_ydata())
            for line in drawn
            if (line.get_linestyle() == "-") is solid
        }
        assert of == means(measures, key)
    items = measures["hybrid"]["items"]["mean"]
    assert lines(right) == {f"pass {k}": items[k - 1] for k in shown}
    assert chance(left) == chance(right) == [1 / 10]
    assert {t.get_text() for t in right.texts} == {"chance", *(f"pass {k}" for k in shown)}


@pytest.mark.parametrize("seeds", [1, 3])
def test_poisoning(seeds: int) -> None:
    results = Made(seeds=seeds).results("poisoning")
    measures = results["summary"]["measures"]
    (axes,) = plots.figure(results).axes
    groups = [means(measures, "before"), *(means(_after(measures), attack) for attack in ATTACKS)]
    assert bar_heights(axes) == [of[name] for of in groups for name in THREE]
    labels = [text.get_text().replace("\n", " ") for text in axes.get_xticklabels()]
    assert labels == ["before: after 9 passes", "after a clean pass", *(f"after {a}" for a in ATTACKS[1:])]
    assert [text.get_text() for text in axes.texts] == [f"{h:.0%}" for h in bar_heights(axes)]
    assert chance(axes) == [1 / 10]
    values = [
        of[n][key]
        for key, of in [("before", measures), *((a, _after(measures)) for a in ATTACKS)]
        for n in THREE
    ]
    assert errors(axes, 1) == ([] if seeds == 1 else pytest.approx(np.array(one_std(values, 0, 1))))


def _after(measures: dict[str, Any]) -> dict[str, Any]:
    return {name: m["after"] for name, m in measures.items()}


def test_learning_frequency() -> None:
    results = Made().results("learning-frequency")
    measures = results["summary"]["measures"]
    left, middle, right = plots.figure(results).axes
    assert lines(left) == means(measures, "by_frequency")
    assert lines(middle) == means(measures, "by_last_seen")
    keys = [f"correlation with {what}" for what in ("frequency", "last seen")]
    values = [measures[name][key] for key in keys for name in THREE]
    assert any(v["mean"] < 0 for v in values)
    assert bar_heights(right) == [v["mean"] for v in values]
    assert errors(right, 1) == pytest.approx(np.array(one_std(values, -1, 1)))
    assert [text.get_text() for text in right.texts] == [f"{v['mean']:+.2f}" for v in values]


def test_flexibility_distribution() -> None:
    results = Made().results("flexibility-distribution")
    measures = results["summary"]["measures"]
    drawing = plots.figure(results)
    left, right = drawing.axes
    for axes, key, upper in ((left, "average_memory", 1), (right, "memorised", 10)):
        assert [bar.get_width() for bar in axes.patches] == [m[key]["mean"][-1] for m in measures.values()]  # type: ignore[attr-defined]
        rows = [bar.get_y() for bar in axes.patches]  # type: ignore[attr-defined]
        assert rows == sorted(rows, reverse=True)  # the first on top
        colors = {name: bar.get_facecolor() for name, bar in zip(measures, axes.patches, strict=True)}
        assert len(set(colors.values())) == 2
        assert {n for n, c in colors.items() if c == colors["fixed 1"]} == {
            n for n in colors if n[:5] == "fixed"
        }
        last = [{k: m[key][k][-1] for k in ("mean", "std")} for m in measures.values()]
        assert errors(axes, 0) == pytest.approx(np.array(one_std(last, 0, upper)))
    assert [text.get_text() for text in left.get_yticklabels()] == list(measures)
    assert chance(left, vertical=True) == [1 / 10]
    ends = means(measures, "average_memory", -1)
    alone = max((n for n in ends if n.startswith("fixed")), key=lambda n: ends[n])
    assert f"best single kind ({alone}) {ends[alone]:.0%}" in drawing.texts[1].get_text().replace("\n", " ")


@pytest.mark.parametrize("seeds", [1, 3])
def test_rivals(seeds: int) -> None:
    """A panel for each, the best first, with the hybrid network in it."""
    results = Made(seeds=seeds).results("rivals")
    measures = results["summary"]["measures"]
    panels = plots.figure(results).axes
    average = means(measures, "average_memory", -1)
    order = sorted(METHODS, key=lambda name: -average[name])
    final = means(measures, "final")
    for panel, name in zip(panels, order, strict=True):
        title = panel.get_title(loc="left").replace("\n", " ")
        assert title.startswith(f"{name}: {average[name]:.0%}")
        assert ("±" in title) == (seeds > 1)
        assert lines(panel) == {n: final[n] for n in {name, "hybrid"}}
        assert chance(panel) == [1 / 10]
        assert list(panel.get_xticks()) == [2, 4, 6, 8, 10]
    assert {panel.get_xlabel() for panel in panels[-3:]} == {"item, as learned"}


def test_scale_study() -> None:
    results = Made().results("scale-study")
    measures = results["summary"]["measures"]
    axes = plots.figure(results).axes
    assert [panel.get_title(loc="left") for panel in axes] == ["10 items", "30 items"]
    for panel, items in zip(axes, LENGTHS, strict=True):
        of = {f"width {m['width']}, lr {m['lr']:g}": m for m in measures.values() if m["items"] == items}
        assert len(of) == 3
        stars = {f"{name}, 'auto'": [m["auto"]["mean"]] for name, m in of.items()}
        assert lines(panel) == means(of, "curve") | stars
        for line in panel.get_lines():
            if line.get_label() in of:
                assert list(line.get_xdata()) == SCALES
            if line.get_label() in stars:
                assert line.get_marker() == "*"
                assert list(line.get_xdata()) == [
                    of[str(line.get_label()).removesuffix(", 'auto'")]["auto_scale"]
                ]
        assert panel.get_xscale() == "log"
        assert chance(panel) == [pytest.approx(1 / items)]
        assert errors(panel, 1) == pytest.approx(np.array(one_std([m["auto"] for m in of.values()], 0, 1)))


# ----------------------------------------------------------------- their parts


def test_bands_are_one_standard_deviation_cut_where_no_value_can_be() -> None:
    axes = Figure().subplots()
    value = {"mean": [0.5, 0.95, 0.1], "std": [0.2, 0.2, 0.2], "n": 3}
    curves(axes, np.arange(3), {"hybrid": value}, 1.0)
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for x, low, high in ((0, 0.3, 0.7), (1, 0.75, 1.0), (2, 0.0, 0.3)):
        heights = corners[corners[:, 0] == x][:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [(0.5, 0.2, (0.2, 0.2)), (0.9, 0.2, (0.2, 0.1)), (0.1, 0.3, (0.1, 0.3)), (1.0, 0.0, (0.0, 0.0))],
)
def test_error_bars_are_cut_where_no_value_can_be(
    mean: float, std: float, expected: tuple[float, float]
) -> None:
    (down,), (up,) = panels.reach({"mean": mean, "std": std}, 0, 1)
    assert (down, up) == pytest.approx(expected)
