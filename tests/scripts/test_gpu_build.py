"""scripts/gpu_build.py and gpu_load.py: what is compiled for a GPU, taken where it fits, and tried first."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.scripts import load_file

ROOT = Path(__file__).resolve().parent.parent.parent


FILES = (
    "csrc/cuda/a.cu", "flexkern/spec/b.py", "flexkern/c.py", "triton_kernels/d.py", "benchmarks/e.py",
    "build_tools/f.py", "CMakeLists.txt", "setup.py",
)  # fmt: skip


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = load_file(ROOT / "scripts" / "gpu_build.py")
    tree = tmp_path / "tree"
    for name in FILES:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    monkeypatch.setattr(module, "ROOT", tree)
    monkeypatch.setattr(module, "missing_tools", list)
    return module


class Install:
    """Takes the place of subprocess.run: installs a library, and says whether libraries load."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.code, self.loads, self.builds = folder, 0, 0, 0

    def __call__(self, command: list[str], **options: Any) -> Any:
        if "install" in command:
            self.builds += 1
            assert options["env"]["FLEXKERN_CUDA_ARCHS"] in ("80", "90")
            library = self.folder / "flexkern" / "lib" / "libflexkern_cuda.so"
            library.parent.mkdir(exist_ok=True)
            library.touch()
            return subprocess.CompletedProcess(command, self.code)
        assert command[-1].endswith("libflexkern_cuda.so")
        return subprocess.CompletedProcess(command, self.loads, "", "it is of another kind")


def test_what_was_compiled_is_taken_where_it_fits(build: Any, monkeypatch: Any, tmp_path: Path) -> None:
    site, tree = tmp_path / "site", tmp_path / "tree"
    install = Install(site)
    monkeypatch.setattr(build.subprocess, "run", install)
    assert build.main(site, "90") == 0
    assert install.builds == 1
    (tree / "flexkern" / "c.py").write_text("another")
    assert build.main(site, "90") == 0
    assert install.builds == 1, "no library depends on it"
    assert (site / "flexkern" / "c.py").read_text() == "another"
    assert (site / "flexkern" / "triton_kernels" / "d.py").exists()
    assert build.main(site, "80") == 0
    assert install.builds == 2
    (tree / "csrc" / "cuda" / "a.cu").write_text("another")
    assert build.main(site, "80") == 0
    assert install.builds == 3
    install.loads = 1
    assert build.main(site, "80") == 0
    assert install.builds == 4, "what was compiled elsewhere does not load here"


def test_without_a_compiler_there_is_triton(build: Any, monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    site = tmp_path / "site"
    install = Install(site)
    install.code = 1
    monkeypatch.setattr(build.subprocess, "run", install)
    assert build.main(site, "90") == 1
    assert (site / "flexkern" / "triton_kernels" / "d.py").exists()
    assert build.main(site, "90") == 1, "what failed is tried again"
    monkeypatch.setattr(build, "missing_tools", lambda: ["cmake"])
    assert build.main(site, "90") == 0
    assert install.builds == 2
    assert "cmake is missing" in capsys.readouterr().out
    assert (site / "flexkern" / "c.py").exists()


def test_the_tools_of_a_build_are_looked_for(monkeypatch: Any) -> None:
    build = load_file(ROOT / "scripts" / "gpu_build.py")
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda _: None)
    assert build.missing_tools() == ["cmake", "ninja", "pip", "setuptools", "a C++ compiler"]


def test_an_update_is_compared_where_a_backend_loads() -> None:
    load = load_file(ROOT / "scripts" / "gpu_load.py")
    assert load.error("reference", "cpu", 100) == 0.0
    assert load.error("cpu", "cpu") < 1e-6
