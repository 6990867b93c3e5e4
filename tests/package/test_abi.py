"""The torch-free build: our declarations against torch's headers, and what the binary asks of torch."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import mnv3_fast

ROOT = Path(__file__).parent.parent.parent
LIBRARY = Path(mnv3_fast.__file__).parent / "libmnv3_fast_ops.so"
SHIM = ROOT / "csrc" / "torch_shim.h"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

pytestmark = [
    pytest.mark.skipif(not SHIM.exists(), reason="needs the source tree"),
    pytest.mark.skipif(not LIBRARY.exists(), reason="needs the compiled library"),
]


def declared() -> set[str]:
    """Functions that torch_shim.h declares."""
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\(", SHIM.read_text()))


def compile_with(shim: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """One file with torch's own headers and ours; a declaration that differs is an error."""
    (tmp_path / "shim.h").write_text(shim)
    source = tmp_path / "both.cpp"
    source.write_text(
        '#include <torch/csrc/inductor/aoti_torch/c/shim.h>\n#include <torch/csrc/stable/c/shim.h>\n#include "shim.h"\n'
    )
    include = Path(torch.__file__).parent / "include"
    command = [COMPILER, "-std=c++20", "-fsyntax-only", "-w", f"-I{include}", f"-I{tmp_path}", str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(COMPILER is None, reason="needs a compiler")
def test_declarations_agree_with_torchs_headers(tmp_path: Path) -> None:
    shim = SHIM.read_text()
    done = compile_with(shim, tmp_path)
    assert done.returncode == 0, done.stderr[:2000]
    wrong = shim.replace(
        "AOTITorchError torch_get_num_threads(uint32_t*", "AOTITorchError torch_get_num_threads(int64_t*"
    )
    assert wrong != shim
    assert compile_with(wrong, tmp_path).returncode != 0


def undefined() -> set[str]:
    output = subprocess.run(["nm", "-u", "-D", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in output.splitlines()}


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_binary_asks_torch_for_nothing_else() -> None:
    of_torch = {name for name in undefined() if "torch" in name or "c10" in name or name.startswith("_ZN2at")}
    assert of_torch
    assert of_torch <= declared(), of_torch - declared()
    assert declared() <= of_torch, f"declared and never used: {declared() - of_torch}"


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_kernel_objects_have_no_weak_symbols() -> None:
    objects = [o for o in (ROOT / "build").rglob("kernels_*.dir/**/*.o") if "asan" not in str(o)]
    if not objects:
        pytest.skip("needs the objects of a build in this tree")
    for path in objects:
        output = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
        weak = [line for line in output.splitlines() if re.search(r" [WVuvw] ", line)]
        assert not weak, f"{path.name}: {weak[:3]}"


def test_no_torch_header_and_no_torch_below_the_line() -> None:
    for path in (ROOT / "csrc").rglob("*.*"):
        text = path.read_text()
        assert not re.search(r"#include\s*<(torch|ATen|c10)/", text), path
        if path.name == "cpu.cpp" or path.parent.name == "simd":
            assert "torch_shim.h" not in text, path
            assert "tensor.h" not in text, path
