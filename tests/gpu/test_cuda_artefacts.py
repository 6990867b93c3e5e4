"""What nvcc makes of depthwise_conv's CUDA kernel."""

from __future__ import annotations

import pytest

from setup import find_nvcc
from tests.gpu.cuda_artefacts import ARCHITECTURES, BUDGET, compile_cubin, kernels, row
from tests.gpu.simulator.build import ELEMENTS

NVCC = find_nvcc()
IN_MEMORY = {("bf16", 100, 3, 1): 8}
"""Bytes of registers that ptxas moves to memory, in the kernel for which no way was found that it does not."""


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", list(ELEMENTS))
def test_words_are_wide_values_stay_in_registers_and_instructions_are_few(dtype: str, architecture: int) -> None:
    made = kernels(compile_cubin(str(NVCC), dtype, architecture), dtype, architecture)
    assert len(made) == len(BUDGET) * 3
    for kernel in made:
        stack = IN_MEMORY.get((dtype, architecture, kernel.size, kernel.stride), 0)
        assert (kernel.stack, kernel.spills > 0) == (stack, stack > 0), row(kernel)
        assert kernel.count(r"LDG\b") == kernel.count(r"LDG\.\S*128") > 0, row(kernel)
        assert kernel.count(r"STG\.\S*128") == kernel.outputs * (4 if dtype == "fp32" else 2) // 16, row(kernel)
        if architecture == 90 and dtype != "fp32":
            assert kernel.per_output <= BUDGET[kernel.size, kernel.stride], row(kernel)
