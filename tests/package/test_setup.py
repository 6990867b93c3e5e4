"""What an install does with and without a compiler."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree"),
    pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="needs setuptools"),
]


def load_setup() -> ModuleType:
    """setup.py as a module; imported, it builds nothing."""
    spec = importlib.util.spec_from_file_location("mnv3_fast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def executable(folder: Path, name: str) -> Path:
    """A file that can be run, and fails."""
    path = folder / name
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("system", ["Windows", "Darwin"])
def test_other_systems_get_the_python_package(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_setup()
    monkeypatch.setattr(module.platform, "system", lambda: system)
    reason = module.reason_without_extension({"CXX": "c++", "PATH": os.environ["PATH"]})
    assert reason == f"the kernels are built on Linux only, this is {system}"


@pytest.mark.parametrize("name", ["c++", "g++", "clang++"])
def test_compiler_is_found_by_name(name: str, tmp_path: Path) -> None:
    module = load_setup()
    assert "no C++ compiler found (looked for $CXX, c++, g++, clang++)" in module.reason_without_extension(
        {"PATH": str(tmp_path)}
    )
    path = executable(tmp_path, name)
    assert module.find_compiler({"PATH": str(tmp_path)}) == str(path)
    assert module.find_compiler({"PATH": str(tmp_path), "CXX": "other"}) == "other"


def test_missing_headers_are_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_setup()
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    executable(tmp_path, "c++")
    assert "python3-dev" in module.reason_without_extension({"PATH": str(tmp_path)})
    (tmp_path / "Python.h").touch()
    assert module.reason_without_extension({"PATH": str(tmp_path)}) is None


def test_each_compiler_has_its_build_folder() -> None:
    module = load_setup()
    folders = {module.build_directory(env) for env in ({}, {"CXX": "g++"}, {"CXX": "/opt/x/clang++ -m64"})}
    assert len(folders) == 3
    assert all(folder.parent == ROOT / "build" for folder in folders)


def build_extension(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``setup.py build_ext`` into a folder of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "CMAKE_ARGS")}
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-temp",
        str(folder / "cmake"),
        "--build-lib",
        str(folder),
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**kept, "CMAKE_ARGS": "-DMNV3_FAST_CUDA=OFF", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_without_compiler_the_build_succeeds(tmp_path: Path) -> None:
    result = build_extension(tmp_path, PATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "mnv3_fast: installing without kernels: no C++ compiler found" in result.stderr
    assert list(tmp_path.rglob("*.so")) == []


def test_failing_compiler_fails_the_build(tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if not (shutil.which("cmake", path=path) and shutil.which("ninja", path=path)):
        pytest.skip("cmake or ninja is not installed")
    false = shutil.which("false")
    assert false
    result = build_extension(tmp_path, CXX=false)
    assert result.returncode != 0
    assert "is not able to compile a simple test program" in result.stdout + result.stderr


def test_nvcc_is_found_in_cuda_home_then_on_the_path_then_among_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_setup()
    folders = {name: tmp_path / name for name in ("home/bin", "path", "site/nvidia/cu13/bin", "empty")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    monkeypatch.setattr(module.sys, "path", [str(tmp_path)])
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path / "site"))
    empty = {"PATH": str(folders["empty"])}
    assert module.find_nvcc(empty) is None
    wheel = executable(folders["site/nvidia/cu13/bin"], "nvcc")
    assert module.find_nvcc(empty) == str(wheel)
    on_path = executable(folders["path"], "nvcc")
    assert module.find_nvcc({"PATH": str(folders["path"])}) == str(on_path)
    # A home without a compiler (CUDA's libraries alone) is no reason to fail.
    assert module.find_nvcc({"PATH": str(folders["path"]), "CUDA_HOME": str(folders["empty"])}) == str(on_path)
    at_home = executable(folders["home/bin"], "nvcc")
    assert module.find_nvcc({"PATH": str(folders["path"]), "CUDA_HOME": str(tmp_path / "home")}) == str(at_home)


NVCC = """#!/bin/sh
case "$*" in --list-gpu-code) {listed};; *) {compiled};; esac
"""
FAILING = {
    "too old": ("echo 'nvcc fatal: unknown option' >&2; exit 1", "exit 0", "does not compile them: nvcc fatal: unknown option"),
    "host compiler": ("exit 0", "echo; echo 'error: unsupported GNU version!'; exit 1", "does not compile them: error: unsupported GNU version!"),
    "silent": ("exit 0", "exit 7", "does not compile them: status 7"),
}  # fmt: skip
"""What an nvcc does that is there and cannot build the kernels, and what is said of it."""


def environment_with(folder: Path, listed: str, compiled: str, **rest: str) -> dict[str, str]:
    """One in which nvcc is a script."""
    executable(folder, "nvcc").write_text(NVCC.format(listed=listed, compiled=compiled))
    return {"CUDA_HOME": os.devnull, "PATH": f"{folder}:/bin:/usr/bin", **rest}


@pytest.mark.parametrize("case", list(FAILING))
def test_an_nvcc_that_fails_is_a_reason_unless_it_was_asked_for(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    module = load_setup()
    listed, compiled, words = FAILING[case]
    environment = environment_with(tmp_path, listed, compiled)
    assert module.nvcc_to_use(environment) is None
    assert f"mnv3_fast: installing without CUDA kernels: {tmp_path}/nvcc {words}. GPUs run" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match=f"CMAKE_ARGS asks for CUDA kernels, but {tmp_path}/nvcc {words}"):
        module.nvcc_to_use({**environment, "CMAKE_ARGS": "-DX=1 -DMNV3_FAST_CUDA=ON"})
    assert module.nvcc_to_use({**environment, "CMAKE_ARGS": "-DMNV3_FAST_CUDA:BOOL=OFF"}) is None
    assert capsys.readouterr().err == ""


def test_an_nvcc_that_compiles_is_used_unless_it_is_refused(tmp_path: Path) -> None:
    module = load_setup()
    environment = environment_with(tmp_path, "exit 0", "exit 0")
    for asked in ("", "-DMNV3_FAST_CUDA=ON", "-DMNV3_FAST_CUDA=OFF -DMNV3_FAST_CUDA=on"):
        assert module.nvcc_to_use({**environment, "CMAKE_ARGS": asked}) == f"{tmp_path}/nvcc"
    assert module.nvcc_to_use({**environment, "CMAKE_ARGS": "-DMNV3_FAST_CUDA=OFF"}) is None


def test_no_nvcc_is_no_news_unless_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module = load_setup()
    monkeypatch.setattr(module, "find_nvcc", lambda environment: None)
    assert module.nvcc_to_use({}) is None and capsys.readouterr().err == ""
    with pytest.raises(RuntimeError, match="asks for CUDA kernels, but nvcc was not found in"):
        module.nvcc_to_use({"CMAKE_ARGS": "-DMNV3_FAST_CUDA=ON"})


def test_an_nvcc_that_is_no_program_is_a_reason(tmp_path: Path) -> None:
    module = load_setup()
    (tmp_path / "nvcc").write_bytes(b"\x7fnothing")
    (tmp_path / "nvcc").chmod(0o755)
    assert "nvcc cannot be run: " in module.reason_without_cuda(str(tmp_path / "nvcc"))
