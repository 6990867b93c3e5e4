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


def compile_with_torch(text: str, tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Check C++ that follows torch's own headers."""
    source = tmp_path / "check.cpp"
    source.write_text(f"#include <torch/csrc/stable/c/shim.h>\n{text}\n")  # which includes aoti_torch/c/shim.h
    include = Path(torch.__file__).parent / "include"
    command = [COMPILER, "-std=c++20", "-fsyntax-only", "-w", f"-I{include}", *flags, str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(COMPILER is None, reason="needs a compiler")
def test_declarations_agree_with_torchs_headers(tmp_path: Path) -> None:
    shim = SHIM.read_text()
    done = compile_with_torch(shim, tmp_path)
    assert done.returncode == 0, done.stderr[:2000]
    wrong = shim.replace(
        "AOTITorchError torch_get_num_threads(uint32_t*", "AOTITorchError torch_get_num_threads(int64_t*"
    )
    assert wrong != shim
    assert compile_with_torch(wrong, tmp_path).returncode != 0


@pytest.mark.skipif(COMPILER is None, reason="needs a compiler")
@pytest.mark.parametrize(("newer", "fine"), [([], True), (["torch_from_blob"], False)], ids=["ours", "one of 2.11"])
def test_every_function_is_in_torch_2_10(newer: list[str], fine: bool, tmp_path: Path) -> None:
    """Torch's headers, told to show what 2.10 has, declare all that we use."""
    lines = [f"auto* pointer{i} = &{name};" for i, name in enumerate([*sorted(declared()), *newer])]
    done = compile_with_torch("\n".join(lines), tmp_path, "-DTORCH_TARGET_VERSION=0x020a000000000000")
    assert (done.returncode == 0) == fine, done.stderr[:2000]


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_binary_asks_torch_for_nothing_else() -> None:
    """Undefined are the functions declared, every one, and what versioned C and C++ runtime libraries have."""
    output = subprocess.run(["nm", "-u", "-D", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    undefined = {name for kind, name in (line.split()[-2:] for line in output.splitlines()) if kind == "U"}
    runtime = re.compile(r".*@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$|__(asan|ubsan)_")
    assert {name for name in undefined if not runtime.match(name)} == declared()


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_kernel_objects_have_no_weak_symbols() -> None:
    objects = list((ROOT / "build").glob("cmake-*/CMakeFiles/kernels_*.dir/**/*.o"))
    if not objects:
        pytest.skip("needs the objects of a build in this tree")
    for path in objects:
        output = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
        weak = [line for line in output.splitlines() if re.search(r" [WVuvw] ", line)]
        assert not weak, f"{path.name}: {weak[:3]}"


def includes(path: Path) -> list[str]:
    return re.findall(r"^\s*#\s*include\s*(\S+)", path.read_text(), re.MULTILINE)


def test_no_torch_header() -> None:
    for path in (ROOT / "csrc").rglob("*.*"):
        assert not [name for name in includes(path) if re.match(r"[<\"](torch|ATen|c10)/", name)], path


def test_kernels_know_no_torch_and_no_library_code() -> None:
    """Inline functions of the standard library would be compiled once per instruction set, and the linker keeps one."""
    fine = re.compile(r"<(immintrin\.h|arm_neon\.h|stdint\.h|stddef\.h)>|\"(kernels|isa)\.h\"|\"simd/\w+\.h\"")
    kernels = [*(ROOT / "csrc" / "ops").glob("*/cpu.cpp"), *(ROOT / "csrc" / "simd").glob("*.h")]
    assert len(kernels) >= 10
    for path in kernels:
        assert all(fine.fullmatch(name) for name in includes(path)), f"{path}: {includes(path)}"
