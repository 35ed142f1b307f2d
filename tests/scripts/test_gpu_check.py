"""scripts/gpu_check.py without a GPU: which steps run, for how long, and what is kept of them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.scripts import load_file

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = ["build", "load", "tests", "rows", "tune", "memory", "more"]


class Perform:
    """Takes the place of gpu_check.perform: notes each step, and does what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.codes = folder, [], {}  # type: ignore[var-annotated]
        self.now, self.takes = 0.0, {}  # type: ignore[var-annotated]

    def __call__(self, step: Any, limit: float, results: Path) -> dict[str, Any]:
        self.seen.append((step, limit))
        if step.name == "rows":
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
        if step.name == "more":
            (self.folder / "unfinished-cuda.json").write_text(
                json.dumps({"rows": [{"case": "c", "late": True}]})
            )
        if step.name == "tune":
            (self.folder / "tune.json").write_text(json.dumps({"kernels": []}))
        if step.name == "tests":
            lines = ["{'test': 'cut off", json.dumps({"test": "one", "outcome": "passed", "seconds": 1.0})]
            (self.folder / "tests.jsonl").write_text("\n".join(lines))
        if step.name == "memory":  # what is kept if this step is the last thing that happens
            kept = self.folder / "gpu_check.json"
            self.kept = json.loads(kept.read_text()) if kept.exists() else {}
        self.now += self.takes.get(step.name, 1.0)
        return {"exit_code": self.codes.get(step.name, 0), "seconds": 1.0}

    @property
    def names(self) -> list[str]:
        return [step.name for step, _ in self.seen]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    module: Any = load_file(ROOT / "scripts" / "gpu_check.py")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(module, "SITE", tmp_path / "site")
    monkeypatch.setattr(module, "find_sanitizer", lambda: "compute-sanitizer")
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    return module


@pytest.fixture
def steps(check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Perform:
    perform = Perform(tmp_path)
    monkeypatch.setattr(check, "perform", perform)
    monkeypatch.setattr(check.time, "perf_counter", lambda: perform.now)
    return perform


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gpu_check.json").read_text())


# ------------------------------------------------------------------ which steps, and for how long


def test_all_steps_in_order_within_eight_minutes(
    check: Any, steps: Perform, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert check.main(["--results", str(tmp_path)]) == 0
    assert steps.names == STEPS
    assert sum(check.SHARES.values()) == check.BUDGET == 480
    assert all(limit <= 480 - check.GRACE for _, limit in steps.seen)
    record = read(tmp_path)
    assert record["benchmarks"]["rows"][0]["peers"][0]["speedup"] == 1.5
    assert record["benchmarks"]["rows"][-1]["case"] == "c", "of the draft that was left"
    assert record["tune"] == {"kernels": []}
    assert record["tests"]["counts"] == {"passed": 1}
    assert [s["step"] for s in steps.kept["steps"]] == STEPS[:5]
    assert "benchmarks" in steps.kept
    said = capsys.readouterr().out
    assert "met" in next(line for line in said.splitlines() if line.startswith("a step"))
    environment = steps.seen[0][0].environment
    assert steps.seen[0][0].command[-1] == "90"
    assert int(environment["CMAKE_BUILD_PARALLEL_LEVEL"]) >= 1
    assert "TRITON_INTERPRET" not in environment
    # python -m takes what is in the folder it runs in before what PYTHONPATH says
    assert {step.folder for step, _ in steps.seen[1:]} == {check.SITE}
    for step, _ in steps.seen[1:]:
        assert step.environment["PYTHONPATH"].startswith(str(check.SITE))
        assert (step.environment.get("OMP_NUM_THREADS") == "1") is (step.name in ("tests", "memory"))


def test_a_step_takes_its_share_and_what_was_left(check: Any, steps: Perform, tmp_path: Path) -> None:
    """Whatever the others take, none ends after its own end, and none has less than its share."""
    for share in (0.0, 0.3, 1.0):
        steps.seen.clear()
        steps.now = 0.0
        for budget in (480.0, 900.0):
            steps.takes = {}
            begun = steps.now
            marks = dict(zip(STEPS, check.ends(STEPS, budget), strict=True))
            assert marks["memory"] == marks["more"] == pytest.approx(budget)
            for name in STEPS[:-1]:
                least = budget / 480 * check.SHARES[name]
                steps.takes[name] = share * least
            check.main(["--results", str(tmp_path), "--budget-seconds", str(budget)])
            now = 0.0
            for step, limit in steps.seen:
                assert now + limit + check.GRACE == pytest.approx(marks[step.name])
                assert limit + check.GRACE >= min(budget / 480 * check.SHARES[step.name], budget - now) - 1e-6
                now += steps.takes.get(step.name, 1.0)
            assert steps.now - begun <= budget + 1
            # What each leaves goes to the next, and at last to what is not promised.
            assert ("more" in steps.names) is (share < 1.0)
            steps.seen.clear()


def test_what_hangs_takes_nothing_of_what_comes_after(check: Any, steps: Perform, tmp_path: Path) -> None:
    steps.takes = {"build": 5.0, "load": 5.0, "tests": 250.0}  # to its end
    check.main(["--results", str(tmp_path)])
    limits = {step.name: limit + check.GRACE for step, limit in steps.seen}
    assert limits["tests"] == pytest.approx(250.0)
    assert limits["rows"] == pytest.approx(125.0)


def test_time_that_is_spent_is_not_given_again(check: Any, steps: Perform, tmp_path: Path) -> None:
    check.main(["--results", str(tmp_path), "--budget-seconds", "60"])
    assert all(limit <= 60 for _, limit in steps.seen)
    assert check.main(["--results", str(tmp_path), "--budget-seconds", "10"]) == 1
    assert {s["exit_code"] for s in read(tmp_path)["steps"]} == {125}
    assert {s["why"] for s in read(tmp_path)["steps"]} == {"no time was left", "nothing was built"}


def test_benchmarks_and_tuner_stop_by_themselves(check: Any, monkeypatch: Any, tmp_path: Path) -> None:
    told: list[Any] = []

    def run(command: list[str], *, limit: float, **_: Any) -> Any:
        told.append((command, limit))
        return check.limited.Ended(0, 1.0)

    monkeypatch.setattr(check.limited, "run", run)
    check.main(["--results", str(tmp_path)])
    bounded = [(command, limit) for command, limit in told if "--budget-seconds" in command]
    assert len(bounded) == 3
    for command, limit in bounded:
        budget = float(command[command.index("--budget-seconds") + 1])
        assert 0 < budget <= limit - check.MARGIN + 1


def test_parts_add_up(check: Any, steps: Perform, tmp_path: Path) -> None:
    check.main(["--results", str(tmp_path), "--only", "build", "--only", "rows"])
    steps.codes = {"tune": 3}
    assert check.main(["--results", str(tmp_path), "--only", "tune", "--select", "linear half"]) == 1
    record = read(tmp_path)
    assert [s["step"] for s in record["steps"]] == ["build", "rows", "tune"]
    assert "benchmarks" in record
    command = steps.seen[-1][0].command
    assert command[command.index("--only") + 1] == "linear half"
    assert steps.seen[-1][1] + check.GRACE == 480.0, "a single step has all of the budget"
    check.main(["--results", str(tmp_path), "--only", "more", "--budget-seconds", "100"])
    assert steps.seen[-1][1] + check.GRACE == 100.0


def test_nothing_runs_on_what_was_not_built(check: Any, steps: Perform, tmp_path: Path) -> None:
    steps.codes = {"build": 1}
    assert check.main(["--results", str(tmp_path)]) == 1
    assert steps.names == ["build"]
    # Its Python files are there: Triton's kernels can be tried.
    package = check.SITE / "flexkern"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    steps.seen.clear()
    assert check.main(["--results", str(tmp_path)]) == 1
    assert steps.names == STEPS


def test_an_interruption_keeps_what_was_found(
    check: Any, steps: Perform, monkeypatch: Any, tmp_path: Path
) -> None:
    def interrupted(step: Any, limit: float, results: Path) -> Any:
        if step.name == "rows":
            raise KeyboardInterrupt
        return steps(step, limit, results)

    monkeypatch.setattr(check, "perform", interrupted)
    assert check.main(["--results", str(tmp_path)]) == 1
    assert steps.names == ["build", "load", "tests"]
    record = read(tmp_path)
    assert [s.get("why") for s in record["steps"]] == [None] * 3 + ["interrupted"] * 4
    assert record["tests"]["counts"] == {"passed": 1}


def test_what_is_not_installed_is_named(
    check: Any, steps: Perform, monkeypatch: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(check, "find_sanitizer", lambda: None)
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    assert check.main(["--results", str(tmp_path)]) == 0, "nothing has failed"
    assert steps.names == ["build", "load", "rows", "more"]
    said = capsys.readouterr().out
    for name in ("pytest is not installed", "Triton is not installed", "compute-sanitizer is not on PATH"):
        assert name in said
    command = check.pytest(tmp_path / "tests.jsonl")
    assert "--timeout" not in command
    assert check.in_parallel(16) == []


def test_few_processes_test(check: Any) -> None:
    assert check.in_parallel(2) == []
    for processors in (4, 16, 192):
        _, count, *_ = check.in_parallel(processors)
        assert 2 <= int(count) <= 8


def test_a_build_beforehand_needs_no_gpu(check: Any, steps: Perform, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main(["--results", str(tmp_path), "--only", "build", "--architecture", "80"]) == 0
    assert steps.seen[0][0].command[-1] == "80"
    with pytest.raises(SystemExit):
        check.main(["--architecture", "80"])


def test_without_a_gpu_it_says_so(
    check: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().out


# ------------------------------------------------------------------ programs that hang, fail, and say something

HANGS = """
import time
try:
    print('on my way', flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print('so far')
"""
DEAF = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print('deaf', flush=True)
time.sleep(60)
"""
PROGRAMS = {
    "build": "print('made')",
    "load": "import sys; print('cannot'); sys.exit(3)",
    "tests": HANGS,
    "rows": DEAF,
    "tune": "print('at the end')",
}


def test_steps_that_fail_hang_or_do_not_listen(
    check: Any, monkeypatch: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    environment = {"PATH": "/usr/bin"}
    programs = [
        check.Step(name, [sys.executable, "-c", code], environment, tmp_path) for name, code in PROGRAMS.items()
    ]
    programs.append(check.Step("memory", ["no-such-tool"], environment, tmp_path))
    monkeypatch.setattr(check, "steps", lambda *_: programs)
    monkeypatch.setattr(check, "ends", lambda *_: [2.0, 2.5, 3.5, 4.5, 7.0, 7.5])
    monkeypatch.setattr(check, "LEAST", 0.1)
    monkeypatch.setattr(check, "GRACE", 0.5)
    begun = time.perf_counter()
    assert check.main(["--results", str(tmp_path)]) == 1
    assert time.perf_counter() - begun < 7.5
    done = {s["step"]: s for s in read(tmp_path)["steps"]}
    assert [s["exit_code"] for s in done.values()] == [0, 3, 124, 124, 0, 127]
    assert done["tests"]["why"] == "interrupted at its limit"
    assert done["rows"]["why"] == "killed at its limit"
    log = (tmp_path / "gpu_check.log").read_text()
    said = capsys.readouterr().out
    for words in ("made", "cannot", "on my way", "so far", "deaf", "at the end"):
        assert words in log
        assert words in said


# ------------------------------------------------------------------ the tests that it runs


def gpu_marks(source: str) -> list[int]:
    """Lines of ``mark.gpu`` in a file of tests."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr == "gpu" and ast.unparse(node.value).endswith("mark")
    ]


def test_every_gpu_test_is_where_it_is_run(check: Any, steps: Perform, tmp_path: Path) -> None:
    check.main(["--results", str(tmp_path), "--only", "tests"])
    (command,) = [step.command for step, _ in steps.seen]
    texts = {str(path): path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    marked = {path for path, text in texts.items() if "gpu" in text and gpu_marks(text)}
    assert gpu_marks("import pytest\n@pytest.mark.gpu\ndef test(): ...") == [2]
    assert len(marked) >= 5
    assert marked <= set(command), "the GPU's tests lie in tests/gpu"


def missing_fixtures(source: str) -> list[str]:
    """What tests ask for, and neither their parametrization nor their module has."""
    tree = ast.parse(source)
    known = {"monkeypatch", "tmp_path", "capsys", "request"}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            known |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.FunctionDef):
            known.add(node.name)
    missing = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            words = [
                n.value for mark in node.decorator_list for n in ast.walk(mark) if isinstance(n, ast.Constant)
            ]
            own = {name.strip() for word in words if isinstance(word, str) for name in word.split(",")}
            missing += [f"{node.name}: {arg.arg}" for arg in node.args.args if arg.arg not in known | own]
    return missing


def test_gpu_tests_have_their_fixtures() -> None:
    """Nothing collects them where there is no GPU, and pytest looks for fixtures when a test begins."""
    assert missing_fixtures("def test_one(backend): ...") == ["test_one: backend"]
    for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py")):
        assert missing_fixtures(path.read_text()) == [], path.name


FAKE_TORCH = """
class cuda:
    is_available = staticmethod(lambda: False)
Tensor = object
"""


def test_the_tests_run_on_what_was_built(check: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """pyproject.toml puts the checkout, which has no library, before PYTHONPATH."""
    for name, text in {"flexkern": "raise SystemExit('the one that was built')", "torch": FAKE_TORCH}.items():
        (check.SITE / name).mkdir(parents=True)
        (check.SITE / name / "__init__.py").write_text(text)
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None if "timeout" in name else name)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # it is no worker of this run
    environment = dict(check.steps(check.parse(["--only", "tests"]), 2)[0].environment)
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(
        check.pytest(tmp_path / "tests.jsonl"), cwd=check.SITE, capture_output=True, text=True,
        env={**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert "the one that was built" in done.stdout + done.stderr


def test_tests_that_need_the_profiler_are_left_out_beside_the_sanitizer(
    check: Any, steps: Perform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from helpers.gpu import kernel_launches

    check.main(["--results", str(tmp_path), "--only", "memory"])
    ((step, _),) = steps.seen
    assert step.command[0] == "compute-sanitizer"
    assert "-x" not in step.command
    monkeypatch.setenv("FLEXKERN_NO_PROFILER", step.environment["FLEXKERN_NO_PROFILER"])
    with pytest.raises(pytest.skip.Exception, match="compute-sanitizer"):
        kernel_launches(None)
    using = [path.name for path in (ROOT / "tests" / "gpu").glob("*.py") if "profiler" in path.read_text()]
    assert using == [], "through helpers.gpu.kernel_launches only, which leaves them out"


# ------------------------------------------------------------------ the rows


def test_each_promised_row_has_a_command_and_a_prediction(check: Any) -> None:
    from flexkern.benchmarks.case import GPU, Case, cases

    rows = [c for c in cases(check.ROWS) if isinstance(c, Case) and GPU in c.devices]
    for pattern in check.ROWS:
        assert any(GPU in c.devices for c in cases([pattern])), f"{pattern} has no case on a GPU"
    text = (ROOT / "benchmarks" / "PREDICTIONS.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`--only ([\w/*-]+)`", text))
    asked = {c.name for name in told for c in cases([name])}
    assert {c.name for c in rows} <= asked
    idle = [name for name in told if not any(GPU in c.devices for c in cases([name]))]
    assert idle == [], "commands that measure nothing on a GPU"
