"""Drives CMake (the one build description is CMakeLists.txt) and hands its libraries to setuptools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "build_tools"))
import needs  # noqa: E402

needs.must(needs.setuptools_lacks())

from setuptools import Extension, find_packages, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402
from setuptools.command.build_py import build_py  # noqa: E402
from setuptools.command.egg_info import egg_info  # noqa: E402


class CMakeBuild(build_ext):
    """Builds everything at once; the libraries go beside the package's Python files."""

    def build_extension(self, ext: Extension) -> None:
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # pip gives each build a new temporary folder; in one that stays only what has changed is compiled.
        build = Path(os.environ.get("FLEXKERN_BUILD_DIR") or self.build_temp).resolve()
        found = needs.find_all()
        configure = [
            found.cmake,
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            "-UFLEXKERN_*",  # what the last build in this folder was told
            f"-DCMAKE_INSTALL_PREFIX={package}",
            f"-DCMAKE_MAKE_PROGRAM={found.ninja}",  # of this build's environment: the last one's may be gone
            f"-DFLEXKERN_TORCH_DIR={found.torch}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *(f"-D{name}={os.environ.get(name, '')}" for name in (*needs.CUDA_OPTIONS, needs.OLD_LIBRARIES)),
        ]
        for command in (configure, [found.cmake, "--build", str(build)]):
            if subprocess.run(command).returncode:
                raise SystemExit(f"flexkern's kernels do not compile here, as is said above; {needs.PLAIN}")
        # An earlier build may have left a CUDA library, of other operators, where this one makes none.
        shutil.rmtree(package / "lib", ignore_errors=True)
        subprocess.run([found.cmake, "--install", str(build)], check=True)

    def copy_extensions_to_source(self) -> None:
        """In an editable install the operator libraries go into the source tree, as the module does."""
        name = self.extensions[0].name
        package = Path(self.get_finalized_command("build_py").get_package_dir("flexkern"))
        for module in package.glob("_core.*.so"):  # of another Python, which this one may prefer to its own
            module.unlink()
        super().copy_extensions_to_source()
        built = Path(self.build_lib, *name.split(".")[:-1]) / "lib"
        target = package / "lib"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(built, target)

    def get_outputs(self) -> list[str]:
        package = Path(self.get_ext_fullpath(self.extensions[0].name)).parent
        return [*super().get_outputs(), *(str(p) for p in (package / "lib").glob("*.so"))]


class WithoutTests(build_py):
    """Tests lie beside what they test in some packages; they stay in the checkout."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [m for m in found if m[1] != "conftest" and not m[1].startswith("test_")]


class WithLocalVersion(egg_info):
    """A wheel's version says which CUDA it is for: FLEXKERN_LOCAL_VERSION=cu130 makes 0.1.0+cu130."""

    def finalize_options(self) -> None:
        if local := os.environ.get("FLEXKERN_LOCAL_VERSION"):
            self.tag_build = f"+{local}"
        super().finalize_options()


# FLEXKERN_EXTENSION=0 installs the Python files only: every operator then runs in plain PyTorch or Triton.
extensions, options = [], {}
if needs.wants_extension():
    # One module, and so one wheel, for every Python from 3.10 on; but for free-threaded ones (CMakeLists.txt).
    limited = not sysconfig.get_config_var("Py_GIL_DISABLED")
    extensions = [Extension("flexkern._core", sources=[], py_limited_api=limited)]
    options["bdist_wheel"] = {"py_limited_api": "cp310" if limited else None}
# Two packages lie beside flexkern/ in the tree and inside it where they are installed (pyproject: package-dir).
beside = {"flexkern.triton_kernels": "triton_kernels", "flexkern.benchmarks": "benchmarks"}
packages = find_packages(include=["flexkern", "flexkern.*"])
for name, folder in beside.items():
    packages += [name, *(f"{name}.{inner}" for inner in find_packages(folder))]
setup(
    packages=packages, ext_modules=extensions, options=options,
    cmdclass={"build_ext": CMakeBuild, "build_py": WithoutTests, "egg_info": WithLocalVersion},
)  # fmt: skip
