"""What Python gives the library of CUDA kernels, and what it says where there is none."""

from __future__ import annotations

import ctypes
import re
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


@pytest.mark.parametrize(
    ("kernel", "window"),
    [((7, 7), WINDOW), ((3, 5), WINDOW), ((3, 3), (3, 3, *WINDOW[2:])), ((3, 3), (1, 2, *WINDOW[2:])), ((3, 3), (*WINDOW[:6], 2, 2))],
)  # fmt: skip
def test_another_window_is_refused(kernel: tuple[int, int], window: tuple[int, ...]) -> None:
    x = torch.zeros(1, 8, 9, 9)
    with pytest.raises(ValueError, match="depthwise_conv: the CUDA kernel has no"):
        cuda_kernel.arguments(x, x, x, x, kernel, window, 0)
