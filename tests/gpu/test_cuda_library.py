"""What Python gives the library of CUDA kernels, and what it says where there is none."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
import torch

from mnv3_fast.gpu import cuda_library
from mnv3_fast.ops.depthwise_conv import cuda_kernel
from tests.gpu.simulator.build import ROOT

WINDOW = (1, 1, 1, 1, 1, 1, 1, 1)


def test_the_structure_is_that_of_the_header() -> None:
    text = (ROOT / "csrc/ops/depthwise_conv/cuda.h").read_text()
    body = re.search(r"struct mnv3_cuda_depthwise_conv_arguments \{(.*?)\};", text, re.DOTALL).group(1)
    fields = []
    for line in re.sub(r"//[^\n]*", "", body).split(";"):
        if words := line.split():
            kind = "void*" if "*" in line else words[0]
            names = re.sub(r"[*,]", " ", line).split()[1:]
            fields += [(name, kind) for name in names if name not in ("void", "float")]
    kinds = {"void*": ctypes.c_void_p, "int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32}
    assert [(name, kinds[kind]) for name, kind in fields] == list(cuda_kernel.Arguments._fields_)


def test_a_missing_library_is_an_error_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(cuda_library, "FILE", tmp_path / "_cuda.so")
    cuda_library.load.cache_clear()
    with pytest.raises(RuntimeError, match=r"no CUDA kernels: _cuda\.so is not in .* installed without it"):
        cuda_library.load()
    (tmp_path / "_cuda.so").write_bytes(b"no library")
    with pytest.raises(RuntimeError, match=r"_cuda\.so could not be loaded"):
        cuda_library.load()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda_library.missing_reason() == "torch was built without CUDA"


@pytest.mark.skipif(not cuda_library.FILE.exists(), reason="mnv3_fast/_cuda.so was not built: no nvcc")
def test_the_built_library_shows_its_functions_alone_and_needs_no_library_of_cudas() -> None:
    def lines(*command: str) -> list[str]:
        return subprocess.run(
            [*command, cuda_library.FILE], capture_output=True, text=True, check=True
        ).stdout.splitlines()

    functions = {line.split()[-1] for line in lines("nm", "-D", "--defined-only")}
    headers = [path.read_text() for path in (ROOT / "csrc").rglob("*.h")]
    declared = {name for text in headers for name in re.findall(r"MNV3_EXPORT [^(]*?(mnv3_cuda_\w+)\(", text)}
    assert functions == declared and "mnv3_cuda_depthwise_conv" in declared
    assert not [line for line in lines("readelf", "-d") if "NEEDED" in line and "cuda" in line]


@pytest.mark.skipif(not cuda_library.FILE.exists(), reason="mnv3_fast/_cuda.so was not built: no nvcc")
def test_the_built_library_refuses_and_says_why_without_a_gpu() -> None:
    library = ctypes.CDLL(str(cuda_library.FILE))
    library.mnv3_cuda_error.restype = ctypes.c_char_p
    status = library.mnv3_cuda_depthwise_conv(ctypes.byref(cuda_kernel.Arguments(kernel=7)), None)
    assert status == cuda_library.UNKNOWN
    assert library.mnv3_cuda_error(status) == b"there is no kernel for these arguments"
    assert library.mnv3_cuda_error(100) == b"no CUDA-capable device is detected"


@pytest.mark.parametrize(
    ("kernel", "window"),
    [
        ((7, 7), WINDOW), ((3, 5), WINDOW), ((3, 3), (3, 3, *WINDOW[2:])), ((3, 3), (1, 2, *WINDOW[2:])),
        ((3, 3), (*WINDOW[:6], 2, 2)), ((3, 3), (1, 1, -1, -1, -1, -1, 1, 1)),
    ],
)  # fmt: skip
def test_another_window_is_refused(kernel: tuple[int, int], window: tuple[int, ...]) -> None:
    x = torch.zeros(1, 8, 9, 9)
    with pytest.raises(ValueError, match="depthwise_conv: the CUDA kernel has 3x3 and 5x5 with stride 1 or 2"):
        cuda_kernel.launches(x, x, x, x, kernel, window, 0)
