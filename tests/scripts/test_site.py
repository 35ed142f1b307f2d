"""The site: links out of docs/, pages of the API, docstrings as Markdown, and the look at the result."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from helpers.pages import ROOT, all_pages
from helpers.scripts import load_file

SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    return load_file(SCRIPTS / "site_hooks.py")


@pytest.fixture(scope="module")
def check() -> ModuleType:
    return load_file(SCRIPTS / "check_site.py")


# ------------------------------------------------------------------ what the site is made of


@pytest.mark.parametrize(
    ("link", "without", "within"),
    [
        ("[a](scale.md#the-scale)", "[a](scale.md#the-scale)", "[a](scale.md#the-scale)"),
        ("[a](https://example.org)", "[a](https://example.org)", "[a](https://example.org)"),
        ("![a](results/demo/memory.png)",) * 3,
        ("[the examples](../examples)", "the examples (`examples`)", "[the examples](https://r/blob/HEAD/examples)"),
        ("[`examples`](../examples)", "`examples`", "[`examples`](https://r/blob/HEAD/examples)"),
        ("[files](results/reliability)", "files (`docs/results/reliability`)",
         "[files](https://r/blob/HEAD/docs/results/reliability)"),
    ],
)  # fmt: skip
def test_links_out_of_the_site(hooks: ModuleType, link: str, without: str, within: str) -> None:
    assert hooks.without_links_out(link, "reliability.md", "") == without
    assert hooks.without_links_out(link, "reliability.md", "https://r/") == within


def test_links_of_a_page_at_the_root(hooks: ModuleType) -> None:
    text = (
        "[a](docs/scaling.md#figures), [b](README.md), [c](https://example.org), [d](#here), ![e](docs/e.png)"
    )
    want = "[a](scaling.md#figures), [b](../README.md), [c](https://example.org), [d](#here), ![e](e.png)"
    assert hooks.seen_from_docs(text) == want
    pages = dict(hooks.made_pages())
    assert "](docs/" not in pages["changelog.md"]


def test_a_link_to_nothing_is_refused(hooks: ModuleType) -> None:
    with pytest.raises(FileNotFoundError, match=r"docs/a\.md links to \.\./nothing"):
        hooks.without_links_out("[a](../nothing)", "a.md", "")


def test_everything_public_has_its_place(hooks: ModuleType) -> None:
    for module, names in hooks.MODULES.items():
        made = hooks.api_page(module)
        if names is not None:
            continue
        public = importlib.import_module(module)
        second = {n for n in public.__all__ if getattr(getattr(public, n), "__name__", n) != n}
        assert set(hooks.public(module)) == set(public.__all__) - second
        for name in hooks.public(module):
            assert f"::: {module}.{name}\n" in made


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    for page in all_pages():
        if page.startswith("docs/"):
            assert page.removeprefix("docs/") in text, page


def test_docstrings_as_markdown() -> None:
    pytest.importorskip("griffe", reason="mkdocstrings is not installed")
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    path = list(sys.path)
    docstrings = load_file(SCRIPTS / "site_docstrings.py")
    sys.path[:] = path
    text = "As :class:`flexkern.optim.MetaplasticSGD` and :func:`~torch.compile`::\n\n    x = 1\n"
    said = "As [`flexkern.optim.MetaplasticSGD`][flexkern.optim.MetaplasticSGD] and `compile`:\n\n    x = 1\n"
    assert docstrings.as_markdown(text) == said


# ------------------------------------------------------------------ the look at it

HEAD = '<!doctype html><meta name="viewport" content="width=device-width">'
PAGES = {
    "index.html": '<h1 id="top">A</h1><a href="b.html#there">b</a><a href="folder/">c</a>',
    "b.html": '<p id="there">B</p><a href="index.html#not">x</a><a href="no.html">y</a><img src="p.svg">',
    "folder/index.html": '<a href="../index.html#top">up</a><a href="https://example.org/z">z</a>',
    "wide.html": "<pre style='width: 600px'>wide</pre>",
    "scrolls.html": "<div style='overflow-x: auto'><pre style='width: 600px'>wide</pre></div>",
    "broken.html": "<img src='b.html' alt='no picture'>",
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name, body in PAGES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEAD + body)
    (tmp_path / "p.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='5' height='5'/>")
    return tmp_path


def test_faults_of_files(check: ModuleType, site: Path) -> None:
    assert check.faults_of_files(site) == [
        "b.html: picture p.svg has no alternative text",
        "b.html: index.html#not names a place that there is not",
        "b.html: no.html leads nowhere",
    ]


@pytest.mark.slow
def test_faults_on_a_phone(check: ModuleType, site: Path) -> None:
    browser = check.find_browser()
    if browser is None:
        pytest.skip("there is no Chromium here")
    faults = check.faults_on_a_phone(site, browser)
    assert len(faults) == 2, faults
    assert any(f.startswith("wide.html: is 6") and "<pre" in f for f in faults), faults
    assert any(f.startswith("broken.html: picture ") for f in faults), faults


def test_without_a_browser(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "no-such-browser")
    assert check.find_browser() is None
