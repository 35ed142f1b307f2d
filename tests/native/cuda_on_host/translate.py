"""CUDA source as C++ for the emulator: launches become calls, and arguments in constant memory references.

python translate.py FROM.cu TO.cpp
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["kernels", "translate"]

_KERNEL = re.compile(r"\w+\s*(?:<[\w:, ]*>)?\s*$")
_CONSTANT = re.compile(r"const __grid_constant__ (\w+(?:<[^<>]*>)?) (\w+)")


def translate(text: str) -> str:
    """The same code, in which ``kernel<<<grid, block, 0, stream>>>(...)`` is a call of ``emulator::launch``.

    Raises:
        ValueError: for a launch that is not of this form.
    """
    # Fibers cost much more than calls.
    together = "true" if re.search(r"_sync\(|__syncthreads\(", text) else "false"
    text = _CONSTANT.sub(r"const \1& \2", text)  # the emulator would copy them for each thread
    while (at := text.find("<<<")) >= 0:
        kernel = _KERNEL.search(text, 0, at)
        if kernel is None:
            raise ValueError(f"no kernel's name before <<< in {text[max(at - 60, 0) : at + 20]!r}")
        end = text.index(">>>", at)
        configuration = _split(text[at + 3 : end])
        if len(configuration) != 4 or configuration[2] != "0":
            raise ValueError(f"a launch needs grid, block, 0 and a stream, got {text[at : end + 3]!r}")
        begin = text.index("(", end)
        last = _closing(text, begin)
        call = f"{kernel.group().strip()}{text[begin : last + 1]}"
        name = _kernel_of(re.split(r"\W", call)[0], text[:at])
        grid, block = configuration[:2]
        launch = (
            f'emulator::launch("{name}", __PRETTY_FUNCTION__, {grid}, {block}, {together}, [&] {{ {call}; }})'
        )
        text = text[: kernel.start()] + launch + text[last + 1 :]
    return text


def kernels(text: str) -> list[str]:
    """The names of the kernels that are defined in CUDA source."""
    return re.findall(r"__global__\s+void\s+(\w+)\s*\(", re.sub(r"__launch_bounds__\([^()]*\)\s*", "", text))


def _kernel_of(name: str, before: str) -> str:
    """The kernel that is launched by this name: itself, or what a constant of this name stands for."""
    constants = re.findall(rf"constexpr auto {name}\s*=\s*&?(\w+)", before)
    return constants[-1] if constants else name


def _closing(text: str, begin: int) -> int:
    """Where the bracket at ``begin`` closes."""
    depth = 0
    for i in range(begin, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"a bracket does not close: {text[begin : begin + 60]!r}")


def _split(text: str) -> list[str]:
    """At the commas that are in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "(<") - (letter in ")>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(f'#line 1 "{source}"\n{translate(source.read_text())}')
