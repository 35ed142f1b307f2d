"""The code of docs/backbones.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.timm_models import import_timm

pytest.importorskip("transformers", reason="transformers is not installed")
BLOCKS = re.findall(
    r"```python\n(.*?)```",
    (Path(__file__).resolve().parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8"),
    re.DOTALL,
)


@pytest.mark.parametrize("block", BLOCKS, ids=["folder", "timm", "normalize", "size", "dtype"])
def test_code(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "timm" in block:
        import_timm()
    exec(compile(block, "docs/backbones.md", "exec"), {})
