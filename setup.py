"""Builds the kernels with CMake and Ninja. Needs no torch: see docs/decisions.md, "Torch-free build"."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
COMPILERS = ("c++", "g++", "clang++")


def find_compiler(environment: Mapping[str, str]) -> str | None:
    """The C++ compiler of this machine: ``$CXX`` as it stands, or the first of the usual names on the path."""
    named = environment.get("CXX")
    if named:
        return named
    found = (shutil.which(name, path=environment.get("PATH", os.defpath)) for name in COMPILERS)
    return next((path for path in found if path), None)


def reason_without_extension(environment: Mapping[str, str] = os.environ) -> str | None:
    """Why this machine gets the pure Python package, or None if the kernels are to be built.

    Only what is absent is a reason. A compiler that is there and fails, or that ``$CXX`` asks for, fails the install.
    """
    if platform.system() != "Linux":
        # macOS's linker and Windows' compiler know neither the stand-in for LibTorch nor the vector extensions as used.
        return f"the kernels are built on Linux only, this is {platform.system()}"
    if not find_compiler(environment):
        return f"no C++ compiler found (looked for $CXX, {', '.join(COMPILERS)})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not environment.get("CXX") and not header.exists():
        return f"Python's headers are not installed (no {header}; Debian and Ubuntu call the package python3-dev)"
    return None


def find_nvcc(environment: Mapping[str, str] = os.environ) -> str | None:
    """CUDA's compiler: on the path, in ``$CUDA_HOME``, or of pip's wheels beside this Python; None if there is none."""
    named = os.path.join(environment.get("CUDA_HOME") or os.devnull, "bin")
    found = shutil.which("nvcc", path=os.pathsep.join([named, environment.get("PATH", os.defpath)]))
    if found:
        return str(Path(found).resolve())
    return next((str(path) for folder in sys.path for path in sorted(Path(folder).glob("nvidia/cu*/bin/nvcc"))), None)


def build_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """One folder for each Python and named compiler: CMake keeps the compiler it first saw in a folder."""
    name = "-".join(
        ["cmake", sys.implementation.cache_tag or "python", *re.findall(r"[\w.+]+", environment.get("CXX", ""))]
    )
    return ROOT / "build" / name


class CMakeBuild(build_ext):
    """build_ext that configures and builds CMakeLists.txt and installs the libraries into the package."""

    def finalize_options(self) -> None:
        self.asked_for = self.build_temp  # only what --build-temp says, not setuptools' own default
        super().finalize_options()

    def run(self) -> None:
        reason = reason_without_extension()
        if reason:
            message = f"mnv3_fast: installing without kernels: {reason}. The models run on torch's own operators."
            print(message, file=sys.stderr)
            return
        prefix = ROOT if self.inplace else Path(self.build_lib).resolve()
        build = Path(self.asked_for).resolve() if self.asked_for else build_directory()
        build.mkdir(parents=True, exist_ok=True)
        self._configure(build)
        cmake = _tool("cmake")
        subprocess.check_call([cmake, "--build", str(build)])
        subprocess.check_call([cmake, "--install", str(build), "--prefix", str(prefix)])

    def _configure(self, build: Path) -> None:
        import pybind11

        # Paths of an isolated build environment change from run to run, so they are given every time.
        command = [_tool("cmake"), "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
        command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
        given = os.environ.get("CMAKE_ARGS", "").split()
        if "-DMNV3_FAST_CUDA=ON" in given:  # not by itself: minutes of compiling, and nothing chooses these kernels yet
            command += [f"-DMNV3_FAST_NVCC={find_nvcc() or ''}"]
        subprocess.check_call(command + given)

    def get_outputs(self) -> list[str]:
        return []


def _tool(name: str) -> str:
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if not path:
        raise RuntimeError(f"mnv3_fast: {name} is needed to build the kernels and was not found")
    return path


if __name__ == "__main__":
    setup(ext_modules=[Extension("mnv3_fast._C", [])], cmdclass={"build_ext": CMakeBuild})
