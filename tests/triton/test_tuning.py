"""The tuning table, and scripts/tune.py, in Triton's interpreter with a stopwatch of ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")


from flexkern.backends import tuning
from flexkern.triton_kernels.catalogue import candidates
from helpers import compiled

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE, BACKENDS = tuning.table()
NVIDIA, AMD = ("sm_80", "sm_90", "sm_100", "sm_120"), ("gfx942", "gfx950")


# --------------------------------------------------------------------------- the table


def test_the_file_is_what_as_toml_writes() -> None:
    assert tuning.FILE.read_text(encoding="utf-8") == tuning.as_toml(tuning.table())


def test_any_reason_can_be_written_and_read(tmp_path: Path) -> None:
    reason = 'measured: "quoted", a \\ and a tab\t; 3 µs'
    rows = tuning.Table(
        {"a kernel": {"its-variant": {"sm_90": ({"tile": 64}, reason)}}},
        {"op_": {"any": (("triton",), reason)}},
    )
    (tmp_path / "table.toml").write_text(tuning.as_toml(rows), encoding="utf-8")
    assert tuning.read(tmp_path / "table.toml") == rows


def test_a_kernel_without_rows_has_those_of_other() -> None:
    for architecture in (*NVIDIA, *AMD, "interpreter"):
        assert tuning.config("no such kernel", "any", architecture) == TABLE["other"]["any"]["any"][0]


def test_every_gpu_has_every_kernel() -> None:
    for kernel, variants in TABLE.items():
        for variant in variants:
            for architecture in (*NVIDIA, *AMD, "interpreter"):
                if variant == "interpreter" and architecture != "interpreter":
                    continue
                config = tuning.config(kernel, variant, architecture)
                assert config.keys() == tuning.config(kernel, variant, "sm_80").keys() | (
                    {"maxnreg", "state_stages"} & config.keys()  # what a target may have besides
                )
                sizes = [
                    config[name]
                    for name in config
                    if name in ("out", "batch", "rows", "step", "columns", "tile")
                ]
                assert all(size >= 16 and size & (size - 1) == 0 for size in sizes), (kernel, variant)
                assert 1 <= config["num_warps"] <= 16


def test_every_entry_has_a_reason() -> None:
    for variants in TABLE.values():
        for name, entries in variants.items():
            for _, reason in entries.values():
                assert reason.startswith("small" if name == "interpreter" else ("predicted: ", "measured: "))
    for entries in BACKENDS.values():
        for order, reason in entries.values():
            assert set(order) <= {"cuda", "triton"}
            assert reason


def test_what_is_not_known_falls_back_to_its_family() -> None:
    assert tuning.config("adapter forward", "half-64", "sm_90")["maxnreg"] == 128
    assert "maxnreg" not in tuning.config("adapter forward", "half-64", "sm_121")
    assert "maxnreg" not in tuning.config("adapter forward", "half-64", "sm_90", bounded=False)
    assert tuning.config("linear", "half", "gfx1100") == TABLE["linear"]["half"]["hip"][0]
    assert tuning.fastest("linear_step_", "sm_90") == ("cuda", "triton")
    assert tuning.fastest("metaplastic_sgd_", "gfx942") == ("triton",)
    with pytest.raises(KeyError):
        tuning.config("linear", "no such", "sm_90")


def test_a_bound_on_registers_may_be_for_older_versions_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    row = TABLE["linear"]["half-procedural"]["sm_90"][0]
    assert (row["maxnreg"], row["maxnreg_before"]) == (128, 309)
    for version, bound in ((306, 128), (308, 128), (309, None), (400, None)):
        monkeypatch.setattr(tuning, "_triton_version", lambda version=version: version)
        found = tuning.config("linear", "half-procedural", "sm_90")
        assert found.get("maxnreg") == bound
        assert "maxnreg_before" not in found
    monkeypatch.undo()
    assert 306 <= tuning._triton_version() < 1000


def test_operands_fit_in_shared_memory() -> None:
    """What is under way at once, num_stages - 1 steps of it, fits the least that a family's GPUs have."""
    limits = {"sm_80": 163, "sm_90": 227, "sm_120": 99, "gfx942": 64}
    sizes = {"half": 2, "tf32": 4, "ieee": 4}
    for architecture, kilobytes in limits.items():
        for arithmetic, bytes_each in sizes.items():
            for rank in (64, 128, 256, 512):
                for kernel in ("adapter forward", "adapter backward"):
                    c = tuning.config(kernel, f"{arithmetic}-{rank}", architecture)
                    held = max(1, c["num_stages"] - 1)
                    assert bytes_each * held * c["step"] * (c["rows"] + rank) <= kilobytes * 1024, (
                        architecture,
                        c,
                    )
            c = tuning.config("linear", arithmetic, architecture)
            assert bytes_each * max(1, c["num_stages"] - 1) * c["batch"] * (c["out"] + 128) <= kilobytes * 1024


def test_trials_end() -> None:
    before = tuning.config("sgd", "stored", "sm_90")
    with tuning.trial("sgd", "stored", {"tile": 512, "num_warps": 4}):
        with tuning.trial("sgd", "stored", {"tile": 256, "num_warps": 2}):
            assert tuning.config("sgd", "stored", "sm_90")["tile"] == 256
        assert tuning.config("sgd", "stored", "gfx942")["tile"] == 512
    assert tuning.config("sgd", "stored", "sm_90") is before


def test_a_row_that_the_table_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuning.Table({"sgd": {"held": {"sm_90": ({"tile": 64}, "predicted: ")}}}, {"op_": {"hip": ((), "")}})
    monkeypatch.setattr(tuning, "_table", rows)
    with pytest.raises(KeyError, match=r"no row of 'sgd held' for 'gfx942', only for .*sm_90"):
        tuning.config("sgd", "held", "gfx942")
    with pytest.raises(KeyError, match="no row of 'op_' for 'sm_90'"):
        tuning.fastest("op_", "sm_90")


def test_the_table_is_read_without_triton() -> None:
    code = "import sys; from flexkern.backends import tuning; tuning.table(); print('triton' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"


# --------------------------------------------------------------------------- ahead of time


def compile_candidates(*only: str) -> list[tuple[str, Mapping[str, int], dict[str, Any]]]:
    wanted = compiled.candidates(*only)
    found = compiled.reports(wanted)
    return [(w.variant, w.configuration or {}, report) for w, report in zip(wanted, found, strict=True)]


def check(reports: list[tuple[str, Mapping[str, int], dict[str, Any]]]) -> None:
    assert reports
    for name, configuration, report in reports:
        assert report["spills"] == 0, (name, configuration, report)
        assert report["stack"] <= 16, (name, configuration, report)
        assert report["shared"] <= 227 * 1024, (name, configuration, report)
        # What a GPU can start at all: 65,536 registers, given out to warps in steps of 8 a thread.
        registers = -(-report["registers"] // 8) * 8
        assert registers * 32 * configuration["num_warps"] <= 65536, (name, configuration, report)


def test_candidates_of_a_kernel_compile() -> None:
    check(compile_candidates("sgd held"))


@pytest.mark.slow
def test_every_candidate_compiles_without_spills() -> None:
    compiled.reports(compiled.everything())  # with the variants of test_aot.py
    check(compile_candidates())


def test_the_present_configuration_takes_part() -> None:
    present = {"tile": 512, "num_warps": 4}
    raced = candidates("sgd", "stored", present)
    assert raced[0] is present
    assert raced.count(present) == 1
