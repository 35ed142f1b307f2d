"""Which CUDA kernels a build makes: with an nvcc of any age, without one, and where torch has no CUDA.

No test compiles anything: a script answers as nvcc does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "build_tools" / "nvcc.py"
_12 = (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90)
# What each release answers to --list-gpu-arch.
KNOWN = {
    "11.8": (35, 37, *_12),
    "12.0": _12,
    "12.1": _12,
    "12.4": _12,
    "12.8": (*_12, 100, 101, 120),
    "12.9": (*_12, 100, 101, 103, 120, 121),
    "13.0": (75, 80, 86, 87, 88, 89, 90, 100, 110, 103, 120, 121),
    "15.0": (90, 100, 110, 103, 120, 121, 150),  # one that has forgotten an architecture
}
Fake = Callable[..., dict[str, str]]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Makes an nvcc of a release, and the environment in which it is found."""

    def make(release: str, *, known: tuple[int, ...] | None = None, compiles: str = "exit 0") -> dict[str, str]:
        folder = tmp_path / "cuda" / "bin"
        folder.mkdir(parents=True)
        listed = "\n".join(f"compute_{a}" for a in (KNOWN[release] if known is None else known))
        script = folder / "nvcc"
        script.write_text(
            "#!/bin/sh\n"
            'case "$1" in\n'
            f"--version) echo 'Cuda compilation tools, release {release}, V{release}.88';;\n"
            f"--list-gpu-arch) echo '{listed}';;\n"
            f'*) echo "$@" > {tmp_path}/trial; {compiles};;\n'
            "esac\n"
        )
        script.chmod(0o755)
        return {"CUDA_HOME": str(tmp_path / "cuda"), "PATH": ""}

    return make


def torch_of(folder: Path, cuda: str | None, hip: str | None = None) -> Path:
    """A folder with what a build reads of torch."""
    lines = ["__version__ = '2.13.0'", f"cuda: Optional[str] = {cuda!r}", f"hip: Optional[str] = {hip!r}"]
    torch = folder / "torch"
    torch.mkdir(exist_ok=True)
    (torch / "version.py").write_text("\n".join(lines) + "\n")
    return torch


@pytest.mark.parametrize(
    ("release", "built"),
    [
        ("12.1", ("80", "90")),
        ("12.4", ("80", "90")),
        ("12.8", ("80", "90", "100")),
        ("12.9", ("80", "90", "100")),
        ("13.0", ("80", "90", "100")),
        ("15.0", ("90", "100")),
    ],
)
def test_what_nvcc_does_not_know_is_left_out(
    nvcc: ModuleType, fake: Fake, tmp_path: Path, release: str, built: tuple[str, ...]
) -> None:
    environment = fake(release)
    made = nvcc.plan("", "", torch_of(tmp_path, "12.6"), environment)
    assert made.nvcc == tmp_path / "cuda/bin/nvcc"
    assert made.architectures == built
    assert made.version.startswith(f"{release}.88")
    lacking = set(nvcc.ARCHITECTURES) - set(built)
    assert bool(made.note) == bool(lacking)
    for architecture in lacking:
        assert f"does not know sm_{architecture}" in made.note
        assert f"does not know sm_{architecture}" in made.version
    # The trial is for the highest, as all kernels will be.
    assert f"-arch=sm_{built[-1]} " in (tmp_path / "trial").read_text()


@pytest.mark.parametrize("release", ["11.8", "12.0"])
def test_one_that_is_too_old_builds_no_cuda(nvcc: ModuleType, fake: Fake, tmp_path: Path, release: str) -> None:
    environment, torch = fake(release), torch_of(tmp_path, "12.6")
    made = nvcc.plan("", "", torch, environment)
    assert (made.nvcc, made.architectures) == (None, ())
    assert made.version.startswith("none: nvcc " + release)
    assert "older than 12.1" in made.note
    with pytest.raises(nvcc.RefusedError, match=r"^FLEXKERN_CUDA=1, but nvcc .* older than 12\.1.*CUDA_HOME$"):
        nvcc.plan("1", "", torch, environment)


USELESS: dict[str, tuple[dict[str, Any], str]] = {
    "compiles nothing": (
        {"release": "12.4", "compiles": "echo '#error -- unsupported GNU version!' >&2; exit 1"},
        "does not compile here (#error -- unsupported GNU version!)",
    ),
    "says nothing": ({"release": "12.4", "compiles": "exit 3"}, "does not compile here (exit code 3)"),
    "lists nothing": ({"release": "12.4", "known": ()}, "knows none of sm_80, sm_90, sm_100"),
    "is too new": ({"release": "15.0", "known": (150, 160)}, "knows none of sm_80, sm_90, sm_100"),
}


@pytest.mark.parametrize(("made", "why"), USELESS.values(), ids=USELESS)
def test_one_that_is_of_no_use(
    nvcc: ModuleType, fake: Fake, tmp_path: Path, made: dict[str, Any], why: str
) -> None:
    environment, torch = fake(**made), torch_of(tmp_path, "13.0")
    assert why in nvcc.plan("", "", torch, environment).note
    with pytest.raises(nvcc.RefusedError) as caught:
        nvcc.plan("1", "", torch, environment)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_that_is_no_program_of_this_machine(nvcc: ModuleType, fake: Fake, tmp_path: Path) -> None:
    environment = fake("12.4")
    (tmp_path / "cuda/bin/nvcc").write_bytes(b"\x7fELF of another machine")
    made = nvcc.plan("", "", torch_of(tmp_path, "13.0"), environment)
    assert "--version does not say which CUDA it is of" in made.note


def test_without_nvcc(nvcc: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "INSTALLED", str(tmp_path))
    torch = torch_of(tmp_path, "13.0")
    made = nvcc.plan("", "", torch, {"PATH": str(tmp_path)})
    assert made.nvcc is None
    assert "no nvcc in CUDA_HOME, on PATH or in" in made.note
    with pytest.raises(nvcc.RefusedError, match=r"^FLEXKERN_CUDA=1, but there is no nvcc .* set CUDA_HOME$"):
        nvcc.plan("1", "", torch, {"PATH": str(tmp_path)})
    with pytest.raises(nvcc.RefusedError, match=r"CUDACXX names /none/nvcc, which is no program"):
        nvcc.plan("1", "", torch, {"CUDACXX": "/none/nvcc"})


@pytest.mark.parametrize(("cuda", "hip"), [(None, None), (None, "7.1")])
def test_a_torch_without_cuda_builds_none_unless_told(
    nvcc: ModuleType, fake: Fake, tmp_path: Path, cuda: str | None, hip: str | None
) -> None:
    environment, torch = fake("13.0"), torch_of(tmp_path, cuda, hip)
    made = nvcc.plan("", "", torch, environment)
    assert made.nvcc is None
    assert made.version == "none: torch 2.13.0 has no CUDA (FLEXKERN_CUDA=1 builds them all the same)"
    assert not (tmp_path / "trial").exists()
    for on in ("1", "ON"):
        assert nvcc.plan(on, "", torch, environment).architectures == ("80", "90", "100")


@pytest.mark.parametrize("off", ["0", "OFF"])
def test_off(nvcc: ModuleType, fake: Fake, tmp_path: Path, off: str) -> None:
    made = nvcc.plan(off, "no list", torch_of(tmp_path, "13.0"), fake("13.0"))
    assert made.version == "none: switched off by FLEXKERN_CUDA=0"


def test_neither_on_nor_off(nvcc: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(nvcc.RefusedError, match=r"^FLEXKERN_CUDA must be 1, 0 or unset, got 'perhaps'$"):
        nvcc.plan("perhaps", "", tmp_path)


@pytest.mark.parametrize(
    ("asked", "built"),
    [
        ("90", ("90",)),
        ("100;80", ("80", "100")),
        ("80,90, 90", ("80", "90")),
        ("9.0 8.6", ("86", "90")),
        ("sm_120;compute_90", ("90", "120")),
        ("90a;100f;90", ("90", "90a", "100f")),
    ],
)
def test_a_list_of_architectures(
    nvcc: ModuleType, fake: Fake, tmp_path: Path, asked: str, built: tuple[str, ...]
) -> None:
    made = nvcc.plan("", asked, torch_of(tmp_path, "13.0"), fake("13.0"))
    assert made.architectures == built
    assert made.version == "13.0.88"
    assert not made.note


@pytest.mark.parametrize("asked", ["native", "all", "9", "sm90", "90-real", "1000", "80;ninety"])
def test_a_list_that_is_none(nvcc: ModuleType, fake: Fake, tmp_path: Path, asked: str) -> None:
    with pytest.raises(nvcc.RefusedError) as caught:
        nvcc.plan("", asked, torch_of(tmp_path, "13.0"), fake("13.0"))
    assert f'FLEXKERN_CUDA_ARCHS must be architectures of GPUs like "80;90", got {asked!r}' in str(caught.value)


def test_a_list_with_what_nvcc_does_not_know(nvcc: ModuleType, fake: Fake, tmp_path: Path) -> None:
    """Asked for by name it is an error, as a backend is."""
    why = r"FLEXKERN_CUDA_ARCHS names 100, 120, which nvcc 12\.4\.88 \(.*\) does not know: it knows 50, .*, 90$"
    with pytest.raises(nvcc.RefusedError, match=why):
        nvcc.plan("", "80;100;120", torch_of(tmp_path, "13.0"), fake("12.4"))


def test_a_list_of_what_is_newer_than_flexkern(nvcc: ModuleType, fake: Fake, tmp_path: Path) -> None:
    environment = fake("15.0", known=(150,))
    assert nvcc.plan("1", "150", torch_of(tmp_path, "15.0"), environment).architectures == ("150",)


def test_where_nvcc_is_looked_for(nvcc: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {name: tmp_path / name / "bin" for name in ("home", "path", "on_path", "installed", "named")}
    for place in places.values():
        place.mkdir(parents=True)
        (place / "nvcc").touch(mode=0o755)
    monkeypatch.setattr(nvcc, "INSTALLED", str(places["installed"]))
    environment = {
        "CUDACXX": str(places["named"] / "nvcc"),
        "CUDA_HOME": str(tmp_path / "home"),
        "CUDA_PATH": str(tmp_path / "path"),
        "PATH": f"/none:{places['on_path']}",
    }
    for place in ("named", "home", "path", "on_path", "installed"):
        assert nvcc.find(environment) == places[place] / "nvcc"
        environment.pop(next(iter(environment), ""), None)


def test_what_cmake_is_told(nvcc: ModuleType, tmp_path: Path) -> None:
    made = nvcc.Plan(Path("/opt/cu da/nvcc"), ("80", "90"), '12.4 (the "old" \\ one)', "a note")
    assert nvcc.as_cmake(made).splitlines() == [
        "set(FLEXKERN_NVCC [==[/opt/cu da/nvcc]==])",
        "set(FLEXKERN_CUDA_ARCHS [==[80;90]==])",
        "set(FLEXKERN_CUDA_VERSION [==[12.4 (the 'old' / one)]==])",  # it becomes a string of C++
        "message(NOTICE [==[flexkern: a note]==])",
    ]


def test_as_cmake_runs_it(fake: Fake, tmp_path: Path) -> None:
    environment, torch, out = fake("12.4"), torch_of(tmp_path, "13.0"), tmp_path / "nvcc.cmake"

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), str(out), f"--torch={torch}", *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    done = run("--cuda=", "--archs=")
    assert (done.returncode, done.stderr) == (0, "")
    assert "set(FLEXKERN_CUDA_ARCHS [==[80;90]==])" in out.read_text()
    done = run("--cuda=1", "--archs=100")
    assert done.returncode == 1
    assert done.stderr.startswith("FLEXKERN_CUDA_ARCHS names 100, which nvcc 12.4.88")
    assert len(done.stderr.splitlines()) == 1
