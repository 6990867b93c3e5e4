"""``python tests/neon_loops.py OBJECT ...``: what the innermost loops of the kernels' tiles consist of on ARM.

Of each function with multiply-adds in a loop: multiply-adds, those that take a lane, loads, multiply-adds for each load,
values that are kept on the stack, vector registers, instructions. Status 1 if a loop keeps values on the stack.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

OBJDUMP = "aarch64-linux-gnu-objdump"
Instruction = tuple[int, str, str]
"""Address, name, operands."""


def functions(path: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Names and instructions of all functions of an object file."""
    text = subprocess.run([OBJDUMP, "-dC", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    for block in text.stdout.split("\n\n"):
        lines = block.strip().splitlines()
        title = re.match(r"[0-9a-f]+ <(?:void )?(.*)>:$", lines[0]) if lines else None
        if title:
            found = (re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)", line) for line in lines[1:])
            yield title[1], [(int(m[1], 16), m[2], m[3]) for m in found if m]


def innermost(code: list[Instruction]) -> list[Instruction]:
    """The loop that is densest in multiply-adds."""
    best: list[Instruction] = []
    density = 0.0
    for address, name, operands in code:
        target = re.search(r"([0-9a-f]+) <", operands) if name.startswith(("b.", "cb", "tb")) else None
        if target and int(target[1], 16) <= address:
            loop = [instruction for instruction in code if int(target[1], 16) <= instruction[0] <= address]
            share = sum(instruction[1] == "fmla" for instruction in loop) / len(loop)
            if share > density:
                best, density = loop, share
    return best


def main(*paths: str) -> int:
    """Print the table."""
    print("tile, fmla, by lane, loads, fmla/load, stack, registers, instructions")
    spills = 0
    for path in paths:
        for name, code in functions(path):
            loop = innermost(code)
            if not loop or not re.search(r"tiles?<", name):
                continue
            multiply = [operands for _, name, operands in loop if name == "fmla"]
            loads = sum(name.startswith("ld") for _, name, _ in loop)
            stack = sum("[sp" in operands for _, _, operands in loop)
            registers = {r for _, _, operands in loop for r in re.findall(r"\b[qvs](\d+)\b", operands)}
            by_lane = sum(bool(re.search(r"\[\d\]$", operands)) for operands in multiply)
            short = re.sub(r"mnv3_fast::neon::|\(anonymous namespace\)::|\(.*", "", name)
            print(f"{short}: {len(multiply)}, {by_lane}, {loads}, {len(multiply) / loads:.2f}, {stack}, ", end="")
            print(f"{len(registers)}, {len(loop)}")
            spills += stack
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
