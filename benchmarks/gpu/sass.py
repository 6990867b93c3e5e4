"""Instructions of our compiled kernels: how many a warp issues on its way through a program.

Compiled ahead with what a launch would compile, disassembled by the nvdisasm that comes with Triton. Approximated: a
program somewhere inside a map, so every instruction outside of loops once and those of a loop as often as it turns;
instructions that a predicate switches off are issued all the same; branches that skip ahead are not taken.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnv3_fast.gpu.launch import Launch

LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
LABEL = re.compile(r"(\.L_x_\d+):")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")
FP32 = re.compile(r"(FFMA|FADD|FMUL)\b")


@dataclass(frozen=True)
class Loop:
    """A loop's instructions that are in no loop inside of it, those in fp32 among them, and the loop around it."""

    instructions: int
    fp32: int
    parent: int | None


@dataclass(frozen=True)
class Code:
    """A kernel: instructions outside of loops, those in fp32 among them, and its loops in the order of their starts."""

    instructions: int
    fp32: int
    loops: tuple[Loop, ...]

    def executed(self, rounds: Sequence[int]) -> tuple[int, int]:
        """Instructions that a warp issues, and those in fp32 among them, where each loop is run some times.

        Args:
            rounds: of each loop, for one run of the loop around it.

        Raises:
            ValueError: if there are not as many as loops.
        """
        if len(rounds) != len(self.loops):
            raise ValueError(f"executed: rounds must have {len(self.loops)} numbers, one a loop, got {len(rounds)}")
        total, fp32, times = self.instructions, self.fp32, []
        for loop, count in zip(self.loops, rounds, strict=True):
            times.append(count * (1 if loop.parent is None else times[loop.parent]))
            total += loop.instructions * times[-1]
            fp32 += loop.fp32 * times[-1]
        return total, fp32

    def as_json(self) -> list[Any]:
        """For a file; :meth:`from_json` is the inverse."""
        return [self.instructions, self.fp32, [[loop.instructions, loop.fp32, loop.parent] for loop in self.loops]]

    @staticmethod
    def from_json(value: list[Any]) -> Code:
        """The inverse of :meth:`as_json`."""
        return Code(value[0], value[1], tuple(Loop(*loop) for loop in value[2]))


def read(text: str) -> Code:
    """What nvdisasm wrote of one kernel.

    Raises:
        ValueError: if there are no instructions in it, or loops that overlap.
    """
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    spans: dict[int, int] = {}
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label.group(1)] = len(opcodes)
        found = LINE.search(line)
        if found is None or found.group(1) == "NOP":
            continue
        target = TARGET.search(line)
        if target and found.group(1).startswith("BRA") and target.group(1) in labels:
            start = labels[target.group(1)]
            if start < len(opcodes):  # a branch to itself fills the end of the code
                spans[start] = len(opcodes) + 1
        opcodes.append(found.group(1))
    if not opcodes:
        raise ValueError("read: text must be what nvdisasm -c writes, got no instruction")
    return _nested(opcodes, sorted(spans.items()))


def _nested(opcodes: list[str], spans: list[tuple[int, int]]) -> Code:
    parents: list[int | None] = []
    for i, (start, end) in enumerate(spans):
        around = [j for j in range(i) if spans[j][1] > start]
        if any(spans[j][1] < end for j in around):
            raise ValueError(f"read: loops overlap: {spans}")
        parents.append(around[-1] if around else None)
    owner: list[int | None] = [None] * len(opcodes)
    for i, (start, end) in enumerate(spans):  # an inner loop comes after the one around it
        owner[start:end] = [i] * (end - start)
    counts = {
        which: (owner.count(which), sum(of == which and bool(FP32.match(o)) for of, o in zip(owner, opcodes)))  # noqa: B905
        for which in (None, *range(len(spans)))
    }
    loops = tuple(Loop(*counts[i], parents[i]) for i in range(len(spans)))
    return Code(*counts[None], loops)


def compile_and_read(launch: Launch, architecture: int) -> Code:
    """Compile a launch's kernel for an NVIDIA GPU and read the result. Needs Triton, and no GPU."""
    import triton

    from mnv3_fast.gpu.compilation import compile_launch, cuda

    cubin = compile_launch(launch, cuda(architecture)).asm["cubin"]
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True)
    return read(done.stdout)


def rounds(launch: Launch) -> tuple[int, ...]:
    """How often each loop of a launch's kernel turns, in the order of the source, for one turn of the one around it.

    Raises:
        ValueError: for a kernel that is not known here.
    """
    of, constants, name = launch.arguments, launch.constants, launch.kernel.__name__
    if name == "stem_conv_kernel":  # all taps in one step: the compiler leaves no loop
        steps = _parts(constants["KERNEL_H"] * constants["KERNEL_W"] * constants["CHANNELS"], constants["TILE_K"])
        return () if steps == 1 else (steps,)
    if name == "depthwise_conv_kernel":
        return (constants["KERNEL_H"] - constants["TILE_H"] + 1,)
    if name == "pointwise_conv_kernel":
        return (_parts(of["inputs"] * constants["UNIT_K"], constants["TILE_K"]),)
    if name == "channel_sums_kernel":
        return (_parts(min(of["part"], of["pixels"]), constants["TILE_P"]),)
    if name == "squeeze_excite_gate_kernel":
        channels, squeeze = of["channels"] * constants["UNIT_C"], of["squeeze"] * constants["UNIT_S"]
        tile_n, tile_k = constants["TILE_N"], constants["TILE_K"]
        return (
            _parts(channels, constants["CHANNELS"]), _parts(of["parts"], constants["PARTS"]),
            _parts(squeeze, tile_n), _parts(channels, tile_k),
            _parts(channels, tile_n), _parts(squeeze, tile_k),
        )  # fmt: skip
    raise ValueError(f"rounds: kernel must be one that a network launches, got {name}")


def tensor_operations(launch: Launch) -> int:
    """Operations of tensor cores in a launch, the tiles' overhang included; 0 for fp32 and without products."""
    constants, name = launch.constants, launch.kernel.__name__
    programs = launch.grid[0] * launch.grid[1] * launch.grid[2]
    if launch.arguments.get("weight", launch.arguments.get("means", launch.arguments.get("sums"))).element_size() != 2:
        return 0
    turns = rounds(launch)
    if name == "pointwise_conv_kernel":
        rows = constants["TILE_M"]
    elif name == "stem_conv_kernel":
        rows, turns = constants["TILE_H"] * constants["TILE_W"], turns or (1,)
    elif name == "squeeze_excite_gate_kernel":
        rows, turns = constants["IMAGES"], (turns[2] * turns[3] + turns[4] * turns[5],)
    else:
        return 0
    return 2 * programs * rows * constants["TILE_N"] * constants["TILE_K"] * turns[0]


def label(launch: Launch) -> str:
    """The name of a compilation: kernel, dtype and constants."""
    constants = " ".join(f"{name}={value}" for name, value in sorted(launch.constants.items()))
    dtypes = ",".join(
        str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else type(value).__name__
        for value in launch.arguments.values()
    )
    short = hashlib.sha256(dtypes.encode()).hexdigest()[:6]
    return f"{launch.kernel.__name__} {constants} warps={launch.warps} stages={launch.stages} arguments={short}"


def _parts(count: int, size: int) -> int:
    return -(-count // size)
