"""What nvcc makes of gated_project: values stay in registers, words are wide, products run on tensor cores."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from benchmarks.gpu import sass
from mnv3_fast.ops.inverted_residual import cuda_gated_project
from mnv3_fast.ops.inverted_residual.cuda_gated_project import GROUPS, THREADS, Work
from setup import find_nvcc
from tests.gpu.cuda_artefacts import ARCHITECTURES, compile_cubin, tool
from tests.gpu.sass import occupancy
from tests.gpu.simulator.build import HALVES

NVCC = find_nvcc()
WORK = Work(1, 49, 960, 240, 160, 30)
"""Block 14 of MobileNetV3-large, one image."""
MOST_INSTRUCTIONS = 2100
"""Of a kernel in all: a cold one reads its code from L2. 1,680 to 2,030 with nvcc 13.0 for two groups of outputs."""


@pytest.mark.nvcc
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", list(HALVES))
def test_values_stay_in_registers_and_words_are_wide(dtype: str, architecture: int) -> None:
    cubin = compile_cubin(str(NVCC), dtype, architecture, "inverted_residual/gated_project.cu")
    usage, text = (tool(cubin, *words) for words in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c")))
    found = re.findall(r"Function (\S*gated_project_kernel\S*):\s*\n.*REG:(\d+) STACK:(\d+)", usage)
    assert len(found) == len(GROUPS)
    codes = {part.split(",")[0]: part for part in re.split(r"\n\s*\.section\s+\.text\.", text)}
    for name, registers, stack in found:
        code = codes[name]
        opcodes = Counter(line.group(1) for line in sass.LINE.finditer(code) if line.group(1) != "NOP")

        def count(pattern: str, of: Counter = opcodes) -> int:
            return sum(times for opcode, times in of.items() if re.match(pattern, opcode))

        assert int(stack) == count(r"LDL|STL") == 0
        assert (
            count(r"LDG\b") == count(r"LDG\.\S*(128|64)") > count(r"LDG\.\S*128") > 0
        )  # the residual comes in 64 bits
        assert count(r"LDGSTS\b") == count(r"LDGSTS\.\S*128") > 0
        assert count(r"STG\b") == count(r"STG\.\S*(128|64)") > 0
        assert count(r"HMMA\.16816\.F32") > 0 and count(r"LDSM\.\S*\.4") > 0
        assert sum(opcodes.values()) <= MOST_INSTRUCTIONS
        assert occupancy(architecture, int(registers), cuda_gated_project.geometry(WORK).shared, THREADS)[0] >= 1
