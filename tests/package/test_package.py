"""The package: metadata, a missing extension, the environment, and the build's decisions."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import mnv3_fast

PACKAGE = Path(mnv3_fast.__file__).parent
ROOT = Path(__file__).parent.parent.parent
needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")
needs_kernels = pytest.mark.skipif(not mnv3_fast.instruction_sets(), reason="needs compiled kernels")


def run(*args: str, folder: Path = PACKAGE.parent, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a new process that imports the package of a folder: it looks in its working directory first."""
    variables = {**os.environ, "PYTHONPATH": str(folder), **environment}
    return subprocess.run(
        [sys.executable, *args], env=variables, cwd=folder, capture_output=True, text=True, check=False
    )


def test_metadata() -> None:
    try:
        found = metadata.metadata("mnv3-fast")
    except metadata.PackageNotFoundError:
        pytest.skip("mnv3-fast is imported from its sources, not installed")
    assert found["Version"] == mnv3_fast.__version__
    assert found["Requires-Python"] == ">=3.10"
    assert found["License-Expression"] == "Apache-2.0"
    lines = [line for line in metadata.requires("mnv3-fast") or [] if "extra ==" not in line]
    assert {re.split(r"[<>=;\s]", line)[0] for line in lines} == {
        "torch", "torchvision", "pillow", "numpy", "safetensors", "typer", "rich", "filelock", "tomli",
    }  # fmt: skip
    (script,) = metadata.entry_points(group="console_scripts", name="mnv3-fast")
    assert callable(script.load())


@needs_kernels
def test_extension_reports() -> None:
    from mnv3_fast import _C

    assert ("neon" if platform.machine() == "aarch64" else "baseline") in _C.instruction_sets()
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


@pytest.mark.slow
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
    done = run("-c", code, folder=without_extension, MNV3_FAST_ISA="")
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_library_that_does_not_load(without_extension: Path, tmp_path: Path) -> None:
    """The loader's own words, which torch leaves out of its message."""
    shutil.copytree(without_extension, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mnv3_fast" / "libmnv3_fast_ops.so").write_bytes(b"not a library")
    done = run("-c", "import mnv3_fast; print(mnv3_fast.missing_reason())", folder=tmp_path, MNV3_FAST_ISA="")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "could not be loaded: " in done.stdout
    assert "file too short" in done.stdout or "invalid ELF header" in done.stdout


def test_info_says_what_is_missing(without_extension: Path) -> None:
    done = run("-m", "mnv3_fast.cli", "info", folder=without_extension, COLUMNS="200", MNV3_FAST_ISA="")
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
    done = run("-c", "import mnv3_fast", **{variable: value})
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.slow
@needs_kernels
def test_environment_is_honoured() -> None:
    code = "import mnv3_fast; print(mnv3_fast.instruction_set(), mnv3_fast.backend())"
    slowest, best = mnv3_fast.instruction_sets()[0], mnv3_fast.instruction_sets()[-1]
    assert run("-c", code, MNV3_FAST_ISA=slowest, MNV3_FAST_BACKEND="reference").stdout.split() == [
        slowest,
        "reference",
    ]
    assert run("-c", code, MNV3_FAST_ISA="", MNV3_FAST_BACKEND="").stdout.split() == [best, "auto"]


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
def test_two_variables_and_no_more() -> None:
    found = set()
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]:
        found |= set(re.findall(r"MNV3_FAST_[A-Z]+", path.read_text())) - {"MNV3_FAST_"}
    assert found == {"MNV3_FAST_ISA", "MNV3_FAST_BACKEND"}
    page = (ROOT / "docs" / "environment.md").read_text()
    assert all(name in page for name in found)
