"""Builds the kernels with CMake and Ninja. Needs no torch: see docs/decisions.md, "Torch-free build"."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def reason_without_extension() -> str | None:
    """Why this machine gets the pure Python package, or None if the kernels are to be built."""
    if platform.system() != "Linux":
        return f"the kernels are built on Linux only for now, this is {platform.system()}"
    named = os.environ.get("CXX")
    if named:
        return None  # asked for by name: if it does not work, the build must say so
    if any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return None
    return "no C++ compiler found (looked for $CXX, c++, g++, clang++)"


class CMakeBuild(build_ext):
    """build_ext that configures and builds CMakeLists.txt and installs the libraries into the package."""

    def run(self) -> None:
        reason = reason_without_extension()
        if reason:
            message = f"mnv3_fast: installing without kernels: {reason}. The models run on torch's own operators."
            print(message, file=sys.stderr)
            return
        package = ROOT / "mnv3_fast" if self.inplace else Path(self.build_lib).resolve() / "mnv3_fast"
        tag = sys.implementation.cache_tag or "python"
        build = Path(os.environ.get("MNV3_FAST_BUILD_DIR", ROOT / "build" / f"cmake-{tag}"))
        build.mkdir(parents=True, exist_ok=True)
        self._configure(build)
        cmake = _tool("cmake")
        subprocess.check_call([cmake, "--build", str(build)])
        subprocess.check_call([cmake, "--install", str(build), "--prefix", str(package.parent)])

    def _configure(self, build: Path) -> None:
        import pybind11

        # Paths of an isolated build environment change from run to run, so they are given every time.
        command = [_tool("cmake"), "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
        command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
        subprocess.check_call(command + os.environ.get("CMAKE_ARGS", "").split())

    def get_outputs(self) -> list[str]:
        return []


def _tool(name: str) -> str:
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if not path:
        raise RuntimeError(f"mnv3_fast: {name} is needed to build the kernels and was not found")
    return path


setup(ext_modules=[Extension("mnv3_fast._C", [])], cmdclass={"build_ext": CMakeBuild})
