"""What it costs to change this house, counted in the repository as it is.

    python scripts/house.py            a table; exit code 1 if a count is over its limit
    python scripts/house.py --files    and the files behind each count

The limits are those of docs/design.md, How to add. Needs nothing but git and Python.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What counts as the house: tests, pages and what is run from a checkout only do not.
HOUSE = ("flexkern/", "csrc/", "triton_kernels/", "build_tools/", "CMakeLists.txt", "setup.py")
CODE = (".py", ".h", ".cpp", ".cu", ".cuh")
# Imports run from left to right only.
ORDER = (
    ("cli",), ("runs",), ("learners",), ("integrations",), ("optim",), ("nn",),
    ("features", "metrics", "backbones", "configs"), ("streams",),
    ("ops",), ("triton_kernels",), ("reference",), ("backends",), ("spec", "fields"),
)  # fmt: skip
# The way of a weight below Python: each file, and what of the next it calls or includes.
NATIVE_JOURNEY = (
    ("csrc/bindings/metaplastic.cpp", "FLEXKERN_BEST(step<Rule>)"),
    ("csrc/cpu/kernels/metaplastic.cpp", "chunk.h"),
    ("csrc/cpu/kernels/chunk.h", "take_step"),
    ("csrc/include/flexkern/update.h", "direction<kHas>"),
    ("csrc/include/flexkern/rules.h", ""),
)
# Modules that may share a name, because they mean the same in each place.
SAME_MEANING = re.compile(
    r"__init__|__main__|base|joint|run|records|checks|null|rules|tables|pictures|figures|data|"
    r"metaplastic|displacement|synapse|linear|field|mask|adapter|prototype|layers|"  # families, on each floor
    r"plan"  # of a kind of run
)


@dataclass
class Count:
    """One row: what was counted, how much there is, and what there may be."""

    what: str
    value: int
    limit: int
    files: list[str] = field(default_factory=list)

    @property
    def is_kept(self) -> bool:
        """Whether it is within its limit."""
        return self.value <= self.limit


def tracked() -> list[str]:
    """Paths of all files under version control or about to be, as git has them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted(path for path in set(lines) if (ROOT / path).exists())


def house(paths: list[str]) -> list[str]:
    """Those of the house's code."""
    return [p for p in paths if p.startswith(HOUSE) and p.endswith((*CODE, ".txt", ".toml"))]


def text(path: str) -> str:
    """The contents of a file."""
    return (ROOT / path).read_text()


# ------------------------------------------------------------------ what an addition touches


def operator_files(paths: list[str]) -> Count:
    """What the template operator `null` has on four backends; a public one is exported in one file more."""
    mention = re.compile(r"\bops\.null\b|\bNull\b\(|\bflexkern::null\b|\bNULL = |\bnull_kernel\b|struct Null\b")
    files = [p for p in house(paths) if Path(p).stem == "null" or mention.search(text(p))]
    exported = [*files, "flexkern/ops/__init__.py"]
    return Count("files of a new operator on four backends", len(exported), 9, exported)


def rule_files(paths: list[str]) -> Count:
    """Where the rule SGD is plugged in: what a second rule adds to, or has of its own."""
    plug = re.compile(
        r"\bSgdRule\b|\bSgd\b|\bmetaplastic_sgd_\b.*\bdef\b|\bdef (metaplastic_sgd_|sgd)\b|\bSGD = |"
        r"\bimport MetaplasticSGD\b|\bclass MetaplasticSGD\b"
    )
    rooms = ("flexkern/spec/", "flexkern/ops/", "flexkern/reference/", "flexkern/optim/", "csrc/", "triton")
    files = [p for p in house(paths) if p.startswith(rooms) and plug.search(without_docs(p))]
    return Count("files of a new rule of the optimizer", len(files), 8, files)


def without_docs(path: str) -> str:
    """A file without its docstrings and comments, which may name what they like."""
    source = text(path)
    if path.endswith(".py"):
        source = re.sub(r'"""(?:.|\n)*?"""', "", source)
        return re.sub(r"#.*", "", source)
    return re.sub(r"//.*", "", source)


def kind_files(paths: list[str]) -> Count:
    """Where the kind of field with a table of its own is: one file more than a kind by formula."""
    name = re.compile(r"\bNORMAL_TABLE\b|\bnormal_table\b|\bkNormalTable\b")
    files = [p for p in house(paths) if Path(p).stem == "normal_table" or name.search(without_docs(p))]
    return Count("files of a new kind of field", len(files), 9, files)


def method_files(paths: list[str]) -> Count:
    """What a learner's method has: its file, and the import that registers it."""
    files = [
        p for p in house(paths)
        if p.startswith("flexkern/learners/") and re.search(r"\bSimpleCIL\b", without_docs(p))
        and not p.endswith("old_records.py")  # reads files of versions that a new method never had
    ]  # fmt: skip
    return Count("files of a new method of a learner", len(files), 2, files)


def integration_files(paths: list[str]) -> Count:
    """What one framework's integration has in the package: its file, and nothing that registers it."""
    files = [p for p in house(paths) if p.endswith(".py") and re.search(r"\bavalanche\b", without_docs(p))]
    return Count("files of a new integration", len(files), 1, files)


# ------------------------------------------------------------------ the journey of a weight


def journey() -> Count:
    """The files between optimizer.step() and the arithmetic: Python's, seen on the stack at the moment when the
    compiled operator is called, then those of C++, each of which must call the next."""
    for (path, calls), (following, _) in itertools.pairwise(NATIVE_JOURNEY):
        if calls not in text(path):
            raise SystemExit(f"{path} no longer leads to {following} by {calls}: mend NATIVE_JOURNEY")
    files = [*_python_journey(), *(path for path, _ in NATIVE_JOURNEY)]
    return Count("files from optimizer.step() to a weight's arithmetic", len(files), 8, files)


_STEP = """
import traceback, torch, flexkern
from flexkern.ops import operator
from flexkern.ops.metaplastic import SGD
weight = torch.nn.Parameter(torch.ones(4, 4))
optimizer = flexkern.optim.MetaplasticSGD([weight], lr=0.1, scale=1.0, gate="step")
weight.grad = torch.ones(4, 4)
optimizer.step()
seen = []
def call(*arguments):
    seen.extend(frame.filename for frame in traceback.extract_stack())
SGD.compiled = SGD._calls["reference"] = SGD._calls["cpu"] = call
optimizer.step()
print("\\n".join(dict.fromkeys(seen)))
"""


def _python_journey() -> list[str]:
    try:
        lines = subprocess.run(
            [sys.executable, "-c", _STEP], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.splitlines()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the journey needs flexkern installed editable here:\n{error.stderr}") from None
    inside = [line for line in lines if line.startswith(str(ROOT / "flexkern"))]
    return [str(Path(line).relative_to(ROOT)) for line in inside]


def rooms_of_journey(files: list[str]) -> Count:
    """How often the journey comes back to a room that it has left, at most."""
    visits: dict[str, int] = defaultdict(int)
    last = ""
    for path in files:
        room = str(Path(path).parent)
        visits[room] += room != last
        last = room
    return Count("visits to one room on that way", max(visits.values()), 2)


# ------------------------------------------------------------------ imports


def imports(paths: list[str]) -> Iterator[tuple[str, str, str]]:
    """(module that imports, module, name), for all Python of the house and the benchmarks."""
    for path in paths:
        if not path.endswith(".py") or not path.startswith(("flexkern/", "triton_kernels/", "benchmarks/")):
            continue
        for node in ast.walk(ast.parse(text(path))):
            if isinstance(node, ast.ImportFrom):
                source = node.module or ""
                if node.level:
                    package = module_of(path).split(".")
                    package = package if path.endswith("__init__.py") else package[:-1]
                    source = ".".join(
                        [*package[: len(package) - node.level + 1], *([source] if source else [])]
                    )
                for alias in node.names:
                    yield module_of(path), source, alias.name
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield module_of(path), alias.name, ""


def module_of(path: str) -> str:
    """A file's module, as it is installed."""
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"flexkern.{name}" if name.startswith(("triton_kernels", "benchmarks")) else name


def import_graph(paths: list[str]) -> dict[str, set[str]]:
    """Modules to the modules that they import."""
    known = {module_of(p) for p in paths if p.endswith(".py")}
    graph: dict[str, set[str]] = {module: set() for module in known}
    for importer, source, name in imports(paths):
        target = f"{source}.{name}" if f"{source}.{name}" in known else source
        if target in known and target != importer:
            graph[importer].add(target)
    return graph


def circles(graph: dict[str, set[str]]) -> Count:
    """Groups of modules that import each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            group = []
            while True:
                group.append(stack.pop())
                if group[-1] == module:
                    break
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return Count("circles of imports", len(found), 0, [" <-> ".join(group) for group in found])


def room_of(module: str) -> str:
    """The room of a module: the first name below flexkern."""
    return module.split(".")[1] if "." in module else "flexkern"


def upward(graph: dict[str, set[str]]) -> Count:
    """Imports from a lower room of a higher one."""
    height = {room: i for i, rooms in enumerate(ORDER) for room in rooms}
    wrong = [
        f"{module} imports {target}"
        for module, targets in sorted(graph.items())
        for target in sorted(targets)
        if room_of(module) in height and height.get(room_of(target), 99) < height[room_of(module)]
    ]
    return Count("imports that run upward", len(wrong), 0, wrong)


def underscored(paths: list[str]) -> Count:
    """Names with a leading underscore that another package imports."""
    wrong = []
    for importer, source, name in imports(paths):
        if not source.startswith("flexkern") or importer.startswith(source.rpartition(".")[0] + "."):
            continue
        parts = [*source.split("."), name]
        private = [part for part in parts if part.startswith("_") and not part.startswith("__")]
        if private and private != ["_core"]:
            wrong.append(f"{importer}: from {source} import {name}")
    return Count("underscored names imported across packages", len(wrong), 0, wrong)


# ------------------------------------------------------------------ names, sizes, the wheel


def names(paths: list[str]) -> Count:
    """Names of modules that stand in several rooms, and so might mean several things."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if path.startswith(("flexkern/", "triton_kernels/")) and path.endswith(".py"):
            places[Path(path).stem].append(path)
    twice = {
        stem: where for stem, where in places.items()
        if len(where) > 1 and not SAME_MEANING.fullmatch(stem)
    }  # fmt: skip
    return Count(
        "module names with two meanings", len(twice), 0,
        [f"{stem}: {', '.join(where)}" for stem, where in sorted(twice.items())],
    )  # fmt: skip


def largest(paths: list[str]) -> Count:
    """Lines of the largest file of code, tests included."""
    sizes = sorted((len(text(p).splitlines()), p) for p in paths if p.endswith(CODE))
    return Count("lines of the largest file", sizes[-1][0], 450, [f"{n} {p}" for n, p in sizes[-5:]])


def wheel(paths: list[str]) -> Count:
    """Files of the wheel that no user needs: tests and studies; setup.py says which packages go in."""
    inside = [p for p in paths if p.startswith(("flexkern/", "triton_kernels/", "benchmarks/"))]
    wrong = [
        p for p in inside
        if p.endswith(".py") and re.search(r"(^|/)(tests?|studies)/|(^|/)(test_\w+|conftest)\.py$", p)
        and (ROOT / p).parent.joinpath("__init__.py").exists()
    ]  # fmt: skip
    return Count("tests and studies in the wheel", len(wrong), 0, wrong)


def counts() -> list[Count]:
    """All rows."""
    paths = tracked()
    graph = import_graph(paths)
    way = journey()
    return [
        operator_files(paths), rule_files(paths), kind_files(paths), method_files(paths),
        integration_files(paths), way,
        rooms_of_journey(way.files), circles(graph), upward(graph), underscored(paths), names(paths),
        wheel(paths), largest(paths),
    ]  # fmt: skip


def main() -> int:
    """Prints the table; 1 if a count is over its limit."""
    parser = argparse.ArgumentParser(description="What it costs to change this house.")
    parser.add_argument("--files", action="store_true", help="the files behind each count, too")
    shows_files = parser.parse_args().files
    rows = counts()
    for row in rows:
        print(f"{row.what:54} {row.value:5}   at most {row.limit}{'' if row.is_kept else '   OVER'}")
        for path in row.files if shows_files or not row.is_kept else ():
            print(f"    {path}")
    return 0 if all(row.is_kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
