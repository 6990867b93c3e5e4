"""Launches are compiled as a GPU would compile them, and only by the Triton that the emulator knows."""

from __future__ import annotations

import re
import sys

import pytest
import torch
import triton

from mnv3_fast.gpu import compilation
from mnv3_fast.gpu.launch import Launch
from tests.gpu import small_kernels as kernels
from tests.gpu.artefacts import network_launches
from tests.gpu.compile import WrongTriton, compile_launch, require_triton, specialise


def copy_of(x: torch.Tensor, size: int, block: int = 512) -> str:
    launch = Launch(
        kernels.copy, (1, 1, 1), {"x": x, "y": torch.empty(4096, dtype=x.dtype), "size": size}, {"BLOCK": block}
    )
    return compile_launch(launch).asm["ptx"]


def test_sizes_and_pointers_are_specialised_as_in_a_launch() -> None:
    x = torch.zeros(4096)
    # 16 divides the size and both addresses: the tail ends between vectors, so accesses are whole vectors.
    assert "ld.global.v4.b32" in copy_of(x, 1024)
    assert "ld.global.v4.b32" not in copy_of(x, 1020)
    assert "ld.global.v4.b32" not in copy_of(x[1:], 1024)
    # A size of 1 is a constant.
    sizes = [len(re.findall(r"\.param \.u32", copy_of(x, size))) for size in (1, 2)]
    assert sizes == [0, 1]


def test_the_same_specialisation_is_compiled_once() -> None:
    x = torch.zeros(4096)
    assert copy_of(x, 1008) is copy_of(x.clone(), 2048)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_library_compiles_ahead_what_a_launch_would_compile(dtype: torch.dtype) -> None:
    for launch in network_launches("large", dtype, 1) + network_launches("small", dtype, 128):
        _, _, _, signature, constants, attributes = specialise(launch)
        assert compilation.signature(launch) == signature
        assert {(launch.kernel.arg_names.index(name),): value for name, value in launch.constants.items()} == constants
        aligned = [name for name in signature if attributes.get((launch.kernel.arg_names.index(name),))]
        assert sorted(compilation._aligned(launch)) == sorted(aligned)


@pytest.mark.parametrize("architecture", [80, 90, "gfx942", "gfx1100"])
def test_other_architectures_compile_too(architecture: int | str) -> None:
    x = torch.zeros(512)
    launch = Launch(kernels.copy, (1, 1, 1), {"x": x, "y": x.clone(), "size": 512}, {"BLOCK": 512})
    asm = compile_launch(launch, architecture).asm
    assert asm["hsaco" if isinstance(architecture, str) else "cubin"][:4] == b"\x7fELF"


def test_another_version_of_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "3.8.0")
    with pytest.raises(WrongTriton, match=r"Triton 3\.9\.0 compiles, got 3\.8\.0; pip install -e '\.\[test\]'"):
        require_triton()


def test_no_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(WrongTriton, match="it is not installed"):
        require_triton()


def test_an_interpreting_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(WrongTriton, match="TRITON_INTERPRET is set"):
        require_triton()
