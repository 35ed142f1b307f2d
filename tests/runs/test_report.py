"""``flexkern report``: one page of any results, that asks for nothing and in which nothing runs."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flexkern.runs.incremental.config import MethodConfig
from flexkern.runs.incremental.run import run
from helpers.commands import invoke
from helpers.incremental import LEARNERS, configuration
from helpers.pages import ROOT
from helpers.scripts import load_file

pytest.importorskip("rich")

RESULTS = ROOT / "docs" / "results"
EVIL = "<script>alert('x')</script> & \"q\" [bold]b[/bold] \x07"
VOID = ("img", "meta", "link")


class Read(HTMLParser):
    """Tags, attributes and texts; whether each element ends where it should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check_page(text: str) -> Read:
    """Nothing is fetched, nothing runs, every picture has words."""
    read = Read(text)
    assert not {"script", "iframe", "object", "form", "base"} & set(read.tags)
    for tag, name, value in read.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href"):
            assert value.startswith(("data:", "#")), (tag, value)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert sum(name == "alt" and len(value) > 30 for tag, name, value in read.attributes) == read.tags.count(
        "img"
    )
    assert ("meta", "name", "viewport") in read.attributes
    assert "default-src 'none'" in str(read.attributes)
    return read


def reported(folder: Path, *given: Path) -> tuple[Any, str]:
    page = folder / "page.html"
    said = invoke("report", *given, "--out", page)
    return said, page.read_text(encoding="utf-8") if page.exists() else ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(configuration(folder, seeds=(3, 4), title="A title"), learners=LEARNERS)
    return folder


def test_a_class_incremental_run(whole: Path, tmp_path: Path) -> None:
    said, text = reported(tmp_path, whole)
    assert said.exit_code == 0, said.output
    assert "1 result" in said.output
    read = check_page(text)
    assert read.tags.count("img") == 1  # drawn for the page: the run had no picture
    words = " ".join(read.texts)
    summary = json.loads((whole / "results.json").read_text())["summary"]["All rows"]
    for part in (
        "A title", "ended, seeds 3,4", f"{100 * summary['last']['mean']:.2f}", "Local rows, a paper",
        "each task of All rows, seed 4", "stream.increment", "torch", "backbone small (there vit)",
    ):  # fmt: skip
        assert part in words, part
    (alt,) = (value for _, name, value in read.attributes if name == "alt")
    assert f"All rows {100 * summary['last']['mean']:.1f} %" in alt


@pytest.mark.parametrize(
    ("places", "parts"),
    [
        (["demo"], ["Accuracy after 10 items", "Digits B0-Inc2", "A reserve comes alive", "On this page"]),
        (["metaplasticity/serial-position"], ["What is left of each item", "Claims", "hybrid", "seeds 0-9"]),
        (["metaplasticity"], ["flexkern run poisoning", "flexkern run rivals"]),
        (["metaplasticity/scale-study"], ["ended"]),  # its table is with the study
    ],
)
def test_committed_results(places: list[str], parts: list[str], tmp_path: Path) -> None:
    said, text = reported(tmp_path, *(RESULTS / place for place in places))
    assert said.exit_code == 0, said.output
    words = " ".join(check_page(text).texts)
    for part in parts:
        assert part in words, part


def test_a_bench(tmp_path: Path) -> None:
    path = sorted((ROOT / "benchmarks" / "results").glob("*.json"))[-1]
    said, text = reported(tmp_path, path)
    assert said.exit_code == 0, said.output
    words = " ".join(check_page(text).texts)
    row = next(row for row in json.loads(path.read_text())["rows"] if "ours" in row)
    for part in (row["title"], row["peers"][0]["name"], "versions.torch", "cpu"):
        assert part in words


FIT = {
    "format": 1, "configuration": {"seed": 0, "epochs": 2}, "learner": {"method": "ease", "first": 0},
    "planned": [[EVIL, "b"]], "left_out": [EVIL], "images": {"train": 4, "test": 2},
    "skipped": [[EVIL, "why"]], "finished": True,
    "tasks": [{
        "name": EVIL, "classes": [EVIL, "b"], "images": {"train": 4, "test": 2}, "earlier": None,
        "accuracies": [0.5], "seen": 0.5, "average": 0.5, "losses": [1.0], "learn_seconds": 1.0,
        "test_seconds": 1.0,
    }],
}  # fmt: skip


def test_names_are_harmless(tmp_path: Path) -> None:
    """Of classes, methods, titles and folders."""
    folder = tmp_path / "<img src=x onerror=y>"
    methods = (MethodConfig(EVIL.replace("\x07", ""), "local"),)
    run(configuration(folder, methods=methods, title=EVIL.replace("\x07", "")), learners=LEARNERS)
    (tmp_path / "fit.json").write_text(json.dumps(FIT))
    said, text = reported(tmp_path, folder, tmp_path / "fit.json")
    assert said.exit_code == 0, said.output
    words = " ".join(check_page(text).texts)
    assert words.count("<script>alert('x')</script> & \"q\" [bold]b[/bold]") > 4
    assert "<script" not in text
    assert "\x07" not in text


@pytest.mark.parametrize("name", ["model.safetensors", "model"])
def test_a_fits_model_is_read_too(name: str, tmp_path: Path) -> None:
    import torch

    from flexkern.learners import checkpoint

    path = tmp_path / name
    checkpoint.write(path, {"weight": torch.zeros(1)}, {"method": "ease", "notes": {"fit": FIT}})
    said, text = reported(tmp_path, path)
    assert said.exit_code == 0, said.output
    assert "4 images to learn, 2 to test." in text


def test_a_run_that_has_not_ended(tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        if event.kind == "task":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(configuration(tmp_path / "run"), learners=LEARNERS, observe=stop)
    said, text = reported(tmp_path, tmp_path / "run")
    assert said.exit_code == 0, said.output
    assert "not ended: 1 task learned so far" in " ".join(check_page(text).texts)


ODD = {
    "missing": "there is nothing at",
    "empty folder": "has no results.json",
    "half.json": "is no whole JSON",
    "deep.json": "is no whole JSON",
    "bytes": "is no whole JSON",
    "nothing.json": "is empty",
    "list.json": "holds no results that flexkern knows",
    "other.json": "holds no results that flexkern knows",
    "lacking.json": "is no whole results file of its kind (class-incremental; KeyError",
    "types.json": "is no whole results file of its kind",
    "no.safetensors": "holds no learner",
    "folder of folder": "is a folder, where a file is needed",
}


def test_a_run_is_there_once_and_two_of_one_title_are_told_apart(whole: Path, tmp_path: Path) -> None:
    one, other = (shutil.copytree(whole, tmp_path / "several" / name) for name in ("one", "other"))
    said, text = reported(tmp_path, one, tmp_path / "several", one / "results.json")
    assert said.output.rstrip().endswith(": 2 results")
    for folder in (one, other):
        assert any(f"({folder})" in title for title in Read(text).texts)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    for name, text in {
        "half.json": '{"experiment": "class-inc', "deep.json": "[" * 100_000, "bytes": "\x00\xff",
        "nothing.json": "", "list.json": "[1]", "other.json": '{"experiment": 3, "configuration": {}}',
        "lacking.json": '{"experiment": "class-incremental", "format": 1, "configuration": {}}',
        "types.json": '{"experiment": "class-incremental", "format": 1, "configuration": {"data": 3}}',
        "no.safetensors": "no tensors",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "folder of folder" / "results.json").mkdir(parents=True)
    return tmp_path


def test_one_of_several_results_may_be_odd(odd: Path, whole: Path) -> None:
    (odd / "several").mkdir()
    (odd / "several" / "good").symlink_to(whole)
    (odd / "several" / "half").mkdir()
    (odd / "several" / "half" / "results.json").write_text('{"experiment": "cla')
    said, text = reported(odd, odd / "several")
    assert said.exit_code == 1
    assert "half/results.json' is no whole JSON" in "".join(said.output.splitlines())
    assert "A title" in " ".join(check_page(text).texts)


def test_a_folder_of_files_has_those_that_are_results(tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text(json.dumps(FIT))
    (tmp_path / "other.json").write_text("{}")
    said, text = reported(tmp_path, tmp_path)
    assert said.exit_code == 0, said.output
    assert "4 images to learn, 2 to test." in text


@pytest.mark.parametrize("name", ODD)
def test_odd_places_get_a_sentence(name: str, odd: Path) -> None:
    said, text = reported(odd, odd / name)
    assert said.exit_code == 1
    assert ODD[name] in " ".join(said.output.split())
    assert text == ""
    assert not (odd / "page.html").exists()


def test_what_is_left_out_is_named_on_the_page(odd: Path, whole: Path) -> None:
    said, text = reported(odd, odd / "half.json", whole)
    assert said.exit_code == 1
    assert "1 result" in said.output
    assert "Not on this page: &#x27;" in text
    check_page(text)


def test_a_page_that_cannot_be_written_is_refused_first(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = invoke("report", whole, "--out", tmp_path / "file" / "page.html")
    assert said.exit_code == 1
    assert "is no folder" in " ".join(said.output.split())


def test_folders_on_the_way_are_made(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("report", whole).exit_code == 0
    assert re.search("A title", Path("out/report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_on_a_phone(tmp_path: Path) -> None:
    check = load_file(ROOT / "scripts" / "check_site.py")
    browser = check.find_browser()
    if browser is None:
        pytest.skip("there is no Chromium here")
    fit = json.loads(json.dumps(FIT))
    fit["tasks"][0]["classes"] = fit["planned"][0] = ["x" * 300, "y " * 300]
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    bench = sorted((ROOT / "benchmarks" / "results").glob("*.json"))[-1]
    site = tmp_path / "site"
    said = invoke(
        "report",
        RESULTS / "demo",
        RESULTS / "metaplasticity",
        bench,
        tmp_path / "fit.json",
        "--out",
        site / "index.html",
    )
    assert said.exit_code == 0, said.output
    text = (site / "index.html").read_text(encoding="utf-8")
    (site / "open.html").write_text(text.replace("<details>", "<details open>"), encoding="utf-8")
    assert check.faults_of_files(site) == []
    assert check.faults_on_a_phone(site, browser) == []
    assert os.listdir(site)
