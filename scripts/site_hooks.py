"""What MkDocs is told beside mkdocs.yml: pages that are made when the site is built, and links out of docs/.

The pages of the API name what each module's ``__all__`` names; mkdocstrings makes them of the docstrings.
CHANGELOG.md lies where people look for it, at the root, and is shown as a page.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# Modules with a page, each with what of it is public: its own ``__all__``, or these.
MODULES: dict[str, tuple[str, ...] | None] = {
    "flexkern": ("BackendError", "Field", "Purpose", "backends", "use_backend"),
    "flexkern.optim": None,
    "flexkern.nn": None,
    "flexkern.learners": None,
    "flexkern.streams": None,
    "flexkern.features": None,
    "flexkern.metrics": None,
    "flexkern.ops": None,
    "flexkern.integrations": (
        "transformers.ConsolidateCallback", "lightning.ConsolidateCallback", "avalanche.ConsolidatePlugin",
    ),
}  # fmt: skip
# What classes show of what they inherit; of others it stands with the class that they inherit it from.
_OF_OPTIMIZERS = "[step, consolidate, scales, exact, add_param_group, state_dict, load_state_dict]"
INHERITED = {
    "flexkern.optim.Metaplastic": _OF_OPTIMIZERS,
    "flexkern.optim.MetaplasticAdamW": _OF_OPTIMIZERS,
    "flexkern.optim.MetaplasticSGD": _OF_OPTIMIZERS,
    "flexkern.learners.Learner": "true",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#|/)([^)\s#]*)(#[^)\s]*)?\)")


def source_of(module: str) -> Path:
    """The file of a module of flexkern."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def public(module: str) -> list[str]:
    """What a module with a page has to offer, in the order of its ``__all__``, without second names."""
    named = MODULES[module]
    if named is not None:
        return list(named)
    body = ast.parse(source_of(module).read_text(encoding="utf-8")).body
    assigned = {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}
    second = {
        name.strip() for names, value in assigned.items() if not names.isupper() and names != "__all__"
        for name in names.strip("()").split(",") if isinstance(value, (ast.Name, ast.Tuple))
    }  # fmt: skip
    return [name for name in ast.literal_eval(assigned["__all__"]) if name not in second]


def api_page(module: str) -> str:
    """The page of a module, in the words of mkdocstrings."""
    tree = ast.parse(source_of(module).read_text(encoding="utf-8"))
    about = (ast.get_docstring(tree) or "").partition("\n\n")[0]
    parts = [f"# {module}", about]
    for name in public(module):
        inherited = INHERITED.get(f"{module}.{name}")
        options = f"\n    options: {{inherited_members: {inherited}}}" if inherited else ""
        parts.append(f"::: {module}.{name}{options}")
    return "\n\n".join(parts) + "\n"


def made_pages() -> Iterator[tuple[str, str]]:
    """Path in the site and text of each page that is not in docs/."""
    for module in MODULES:
        yield f"api/{module.rpartition('.')[2]}.md", api_page(module)
    yield "changelog.md", seen_from_docs((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def seen_from_docs(text: str) -> str:
    """The Markdown of a page at the root, its links as a page in docs/ has them."""

    def mend(found: re.Match[str]) -> str:
        picture, words, target, anchor = found.groups()
        path = posixpath.relpath(target, "docs") if target else ""
        return f"{picture}[{words}]({path}{anchor or ''})"

    return _LINK.sub(mend, text)


def without_links_out(text: str, page: str, repository: str) -> str:
    """The Markdown of a page whose links to folders, and to files outside of docs/, lead to the repository.

    Args:
        page: its path in docs/.
        repository: its address; empty: the path is said, without a link.

    Raises:
        FileNotFoundError: if a link leads nowhere.
    """

    def mend(found: re.Match[str]) -> str:
        picture, words, target, anchor = found.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        is_page = path.startswith("docs/") and not (ROOT / path).is_dir()
        if picture or is_page:
            return found.group()
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"docs/{page} links to {target}, which is not there")
        if repository:
            return f"[{words}]({repository.rstrip('/')}/blob/HEAD/{path}{anchor or ''})"
        return words if words.strip("`") == path else f"{words} (`{path}`)"

    return _LINK.sub(mend, text)


# ------------------------------------------------------------------ what MkDocs calls


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    for path, text in made_pages():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Mends the links of a page."""
    return without_links_out(markdown, page.file.src_uri, config.repo_url or "")
