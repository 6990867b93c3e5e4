"""A few lines of PTX on arrays: every thread loads its elements, does what the lines say, and stores what came of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.gpu.decode import Decoder
from tests.gpu.global_memory import GlobalMemory
from tests.gpu.machine import Machine
from tests.gpu.parse import parse
from tests.gpu.shared_memory import SharedMemory

_KERNEL = """
.visible .entry snippet(
	.param .u64 .ptr .global .align 1 snippet_param_0
)
.reqntid {threads}
{{
	.reg .pred 	%p<32>;
	.reg .b16 	%rs<32>;
	.reg .b32 	%r<64>;
	.reg .b64 	%rd<64>;
$L__func_begin0:
{lines}
	ret;
$L__func_end0:
}}
"""


def run_lines(lines: str, registers: dict[str, NDArray], threads: int, shared: int = 0) -> Machine:
    """The state of one program after some lines.

    Args:
        lines: PTX with the registers %p0 to %p31, %rs0 to 31, %r0 to 63, %rd0 to 63.
        registers: what they hold before, as unsigned integers or bools [threads].
    """
    decoder = Decoder(parse(_KERNEL.format(threads=threads, lines=lines)))
    code = decoder.code(shared)
    start: list[NDArray | None] = [code.constants.get(number) for number in range(code.registers)]
    for name, values in registers.items():
        start[decoder.numbers[name]] = values
    memory = SharedMemory(1, shared, -(-threads // 32))
    machine = Machine(code, GlobalMemory(), {}, (1, 1, 1), np.zeros((1, 3), np.int64), memory, start)
    with np.errstate(all="ignore"):
        machine.run()
    machine.named = {name: machine.registers[number] for name, number in decoder.numbers.items()}
    return machine


def compute(opcode: str, result: str, *operands: NDArray) -> NDArray:
    """What an opcode makes of operands [n] of unsigned integers or bools, as the bits of ``result`` ("rs", "r", ...)."""
    stems = [{1: "p" if o.dtype == bool else "?", 2: "rs", 4: "r", 8: "rd"}[o.itemsize] for o in operands]
    names = [f"%{stem}{10 + place}" for place, stem in enumerate(stems)]
    count = -(-len(operands[0]) // 32) * 32
    padded = [np.resize(o, count) for o in operands]
    machine = run_lines(f"{opcode} %{result}1, {', '.join(names)};", dict(zip(names, padded, strict=True)), count)
    return np.broadcast_to(machine.named[f"%{result}1"], (count,))[: len(operands[0])]
