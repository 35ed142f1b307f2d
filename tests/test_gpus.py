"""Which backend a GPU's tensors get, by what was built, the GPU and the driver. No test here needs a GPU: torch
says that there are some."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

import flexkern
from flexkern import BackendError, use_backend
from flexkern.backends import Status, backends, choose, gpus
from flexkern.backends.gpus import Built
from flexkern.environment import environment
from helpers.children import run_python

module: Any = sys.modules["flexkern.backends"]  # as an attribute of flexkern it is the function

OURS = Built((((8, 0), ""), ((9, 0), ""), ((10, 0), "")), (13, 0))
NEW = (13, 0)  # a driver


# ------------------------------------------------------------------ the rule

T4, A100, A10, ORIN, L4, H100, B200, B300, RTX50, LATER = (
    (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (15, 0),
)  # fmt: skip
P100 = (6, 0)


@pytest.mark.parametrize("gpu", [A100, A10, L4, H100, B200, B300, RTX50, LATER])
def test_what_runs(gpu: tuple[int, int]) -> None:
    assert gpus.cuda_lacks(OURS, gpu, NEW) is None
    assert gpus.cuda_lacks(OURS, gpu, None) is None  # a driver that does not say


@pytest.mark.parametrize("gpu", [P100, T4, ORIN])
def test_a_gpu_without_a_binary(gpu: tuple[int, int]) -> None:
    """None that is older than PTX can be helped; and Orin runs no binary of sm_80."""
    number = f"{gpu[0]}{gpu[1]}"
    assert gpus.cuda_lacks(OURS, gpu, NEW) == (
        f"flexkern's CUDA kernels are built for sm_80, sm_90, sm_100, and the GPU is sm_{number}: build "
        f"flexkern with FLEXKERN_CUDA_ARCHS={number}"
    )


@pytest.mark.parametrize(
    ("toolkit", "of_driver", "runs"),
    [
        ((13, 0), (13, 0), True),
        ((13, 2), (13, 0), True),  # within a major version the runtime serves older drivers
        ((12, 8), (12, 1), True),
        ((12, 8), (14, 1), True),
        ((13, 0), (12, 9), False),
        ((12, 8), (12, 0), False),  # which takes 4 KB of arguments only
        ((12, 1), (11, 8), False),
        ((15, 0), (12, 8), False),
    ],
)
def test_drivers(toolkit: tuple[int, int], of_driver: tuple[int, int], runs: bool) -> None:
    why = gpus.cuda_lacks(OURS._replace(toolkit=toolkit), H100, of_driver)
    if runs:
        assert why is None
        return
    assert why is not None
    serves, made = (".".join(map(str, version)) for version in (of_driver, toolkit))
    assert (
        f"the NVIDIA driver serves CUDA {serves}, and flexkern's CUDA kernels, built by nvcc {made}, need "
        in why
    )
    assert "update the driver" in why
    assert ("or build flexkern with CUDA 12" in why) == (of_driver >= (12, 1))


@pytest.mark.parametrize(("of_driver", "runs"), [((12, 9), True), ((13, 0), True), ((12, 8), False)])
@pytest.mark.parametrize("gpu", [RTX50, LATER])
def test_ptx_needs_a_driver_as_new_as_nvcc(
    gpu: tuple[int, int], of_driver: tuple[int, int], runs: bool
) -> None:
    made = OURS._replace(toolkit=(12, 9))
    assert gpus.cuda_lacks(made, B300, of_driver) is None  # has a binary
    why = gpus.cuda_lacks(made, gpu, of_driver)
    assert (why is None) == runs
    if why is not None:
        assert f"the GPU is sm_{gpu[0]}{gpu[1]}, for which the driver would have to compile sm_100's PTX" in why
        assert f"FLEXKERN_CUDA_ARCHS={gpu[0]}{gpu[1]}" in why


@pytest.mark.parametrize(
    ("letter", "run"),
    [("a", {H100}), ("f", {H100, (9, 9)}), ("", {H100, (9, 9), B200})],
)
def test_letters(letter: str, run: set[tuple[int, int]]) -> None:
    """sm_90a is for that GPU alone, its PTX too."""
    made = Built((((9, 0), letter),), (12, 8))
    assert {gpu for gpu in (A100, H100, (9, 9), B200) if gpus.cuda_lacks(made, gpu, NEW) is None} == run


@pytest.mark.parametrize(
    ("compiler", "architectures", "expected"),
    [
        ("13.0.88", "80;90;100", OURS),
        ("12.4.131 (does not know sm_100)", "80;90", Built((((8, 0), ""), ((9, 0), "")), (12, 4))),
        ("12.8", "90a;120", Built((((9, 0), "a"), ((12, 0), "")), (12, 8))),
        ("none: switched off by FLEXKERN_CUDA=0", "", None),
        ("none: nvcc 11.8 is older than 12.1", "", None),
    ],
)
def test_what_a_build_says_of_itself(compiler: str, architectures: str, expected: Built | None) -> None:
    assert gpus.built({"cuda_compiler": compiler, "cuda_architectures": architectures}) == expected


def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(result: int) -> Any:
        def version(number: Any) -> int:
            number._obj.value = 12080
            return result

        return types.SimpleNamespace(cuDriverGetVersion=version)

    ask = gpus.driver.__wrapped__
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: library(0))
    assert ask() == (12, 8)
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: library(34))  # the stub of CUDA's toolkit
    assert ask() is None
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert ask() is None


# ------------------------------------------------------------------ the choice

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes torch say that it has CUDA and these GPUs, and flexkern that it was built for some."""

    def make(
        *capabilities: tuple[int, int],
        built: Built = OURS,
        driver: tuple[int, int] | None = NEW,
        triton: str | None = None,
        hip: str | None = None,
    ) -> None:
        count = len(capabilities)

        def capability(device: Any = None) -> tuple[int, int]:
            index = device if isinstance(device, int) else torch.device(device or "cuda").index
            return capabilities[index or 0]

        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.version, "cuda", None if hip else "13.0")
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
        monkeypatch.setattr(
            torch.cuda, "get_device_properties",
            lambda i: types.SimpleNamespace(name="A GPU", major=capabilities[i][0], minor=capabilities[i][1],
                                            total_memory=2**34),
        )  # fmt: skip
        cuda = Status(False, "torch is built without CUDA") if hip else Status(True, "libflexkern_cuda.so")
        here = {"cuda": cuda, "triton": Status(True, "compiles for the GPU at first use")}
        monkeypatch.setattr(module, "_STATUS", module._STATUS | here)
        monkeypatch.setattr(module, "_BUILT", None if hip else built)
        monkeypatch.setattr(module, "_DRIVER", driver)
        monkeypatch.setattr(module, "_orders", {})
        monkeypatch.setattr(module, "_lacking", {})
        monkeypatch.setattr(gpus, "driver", lambda: driver)
        monkeypatch.setattr(gpus, "triton_starts", lambda: triton)

    return make


def chosen(index: int | None = 0, op: str = "pack_mask") -> str:
    device = torch.device("cuda") if index is None else torch.device("cuda", index)
    return choose(op, device, lambda name: None)


STARTS_NOT = "Triton does not start (RuntimeError: Failed to find C compiler)"


@pytest.mark.parametrize(
    ("gpu", "made", "takes"),
    [
        (H100, {}, "cuda"),
        (RTX50, {}, "cuda"),
        (T4, {}, "triton"),
        (H100, {"driver": (12, 9)}, "triton"),
        (RTX50, {"driver": (12, 8), "built": OURS._replace(toolkit=(12, 9))}, "triton"),
        (T4, {"triton": STARTS_NOT}, "reference"),
        (P100, {}, "reference"),
        (H100, {"triton": STARTS_NOT}, "cuda"),
    ],
)
def test_auto_takes_what_runs(machine: Machine, gpu: tuple[int, int], made: dict[str, Any], takes: str) -> None:
    machine(gpu, **made)
    assert chosen() == chosen() == chosen(None) == takes
    here = environment()
    assert here["operators"]["pack_mask"]["cuda"] == takes
    for name in ("cuda", "triton"):
        assert here["backends"][name]["available"] == backends()[name].available
    if takes != "cuda":
        why = backends()["cuda"].reason
        assert not backends()["cuda"].available
        with pytest.raises(BackendError) as caught:
            use_backend("cuda")
        assert str(caught.value) == f"backend 'cuda' is not available: {why}"
        assert "sm_" in why or "driver" in why
    if takes == "reference":
        with pytest.raises(BackendError, match=r"backend 'triton' is not available: Triton "):
            use_backend("triton")


def test_gpus_that_differ(machine: Machine) -> None:
    """Each tensor gets what runs on its own GPU, not what runs on the first."""
    machine(T4, H100, P100)
    assert [chosen(i) for i in range(3)] == ["triton", "cuda", "reference"]
    cuda, triton = backends()["cuda"], backends()["triton"]
    assert cuda.available
    assert (
        "not on cuda:0: flexkern's CUDA kernels are built for sm_80, sm_90, sm_100, and the GPU is"
        in cuda.reason
    )
    assert "not on cuda:2: " in cuda.reason
    assert "cuda:1" not in cuda.reason
    assert triton.available
    assert triton.reason.endswith("not on cuda:2: Triton compiles for sm_70 and newer, and the GPU is sm_60")
    with use_backend("cuda"):
        assert chosen(1) == "cuda"
        with pytest.raises(BackendError, match=r"^pack_mask: backend 'cuda' cannot serve: .* the GPU is sm_75"):
            chosen(0)
    assert environment()["operators"]["pack_mask"] == {
        "cpu": choose("pack_mask", torch.device("cpu"), lambda name: None),
        "cuda": "triton",
        "cuda:1": "cuda",
        "cuda:2": "reference",
    }


def test_gpus_that_all_lack_something_else(machine: Machine) -> None:
    machine(T4, P100)
    status = backends()["cuda"]
    assert not status.available
    assert "not on cuda:0: " in status.reason
    assert "the GPU is sm_75" in status.reason
    assert "not on cuda:1: " in status.reason
    assert "the GPU is sm_60" in status.reason


def test_a_gpu_is_asked_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(H100, T4)
    assert [chosen(0), chosen(1)] == ["cuda", "triton"]
    for name in ("get_device_capability", "is_available", "device_count"):
        monkeypatch.setattr(torch.cuda, name, lambda *given: pytest.fail("asked again"))
    assert [chosen(0), chosen(1)] == ["cuda", "triton"]


def test_triton_is_not_started_where_cuda_runs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(H100)
    monkeypatch.setattr(gpus, "triton_starts", lambda: pytest.fail("it takes a second"))
    assert chosen() == "cuda"


def test_amd(machine: Machine) -> None:
    """The rows of the table are those of AMD's GPUs, whatever the numbers look like."""
    machine((9, 4), hip="7.1")
    assert chosen() == "triton"
    assert module._order("pack_mask", torch.device("cuda", 0)) == ("triton",)
    machine((9, 4), hip="7.1", triton=STARTS_NOT)
    assert chosen() == "reference"
    machine(hip="7.1")
    assert backends()["triton"].reason.startswith("torch sees no GPU (torch.cuda.is_available() is False)")


@pytest.mark.parametrize(
    ("driver", "visible", "why"),
    [
        (None, None, "there is no NVIDIA driver"),
        ((11, 8), None, "the driver serves CUDA 11.8, and torch is built with 13.0"),
        ((13, 0), "", "with CUDA_VISIBLE_DEVICES=''"),
    ],
)
def test_no_gpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, driver: Any, visible: str | None, why: str
) -> None:
    machine(driver=driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for name in ("cuda", "triton"):
        assert not backends()[name].available
        assert why in backends()[name].reason
        with pytest.raises(BackendError, match=f"backend '{name}' is not available: torch sees no NVIDIA GPU"):
            use_backend(name)


def test_compiled_code_takes_what_runs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces the choice without a break, also where nothing was asked before."""
    machine(T4, H100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # or the compiler would go and use them
    devices = [torch.device("cuda", 0), torch.device("cuda", 1)]

    def take(x: torch.Tensor, i: int) -> torch.Tensor:
        name = choose("pack_mask", devices[i], lambda name: None)
        return x + {"cuda": 1, "triton": 2, "reference": 3}[name]

    torch._dynamo.reset()
    compiled = torch.compile(take, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1), 0).item() == 2
    assert compiled(torch.zeros(1), 1).item() == 1
    torch._dynamo.reset()


# ------------------------------------------------------------------ Triton


def test_triton_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a C compiler: every operator would raise."""

    class Driver:
        @property
        def active(self) -> Any:
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setitem(sys.modules, "triton.runtime", types.SimpleNamespace(driver=Driver()))
    assert gpus.triton_starts.__wrapped__() == (
        "Triton does not start (RuntimeError: Failed to find C compiler. Please specify via CC); it needs a C "
        "compiler and Python's headers"
    )


# ------------------------------------------------------------------ import


def test_import_asks_no_gpu() -> None:
    """So that a process which has imported flexkern may still fork, or set CUDA_VISIBLE_DEVICES."""
    code = """if True:
        import torch
        torch.version.cuda = "13.0"
        torch.backends.cuda.is_built = lambda: True
        for name in ("is_available", "device_count", "get_device_capability", "get_device_properties", "init",
                     "current_device"):
            setattr(torch.cuda, name, lambda *given, name=name: print("asked", name))
        import flexkern
        from flexkern import nn, learners, optim, runs, streams, integrations
        print(flexkern.backends.__name__)
    """
    child = run_python(code)
    assert child.returncode == 0, child.stderr
    assert child.stdout == "backends\n"


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """In a torch that could use it, with what the build said and the way out."""
    info = {"cuda_compiler": "none: nvcc 11.8 (/usr/bin/nvcc) is older than 12.1", "cuda_architectures": ""}
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(module, "LIBRARY_DIR", tmp_path)
    monkeypatch.setattr(module, "build_info", lambda: info)
    status, made = module._cuda_installed()
    assert made is None
    assert status.reason.startswith(
        "flexkern was built without CUDA kernels (nvcc 11.8 (/usr/bin/nvcc) is older than 12.1); to build "
        "them, reinstall with `FLEXKERN_CUDA=1 pip install "
    )
    monkeypatch.setattr(module, "build_info", lambda: None)
    assert "without its compiled extension" in module._cuda_installed()[0].reason


def test_a_library_of_which_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(module, "_load_library", lambda name: Status(True, "there"))
    monkeypatch.setattr(module, "build_info", lambda: None)
    status, made = module._cuda_installed()
    assert (status.available, made) == (False, None)
    assert "does not say for which GPUs libflexkern_cuda.so was built" in status.reason


def test_info_shows_why(machine: Machine, capsys: pytest.CaptureFixture) -> None:
    command = pytest.importorskip("flexkern.cli.info", reason="the command line is not installed")
    machine(T4, H100, P100, triton="Triton does not start ([/bin] and [Errno 2])")  # which is no markup
    command.info()
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "GPU: A GPU, sm_75, 16 GiB" in shown
    assert "NVIDIA driver for CUDA 13.0" in shown
    assert "the GPU is sm_75" in shown
    assert "on cuda:1" in shown
    assert "([/bin] and [Errno 2])" in shown
    assert flexkern.__version__ in shown
