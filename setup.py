"""Builds the kernels with CMake and Ninja. Needs no torch: see docs/decisions.md, "Torch-free build".

CUDA kernels are built where nvcc is found; ``CMAKE_ARGS=-DMNV3_FAST_CUDA=OFF`` goes without, ``=ON`` fails without.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
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
    packages = [*sys.path, sysconfig.get_path("purelib")]  # which pip hides from sys.path while it builds
    return next((str(path) for folder in packages for path in sorted(Path(folder).glob("nvidia/cu*/bin/nvcc"))), None)


def asks_for_cuda(environment: Mapping[str, str] = os.environ) -> bool | None:
    """What ``$CMAKE_ARGS`` says of the CUDA kernels with ``-DMNV3_FAST_CUDA=``; None if nothing."""
    said = re.findall(r"-DMNV3_FAST_CUDA(?::\w+)?=(\S*)", environment.get("CMAKE_ARGS", ""))
    return said[-1].upper() in ("1", "ON", "YES", "TRUE", "Y") if said else None


def nvcc_to_use(environment: Mapping[str, str] = os.environ) -> str | None:
    """The nvcc that builds the CUDA kernels, or None for an install without them.

    Nobody who did not ask for them is stopped by an nvcc that happens to be there: systems ship old ones, and each
    takes only some host compilers. One that compiles a few lines and then fails on the kernels fails the install.

    Raises:
        RuntimeError: where ``$CMAKE_ARGS`` asks for CUDA kernels and there is no nvcc that compiles.
    """
    asked = asks_for_cuda(environment)
    if asked is False:
        return None
    nvcc = find_nvcc(environment)
    if nvcc is None:
        reason = "nvcc was not found in $CUDA_HOME, on the path or among the packages of this Python"
    else:
        reason = reason_without_cuda(nvcc)
    if reason is None:
        return nvcc
    if asked:
        raise RuntimeError(f"mnv3_fast: CMAKE_ARGS asks for CUDA kernels, but {reason}")
    if nvcc is not None:
        print(f"mnv3_fast: installing without CUDA kernels: {reason}. GPUs run the Triton kernels.", file=sys.stderr)
    return None


def reason_without_cuda(nvcc: str) -> str | None:
    """Why an nvcc cannot build the CUDA kernels, found by making a library of a few lines; None if it can."""
    kernel = "__global__ void probe(float* x) { *x = mnv3_fast::cuda::relu(*x); }"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cu"
        source.write_text(f'#include "cuda/vector.h"\n{kernel}\n')
        options = ["-std=c++17", "-arch=sm_80", f"-I{ROOT / 'csrc'}", "-shared", "-Xcompiler=-fPIC", "--cudadevrt=none"]
        make = [*options, "-o", str(Path(folder) / "probe.so"), str(source)]
        try:
            for command in ([nvcc, "--list-gpu-code"], [nvcc, *make]):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
                    return f"{nvcc} does not compile them: {said[0] if said else f'status {done.returncode}'}"
        except OSError as error:
            return f"{nvcc} cannot be run: {error}"
    return None


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
        nvcc = nvcc_to_use()
        if nvcc is None:  # one of an earlier build would not fit the rest
            (prefix / "mnv3_fast" / "_cuda.so").unlink(missing_ok=True)
        self._configure(build, nvcc)
        cmake = _tool("cmake")
        try:
            subprocess.check_call([cmake, "--build", str(build)])
        except subprocess.CalledProcessError:
            if nvcc is not None:
                hint = f"if {nvcc} failed: CMAKE_ARGS=-DMNV3_FAST_CUDA=OFF installs without CUDA kernels"
                print(f"mnv3_fast: {hint}", file=sys.stderr)
            raise
        subprocess.check_call([cmake, "--install", str(build), "--prefix", str(prefix)])

    def _configure(self, build: Path, nvcc: str | None) -> None:
        import pybind11

        # Paths of an isolated build environment change from run to run, so they are given every time.
        command = [_tool("cmake"), "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
        command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
        command += ["-DMNV3_FAST_CUDA=ON", f"-DMNV3_FAST_NVCC={nvcc or ''}"]  # CMake would keep what it was told before
        subprocess.check_call(command + os.environ.get("CMAKE_ARGS", "").split())

    def get_outputs(self) -> list[str]:
        return []


def _tool(name: str) -> str:
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if not path:
        raise RuntimeError(f"mnv3_fast: {name} is needed to build the kernels and was not found")
    return path


if __name__ == "__main__":
    setup(ext_modules=[Extension("mnv3_fast._C", [])], cmdclass={"build_ext": CMakeBuild})
