"""Makes the files of a new operator from the template `null`, under a new name (docs/contributing.md).

    python scripts/new_operator.py NAME
    python scripts/new_operator.py NAME --backends cpu     without CUDA C++ and Triton

Ten files: the declaration, the public function, plain PyTorch, the formula, the CPU kernel, the bindings, the
CUDA kernel, the Triton kernel, and the test. They compile and pass as they are: then change what they compute.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = {
    "spec": "flexkern/spec/null.py",
    "ops": "flexkern/ops/null.py",
    "reference": "flexkern/reference/null.py",
    "formula": "csrc/include/flexkern/null.h",
    "cpu": "csrc/cpu/kernels/null.cpp",
    "bindings": "csrc/bindings/null.cpp",
    "cuda": "csrc/cuda/null.cu",
    "triton": "triton_kernels/null.py",
    "test": "tests/ops/test_null.py",
}
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*_?")


def renamed(text: str, name: str) -> str:
    """The template's text under another name, in each of the three ways that it is written."""
    words = {"null": name, "Null": "".join(part.capitalize() for part in name.split("_")), "NULL": name.upper()}
    for word, new in words.items():
        text = re.sub(rf"(?<![A-Za-z]){word}(?!ptr|[A-Za-z])", new, text)
    return text


BACKENDS = ("cpu", "cuda", "triton")


def make(name: str, root: Path = ROOT, backends: tuple[str, ...] = ("cuda", "triton")) -> list[Path]:
    """Writes the files; returns them.

    Args:
        name: of the operator and its family: small letters, digits and underscores.
        root: of the checkout.
        backends: those that get a kernel beside the CPU.

    Raises:
        ValueError: if the name is none, or a backend.
        FileExistsError: if there is such a file; nothing has been written then.
    """
    if not _NAME.fullmatch(name) or name == "null":
        raise ValueError(f"name must be of small letters, digits and single underscores, got {name!r}")
    unknown = [backend for backend in backends if backend not in BACKENDS]
    if unknown:
        raise ValueError(f"backends must be of {', '.join(BACKENDS)}, got {', '.join(map(repr, unknown))}")
    kinds = [kind for kind in TEMPLATE if kind not in ("cuda", "triton") or kind in backends]
    made = {root / TEMPLATE[kind].replace("null", name): root / TEMPLATE[kind] for kind in kinds}
    there = [str(path) for path in made if path.exists()]
    if there:
        raise FileExistsError(f"{', '.join(there)} is there already; choose another name")
    lacks = {kind: "plain PyTorch serves instead" for kind in ("cuda", "triton") if kind not in backends}
    for path, template in made.items():
        text = renamed(template.read_text(encoding="utf-8"), name)
        if lacks and template.match("spec/null.py"):
            text = text.replace('returns="Tensor")', f'returns="Tensor", lacks={lacks!r})'.replace("'", '"'))
        path.write_text(text, encoding="utf-8")
    return list(made)


def main() -> int:
    """Writes the files and says what comes next."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="of the operator")
    parser.add_argument("--backends", default=",".join(BACKENDS), help="separated by commas")
    given = parser.parse_args()
    try:
        made = make(given.name, backends=tuple(given.backends.split(",")))
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    for path in made:
        print(path.relative_to(ROOT))
    print(
        "\nNow change what they compute; then `make test` compiles and tries it. To make it public: its name in"
    )
    print("flexkern/ops/__init__.py, its equation in scripts/tables.py, and `python scripts/tables.py`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
