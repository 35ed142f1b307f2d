"""The demo: the hybrid network remembers what the conventional one forgets; table, JSON, picture, command."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
typer_testing = pytest.importorskip("typer.testing")

from flexkern.cli import demo_command  # noqa: E402 - after the checks that it can be imported
from flexkern.runs import drawing as plots  # noqa: E402
from flexkern.runs.demo import NETWORKS, DemoConfig, read_known, run, write  # noqa: E402
from flexkern.runs.incremental.config import find_config  # noqa: E402
from flexkern.runs.seeds import as_list  # noqa: E402

TINY = DemoConfig(
    seeds=(0, 1), items=4, epochs=1, train_per_item=30, test_per_item=20, width=16, channels=4, grid=4, lr=0.05
)


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return run(TINY)


def test_the_hybrid_network_remembers_what_the_conventional_one_forgets() -> None:
    results = run(DemoConfig(seeds=(20, 21), items=8, train_per_item=300))
    for one in results["runs"]:
        networks = one["networks"]
        # Over the seeds of docs/results/demo/results.json the smallest advantage is 0.26.
        assert networks["hybrid"]["last"] > networks["conventional"]["last"] + 0.15
        assert networks["hybrid"]["last"] > networks["stable"]["last"]
        assert networks["hybrid"]["memorised"][-1] > networks["conventional"]["memorised"][-1]
        # Each learned its first item, so it is memory that differs.
        assert all(networks[name]["accuracy"][0][0] > 0.9 for name in NETWORKS)
        # The conventional network knows the last item and the stable one the first.
        assert networks["conventional"]["accuracy"][-1][-1] > 0.9
        assert networks["stable"]["accuracy"][-1][0] > 0.9


def test_results_hold_matrices_and_their_summary(tiny: dict[str, Any]) -> None:
    assert [r["seed"] for r in tiny["runs"]] == [0, 1]
    for name in NETWORKS:
        matrices = np.array([r["networks"][name]["accuracy"] for r in tiny["runs"]])
        assert matrices.shape == (2, 4, 4)
        summary = tiny["summary"][name]
        # Rounded to four decimals, of values rounded to four decimals.
        np.testing.assert_allclose(summary["accuracy"]["mean"], matrices[:, -1].mean(0), atol=1.01e-4)
        np.testing.assert_allclose(summary["accuracy"]["std"], matrices[:, -1].std(0, ddof=1), atol=1.01e-4)
        assert summary["last"]["mean"] == pytest.approx(matrices[:, -1].mean(), abs=1.01e-4)
        assert len(summary["memorised"]["mean"]) == 4
        for r in tiny["runs"]:
            held = r["networks"][name]["memorised"]
            assert all(0 <= count <= learned for learned, count in enumerate(held, start=1))
    assert tiny["configuration"] == dataclasses.asdict(TINY) | {"seeds": [0, 1]}
    assert {"flexkern", "torch", "numpy", "python", "backends"} <= set(tiny["versions"])


def test_one_seed_gives_the_same_results_and_reports_each_step(tiny: dict[str, Any]) -> None:
    done: list[str] = []
    again = run(TINY, done.append)
    assert again["runs"] == tiny["runs"]
    assert len(done) == TINY.steps()
    one = run(dataclasses.replace(TINY, seeds=(1,)))
    assert one["runs"][0] == tiny["runs"][1]
    assert one["summary"]["hybrid"]["last"]["std"] == 0


def test_seeds_are_added_to_the_bits_of_one_go(tiny: dict[str, Any], tmp_path: Path) -> None:
    first = dataclasses.replace(TINY, seeds=(0,))
    write(run(first), tmp_path)
    added, done = dataclasses.replace(TINY, seeds=(1,)), list[str]()
    known = read_known(tmp_path, added)
    grown = run(added, done.append, known=known)
    assert len(done) == added.steps(known)
    assert all("seed 1" in line for line in done)
    assert grown | {"seconds": 0} == tiny | {"seconds": 0}
    with pytest.raises(ValueError, match=r"width was 16, is 8\), of seeds 0\. .*--out.*--restart"):
        read_known(tmp_path, dataclasses.replace(added, width=8))
    assert read_known(tmp_path, dataclasses.replace(added, width=8), restart=True) is None
    (tmp_path / "results.json").write_text('{"experiment": "rivals"}')
    with pytest.raises(ValueError, match="holds results of something else"):
        read_known(tmp_path, added, restart=True)


def test_json_and_picture(tiny: dict[str, Any], tmp_path: Path) -> None:
    table, *pictures = write(tiny, tmp_path / "new" / "folder")
    assert json.loads(table.read_text()) == tiny
    assert [picture.name for picture in pictures] == ["memory.png", "awakening.png"]
    for picture, least in zip(pictures, (700, 500), strict=True):
        header = picture.read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", header[16:])
        assert width > 1500
        assert height > least


def check_awakening(results: dict[str, Any]) -> None:
    alive, items, width = (
        results["awakening"],
        results["configuration"]["items"],
        results["configuration"]["width"],
    )
    shares = np.array(alive["functional"])
    assert shares.shape == (items + 1, 2)
    assert (np.diff(shares, axis=0) >= 0).all()  # one way: nothing is pruned
    # The conversions are what the shares grew by; these are rounded to 5 decimals.
    inputs = results["configuration"]["channels"] * results["configuration"]["grid"] ** 2
    converted = (shares[-1] - shares[0]) @ [width * inputs, width * width]
    assert abs(sum(alive["conversions"]) - converted) < 1.1e-5 * width * (inputs + width)
    assert [m["items_learned"] for m in alive["maps"]] == [0, 1, items // 2, items]
    for m in alive["maps"]:
        blocks = np.array(m["functional"])
        assert blocks.shape == (min(32, width), min(32, inputs))
        if width % 32 == inputs % 32 == 0 or max(blocks.shape) < 32:
            # Blocks of one size: their mean is the layer's share, up to rounding to 3 decimals.
            assert blocks.mean() == pytest.approx(shares[m["items_learned"], 0], abs=5.1e-4)


def test_a_layer_comes_alive(tiny: dict[str, Any]) -> None:
    check_awakening(tiny)
    # Enough passes for the thresholds to come down to what drives the synapses.
    results = run(dataclasses.replace(TINY, seeds=(0,), epochs=3, train_per_item=150, width=32, channels=8))
    check_awakening(results)
    shares = results["awakening"]["functional"]
    assert all(end > begin + 0.02 for begin, end in zip(shares[0], shares[-1], strict=True))


def test_the_published_demo_shows_a_layer_coming_alive() -> None:
    folder = Path(__file__).parents[2] / "docs" / "results" / "demo"
    results = json.loads((folder / "results.json").read_text())
    check_awakening(results)
    assert as_list(results["configuration"]) == dataclasses.asdict(DemoConfig()) | {"seeds": [0, 1, 2, 3, 4]}
    assert (folder / "awakening.png").stat().st_size > 10_000


def test_labels_are_kept_apart_and_in_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        ends = {name: float(v) for name, v in zip("abcd", rng.random(4), strict=True)}
        heights = plots._apart(ends, 0.12, short="d")
        order = sorted(ends, key=lambda name: ends[name])
        for low, high in itertools.pairwise(order):
            needed = 0.09 if "d" in (low, high) else 0.12
            assert heights[high] - heights[low] > needed - 1e-3
    alone = {"a": 0.1, "b": 0.9}
    assert plots._apart(alone, 0.1, short="b") == alone
    crowded = plots._apart({"a": 1.0, "b": 0.99, "c": 0.98}, 0.1, short="", highest=1.0)
    assert crowded == pytest.approx({"a": 1.0, "b": 0.9, "c": 0.8})


# ----------------------------------------------------------------- the command


def invoke(*arguments: str) -> Any:
    from flexkern.cli.app import app

    return typer_testing.CliRunner().invoke(app, ["demo", *arguments])


def test_the_command_prints_a_table_and_writes_files(tmp_path: Path) -> None:
    options = ["--seeds", "0", "--items", "3", "--epochs", "1", "--train-per-item", "30", "--width", "16"]
    result = invoke(*options, "--no-artsy", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "artsy").exists()
    for word in ("conventional", "hybrid", "stable", "average", "memorised"):
        assert word in result.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["configuration"]["items"] == 3
    assert f"{results['summary']['hybrid']['last']['mean']:.1%}" in result.output
    assert (tmp_path / "memory.png").stat().st_size > 10_000
    assert (tmp_path / "awakening.png").stat().st_size > 10_000
    assert "A reserve comes alive" in result.output


@pytest.mark.slow
def test_the_command_shows_artsy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With half of the images, which take half of the time; `make demo` has them all."""
    pytest.importorskip("transformers")
    shipped = find_config("digits").read_text()
    halved = re.sub(
        r"(?m)^(train|test)_per_class = (\d+)", lambda m: f"{m[1]}_per_class = {int(m[2]) // 2}", shipped
    )
    assert halved != shipped
    (tmp_path / "digits.toml").write_text(halved)
    monkeypatch.setattr(demo_command, "find_config", lambda name: tmp_path / f"{name}.toml")
    options = ["--seeds", "0", "--items", "3", "--epochs", "1", "--train-per-item", "30", "--width", "16"]
    result = invoke(*options, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "artsy" / "results.json").read_text())["summary"]
    last = {name: s["last"]["mean"] for name, s in summary.items()}
    assert set(last) == {"Artsy", "Artsy, best", "EASE", "RanPAC", "SimpleCIL", "fine-tuning"}
    # 97 % against 73 and 71 (docs/results/demo/artsy: 98, 76 and 77); fine-tuning keeps its last two digits.
    assert last["Artsy, best"] > max(last["EASE"], last["SimpleCIL"]) + 0.1
    assert last["fine-tuning"] < 0.3
    # Its adapters are thrown away, or two of them open at most.
    passes = summary["Artsy, best"]["report"]["passes"]["mean"][-1]
    assert 1 <= passes <= 3
    assert summary["EASE"]["report"]["passes"]["mean"][-1] == 6
    assert f"Artsy, best: {passes:.1f} passes an image at the end" in " ".join(result.output.split())
    assert (tmp_path / "artsy" / "picture.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--items", "2"], 2, "--items"),
        (["--scale", "big"], 1, "scale must be a number or 'auto'"),
        (["--seeds", "1", "--lr", "-1"], 1, "lr"),
        (["--seeds", "1", "--train-per-item", "100000000"], 1, "train_per_item is 100000000"),
    ],
)
def test_the_command_explains_mistakes(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    result = invoke(*arguments, "--out", str(tmp_path))
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("missing", ["typer", "rich", "pydantic", "matplotlib", "sklearn"])
def test_a_missing_extra_is_named(missing: str, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None; "
        f"sys.argv = ['flexkern', 'demo', '--out', {str(tmp_path)!r}]; "
        "from flexkern.__main__ import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    name = {"sklearn": "scikit-learn"}.get(missing, missing)
    assert f"{name}, which is not installed: pip install 'flexkern[cli]'" in result.stderr
    assert "Traceback" not in result.stderr
