"""scripts/gpu_check.py without a GPU: which steps run, for how long, and what is kept of them."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent


class Run:
    """Takes the place of gpu_check.run: notes each step, and does what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.codes = folder, [], {}  # type: ignore[var-annotated]

    def __call__(self, step: Any, limit: float) -> dict[str, Any]:
        self.seen.append((step, limit))
        if step.name == "benchmarks":
            rows = [
                {
                    "case": "a",
                    "title": "a step",
                    "peers": [
                        {"name": "SGD", "speedup": 1.5, "goal": "speed-up at least 1.3", "met": True},
                    ],
                },
                {"case": "b", "failed": "no memory"},
            ]
            (self.folder / "20260101-000000-cuda-abc.json").write_text(json.dumps({"rows": rows}))
        if step.name == "tune":
            (self.folder / "tune.json").write_text(json.dumps({"kernels": []}))
        if step.name == "memory":  # what is kept if this step is the last thing that happens
            self.kept = json.loads((self.folder / "gpu_check.json").read_text())
        return {"step": step.name, "exit_code": self.codes.get(step.name, 0), "seconds": 1.0}

    @property
    def names(self) -> list[str]:
        return [step.name for step, _ in self.seen]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(module, "SITE", tmp_path / "site")
    return module


@pytest.fixture
def steps(check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    run = Run(tmp_path)
    monkeypatch.setattr(check, "run", run)
    return run


def test_all_steps_in_order_within_ten_minutes(
    check: Any, steps: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert check.main(["--results", str(tmp_path)]) == 0
    assert steps.names == ["build", "tests", "benchmarks", "tune", "memory"]
    # The last step has what is left; none begins after the budget, which leaves half a minute.
    assert sum(check.LIMITS[name] for name in steps.names[:-1]) + check.LEAST <= 700
    assert all(limit <= 570 for _, limit in steps.seen)
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert record["benchmarks"]["rows"][0]["peers"][0]["speedup"] == 1.5
    assert record["tune"] == {"kernels": []}
    assert [s["step"] for s in steps.kept["steps"]] == steps.names[:-1]
    assert "benchmarks" in steps.kept
    said = capsys.readouterr().out
    assert "met" in next(line for line in said.splitlines() if line.startswith("a step"))
    environment = steps.seen[0][0].environment
    assert environment["FLEXKERN_CUDA_ARCHS"] == "90"
    assert int(environment["CMAKE_BUILD_PARALLEL_LEVEL"]) >= 1
    assert "TRITON_INTERPRET" not in environment
    # python -m takes what is in the folder it runs in before what PYTHONPATH says
    assert {step.folder for step, _ in steps.seen[1:]} == {check.SITE}
    assert str(check.SITE) in environment["PYTHONPATH"]


def test_time_that_is_spent_is_not_given_again(check: Any, steps: Run, tmp_path: Path) -> None:
    assert check.main(["--results", str(tmp_path), "--budget-seconds", "60"]) == 0
    assert all(limit <= 60 for _, limit in steps.seen)
    (command,) = [step.command for step, _ in steps.seen if step.name == "benchmarks"]
    assert float(command[command.index("--budget-seconds") + 1]) <= 60 - check.MARGIN + 1
    assert check.main(["--results", str(tmp_path), "--budget-seconds", "10"]) == 1
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {s["exit_code"] for s in record["steps"]} == {125}


def test_parts_add_up(check: Any, steps: Run, tmp_path: Path) -> None:
    check.main(["--results", str(tmp_path), "--only", "build", "--only", "benchmarks"])
    steps.codes = {"tune": 3}
    assert check.main(["--results", str(tmp_path), "--only", "tune", "--select", "linear half"]) == 1
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [s["step"] for s in record["steps"]] == ["build", "benchmarks", "tune"]
    assert "benchmarks" in record
    command = steps.seen[-1][0].command
    assert command[command.index("--only") + 1] == "linear half"


def test_nothing_runs_on_what_was_not_built(check: Any, steps: Run, tmp_path: Path) -> None:
    steps.codes = {"build": 1}
    assert check.main(["--results", str(tmp_path)]) == 1
    assert steps.names == ["build"]


def alive(stat: Path) -> bool:
    """Whether the process of this /proc file runs, or could."""
    try:
        return stat.read_text().split()[2] not in "ZX"
    except OSError:
        return False


def test_a_step_that_hangs_is_ended_with_its_children(check: Any, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    step = check.Step("tests", [sys.executable, "-c", parent], {}, 5.0, tmp_path)
    done = check.run(step, 5.0)
    assert done["exit_code"] == 124
    state = Path(f"/proc/{pid.read_text()}/stat")
    end = time.monotonic() + 10  # a process that was killed may still be on its way
    while alive(state) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(state)
    assert check.run(check.Step("memory", ["no-such-tool"], {}, 5.0), 5.0)["exit_code"] == 127


def gpu_marks(source: str) -> list[int]:
    """Lines of ``mark.gpu`` in a file of tests."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr == "gpu" and ast.unparse(node.value).endswith("mark")
    ]


def test_every_gpu_test_is_where_it_is_run(check: Any, steps: Run, tmp_path: Path) -> None:
    check.main(["--results", str(tmp_path), "--only", "tests"])
    (command,) = [step.command for step, _ in steps.seen]
    marked = {str(path) for path in (ROOT / "tests").rglob("*.py") if gpu_marks(path.read_text())}
    assert gpu_marks("import pytest\n@pytest.mark.gpu\ndef test(): ...") == [2]
    assert len(marked) >= 5
    assert marked <= set(command), "the GPU's tests lie in tests/gpu"


def test_without_a_gpu_it_says_so(
    check: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().out
