"""Which backends there are, which one runs, and what is said about one that is missing."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from flexkern import BackendError, Field, backends, ops, optim, use_backend
from flexkern.backends import NAMES, Status, requested, tuning
from helpers.children import PACKAGE, run_python

needs_cpu = pytest.mark.skipif(not backends()["cpu"].available, reason=backends()["cpu"].reason)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The backend that was asked for before a test is asked for after it."""
    before = requested()
    yield
    use_backend(before)


def missing() -> list[str]:
    return [name for name, status in backends().items() if not status.available]


def test_every_backend_has_a_reason() -> None:
    assert tuple(backends()) == NAMES
    for status in backends().values():
        assert isinstance(status.available, bool)
        assert len(status.reason) > 5
        assert "\n" not in status.reason
    assert backends()["reference"].available


def test_the_answer_is_a_copy() -> None:
    """Whoever changes it changes nothing of what runs."""
    answer, before = backends(), dict(backends())
    answer.pop("cpu")
    answer["reference"] = Status(False, "taken away")
    answer["triton"] = Status(True, "made up")
    assert backends() == before
    with use_backend("reference"):  # still allowed, and still what runs
        assert requested() == "reference"
        weight = torch.ones(3)
        ops.gated_sgd_(weight, torch.ones(3), None, lr=0.5)
    assert weight.tolist() == [0.5] * 3
    for name in missing():  # still refused
        with pytest.raises(BackendError):
            use_backend(name)


def test_use_backend_as_a_call() -> None:
    use_backend("reference")
    assert requested() == "reference"
    use_backend("auto")
    assert requested() == "auto"


@needs_cpu
def test_use_backend_nests_and_restores_after_exceptions() -> None:
    use_backend("auto")
    with use_backend("reference"):
        assert requested() == "reference"
        with use_backend("cpu"):
            assert requested() == "cpu"
            with pytest.raises(KeyError), use_backend("reference"):
                raise KeyError
            assert requested() == "cpu"
        assert requested() == "reference"
    assert requested() == "auto"


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of .*'auto'.*'cuda'.*, got 'gpu'"):
        use_backend("gpu")
    assert requested() == "auto"


@pytest.mark.skipif(not missing(), reason="every backend is available here")
def test_a_missing_backend_is_refused_with_its_reason() -> None:
    for name in missing():
        with pytest.raises(BackendError) as caught:
            use_backend(name)
        assert name in str(caught.value)
        assert backends()[name].reason in str(caught.value)
        assert requested() == "auto"


@needs_cpu
def test_a_chosen_backend_that_cannot_take_the_arguments() -> None:
    w = torch.zeros(3, dtype=torch.float64)
    before = w.clone()
    with use_backend("cpu"):
        for call in (
            lambda: ops.metaplastic_gate(w, w, w, 1.0),
            lambda: ops.metaplastic_sgd_(w, w + 1, w + 1, 1.0, lr=0.1, scale=1.0),
            lambda: ops.gated_sgd_(w, w + 1, None, lr=0.1),
        ):
            with pytest.raises(
                BackendError, match=r"_: backend 'cpu' cannot serve: float64|gate: backend 'cpu' cannot"
            ):
                call()
        with pytest.raises(
            BackendError, match=r"materialize: backend 'cpu' cannot serve: it works on cpu tensors.*meta"
        ):
            ops.materialize(Field.uniform(0), (3,), device="meta")
    assert torch.equal(w, before)
    use_backend("auto")
    ops.gated_sgd_(w, w + 1, None, lr=0.5)  # auto falls back to the reference
    assert torch.equal(w, before - 0.5)


def test_the_environment_chooses() -> None:
    code = """if True:
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        import flexkern
        from flexkern import ops
        class Recorder(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func.namespace == "flexkern": print(func.name())
                return func(*args, **(kwargs or {}))
        with Recorder():
            ops.flexibility_field((3,), seed=0)
        with flexkern.use_backend("auto"):
            print(flexkern.backends.__module__)
    """
    child = run_python(code, FLEXKERN_BACKEND="reference")
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == ["flexkern::fill_field_reference_", "flexkern.backends"]


def test_the_environment_chooses_something_unknown() -> None:
    child = run_python("import flexkern", FLEXKERN_BACKEND="gpu")
    assert child.returncode != 0
    assert "got 'gpu'" in child.stderr.splitlines()[-1]
    assert "FLEXKERN_BACKEND" in child.stderr.splitlines()[-1]


def test_without_extension_and_triton(tmp_path: Path) -> None:
    """A copy of the package without its compiled files, in a Python that cannot import triton."""
    shutil.copytree(
        PACKAGE, tmp_path / "flexkern", ignore=shutil.ignore_patterns("lib", "_core*", "__pycache__")
    )
    code = f"""if True:
        import sys
        sys.modules["triton"] = None
        import torch
        import flexkern
        from flexkern import BackendError, Field, ops
        assert flexkern.__file__.startswith({str(tmp_path)!r})
        for name, status in flexkern.backends().items():
            print(name, status.available, status.reason, sep="|")
        w, g = torch.ones(3), torch.ones(3)
        alpha = ops.metaplastic_gate(w, w, 0.5, 1.0)
        ops.metaplastic_sgd_(w, g, Field.normal(0), Field.uniform(0), lr=0.1, scale=1e-9)
        ops.gated_sgd_(w, g, alpha, lr=0.1)
        mask = ops.unpack_mask(ops.pack_mask(torch.eye(3) > 0), 3)
        same = torch.equal(mask, torch.eye(3) > 0)
        print("ran", bool((w < 0.81).all()), same, len(ops.flexibility_field((4,), seed=0)))
        for name in ("cpu", "triton"):
            try:
                flexkern.use_backend(name)
            except BackendError as error:
                print("refused", error)
    """
    child = run_python(code, path=tmp_path)
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    status = {line.split("|")[0]: line.split("|")[1:] for line in lines[:4]}
    assert status["reference"][0] == "True"
    assert status["cpu"][0] == status["cuda"][0] == status["triton"][0] == "False"
    assert "without its compiled extension" in status["cpu"][1]
    assert "pip install" in status["cpu"][1]
    assert "triton is not installed" in status["triton"][1]
    assert lines[4] == "ran True True 4"
    assert lines[5] == f"refused backend 'cpu' is not available: {status['cpu'][1]}"
    assert lines[6] == f"refused backend 'triton' is not available: {status['triton'][1]}"
    assert child.stderr == ""  # no warning at import


def test_a_library_that_does_not_load_is_reported(tmp_path: Path) -> None:
    shutil.copytree(
        PACKAGE, tmp_path / "flexkern", ignore=shutil.ignore_patterns("lib", "_core*", "__pycache__")
    )
    (tmp_path / "flexkern" / "lib").mkdir()
    (tmp_path / "flexkern" / "lib" / "libflexkern_cpu.so").write_bytes(b"not a library")
    child = run_python("import flexkern; print(flexkern.backends()['cpu'])", path=tmp_path)
    assert child.returncode == 0, child.stderr
    assert "available=False" in child.stdout
    assert "libflexkern_cpu.so does not load" in child.stdout
    assert "pip install" in child.stdout


# ------------------------------------------------------------------ threads and contexts


def in_thread(call: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_a_call_is_of_the_whole_process() -> None:
    use_backend("reference")
    assert in_thread(requested) == "reference"
    in_thread(lambda: use_backend("auto") and None)
    assert requested() == "auto"
    kept = use_backend("reference")  # as a prompt keeps what it shows
    assert requested() == "reference"
    del kept
    assert in_thread(requested) == "reference"


def test_a_block_is_of_its_thread() -> None:
    use_backend("auto")
    with use_backend("reference"):
        assert in_thread(requested) == "auto"
        assert contextvars.copy_context().run(requested) == "reference"
    assert in_thread(requested) == "auto"


def test_a_call_in_a_block_is_of_the_block() -> None:
    use_backend("auto")
    with use_backend("auto"):
        use_backend("reference")
        assert requested() == "reference"
        assert in_thread(requested) == "auto"
    assert requested() == "auto"


@needs_cpu
def test_blocks_are_left_in_any_order_and_thread() -> None:
    use_backend("auto")
    first, second = use_backend("cpu"), use_backend("reference")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert requested() == "reference"
    in_thread(lambda: second.__exit__(None, None, None))
    assert requested() == in_thread(requested) == "auto"
    again = use_backend("reference")
    with again, again:
        assert requested() == "reference"
    with contextlib.ExitStack() as stack:
        stack.enter_context(again)
        assert requested() == "reference"
    assert requested() == in_thread(requested) == "auto"


@needs_cpu
def test_many_threads_with_blocks_of_their_own() -> None:
    """One without a block sees none of the others', not even between the call and the block."""
    use_backend("auto")
    wrong: list[str] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(name: str) -> None:
        for _ in range(300):
            if name == "auto":
                wrong.extend(n for n in [requested()] if n != "auto")
                continue
            with use_backend(name):
                wrong.extend(n for n in [requested()] if n != name)

    try:
        names = ["reference", "cpu", "auto", "auto", "reference", "cpu"]
        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    assert requested() == "auto"


def test_tasks_of_one_thread() -> None:
    use_backend("auto")

    async def inside(go: asyncio.Event, there: asyncio.Event) -> str:
        with use_backend("reference"):
            there.set()
            await go.wait()
            return requested()

    async def both() -> tuple[str, str]:
        go, there = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(inside(go, there))
        await there.wait()
        mine = requested()
        go.set()
        return mine, await task

    assert asyncio.run(both()) == ("auto", "reference")


def test_a_fused_backward_pass_takes_the_backend_of_its_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread without a block, too, as autograd's are on a GPU."""
    use_backend("auto")
    layer = nn.Linear(3, 2)
    optimizer = optim.MetaplasticSGD(layer.parameters(), lr=0.1, scale=1.0)
    optim.fuse_into_backward(layer, optimizer)
    seen: list[str] = []
    step = optimizer.step_in_backward
    monkeypatch.setattr(
        optimizer, "step_in_backward", lambda *given: (seen.append(requested()), step(*given))[1]
    )
    with use_backend("reference"):
        loss = layer(torch.ones(1, 3)).sum()
    in_thread(loss.backward)
    assert seen == ["reference"]


def test_compiled_code_follows_the_choice() -> None:
    """It is traced without a break, and again for another backend."""
    use_backend("auto")
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    compiled = torch.compile(lambda mask: ops.pack_mask(mask), fullgraph=True, backend=counter)
    mask = torch.eye(3) > 0

    def names() -> set[str]:
        compiled(mask)
        return {str(n.target) for n in counter.graphs[-1].graph.nodes if n.op == "call_function"}

    automatic = names()
    with use_backend("reference"):
        assert names() == {"flexkern.pack_mask_reference.default"}
        assert counter.frame_count == 2
        in_thread(lambda: compiled(mask))
    compiled(mask)
    assert counter.frame_count == 2  # both are known
    assert len(automatic) == 1


def test_trials_of_configurations_are_of_their_thread() -> None:
    def tile() -> int:
        return tuning.config("sgd", "stored", "sm_90")["tile"]

    usual = tile()
    first, second = (tuning.trial("sgd", "stored", {"tile": n, "num_warps": 4}) for n in (1, 2))
    with first:
        assert (tile(), in_thread(tile)) == (1, usual)
        second.__enter__()
        assert tile() == 2
    assert tile() == 2
    second.__exit__(None, None, None)
    assert tile() == usual
