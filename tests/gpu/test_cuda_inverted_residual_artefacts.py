"""What nvcc makes of inverted_residual: values stay in registers, copies are wide, products run on tensor cores."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from benchmarks.gpu import sass
from mnv3_fast.ops.inverted_residual.cuda_geometry import THREADS
from setup import find_nvcc
from tests.gpu.cuda_artefacts import ARCHITECTURES, compile_cubin, tool
from tests.gpu.sass import occupancy
from tests.gpu.simulator.build import HALVES

NVCC = find_nvcc()
NAME = re.compile(r"inverted_residual_kernelI.*?Li(\d)ELi(\d)ELb(\d)E")
MOST_INSTRUCTIONS = {3: 3200, 5: 3700}
"""Of a kernel in all, by the size of the depthwise kernel: a cold one reads its code from L2."""


def of_kernels(dtype: str, architecture: int) -> dict[tuple[int, int, bool], tuple[int, int, Counter[str]]]:
    """Registers, bytes on the stack and opcodes by kernel size, stride and whether it projects."""
    cubin = compile_cubin(str(NVCC), dtype, architecture, "inverted_residual/cuda.cu")
    usage, text = (tool(cubin, *words) for words in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c")))
    codes = {part.split(",")[0]: part for part in re.split(r"\n\s*\.section\s+\.text\.", text)}
    found = {}
    for name, registers, stack in re.findall(
        r"Function (\S*inverted_residual_kernel\S*):\s*\n.*REG:(\d+) STACK:(\d+)", usage
    ):
        size, stride, project = NAME.search(name).groups()
        opcodes = Counter(line.group(1) for line in sass.LINE.finditer(codes[name]) if line.group(1) != "NOP")
        found[int(size), int(stride), project == "1"] = int(registers), int(stack), opcodes
    return found


@pytest.mark.nvcc
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", list(HALVES))
def test_values_stay_in_registers_and_copies_are_wide(dtype: str, architecture: int) -> None:
    found = of_kernels(dtype, architecture)
    assert len(found) == 8
    for (size, stride, project), (registers, stack, opcodes) in found.items():

        def count(pattern: str, of: Counter = opcodes) -> int:
            return sum(times for opcode, times in of.items() if re.match(pattern, opcode))

        what = f"{size}x{size} step {stride}, {'whole' if project else 'up to the gate'}"
        assert stack == count(r"LDL|STL") == 0, what
        assert count(r"LDGSTS\b") == count(r"LDGSTS\.\S*128") > 0, what
        assert count(r"HMMA\.16816\.F32") > 0 and count(r"LDSM\.\S*\.4") > 0, what
        assert not project or count(r"STG\b") == count(r"STG\.\S*128") == 1, what
        assert sum(opcodes.values()) <= MOST_INSTRUCTIONS[size], what
        one = (size, stride, project) == (5, 2, True) and architecture >= 100
        assert occupancy(architecture, registers, 0, THREADS)[0] >= (1 if one else 2), what
