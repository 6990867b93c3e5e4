"""The extension and LibTorch: only the stable C ABI, declared as torch declares it, and nothing weak in the kernels."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mnv3_fast import _library
from tests.package.sources import ROOT, compiler, needs_sources, shim_functions

TORCH_INCLUDE = Path(torch.__file__).parent / "include"
TORCH_2_10 = "-DTORCH_TARGET_VERSION=0x020a000000000000"


def nm(*args: str) -> list[list[str]]:
    """The lines of ``nm``, split, or skip."""
    tool = shutil.which("nm")
    if not tool:
        pytest.skip("no nm")
    output = subprocess.run([tool, *args], capture_output=True, text=True, check=True).stdout
    return [line.split() for line in output.splitlines()]


def compile_with_torch(source: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Check a C++ source that may include torch's headers."""
    if not (TORCH_INCLUDE / "torch/csrc/stable/c/shim.h").exists():
        pytest.skip("this torch comes without its headers")
    file = folder / "check.cpp"
    file.write_text(source)
    command = [*compiler().split(), "-std=c++17", "-fsyntax-only", f"-I{TORCH_INCLUDE}", *flags, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_sources
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        (
            "aoti_torch_get_dim(AtenTensorHandle tensor, int64_t*",
            "aoti_torch_get_dim(AtenTensorHandle tensor, int32_t*",
        ),
        ("int32_t aoti_torch_dtype_float32()", "int64_t aoti_torch_dtype_float32()"),
    ],
    ids=["as it is", "other argument", "other result"],
)
def test_declarations_agree_with_torch(old: str, new: str, tmp_path: Path) -> None:
    """Included together with torch's own header, a differing declaration does not compile."""
    ours = (ROOT / "csrc/torch_shim.h").read_text()
    assert old in ours
    (tmp_path / "ours.h").write_text(ours.replace(old, new) if old else ours)
    result = compile_with_torch('#include <torch/csrc/stable/c/shim.h>\n#include "ours.h"\n', tmp_path)
    assert (result.returncode == 0) == (old == new), result.stderr


@needs_sources
@pytest.mark.parametrize(("extra", "fine"), [([], True), (["torch_from_blob"], False)], ids=["as it is", "of 2.11"])
def test_every_function_is_in_2_10(extra: list[str], fine: bool, tmp_path: Path) -> None:
    """Torch's header at the level of 2.10 declares every function that we use."""
    names = [*sorted(shim_functions()), *extra]
    lines = [f"auto* pointer{i} = &{name};" for i, name in enumerate(names)]
    source = "\n".join(["#include <torch/csrc/stable/c/shim.h>", *lines])
    result = compile_with_torch(source, tmp_path, TORCH_2_10)
    assert (result.returncode == 0) == fine, result.stderr


@pytest.mark.skipif(not _library.EXTENSION, reason="no compiled kernels")
@needs_sources
def test_undefined_symbols_are_those_declared() -> None:
    """The library takes from other libraries what torch_shim.h declares, all of it, and else only the C and C++ runtime."""
    undefined = {line[-1] for line in nm("-u", "-D", str(_library._LIBRARY)) if line[-2] == "U"}
    foreign = {name for name in undefined if not re.search(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$", name)}
    sanitizers = {name for name in foreign if re.match(r"__(asan|ubsan)_", name)}
    assert foreign - sanitizers == shim_functions()


@needs_sources
def test_no_weak_symbol_in_the_kernels() -> None:
    """The linker may take one copy of a weak symbol for all, so an AVX-512 body could end up in the baseline."""
    objects = sorted((ROOT / "build").glob("cmake-*/CMakeFiles/kernels_*.dir/**/*.o"))
    if not objects:
        pytest.skip("no objects of the kernels in build/")
    assert len({path.parents[3] for path in objects if "cpu.cpp" in path.name}) >= 1
    weak = [(path.name, *line) for path in objects for line in nm(str(path)) if line[-2] in ("W", "V", "w", "v", "u")]
    assert weak == []


@needs_sources
def test_no_torch_header_below_csrc() -> None:
    included = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10|caffe2)/', re.MULTILINE)
    assert included.search("#include <torch/extension.h>")
    found = [str(path) for path in (ROOT / "csrc").rglob("*") if path.is_file() and included.search(path.read_text())]
    assert found == []


@needs_sources
def test_kernels_know_no_torch() -> None:
    """What is compiled per instruction set sees neither the shim nor the standard library's inline bodies."""
    allowed = re.compile(
        r"<(immintrin|x86intrin|arm_neon|cstdint|cstddef|stdint|stddef)(\.h)?>|^\"(kernels|isa)\.h\"|\"simd/"
    )
    for path in [*(ROOT / "csrc/ops").glob("*/cpu.cpp"), *(ROOT / "csrc/simd").glob("*.h")]:
        for header in re.findall(r"^\s*#\s*include\s*(\S+)", path.read_text(), re.MULTILINE):
            assert allowed.search(header), f"{path} includes {header}"
