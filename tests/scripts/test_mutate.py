"""scripts/mutations.toml fits the code, so that it cannot rot, and scripts/mutate.py tells verdicts apart."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def load() -> Any:
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "scripts" / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


mutate = load()
MUTATIONS = mutate.read_list()


def test_every_mutation_fits_the_tree() -> None:
    """Each text stands once in its file. Whoever changes such a line changes scripts/mutations.toml, too."""
    problems = {m.name: why for m in MUTATIONS if (why := m.problem(ROOT)) is not None}
    assert problems == {}
    assert [name for name, times in Counter(m.name for m in MUTATIONS).items() if times > 1] == []
    assert len(MUTATIONS) >= 60
    assert any(m.compiled for m in MUTATIONS)


def test_a_mutation_that_does_not_fit_is_named(capsys: pytest.CaptureFixture, monkeypatch: Any) -> None:
    whole = MUTATIONS[0]
    changes = [
        ({"file": "flexkern/nowhere.py"}, "flexkern/nowhere.py does not exist"),
        ({"text": "no such text"}, "holds its text 0 times, not once: 'no such text'"),
        ({"text": "seed"}, "times, not once: 'seed'"),
        ({"replacement": whole.text}, "the replacement is the text"),
        ({"tests": ("tests/test_nowhere.py::test_x",)}, "no such tests: tests/test_nowhere.py"),
        ({"tests": ("-k=x",)}, "no such tests"),
    ]
    for change, message in changes:
        assert message in dataclasses.replace(whole, **change).problem(ROOT)
    wrong = dataclasses.replace(whole, name="a stale one", text="no such text")
    monkeypatch.setattr(mutate, "read_list", lambda: [wrong, *MUTATIONS[1:]])
    monkeypatch.setattr(mutate, "run", lambda _: pytest.fail("a list that does not fit was run"))
    assert mutate.main([]) == 2
    assert "a stale one: flexkern/" in capsys.readouterr().out


def test_words_choose(capsys: pytest.CaptureFixture) -> None:
    assert mutate.chosen(MUTATIONS, []) == sorted(MUTATIONS, key=lambda m: m.compiled)
    some = mutate.chosen(MUTATIONS, ["flexkern/metrics.py", "dropout"])
    assert {m.file for m in some} == {"flexkern/metrics.py", "csrc/cpu/kernels/adapter.cpp"}
    assert mutate.main(["--list", "metrics.py"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len([m for m in some if not m.compiled])
    assert mutate.main(["no such word"]) == 2


def test_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small tree: a mutation that a test notices, one that none does, and one with no test to run."""
    original, tree = tmp_path / "original", tmp_path / "tree"
    for place in (original, tree):
        place.mkdir()
        (place / "code.py").write_text("def half(n: int) -> int:\n    return n // 2\n")
        (place / "test_code.py").write_text(
            "def test_half():\n    scope = {}\n    exec(open('code.py').read(), scope)\n"
            "    assert scope['half'](4) == 2\n"
        )
    monkeypatch.setattr(mutate, "ROOT", original)
    found = []
    for replacement, tests in (("n // 3", "test_code.py"), ("round(n / 2)", "test_code.py"), ("0", "code.py")):
        mutation = mutate.Mutation("m", "code.py", "n // 2", replacement, (tests,))
        assert mutation.problem(original) is None
        found.append(mutate.judge(mutation, tree, None)[0])
        assert (tree / "code.py").read_text() == (original / "code.py").read_text()
    assert found == ["killed", "survived", "broken"]


def test_the_copy_is_what_is_imported(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    mutate.copy_tree(tree, libraries=False)
    mutate.check_imports(tree)
    assert not list(tree.glob("flexkern/**/*.so"))
    assert (tree / "flexkern" / "triton_kernels" / "__init__.py").samefile(
        tree / "triton_kernels" / "__init__.py"
    )
    assert (tree / "scripts" / "mutations.toml").read_text() == mutate.LIST.read_text()
