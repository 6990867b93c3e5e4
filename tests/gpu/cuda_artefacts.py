"""``python -m tests.gpu.cuda_artefacts``: what nvcc makes of depthwise_conv's CUDA kernel, as a Markdown table.

Needs nvcc (setup.py says where it is looked for) and the tools that come with Triton; nothing is run. Instructions are
counted as for Triton's kernels (``benchmarks/gpu/sass.py``): all that a thread with a tile inside of the map meets,
once, or for the loop over rows as often as it turns (blocks of four rows of threads and more stage their taps in one
turn); those that a predicate switches off and those on branches that such
a tile skips included, so what is issued is a little less. An output is one channel of one pixel.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu import sass
from setup import find_nvcc
from tests.gpu.compile import require_triton
from tests.gpu.sass import MULTIPROCESSORS, occupancy
from tests.gpu.simulator.build import BUILD, ELEMENTS, ROOT

ARCHITECTURES = tuple(MULTIPROCESSORS)
ACTIVATIONS = ("none", "relu", "hardswish", "relu6")
THREADS = 128
TILE_WIDTH = 7
TILE_HEIGHT = {1: 2, 2: 1}
"""By stride."""
BUDGET = {(3, 1): 35, (3, 2): 89, (5, 1): 50, (5, 2): 89}
"""Instructions an output on sm_90, by kernel size and stride: what an H100's memory leaves time for; 5x5 has 25 products."""
NAME = re.compile(r"depthwise_conv_kernelI.*?Li(\d)ELi(\d)E.*?ActivationE(\d)ELb1E")


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel for channels that fill 128-bit words."""

    dtype: str
    architecture: int
    size: int
    stride: int
    activation: str
    registers: int
    stack: int
    opcodes: Counter[str] = field(repr=False)
    executed: int

    def count(self, pattern: str) -> int:
        """Instructions whose opcode starts with a pattern."""
        return sum(count for opcode, count in self.opcodes.items() if re.match(pattern, opcode))

    @property
    def outputs(self) -> int:
        """Of a thread."""
        vector = 4 if self.dtype == "fp32" else 8
        return TILE_HEIGHT[self.stride] * TILE_WIDTH * vector

    @property
    def per_output(self) -> float:
        """Instructions by outputs."""
        return self.executed / self.outputs

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.count(r"LDL|STL")


def compile_cubin(nvcc: str, dtype: str, architecture: int, name: str = "depthwise_conv/cuda.cu") -> Path:
    """All kernels of a source in csrc/ops, of a dtype for an architecture; kept in build/ until a source changes."""
    source = ROOT / "csrc" / "ops" / name
    flags = ["-std=c++17", "-O3", f"-arch=sm_{architecture}", f"-I{ROOT / 'csrc'}", f"-DMNV3_ELEMENT={ELEMENTS[dtype]}"]
    texts = [
        path.read_text()
        for path in (source, *sorted(source.parent.glob("*.h")), *sorted((ROOT / "csrc/cuda").glob("*.h")))
    ]
    to = BUILD / f"{dtype}-{architecture}-{hashlib.sha256(''.join([*texts, *flags]).encode()).hexdigest()[:16]}.cubin"
    if not to.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        made = to.with_suffix(".part")
        subprocess.run([nvcc, *flags, "-cubin", "-o", made, source], check=True)
        made.replace(to)
    return to


def kernels(cubin: Path, dtype: str, architecture: int) -> list[Kernel]:
    """What is in a cubin, by kernel size, stride and activation."""
    usage, text = (tool(cubin, *words) for words in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c")))
    found = []
    for part in re.split(r"\n\s*\.section\s+\.text\.", text)[1:]:
        name = part.split(",")[0]
        match = NAME.search(name)
        if match is None:  # channel by channel, or the means
            continue
        words = re.search(rf"Function {re.escape(name)}:\s*\n(.*)", usage).group(1)
        registers, stack = (int(re.search(rf"{word}:(\d+)", words).group(1)) for word in ("REG", "STACK"))
        size, stride, activation = (int(digit) for digit in match.groups())
        opcodes = Counter(line.group(1) for line in sass.LINE.finditer(part) if line.group(1) != "NOP")
        outputs = TILE_HEIGHT[stride] * TILE_WIDTH * (4 if dtype == "fp32" else 8)
        executed = _executed(sass.read(part), opcodes, outputs * size**2, size)
        found.append(
            Kernel(dtype, architecture, size, stride, ACTIVATIONS[activation], registers, stack, opcodes, executed)
        )
    return sorted(found, key=lambda kernel: (kernel.size, kernel.stride, ACTIVATIONS.index(kernel.activation)))


def _executed(code: sass.Code, opcodes: Counter[str], products: int, size: int) -> int:
    """The loop over rows, the longest, turns size - 1 times unless all products are there without it; others count once."""
    turns = 1 if opcodes["FFMA"] + 2 * opcodes["FFMA2"] >= products else size - 1
    rows = max(code.loops, key=lambda loop: loop.instructions)
    return code.instructions + sum(loop.instructions * (turns if loop is rows else 1) for loop in code.loops)


def tool(cubin: Path, name: str, option: str) -> str:
    """What one of the tools that come with Triton writes of a cubin."""
    folder = Path(require_triton().__file__).parent / "backends" / "nvidia" / "bin"
    done = subprocess.run([folder / name, option, cubin], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} {option} {cubin.name} ended with {done.returncode}: {done.stderr}")
    return done.stdout


HEADER = (
    "kernel", "dtype", "sm", "tile", "registers", "spills", "occupancy", "loads 128/narrower", "stores 128/narrower",
    "instructions", "per output", "budget",
)  # fmt: skip


def row(kernel: Kernel) -> list[str]:
    """A line of the table."""
    wide = [kernel.count(rf"{name}\.\S*128") for name in ("LDG", "STG")]
    all_of = [kernel.count(rf"{name}\b") for name in ("LDG", "STG")]
    budget = BUDGET[kernel.size, kernel.stride] if kernel.architecture == 90 and kernel.dtype != "fp32" else "-"
    return [
        f"{kernel.size}x{kernel.size} step {kernel.stride} {kernel.activation}", kernel.dtype,
        str(kernel.architecture), f"{TILE_HEIGHT[kernel.stride]}x{TILE_WIDTH}",
        str(kernel.registers), str(kernel.stack + kernel.spills),
        f"{100 * occupancy(kernel.architecture, kernel.registers, 0, THREADS)[1]:.0f}%",
        f"{wide[0]}/{all_of[0] - wide[0]}", f"{wide[1]}/{all_of[1] - wide[1]}", f"{kernel.executed}",
        f"{kernel.per_output:.1f}", str(budget),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m tests.gpu.cuda_artefacts", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=list(ELEMENTS), action="append", help="default: fp16")
    parser.add_argument("--sm", type=int, choices=ARCHITECTURES, action="append", help="default: all")
    options = parser.parse_args(arguments)
    nvcc = find_nvcc()
    if nvcc is None:
        parser.error("nvcc was not found on the path, in CUDA_HOME or in this environment")
    print(f"| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|")
    for dtype in options.dtype or ["fp16"]:
        for architecture in options.sm or ARCHITECTURES:
            for kernel in kernels(compile_cubin(nvcc, dtype, architecture), dtype, architecture):
                print(f"| {' | '.join(row(kernel))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
