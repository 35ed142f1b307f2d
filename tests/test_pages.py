"""Every page: its code runs as it stands, its links lead somewhere, its pictures have words."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from helpers.pages import ROOT, all_pages, blocks, broken_links, cells, run

# Pages whose code needs files, frameworks or more time, with the test that runs it.
ELSEWHERE = {
    "docs/backbones.md": "tests/backbones/test_page.py",
    "docs/images.md": "tests/test_images_page.py",
    "docs/integrations.md": "tests/integrations/test_examples.py",
    "docs/streams.md": "tests/streams/test_page.py",
}
# Whose code is of several processes, which tests start by themselves: here it is compiled only.
OF_PROCESSES = ("docs/scaling.md",)
PAGES = [
    page for page in all_pages() if blocks(page, "python") and page not in (*ELSEWHERE, *OF_PROCESSES)
]  # fmt: skip
NOTEBOOK = "docs/notebooks/ten_minutes.ipynb"


@pytest.mark.parametrize("page", PAGES)
def test_code(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")  # the digits that pages use
    monkeypatch.chdir(tmp_path)
    run(blocks(page, "python"), page)


@pytest.mark.parametrize("page", OF_PROCESSES)
def test_code_of_several_processes_is_python(page: str) -> None:
    for block in blocks(page, "python"):
        compile(block, page, "exec")


@pytest.mark.parametrize("page", ELSEWHERE)
def test_other_code_has_its_test(page: str) -> None:
    assert "```python" in (ROOT / ELSEWHERE[page]).read_text()
    assert page.rpartition("/")[2] in (ROOT / ELSEWHERE[page]).read_text()


@pytest.mark.parametrize("page", all_pages())
def test_links(page: str) -> None:
    assert not broken_links(page)


@pytest.mark.parametrize("page", all_pages())
def test_pictures_have_words(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not re.findall(r"!\[\s*\]\(", text)


def test_links_that_lead_nowhere_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helpers.pages.ROOT", tmp_path)
    (tmp_path / "a.md").write_text(
        "# A b\n[x](no.md) [y](a.md#a-b) [z](a.md#no) [w](https://example.org/no.md)\n"
    )
    assert broken_links("a.md") == ["no.md", "a.md#no"]


def test_the_notebook_is_the_page() -> None:
    """So the test of the page's code executes it."""
    assert cells(NOTEBOOK) == [block.rstrip("\n") for block in blocks("docs/ten_minutes.md", "python")]


def test_the_messages_of_a_failed_installation_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| `([^`]+)` \|", text.partition("## When a build stops")[2], re.MULTILINE)
    assert len(said) > 20
    folders = (ROOT / "build_tools", ROOT / "flexkern" / "backends")
    files = [*(path for folder in folders for path in folder.glob("*.py")), ROOT / "setup.py"]
    files += [ROOT / "flexkern" / name for name in ("__init__.py", "ops/direct.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    code = re.sub(r'"\s+f?"', "", code)  # a message goes over several lines
    assert [message for message in said if message not in code] == []


def commands(page: str) -> list[str]:
    """The command lines of flexkern that a page shows, in blocks and in sentences."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for block in (*blocks(page, "sh"), *blocks(page, "")) for line in block.splitlines()]
    inline = re.findall(r"`(flexkern [^`]+)`", re.sub(r"\s+", " ", text))
    said = (line.split("#")[0].strip() for line in (*lines, *inline))
    return [line for line in said if re.match(r"flexkern (?!needs |was |is )", line)]  # which begin messages


@pytest.mark.parametrize("page", [page for page in all_pages() if commands(page)])
def test_commands_and_their_options_are_there(page: str) -> None:
    typer = pytest.importorskip("typer")
    from flexkern.cli.app import app

    for line in commands(page):
        command: Any = typer.main.get_command(app)
        options, words = (
            {"--help", *(option for p in command.params for option in p.opts)},
            shlex.split(line)[1:],
        )
        assert words[0] in {*command.commands, *options}, line
        for word in words:
            if word in getattr(command, "commands", {}):
                _, command, _ = command.resolve_command(typer.Context(command), [word])  # imported when called
                options |= {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
            elif word.startswith("--"):
                assert word.partition("=")[0] in options, f"{line}: {word}"
