"""What is the same to the bit across what: each row of docs/determinism.md that is about operators."""

from __future__ import annotations

import multiprocessing
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flexkern
from flexkern import Field, ops
from helpers.children import PACKAGE, run_python
from helpers.every_operator import (
    COVERED,
    STEPS,
    Results,
    differing,
    draw,
    results,
    share,
    ulps,
)

PAGE = PACKAGE.parent / "docs" / "determinism.md"
# How far alpha may be off between instruction sets: where it is over 2^-10, and where it is smaller. Its
# exponent has the error of a reciprocal, so that the share grows with -log2(alpha), while alpha itself shrinks.
ISA_ULPS, SMALL_ULPS = 16, 96
STEP_SIZE = 0.15  # no weight of those steps goes farther
STEP = 2.0**-20  # how far apart backends may be, as a share of the step that a weight takes
SETS = ("avx512", "avx2", "baseline")

pytestmark = pytest.mark.skipif(
    not flexkern.backends()["cpu"].available, reason="the compiled extension is not there"
)


@pytest.fixture(autouse=True)
def on_one_thread_of_the_cpu() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with flexkern.use_backend("cpu"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def here() -> Results:
    """On one thread of this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with flexkern.use_backend("cpu"):
        found = results()
    torch.set_num_threads(threads)
    return found


def of_a_child(path: Path, code: str, **environment: str) -> None:
    tests = str(Path(__file__).resolve().parent.parent)
    child = run_python(f"import sys; sys.path.insert(0, {tests!r})\n{code}", str(path), **environment)
    assert child.returncode == 0, child.stderr


WRITE = "from helpers.every_operator import write; write(sys.argv[1])"


@pytest.fixture(scope="module")
def by_instruction_set(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """Of each that this processor has, from a process of its own."""
    folder, found = tmp_path_factory.mktemp("sets"), {}
    for name in SETS:
        try:
            of_a_child(folder / name, WRITE, FLEXKERN_ISA=name)
        except AssertionError as error:
            if "is not an instruction set that this build and this processor both have" not in str(error):
                raise
            continue
        found[name] = torch.load(folder / name)
    return found


def test_every_operator_is_there() -> None:
    public = {name for name in ops.__all__ if name.islower()}
    assert public == COVERED


def test_calls(here: Results) -> None:
    assert not differing(here, results())


def test_threads(here: Results) -> None:
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert not differing(here, results()), threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_share_products_of_any_size(dtype: torch.dtype) -> None:
    """Sizes at which the library's own results differ between threads, and around parts of products."""
    for number, (samples, positions, d, rank) in enumerate(
        [(1, 1, 37, 5), (5, 7, 37, 5), (1, 127, 64, 3), (2, 64, 65, 7), (3, 171, 193, 16), (9, 130, 385, 4)]
    ):
        shapes = ((samples, positions, d), (2, d, rank), (2, rank), (2, rank, d), (2, d))
        given = [draw(i, *shape, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]
        index = torch.arange(samples) * 2 // samples
        seen = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            out = ops.gated_adapter(*given, index)
            seen.append([out.detach(), *torch.autograd.grad(out, given, draw(9, *out.shape, dtype=dtype))])
        for other in seen[1:]:
            assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True)), number


def test_threads_share_the_product_of_a_layer() -> None:
    for batch, rows, columns in ((5, 7, 37), (1, 10, 10), (64, 100, 64), (256, 300, 500), (33, 1100, 130)):
        stepped = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            w = draw(1, rows, columns)
            anchor, f = draw(2, rows, columns), share(3, rows, columns)
            ops.linear_step_(w, draw(4, batch, columns), draw(5, batch, rows), anchor, f, lr=0.1, scale=1.0)
            stepped.append(w)
        assert all(torch.equal(stepped[0], w) for w in stepped[1:]), (batch, rows, columns)


def test_instruction_sets(here: Results, by_instruction_set: dict[str, Results]) -> None:
    """A gate that is computed is some ulps off, and a weight by as much of its step; all else is the same."""
    assert "baseline" in by_instruction_set
    gated = re.compile(r"gate$|(sgd|adamw|displacement), |(linear|synapse)\.(rate|hebbian)$")
    before = draw(1, STEPS) * 0.1
    for name, found in by_instruction_set.items():
        differ = differing(here, found)
        assert all(gated.match(what) for what in differ), (name, differ)
        for lowest, bound in ((2.0**-100, SMALL_ULPS), (2.0**-10, ISA_ULPS)):
            some = here["gate"] > lowest
            assert ulps(here["gate"][some], found["gate"][some]) <= bound, name
        for what, step in (("sgd, float32", STEP_SIZE), ("displacement, float32", 0.05)):
            far = (here[what].double() - found[what].double()).abs()
            assert (far <= ISA_ULPS * 2.0**-23 * step + 2.0**-23 * before.abs()).all(), (name, what)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_stored_and_procedural(backend: str) -> None:
    for anchor, f in (
        (Field.normal(1, std=0.1), Field.uniform(2)),
        (Field.normal(3, std=0.1), Field.biased_high(4, offset=3)),
        (Field.normal(5, std=0.1), 0.25),
        (Field.normal_table(6, std=0.1, offset=1), Field.uniform(2)),
    ):
        with flexkern.use_backend(backend):
            stepped = []
            for stored in (False, True):
                w = draw(1, 4099) * 0.1
                flexibility: Any = f
                if stored:
                    flexibility = ops.materialize(f, w.shape) if isinstance(f, Field) else torch.full_like(w, f)
                a = ops.materialize(anchor, w.shape) if stored else anchor
                ops.metaplastic_sgd_(w, draw(2, 4099), a, flexibility, lr=0.01, scale=5.0)
                stepped.append(w)
        assert torch.equal(*stepped)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_eager_and_compiled(compiler: str) -> None:
    x, w0, anchor, f = draw(1, 3, 5, 24), draw(2, 300), draw(3, 300), share(4, 300)
    bank = [draw(5 + i, *shape) for i, shape in enumerate(((2, 24, 4), (2, 4), (2, 4, 24), (2, 24)))]
    index = torch.tensor([1, 0, -1])

    def work(w: Tensor) -> tuple[Tensor, Tensor]:
        ops.metaplastic_sgd_(w, anchor * 0.5, anchor, f, lr=0.01, scale=3.0)
        return ops.metaplastic_gate(w, anchor, f, 3.0), ops.gated_adapter(x, *bank, index, scale=0.3)

    eager, compiled = w0.clone(), w0.clone()
    expected = work(eager)
    found = torch.compile(work, backend=compiler)(compiled)
    assert torch.equal(eager, compiled)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


IN_PROCESSES = """if True:
    import multiprocessing, torch
    from helpers.every_operator import write
    from torch.utils.data import DataLoader
    from flexkern import Field, ops

    class Drawn(torch.utils.data.Dataset):
        def __len__(self):
            return 3
        def __getitem__(self, i):
            return ops.materialize(Field.normal(7, offset=100 * i), (100,))

    if __name__ == "__main__":
        path = sys.argv[1]
        child = multiprocessing.get_context("fork").Process(target=write, args=(path + ".fork",))
        child.start()
        child.join()
        assert child.exitcode == 0
        write(path)
        torch.save(torch.cat(list(DataLoader(Drawn(), batch_size=None, num_workers=2))), path + ".workers")
"""


def test_processes(here: Results, tmp_path: Path) -> None:
    """Another process, a copy of it by fork, one that spawn starts, and workers of a DataLoader."""
    of_a_child(tmp_path / "other", IN_PROCESSES, FLEXKERN_BACKEND="cpu")
    for name in ("other", "other.fork"):
        assert not differing(here, torch.load(tmp_path / name)), name
    assert torch.equal(torch.load(tmp_path / "other.workers"), ops.materialize(Field.normal(7), (300,)))
    spawned = multiprocessing.get_context("spawn")
    with spawned.Pool(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        drawn = pool.apply(ops.flexibility_field, ((STEPS,),), {"seed": 3, "offset": 5})
    assert torch.equal(drawn, here["flexibility_field"])


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_backends(here: Results, backend: str) -> None:
    """Fields, masks and silence are the same; alpha and weights as near as the page says."""
    if not flexkern.backends()[backend].available or (backend == "triton" and torch.cuda.is_available()):
        pytest.skip(f"{backend} does not serve CPU tensors here")
    n = 1000
    w, anchor, f, g = draw(1, n) * 0.1, draw(1, n) * 0.1 + draw(2, n) * 0.01, share(3, n), draw(4, n)
    found: dict[str, dict[str, Tensor]] = {}
    for name in ("cpu", backend):
        with flexkern.use_backend(name):
            stepped = w.clone()
            ops.metaplastic_sgd_(stepped, g, anchor, f, lr=0.01, scale=30.0)
            fields = [Field.uniform(1, offset=3), Field.normal(2), Field.biased_high(3), Field.biased_low(4)]
            fields += [Field.normal_table(5, offset=1)]
            found[name] = {
                "fields": torch.cat([ops.materialize(field, (n,)) for field in fields]),
                "words": ops.pack_mask(g.view(8, 125) > 0),
                "gate": ops.metaplastic_gate(w, anchor, f, 30.0),
                "weight": stepped,
            }
    a, b = found["cpu"], found[backend]
    assert torch.equal(a["fields"], b["fields"])
    assert torch.equal(a["words"], b["words"])
    assert ((a["gate"] - b["gate"]).abs() <= STEP).all()
    bound = STEP * 0.01 * g.abs().double() + 2.0**-23 * w.abs()
    assert ((a["weight"].double() - b["weight"].double()).abs() <= bound).all()


def shifted(t: Tensor) -> Tensor:
    """The same values, one element further in memory: no longer aligned."""
    moved = t.new_empty(t.numel() + 1)[1:].view(t.shape)
    return moved.copy_(t)


def test_strides_and_alignment() -> None:
    w, anchor, f, g = draw(1, 70, 130), draw(2, 70, 130), share(3, 70, 130), draw(4, 70, 130)
    stepped = []
    for of in (lambda t: t.clone(), shifted):
        moved = of(w)
        ops.metaplastic_sgd_(moved, of(g), of(anchor), of(f), lr=0.01, scale=3.0)
        stepped.append(moved)
    transposed = w.clone()
    ops.metaplastic_sgd_(transposed, g.t().contiguous().t(), anchor, f, lr=0.01, scale=3.0)
    assert torch.equal(stepped[0], stepped[1])
    assert torch.equal(stepped[0], transposed)
    gate = ops.metaplastic_gate(w, anchor, f, 3.0)
    assert torch.equal(gate, ops.metaplastic_gate(shifted(w), shifted(anchor), shifted(f), 3.0))


def test_lists_and_single_calls() -> None:
    sizes = (5000, 70_000, 3)
    w, anchor, f, g = ([draw(10 * i + k, n) for k, n in enumerate(sizes)] for i in range(4))
    f = [v.sigmoid() for v in f]
    single = [v.clone() for v in w]
    for of_one in zip(single, g, anchor, f, strict=True):
        ops.metaplastic_sgd_(*of_one, lr=0.01, scale=3.0)
    ops.metaplastic_sgd_(w, g, anchor, f, lr=0.01, scale=3.0)
    assert all(torch.equal(a, b) for a, b in zip(w, single, strict=True))


def test_parts_of_a_field() -> None:
    whole = ops.materialize(Field.normal(3), (1001,))
    parts = [ops.materialize(Field.normal(3, offset=at), (143,)) for at in range(0, 1001, 143)]
    assert torch.equal(whole, torch.cat(parts))


def test_calls_from_several_python_threads(here: Results) -> None:
    found: list[Results | None] = [None] * 3

    def work(i: int) -> None:
        torch.set_num_threads(1)
        found[i] = results()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(found))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in found:
        assert result is not None
        assert not differing(here, result)


# --------------------------------------------------------------------------- the page


def test_the_page_names_the_tests() -> None:
    """docs/determinism.md has a row for each test of determinism, and for none that is not there."""
    said = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    there = set()
    for path in Path(__file__).parent.glob("test_determinism*.py"):
        there |= set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    ours = {"test_the_page_names_the_tests", "test_every_operator_is_there"}
    assert said == there - ours


def test_the_page_says_the_bounds() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"{ISA_ULPS} ulps" in text
    assert f"{SMALL_ULPS} ulps" in text
    assert "2^-20" in text
    assert STEP == 2.0**-20
