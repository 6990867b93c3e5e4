"""What nvcc makes of depthwise_conv's CUDA kernel."""

from __future__ import annotations

import pytest

from setup import find_nvcc
from tests.gpu.cuda_artefacts import ACTIVATIONS, ARCHITECTURES, BUDGET, compile_cubin, kernels, row
from tests.gpu.simulator.build import ELEMENTS

NVCC = find_nvcc()


@pytest.mark.nvcc
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", list(ELEMENTS))
def test_words_are_wide_values_stay_in_registers_and_instructions_are_few(dtype: str, architecture: int) -> None:
    made = kernels(compile_cubin(str(NVCC), dtype, architecture), dtype, architecture)
    assert len(made) == len(BUDGET) * len(ACTIVATIONS)
    for kernel in made:
        assert (kernel.stack, kernel.spills) == (0, 0), row(kernel)
        assert kernel.count(r"LDG\b") == kernel.count(r"LDG\.\S*128") > 0, row(kernel)
        assert kernel.count(r"STG\.\S*128") == kernel.outputs * (4 if dtype == "fp32" else 2) // 16, row(kernel)
        if architecture == 90 and dtype != "fp32":
            assert kernel.per_output <= BUDGET[kernel.size, kernel.stride], row(kernel)
