"""The command line as a whole: its help comes at once, and says what its commands say of themselves."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

import flexkern
from flexkern.cli import bench, check, compare, demo_command, fit, info, predict, report, run
from flexkern.cli.app import app


def said(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(("option", "shown"), [("--help", "predict"), ("--version", flexkern.__version__)])
def test_help_and_version_do_without_torch(option: str, shown: str) -> None:
    child = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flexkern", option],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert shown in child.stdout
    imported = {line.rpartition("|")[2].strip() for line in child.stderr.splitlines()}
    assert "flexkern.cli.app" in imported
    assert not imported & {"torch", "numpy", "matplotlib", "flexkern.ops", "flexkern.learners"}


def test_a_command_has_all_of_the_package() -> None:
    """What ``import flexkern`` leaves out for the help is there when a command is called."""
    program = (
        "import sys; sys.argv[:] = ['/usr/bin/flexkern', 'info', '--json']; sys.orig_argv[1:] = sys.argv; "
        "import flexkern; assert 'torch' not in sys.modules; from flexkern.cli.app import app; "
        "app(standalone_mode=False); import flexkern; assert flexkern.backends()['reference'].available; "
        "assert all(hasattr(flexkern, name) for name in flexkern.__all__)"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr
    assert '"versions"' in child.stdout


def test_the_help_says_what_the_commands_say() -> None:
    whole = said("--help")[1].replace(" │ │ ", " ")
    for name, module, function in (
        ("demo", demo_command, "demo"), ("info", info, "info"), ("fit", fit, "fit"),
        ("predict", predict, "predict"), ("run", run, "_run"), ("bench", bench, "bench"),
        ("check", check, "_check"), ("report", report, "report"), ("compare", compare, "compare"),
    ):  # fmt: skip
        first = " ".join(inspect.getdoc(getattr(module, function)).partition("\n\n")[0].split())
        assert f"{name} {first}" in whole
        code, own = said(name, "--help")
        assert code == 0
        assert first in own
    assert "No such command 'deno'. Did you mean 'demo'?" in said("deno")[1]


def test_all_experiments_and_configurations_are_listed() -> None:
    code, text = said("run", "--list")
    assert code == 0
    parts = "run serial-position What is left of each", "flexkern run rivals ", "digits_online Digits, "
    for part in parts:
        assert part in text


@pytest.mark.parametrize("command", ["demo", "run serial-position", "run class-incremental digits"])
@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("1;2", "must be numbers and ranges"),
        ("0,1,1", "seeds must name each once, got 1 twice"),
        ("0-2,2", "seeds must name each once, got 2 twice"),
        ("4-2", "the range '4-2' ends before it begins"),
        ("-1", "must be numbers and ranges"),
        ("", "must be numbers and ranges"),
    ],
)
def test_seeds_are_the_same_thing_everywhere(command: str, seeds: str, message: str, tmp_path: Any) -> None:
    code, text = said(*command.split(), f"--seeds={seeds}", f"--out={tmp_path / 'out'}")
    assert code == 2
    assert message in text.replace("│ │ ", "")
    assert not (tmp_path / "out").exists()
