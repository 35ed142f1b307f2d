"""A new operator from the template: its files, under its name, that are Python and pass for C++."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from helpers.pages import ROOT
from helpers.scripts import load_file


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_file(ROOT / "scripts" / "new_operator.py")


@pytest.fixture
def checkout(script: ModuleType, tmp_path: Path) -> Path:
    for template in script.TEMPLATE.values():
        (tmp_path / template).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / template, tmp_path / template)
    return tmp_path


def test_files(script: ModuleType, checkout: Path) -> None:
    made = script.make("soft_step_", checkout)
    assert len(made) == len(script.TEMPLATE)
    for path in made:
        text = path.read_text()
        assert not re.search(r"(?<![A-Za-z])null(?!ptr|[A-Za-z])", text, re.IGNORECASE), path
        if path.suffix == ".py":
            compile(text, str(path), "exec")
    declared = (checkout / "flexkern/spec/soft_step_.py").read_text()
    assert '@operator("soft_step_", returns="Tensor")\nclass SoftStep(Arguments):' in declared
    assert "return nullptr;" in (checkout / "csrc/cuda/soft_step_.cu").read_text()


def test_fewer_backends(script: ModuleType, checkout: Path) -> None:
    made = script.make("soft", checkout, backends=())
    assert not [path for path in made if path.suffix == ".cu" or "triton" in str(path.relative_to(checkout))]
    declared = (checkout / "flexkern/spec/soft.py").read_text()
    compile(declared, "soft.py", "exec")
    assert '"cuda": "plain PyTorch serves instead"' in declared


def test_refusals(script: ModuleType, checkout: Path) -> None:
    for name in ("Soft", "2soft", "null", "soft-step", ""):
        with pytest.raises(ValueError, match="name must be of small letters"):
            script.make(name, checkout)
    with pytest.raises(ValueError, match="backends must be of cpu, cuda, triton, got 'xx'"):
        script.make("soft", checkout, backends=("cpu", "xx"))
    assert not (checkout / "flexkern/spec/soft.py").exists()
    script.make("soft", checkout)
    before = (checkout / "flexkern/spec/soft.py").read_text()
    with pytest.raises(FileExistsError, match="choose another name"):
        script.make("soft", checkout)
    assert (checkout / "flexkern/spec/soft.py").read_text() == before


def test_the_guide_names_what_is_in_the_template(script: ModuleType) -> None:
    """Each text that the guide has replaced is there."""
    guide = (ROOT / "docs" / "contributing.md").read_text()
    rows = re.findall(r"^\| `([\w/.]*softened[\w.]*)` \| `([^`]+)`", guide, re.MULTILINE)
    assert len(rows) == 7
    for path, text in rows:
        assert text in (ROOT / path.replace("softened", "null")).read_text(), (path, text)
