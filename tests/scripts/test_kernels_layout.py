"""The project for Hugging Face's kernel-builder: whole, and two versions in one process. It is not built."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.scripts import load_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def layout() -> ModuleType:
    return load_file(Path(__file__).parents[2] / "scripts" / "kernels_layout.py")


@pytest.fixture(scope="module")
def project(layout: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kernels") / "project"
    layout.write(out)
    return out


@pytest.fixture(scope="module")
def build(project: Path) -> dict[str, Any]:
    return tomllib.loads((project / "build.toml").read_text())


def test_all_that_is_built_is_there(project: Path, build: dict[str, Any]) -> None:
    files = {name for kernel in build["kernel"].values() for name in kernel["src"]} | set(build["torch"]["src"])
    assert all((project / name).is_file() for name in files)
    there = {
        p.relative_to(project).as_posix()
        for p in project.rglob("*")
        if p.suffix in (".cpp", ".cu", ".h", ".cuh")
    }
    assert there <= files
    assert (
        {kernel["backend"] for kernel in build["kernel"].values()}
        == {"cpu", "cuda"}
        == set(build["general"]["backends"])
    )
    for kernel in build["kernel"].values():
        for folder in kernel["include"]:
            assert (project / folder).is_dir()


def test_headers_are_found(project: Path, build: dict[str, Any]) -> None:
    """Those in quotes, beside the file that names them or in a folder of the build."""
    folders = [project / folder for folder in build["kernel"]["cpu"]["include"]]
    for path in project.rglob("*"):
        if path.suffix not in (".cpp", ".cu", ".h", ".cuh"):
            continue
        for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
            found = any((folder / name).is_file() for folder in (path.parent, *folders))
            assert found or name == "registration.h", (path, name)


def test_operators_are_registered_by_the_builders_name(project: Path) -> None:
    bindings = list((project / "csrc" / "bindings").glob("*.cpp"))
    registered = [p for p in bindings if "STABLE_TORCH_LIBRARY_IMPL" in p.read_text()]
    assert len(registered) >= 8
    for path in registered:
        text = path.read_text()
        assert "STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, FLEXKERN_DEVICE, m)" in text
        assert "STABLE_TORCH_LIBRARY_IMPL(flexkern" not in text
        assert text.startswith('#include "registration.h"')
    assert not any("FLEXKERN_FOR_CUDA" in p.read_text() for p in (project / "csrc").rglob("*") if p.is_file())


def test_python_files_import_each_other_by_place(project: Path) -> None:
    files = list((project / "torch-ext").rglob("*.py"))
    assert {p.name for p in files} >= {"null.py", "metaplastic.py", "adapter.py", "built.py", "tuning.py"}
    outside = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                outside.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.Import):
                outside |= {alias.name.split(".")[0] for alias in node.names}
    assert outside - set(sys.stdlib_module_names) <= {"torch", "numpy", "triton"}


OPS = """import torch
ops = torch.ops.{name}
def add_op_namespace_prefix(op_name):
    return f"{name}::{{op_name}}"
"""
TRIED = """
import importlib.util, sys, torch
found = []
for name in sys.argv[2:]:
    folder = f"{sys.argv[1]}/{name}"
    spec = importlib.util.spec_from_file_location(f"hash_of_{name}", folder + "/__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found.append(module)
assert "flexkern" not in sys.modules
one, two = found
assert one.Field is not two.Field
torch.manual_seed(0)
weight, gradient = torch.randn(2, 40, 30)
after = []
for module in found:
    w = weight.clone()
    f, a = module.Field.uniform(0, 1), module.Field.normal(0, 2)
    module.metaplastic_sgd_(w, gradient, a, f, lr=0.1, scale=3.0)
    after.append(w)
    assert module.backends()["reference"].available
    assert not module.backends()["cpu"].available
    mask = module.pack_mask(weight > 0)
    assert torch.equal(module.unpack_mask(mask, weight.shape[1]).bool(), weight > 0)
assert torch.equal(*after)
assert not torch.equal(after[0], weight)
assert torch.ops._flexkern_cpu_a.pack_mask.default is not torch.ops._flexkern_cpu_b.pack_mask.default
assert not hasattr(torch.ops.flexkern, "pack_mask")
print("both")
"""


def test_two_versions_in_one_process(project: Path, tmp_path: Path) -> None:
    """By plain PyTorch, as there is no extension; the builder's module of the name is written here."""
    for name in "ab":
        shutil.copytree(project / "torch-ext" / "flexkern", tmp_path / name)
        (tmp_path / name / "_ops.py").write_text(OPS.format(name=f"_flexkern_cpu_{name}"))
    command = [sys.executable, "-c", TRIED, str(tmp_path), "a", "b"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "both"


def test_what_is_there_is_not_written_over(layout: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(SystemExit, match="OUT must be a folder that is not there, or is empty"):
        layout.main([str(tmp_path)])
