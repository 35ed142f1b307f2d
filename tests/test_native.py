"""The compiled extension: what it links to, its NumPy module, its exp2, and its instruction sets."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import flexkern
from flexkern import Field, Purpose, reference
from flexkern.backends.built import LIBRARY_DIR, build_info, instruction_set
from flexkern.fields import Kind
from helpers import judge
from helpers.children import run_python

status = flexkern.backends()["cpu"]
pytestmark = pytest.mark.skipif(not status.available, reason=status.reason)


@pytest.fixture(scope="module")
def core() -> ModuleType:
    return importlib.import_module("flexkern._core")  # where the libraries are, this must be too


# --------------------------------------------------------------------------- symbols

# One build serves every torch from 2.11 on only if it links to C functions of libtorch, never to its C++.
TORCH_CPP = re.compile(r"(?<![\w:])(at|c10|torch|caffe2)::")


def undefined_symbols(library: Path) -> list[str]:
    """Demangled names that the dynamic linker must find elsewhere."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm (binutils) is not installed")
    listing = subprocess.run(
        [nm, "-DC", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    )
    return [line.strip().split(" ", 1)[1] for line in listing.stdout.splitlines() if line.strip()]


@pytest.mark.parametrize("library", sorted(LIBRARY_DIR.glob("libflexkern_*.so")), ids=lambda p: p.name)
def test_no_cpp_symbol_of_libtorch(library: Path) -> None:
    names = undefined_symbols(library)
    assert [n for n in names if TORCH_CPP.search(n)] == []
    assert any(
        n.startswith("aoti_torch_") for n in names
    )  # it is a torch library, and the scan sees its symbols


def test_the_numpy_module_needs_no_torch() -> None:
    path = Path(importlib.util.find_spec("flexkern._core").origin)
    names = undefined_symbols(path)
    assert [n for n in names if TORCH_CPP.search(n) or n.startswith(("aoti_", "torch_"))] == []
    assert any(n.startswith("Py") for n in names)
    # loaded by its path, because importing it from flexkern imports flexkern, and that torch
    code = """if True:
        import importlib.machinery, importlib.util, sys
        loader = importlib.machinery.ExtensionFileLoader("_core", sys.argv[1])
        core = importlib.util.module_from_spec(importlib.util.spec_from_loader("_core", loader))
        loader.exec_module(core)
        assert "torch" not in sys.modules
        print(core.field([2, 3], 2, 7, 0, 0, 0, 0.0, 1.0).tolist())
    """
    result = run_python(code, str(path))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == reference.materialize(Field.uniform(7), (2, 3)).tolist()


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="a free-threaded Python has no limited API"
)
def test_one_module_serves_every_python(core: ModuleType) -> None:
    """Its name says so, and it uses nothing private of this Python."""
    path = Path(core.__file__)
    assert path.name == "_core.abi3.so"
    private = {n for n in undefined_symbols(path) if n.startswith("_Py")}
    # What macros of the limited API stand for.
    assert private <= {"_Py_Dealloc", "_Py_NoneStruct", "_Py_TrueStruct", "_Py_NotImplementedStruct"}


def test_the_scan_finds_cpp_symbols() -> None:
    found = [
        n for n in undefined_symbols(Path(torch.__file__).parent / "lib" / "libshm.so") if TORCH_CPP.search(n)
    ]
    assert found  # libshm is built on c10's C++
    for name in (
        "at::empty(c10::ArrayRef<long>)",
        "typeinfo for c10::Error",
        "std::vector<at::Tensor>::~vector()",
    ):
        assert TORCH_CPP.search(name)
    for name in ("aoti_torch_empty", "std::format::at::x", "flexkern::torch_x()", "my_at::f()"):
        assert not TORCH_CPP.search(name)


# --------------------------------------------------------------------------- flexkern._core

FIELDS = {
    "uniform": Field.uniform(
        2**64 - 1, 2**32 - 1, low=-0.3, high=1.7, purpose=Purpose.ANCHOR, offset=2**62 - 5001
    ),
    "normal": Field.normal(2**63 + 11, 5, mean=0.1, std=0.0123, offset=3),
    "normal_table": Field.normal_table(2**63 + 11, 5, mean=0.1, std=0.0123, offset=3),
    "biased_high": Field.biased_high(2, 3, offset=2),
    "biased_low": Field.biased_low(2, 3, offset=2**34 + 1),
}


def numpy_field(core: ModuleType, field: Field, shape: list[int]) -> np.ndarray:
    return core.field(
        shape, int(field.kind), field.seed, field.stream, field.offset, int(field.purpose), *field.parameters
    )


def test_build_info() -> None:
    info = build_info()
    assert instruction_set() in ("avx512", "avx2", "baseline")
    assert info["compiler"]
    assert info["cuda_compiler"]
    has_cuda = (LIBRARY_DIR / "libflexkern_cuda.so").exists()
    assert bool(info["cuda_architectures"]) == has_cuda


def test_kinds(core: ModuleType) -> None:
    assert core.kinds() == {kind.name: int(kind) for kind in Kind}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (17,), (33, 65), (4, 5, 6), (9001,)], ids=str)
def test_numpy_fields_are_the_same_bits(core: ModuleType, field: Field, shape: tuple[int, ...]) -> None:
    array = numpy_field(core, field, list(shape))
    assert array.dtype == np.float32
    assert array.shape == shape
    assert np.array_equal(array, reference.materialize(field, shape).numpy())


def test_numpy_field_of_a_constant(core: ModuleType) -> None:
    assert (core.field([5], int(Kind.CONSTANT), 0, 0, 0, 0, 0.25, 0.0) == 0.25).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": 0}, ValueError, r"kind must be 1 .. 6, got 0"),
        ({"kind": 7}, ValueError, r"kind must be 1 .. 6, got 7"),
        ({"shape": [-1]}, ValueError, r"negative"),
        ({"seed": -1}, ValueError, r"seed must be 0 \.\. 18446744073709551615"),
        ({"seed": 2**64}, ValueError, r"seed must be 0 \.\. 18446744073709551615"),
        ({"stream": 2**32}, ValueError, r"stream must be 0 \.\. 4294967295"),
        ({"offset": "first"}, TypeError, r"int"),
        ({"p0": "low"}, TypeError, r"real number|float"),
    ],
)
def test_numpy_field_refuses(core: ModuleType, change: dict, error: type[Exception], message: str) -> None:
    arguments = {
        "shape": [3],
        "kind": 2,
        "seed": 0,
        "stream": 0,
        "offset": 0,
        "purpose": 0,
        "p0": 0.0,
        "p1": 1.0,
    }
    core.field(**arguments)
    with pytest.raises(error, match=message):
        core.field(**{**arguments, **change})


# --------------------------------------------------------------------------- exp2


def ulps(core: ModuleType, x: np.ndarray) -> float:
    """Largest error of exp2_nonpositive in units of the last place of the exact result."""
    exact = np.exp2(x.astype(np.float64))
    return float((np.abs(core.exp2_nonpositive(x) - exact) / np.spacing(exact.astype(np.float32))).max())


def exp2_inputs() -> np.ndarray:
    even = np.linspace(-124, 0, 1_000_001, dtype=np.float32)
    small = -np.logspace(-45, 2, 200_001).astype(np.float32)  # many near 0, where the floats are
    halves = np.arange(-248, 1, dtype=np.float32) / 2  # where the rounding to an integer turns over
    steps = np.stack([np.nextafter(halves, np.float32(d)) for d in (-np.inf, np.inf)])
    x = np.concatenate([even, small, halves, steps.ravel()])
    return x[(x >= -124) & (x <= 0)]


def test_exp2(core: ModuleType) -> None:
    assert ulps(core, exp2_inputs()) <= 1.5


@pytest.mark.slow
def test_exp2_of_every_float_of_an_octave(core: ModuleType) -> None:
    # every float32 in [-2, -1], whose fractions are all there are beside smaller numbers' finer ones
    bits = np.arange(0xBF800000, 0xC0000001, dtype=np.uint32)
    for x in np.array_split(bits.view(np.float32), 8):
        assert ulps(core, x) <= 1.5


def test_exp2_at_its_ends(core: ModuleType) -> None:
    def exp2(*x: float) -> list[float]:
        return core.exp2_nonpositive(np.array(x, dtype=np.float32)).tolist()

    assert exp2(0.0, -0.0, -1e-45, -1e-9) == [1, 1, 1, 1]
    assert exp2(*range(0, -126, -1)) == [2.0**-n for n in range(126)]
    assert exp2(-125.6, -126, -149, -150, -151, -1e6, -3e38, -np.inf) == [0] * 8
    assert np.isnan(exp2(np.nan)).all()


# --------------------------------------------------------------------------- instruction sets


def instruction_sets() -> list[str]:
    """Those that this processor has, by the kernel's own list."""
    flags: set[str] = set()
    if platform.machine() in ("x86_64", "AMD64") and Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    names = ["baseline"]
    if {"avx2", "fma", "f16c"} <= flags:
        names.append("avx2")
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
        names.append("avx512")
    return names


CHILD = """if True:
    import sys, numpy as np, torch, flexkern
    from flexkern import Field, ops
    from flexkern._core import exp2_nonpositive
    from flexkern.backends.built import instruction_set
    torch.set_num_threads(1)
    flexkern.use_backend("cpu")
    x = {k: torch.from_numpy(v) for k, v in np.load(sys.argv[1]).items()}
    out = {"exp2": exp2_nonpositive(x["x"].numpy())}
    fields = [Field.uniform(1, offset=1), Field.normal(2), Field.biased_high(3), Field.biased_low(4)]
    for i, field in enumerate(fields):
        out[f"field{i}"] = ops.materialize(field, (5003,))
    out["gate"] = ops.metaplastic_gate(x["master"], x["anchor"], x["flexibility"], 20.0)
    for dtype in (torch.bfloat16, torch.float16):
        master, buffer = x["master"].clone(), x["buffer"].clone()
        weight = master.to(dtype)
        ops.metaplastic_sgd_(
            weight, x["grad"].to(dtype), x["anchor"], x["flexibility"], lr=0.125, scale=20.0, momentum=0.9,
            weight_decay=0.1, nesterov=True, momentum_buffer=buffer, master=master,
        )
        out[f"weight {dtype}"], out[f"master {dtype}"], out[f"buffer {dtype}"] = weight.float(), master, buffer
        held = x["master"].clone()
        ops.gated_sgd_(held, x["grad"], x["flexibility"], lr=0.1, weight_decay=0.1)
        out["held"] = held
    out["words"] = ops.pack_mask(x["master"].view(1, -1) > 0)
    out["mask"] = ops.unpack_mask(out["words"], 5003)
    np.savez(sys.argv[2], name=instruction_set(), **{k: np.asarray(v) for k, v in out.items()})
"""


@pytest.fixture(scope="module")
def by_instruction_set(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """The results of every instruction set, each from a process of its own."""
    folder = tmp_path_factory.mktemp("isa")
    inputs = judge.make_inputs((5003,), 3)
    np.savez(folder / "in.npz", x=exp2_inputs(), **{k: v.numpy() for k, v in inputs._asdict().items()})
    results = {}
    for name in instruction_sets():
        out = folder / f"{name}.npz"
        child = run_python(CHILD, str(folder / "in.npz"), str(out), FLEXKERN_ISA=name)
        assert child.returncode == 0, child.stderr
        arrays = dict(np.load(out))
        assert str(arrays.pop("name")) == name
        results[name] = {k: torch.from_numpy(v) for k, v in arrays.items()}
    return results


def test_instruction_sets_agree_on_fields_and_masks(
    by_instruction_set: dict[str, dict[str, torch.Tensor]],
) -> None:
    fields = [Field.uniform(1, offset=1), Field.normal(2), Field.biased_high(3), Field.biased_low(4)]
    x = judge.make_inputs((5003,), 3)
    held = x.master - x.flexibility * 0.1 * (x.grad + x.master * 0.1)  # alpha given: single operations only
    for result in by_instruction_set.values():
        for i, field in enumerate(fields):
            assert judge.same_bits(result[f"field{i}"], reference.materialize(field, (5003,)))
        assert torch.equal(result["words"], reference.pack_mask(x.master.view(1, -1) > 0))
        assert torch.equal(result["mask"], x.master.view(1, -1) > 0)
        assert judge.same_bits(result["held"], held)


def test_every_instruction_set_is_within_bounds(by_instruction_set: dict[str, dict[str, torch.Tensor]]) -> None:
    x = judge.make_inputs((5003,), 3)
    rule = judge.Rule(momentum=0.9, weight_decay=0.1, nesterov=True)
    alpha, bound = judge.judge_gate(x.master, x.anchor, x.flexibility, rule.scale)
    inputs = exp2_inputs()
    exact = np.exp2(inputs.astype(np.float64))
    for result in by_instruction_set.values():
        assert (np.abs(result["exp2"].numpy() - exact) / np.spacing(exact.astype(np.float32))).max() <= 1.5
        judge.assert_within(result["gate"], alpha, bound)
        for dtype in (torch.bfloat16, torch.float16):
            judged = judge.judge_step(x.master, x.grad.to(dtype), alpha, bound, rule, x.buffer)
            judge.assert_within(result[f"master {dtype}"], judged.weight, judged.weight_bound)
            judge.assert_within(result[f"buffer {dtype}"], judged.buffer, judged.buffer_bound)
            assert judge.same_bits(result[f"weight {dtype}"], result[f"master {dtype}"].to(dtype).float())


def test_an_unknown_instruction_set_is_refused() -> None:
    code = """if True:
        import torch
        from flexkern import ops  # importing works
        from flexkern.backends import built
        for call in (lambda: ops.flexibility_field((3,), seed=0), lambda: built.instruction_set(),
                     lambda: ops.pack_mask(torch.ones(2, 2, dtype=torch.bool))):
            try:
                call()
            except RuntimeError as error:
                print(error)
    """
    child = run_python(code, FLEXKERN_ISA="sse9")
    assert child.returncode == 0, child.stderr
    message = "FLEXKERN_ISA=sse9 is not an instruction set that this build and this processor both have"
    assert child.stdout.count(message) == 3
    assert "unset it" in child.stdout
