"""The package: metadata, a missing extension, the environment, and the build's decisions."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mnv3_fast

PACKAGE = Path(mnv3_fast.__file__).parent
ROOT = Path(__file__).parent.parent.parent
needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")
needs_kernels = pytest.mark.skipif(not mnv3_fast.instruction_sets(), reason="needs compiled kernels")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python code in a new process that finds this package."""
    variables = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment}
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)


def test_version() -> None:
    assert mnv3_fast.__version__.count(".") == 2


@needs_kernels
def test_extension_reports() -> None:
    from mnv3_fast import _C

    assert "baseline" in _C.instruction_sets()
    assert _C.instruction_set() in _C.instruction_sets()
    assert isinstance(_C.cpu_features(), list)
    assert _C.fma_peak(0.01) > 0
    with pytest.raises(ValueError, match="instruction set not available: neon9"):
        _C.set_instruction_set("neon9")
    with pytest.raises(ValueError, match="no such op: conv"):
        _C.take_variant("conv")


@pytest.fixture(scope="module")
def without_extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pure")
    shutil.copytree(PACKAGE, folder / "mnv3_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


def test_without_the_extension(without_extension: Path) -> None:
    code = """
import logging, io
stream = io.StringIO(); logging.basicConfig(stream=stream)
import torch, mnv3_fast
from mnv3_fast import testing
text = stream.getvalue()
assert text.count("running without compiled kernels") == 1, text
assert "apt-get install g++" in mnv3_fast.missing_reason()
model = testing.parity_model("small", size=64); x = testing.parity_images(2, 64)
with torch.no_grad():
    for convert in (mnv3_fast.accelerate, mnv3_fast.freeze):
        assert testing.relative_error(convert(model)(x), model(x)) <= testing.NET_LIMIT
    y = mnv3_fast.ops.depthwise_conv(torch.randn(1, 8, 5, 5), torch.randn(8, 1, 3, 3), padding=1)
    assert y.stride() == (200, 1, 40, 8)
assert mnv3_fast.instruction_sets() == () and mnv3_fast.explain(mnv3_fast.accelerate(model), x).fused == 0
"""
    done = run(code, PYTHONPATH=str(without_extension), MNV3_FAST_ISA="")
    assert done.returncode == 0, done.stderr[-2000:]


def test_info_says_what_is_missing(without_extension: Path) -> None:
    command = [sys.executable, "-m", "mnv3_fast.cli", "info"]
    environment = {**os.environ, "PYTHONPATH": str(without_extension), "COLUMNS": "200", "MNV3_FAST_ISA": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "compiled kernels" in done.stdout
    assert "apt-get install g++" in done.stdout


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MNV3_FAST_ISA", "sse9", "MNV3_FAST_ISA: instruction set 'sse9' is not available here, available: "),
        ("MNV3_FAST_BACKEND", "cuda", "MNV3_FAST_BACKEND: backend 'cuda' does not exist, available: auto, reference"),
    ],
)
def test_impossible_values_raise_at_import(variable: str, value: str, message: str) -> None:
    done = run("import mnv3_fast", **{variable: value})
    assert done.returncode != 0
    assert message in done.stderr


@needs_kernels
def test_environment_is_honoured() -> None:
    assert (
        run("import mnv3_fast; assert mnv3_fast.instruction_set() == 'baseline'", MNV3_FAST_ISA="baseline").returncode
        == 0
    )
    assert (
        run("import mnv3_fast; assert mnv3_fast.backend() == 'reference'", MNV3_FAST_BACKEND="reference").returncode
        == 0
    )
    assert run("import mnv3_fast; assert mnv3_fast.backend() == 'auto'", MNV3_FAST_BACKEND="").returncode == 0


def test_forcing_by_context() -> None:
    before = mnv3_fast.instruction_set()
    for name in mnv3_fast.instruction_sets():
        with mnv3_fast.force_instruction_set(name):
            assert mnv3_fast.instruction_set() == name
    assert mnv3_fast.instruction_set() == before
    with (
        pytest.raises(ValueError, match="force_backend: backend 'off' does not exist, available: auto, reference"),
        mnv3_fast.force_backend("off"),
    ):
        pass


@needs_sources
def test_build_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    import setuptools

    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("mnv3_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("CXX", raising=False)
    assert module.reason_without_extension() is None or not shutil.which("c++")
    monkeypatch.setattr(module.shutil, "which", lambda *_, **__: None)
    assert "no C++ compiler found" in module.reason_without_extension()
    monkeypatch.setenv("CXX", "/bin/false")  # named, so the build must try it and fail with its message
    assert module.reason_without_extension() is None
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    assert "this is Darwin" in module.reason_without_extension()


@needs_sources
@pytest.mark.skipif(importlib.util.find_spec("pybind11") is None, reason="needs the build requirements")
def test_a_compiler_that_fails_makes_the_build_fail(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "/bin/false", "MNV3_FAST_BUILD_DIR": str(tmp_path / "cmake")}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path / "lib")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "/bin/false" in done.stdout + done.stderr


@needs_sources
def test_two_variables_and_no_more() -> None:
    import re

    found = set()
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]:
        found |= set(re.findall(r"MNV3_FAST_[A-Z]+", path.read_text())) - {"MNV3_FAST_"}
    assert found == {"MNV3_FAST_ISA", "MNV3_FAST_BACKEND"}
    page = (ROOT / "docs" / "environment.md").read_text()
    assert all(name in page for name in found)
