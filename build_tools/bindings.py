"""Writes the C++ headers that are made from flexkern/spec: the operators' arguments, and constants.

    python build_tools/bindings.py FOLDER

CMake runs it when it configures; FOLDER/flexkern then has operators.h and constants.h, which are meant to be
read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "flexkern"))  # not the package, which needs torch

import spec  # noqa: E402
from spec import Argument, Spec, constants, normal_table  # noqa: E402
from spec.argument import single  # noqa: E402
from spec.kinds import Kind  # noqa: E402

LINE = 112
# Schema type to: a parameter that must be given, one that may be missing.
_TYPES = {
    "Tensor": ("Stable", "std::optional<Stable>"),
    "Tensor[]": ("std::vector<Stable>", "std::optional<std::vector<Stable>>"),
    "int[]": ("std::vector<int64_t>", "std::optional<std::vector<int64_t>>"),
    "float[]": ("std::vector<double>", "std::optional<std::vector<double>>"),
    "int": ("int64_t", "int64_t"),
    "float": ("double", "double"),
    "bool": ("bool", "bool"),
}
_SCALARS = {
    "float32": "Float", "float64": "Double", "bfloat16": "BFloat16", "float16": "Half", "int32": "Int",
    "int64": "Long", "bool": "Bool",
}  # fmt: skip
# And to a struct's member, where it is another one: tensor.h has a class for what is given.
_MEMBERS = {
    "Stable": "Tensor",
    "std::optional<Stable>": "std::optional<Tensor>",
    "std::vector<Stable>": "Tensors",
}
_RETURNS = {"()": "void", "Tensor": "Stable"}


def main(folder: Path) -> None:
    """Writes both headers, where they are not there with these contents already."""
    target = folder / "flexkern"
    target.mkdir(parents=True, exist_ok=True)
    for name, text in (("operators.h", operators()), ("constants.h", numbers())):
        path = target / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


# ------------------------------------------------------------------ constants.h


def numbers() -> str:
    """The constants of procedural fields as macros: device code cannot refer to arrays of the host."""

    def floats(values: Sequence[float]) -> str:
        return "{" + ", ".join(f"{float(value)!r}f" for value in values) + "}"

    def kinds(first: Kind) -> str:
        names = {kind: f"k{kind.name.title().replace('_', '')}" for kind in Kind if kind >= first}
        return " ".join(f"X({name}, {kind.name}, {int(kind)})" for kind, name in names.items())

    m, w = constants.PHILOX_MULTIPLIERS, constants.PHILOX_WEYL
    lines = [
        "// Written by build_tools/bindings.py from flexkern/spec: kinds.py, constants.py and normal_table.py say more.",  # noqa: E501
        "#pragma once",
        "",
        f"#define FLEXKERN_KINDS(X) {kinds(Kind.STORED)}",
        f"#define FLEXKERN_LAST_KIND {int(max(Kind))}",
        f"#define FLEXKERN_RANDOM_KINDS(X) {kinds(Kind.UNIFORM)}",
        f"#define FLEXKERN_PHILOX_ROUNDS {constants.PHILOX_ROUNDS}",
        *(f"#define FLEXKERN_PHILOX_M{i} {value:#x}u" for i, value in enumerate(m)),
        *(f"#define FLEXKERN_PHILOX_W{i} {value:#x}u" for i, value in enumerate(w)),
        f"#define FLEXKERN_SQRT_HALF_BITS {constants.SQRT_HALF_BITS:#x}",
        f"#define FLEXKERN_NORMAL_CENTRE {floats(constants.NORMAL_CENTRE)}",
        f"#define FLEXKERN_NORMAL_TAIL {floats(constants.NORMAL_TAIL)}",
        f"#define FLEXKERN_NORMAL_ROWS {len(normal_table.ROWS)}",
        f"#define FLEXKERN_NORMAL_FIRST {normal_table.FIRST}",
        f"#define FLEXKERN_NORMAL_SHIFT {normal_table.SHIFT}",
        f"#define FLEXKERN_NORMAL_TABLE {{{', '.join(map(floats, normal_table.ROWS))}}}",
    ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------ operators.h


def operators() -> str:
    """The struct of every operator's arguments, and the function that unpacks them."""
    specs = [spec.SPECS[name] for name in sorted(spec.SPECS)]
    parts = [
        "// Written by build_tools/bindings.py from flexkern/spec.\n"
        "//\n"
        "// Of each operator: a struct of its arguments, in which a list that is not given is empty, and\n"
        "// unpack::name<body>, which the dispatcher calls with the arguments one by one, and which calls body with the\n"  # noqa: E501
        "// struct; unpack::directly_name is the same for a call past the dispatcher (direct.h).\n"
        "// FLEXKERN_<FAMILY>_STEPS(X) is X(struct, operator) for the step of each rule.\n"
        "#pragma once\n\n"
        '#include "bindings/arguments.h"\n'
        '#include "flexkern/rules.h"\n\n'
        "namespace flexkern::bindings {\n"
    ]
    for s in specs:
        parts.append(_struct(s))
    parts.append("namespace unpack {\n")
    for s in specs:
        parts.append(_unpack(s, s.arguments, s.name))
        if s.one:
            parts.append(_unpack(s, [single(a) for a in s.arguments], f"{s.name}_one"))
    parts.append("}  // namespace unpack\n\n}  // namespace flexkern::bindings\n")
    families = sorted({s.family for s in specs if s.rule is not None})
    for family in families:
        steps = [s for s in specs if s.family == family and s.rule is not None]
        each = " ".join(f"X({s.record.__name__}, {s.name})" for s in steps)
        parts.append(f"#define FLEXKERN_{family.upper()}_STEPS(X) {each}\n")
    return "\n".join(parts)


def _struct(s: Spec) -> str:
    lines = [f"// {s.name}: {s.does}", f"struct {s.record.__name__} {{"]
    lines.append(f'  static constexpr const char* kName = "{s.name}";')
    if s.rule is not None:
        lines.append(f"  using Rule = {s.rule.NAME};")
        lines.append(f"  static constexpr bool kCountsSteps = {str(s.rule.COUNTS_STEPS).lower()};")
    types = [(a.name, _TYPES[a.type][_may_miss(a)]) for a in s.arguments]
    lines += [f"  {_MEMBERS.get(kind, kind)} {name};" for name, kind in types]
    if s.rule is not None:
        member = (
            "Tensors"
            if next(a for a in s.arguments if a.name in s.rule.STATES).is_list
            else "std::optional<Tensor>"
        )
        count, each = len(s.rule.STATES), ", ".join(f"&{name}" for name in s.rule.STATES)
        names = ", ".join(f'"{name}"' for name in s.rule.STATES)
        lines += [
            "  // The rule's states, in its order.",
            f"  std::array<const {member}*, {count}> states() const {{ return {{{each}}}; }}",
            f"  static constexpr const char* kStates[] = {{{names}}};",
        ]
    checks = [
        f'    check_range({a.name}, "{a.name}", {a.low!r}, {a.high!r});'
        for a in s.arguments
        if a.low is not None
    ] + [f'    check_not_lost({a.name}, "{a.name}");' for a in s.arguments if a.zero_is_special]
    if checks:
        lines += ["  void check_numbers() const {", *checks, "  }"]
    lines += [
        "  // Every tensor has the memory that it says it has.",
        "  void check_storage() const {",
        *(f'    check_memory_of({a.name}, "{a.name}");' for a in s.arguments if a.holds_tensors),
        "  }",
        "  // Tensors on GPUs are on one.",
        "  void check_devices() const {",
        "    DeviceCheck devices;",
        *(f'    devices.sees({a.name}, "{a.name}");' for a in s.arguments if a.holds_tensors),
        "  }",
    ]
    if any(a.written for a in s.arguments):
        lines += [
            "  // What is updated shares no memory with another argument.",
            "  void check_memory() const {",
        ]
        lines += ["    MemoryCheck memory;", *_memory(s), "    memory.finish();", "  }"]
        lines += [
            "  // Every tensor is of a declared dtype, also one that a call with these numbers does not read.",
            "  void check_dtypes() const {",
            *(f'    check_dtype_of({a.name}, "{a.name}", {_dtypes(a)});' for a in s.arguments if a.dtypes),
            "  }",
        ]
    return "\n".join([*lines, "};", ""])


def _may_miss(a: Argument) -> bool:
    """Whether the member is an optional: a list that is not given is empty instead."""
    return a.optional and not a.is_list


def _dtypes(a: Argument) -> str:
    """The set of the dtypes that it may have."""
    named = [f"ScalarType::{_SCALARS[name]}" for name in a.dtypes if name in _SCALARS]
    likes = [f"dtypes_like({name})" for name in a.dtypes if name not in _SCALARS]
    return " | ".join([f"dtypes({', '.join(named)})"] * bool(named) + likes)


def _memory(s: Spec) -> Iterable[str]:
    for a in s.arguments:
        if not a.holds_tensors:
            continue
        if isinstance(a.written, bool):
            yield f"    memory.{'writes' if a.written else 'reads'}({a.name});"
            continue
        by_name = {b.name: b for b in s.arguments}
        given = " && ".join(f"{n}.has_value()" if by_name[n].optional else n for n in a.written)
        yield f"    if ({given}) {{\n      memory.writes({a.name});\n    }} else {{"
        yield f"      memory.reads({a.name});\n    }}"


def _unpack(s: Spec, arguments: Sequence[Argument], name: str) -> str:
    each = ", ".join("Stable" for _ in re.findall("Tensor", s.returns))
    returns = _RETURNS.get(s.returns) or f"std::tuple<{each}>"
    types = [_TYPES[a.type][a.optional] for a in arguments]
    parameters = ", ".join(f"{kind} {a.name}" for kind, a in zip(types, arguments, strict=True))
    members = ", ".join(_member(a, b) for a, b in zip(arguments, s.arguments, strict=True))
    taken = ", ".join(f"direct::Taken<{t}>::of(passed[{i}])" for i, t in enumerate(types))
    call, keep = f"{name}<kBody>({taken})", "keep_rows" if s.by_rows else "keep"
    directly = f"{call};\n  return 0;" if returns == "void" else f"return direct::{keep}(results, {call});"
    return (
        f"template <auto kBody>\n{returns} {name}({parameters}) {{\n"
        f"  const {s.record.__name__} given{{{members}}};\n"
        f"  given.check_storage();\n#ifdef FLEXKERN_FOR_CUDA\n  given.check_devices();\n#endif\n"
        f"  return kBody(given);\n}}\n"
        f"template <auto kBody>\nsize_t directly_{name}(const flexkern::direct::Passed* passed, "
        f"[[maybe_unused]] void** results) {{\n  {directly}\n}}\n"
    )


def _member(passed: Argument, kept: Argument) -> str:
    return (
        f"listed({passed.name})"
        if kept.is_list
        else f"taken({passed.name})"
        if kept.holds_tensors
        else passed.name
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
