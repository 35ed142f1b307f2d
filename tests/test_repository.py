"""The files that a repository has for those who report, cite, contribute: they are true, and can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import flexkern

ROOT = Path(__file__).resolve().parent.parent
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["fault", "installation", "wish"])
def test_issues_ask_what_is_installed(name: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    asked = [part for part in form["body"] if part["type"] == "textarea"]
    assert any("flexkern info --json" in str(part["attributes"]) for part in asked)
    ids = [part["id"] for part in form["body"] if "id" in part]
    assert len(ids) == len(set(ids))


def test_citation() -> None:
    cited = read("CITATION.cff")
    assert cited["version"] == flexkern.__version__
    papers = [paper["identifiers"][0]["value"] for paper in cited["references"]]
    assert papers == ["arXiv:2407.07133", "arXiv:2410.05899"]
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for paper in cited["references"]:
        assert ", ".join(author["family-names"] for author in paper["authors"]) in design
        assert paper["title"] in re.sub(r"\s+", " ", design)


@pytest.mark.parametrize("name", ["tests", "docs", "wheels"])
def test_workflows_call_what_there_is(name: str) -> None:
    workflow = read(f".github/workflows/{name}.yml")
    makefile = (ROOT / "Makefile").read_text()
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    for command in commands:
        for target in re.findall(r"\bmake (\w+)", command):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), command
        for script in re.findall(r"\b(scripts/\w+\.py)", command):
            assert (ROOT / script).exists(), command
    assert all("timeout-minutes" in job for job in workflow["jobs"].values() if "run" in str(job["steps"][0]))


def test_what_the_site_needs_is_said_alike() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    extra = re.search(r"^docs = \[(.*)\]$", project, re.MULTILINE)
    assert extra is not None
    workflow = (ROOT / ".github/workflows/docs.yml").read_text()
    for requirement in re.findall(r'"[^"]+"', extra.group(1)):
        assert requirement in workflow


def test_hooks_call_what_there_is() -> None:
    hooks = read(".pre-commit-config.yaml")["repos"][0]["hooks"]
    for hook in hooks:
        for script in re.findall(r"scripts/\w+\.py", hook["entry"]):
            assert (ROOT / script).exists()
