"""Instructions of our compiled kernels: how many a warp issues on its way through a program.

Compiled ahead with what a launch would compile, disassembled by the nvdisasm that comes with Triton. Approximated: a
program somewhere inside a map, so every instruction outside of loops once and those of a loop as often as it turns;
instructions that a predicate switches off are issued all the same; branches that skip ahead are not taken.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnv3_fast.gpu.instructions import Code, Loop
from mnv3_fast.gpu.launch import Launch

LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
LABEL = re.compile(r"(\.L_x_\d+):")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")
FP32 = re.compile(r"(FFMA|FADD|FMUL)(2?)\b")
SOURCE = re.compile(r'//## File "([^"]+)", line (\d+)')


@dataclass(frozen=True)
class Instruction:
    """One of a listing, and where in the sources it comes from, "file:line", innermost first; empty without lines."""

    opcode: str
    places: tuple[str, ...]


@dataclass(frozen=True)
class Span:
    """A loop of a listing: the places of its first instruction and behind its last."""

    start: int
    end: int


@dataclass(frozen=True)
class Source:
    """What tells loops and branches of a listing apart by the source's lines.

    Attributes:
        loop: gives a loop's name and copies from its instructions, of which the last branches back, those of them in no
            loop inside of it, and the names of these loops.
        branch: gives the name of the branch that an instruction is on; "": on none, None: on one that is not taken.
    """

    loop: Callable[[Sequence[Instruction], Sequence[Instruction], set[str]], tuple[str, int]]
    branch: Callable[[Instruction], str | None]


def listing(text: str) -> tuple[list[Instruction], list[Span]]:
    """What nvdisasm wrote of one kernel, and its loops in the order of their starts.

    Raises:
        ValueError: if there are no instructions in it.
    """
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    spans: dict[int, int] = {}
    places: list[str] = []
    new = True
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label.group(1)] = len(found)
        if source := SOURCE.search(line):
            places = [f"{source.group(1)}:{source.group(2)}"] if new else [*places, ":".join(source.groups())]
            new = False
        instruction = LINE.search(line)
        if instruction is None or instruction.group(1) == "NOP":
            continue
        new = True
        target = TARGET.search(line)
        if target and instruction.group(1).startswith("BRA") and target.group(1) in labels:
            start = labels[target.group(1)]
            if start < len(found):  # a branch to itself fills the end of the code
                spans[start] = len(found) + 1
        found.append(Instruction(instruction.group(1), tuple(places)))
    if not found:
        raise ValueError("listing: text must be what nvdisasm -c writes, got no instruction")
    return found, [Span(start, end) for start, end in sorted(spans.items())]


def fp32(instructions: Iterable[Instruction]) -> int:
    """How many numbers instructions compute in fp32, by lane; some compute two."""
    matches = (FP32.match(instruction.opcode) for instruction in instructions)
    return sum(2 if found.group(2) else 1 for found in matches if found)


def read(text: str, source: Source | None = None) -> Code:
    """What nvdisasm wrote of one kernel.

    Args:
        text: with the lines of sources if there is one.
        source: what tells loops and branches apart. A branch is a loop that turns as often as it is taken.

    Raises:
        ValueError: if there are no instructions in it, or loops that overlap.
    """
    instructions, spans = listing(text)
    around = [max((j for j in range(i) if spans[j].end > span.start), default=-1) for i, span in enumerate(spans)]
    if any(spans[j].end < spans[i].end for i, j in enumerate(around) if j >= 0):
        raise ValueError(f"read: loops overlap: {spans}")
    owner = [-1] * len(instructions)
    for i, span in enumerate(spans):  # an inner loop comes after the one around it
        owner[span.start : span.end] = [i] * (span.end - span.start)
    on = [source.branch(instructions[span.end - 1]) or "" if source else "" for span in spans] + [""]
    own: dict[tuple[int, str], list[Instruction]] = {(i, ""): [] for i in range(-1, len(spans))}
    for which, one in zip(owner, instructions, strict=True):
        branch = source.branch(one) if source else ""
        if branch is not None:  # a branch that a loop is on as a whole is the loop's
            own.setdefault((which, "" if branch == on[which] else branch), []).append(one)
    named: dict[int, tuple[str, int]] = {}
    for i in reversed(range(len(spans)) if source else ()):
        inner = {named[j][0] for j in named if spans[j].end <= spans[i].end}
        named[i] = source.loop(instructions[spans[i].start : spans[i].end], own[i, ""], inner)
    places = {key: i - 1 for i, key in enumerate(sorted(own))}  # -1: in no loop
    loops = []
    for i, branch in sorted(own)[1:]:
        parent = places[i, ""]
        if not branch:
            parent = places.get((around[i], on[i] if on[i] != on[around[i]] else ""), places[around[i], ""])
        words = (branch,) if branch else named.get(i, ())
        loops.append(Loop(len(own[i, branch]), fp32(own[i, branch]), None if parent < 0 else parent, *words))
    return Code(len(own[-1, ""]), fp32(own[-1, ""]), tuple(loops))


def compile_and_read(launch: Launch, architecture: int) -> Code:
    """Compile a launch's kernel for an NVIDIA GPU and read the result. Needs Triton, and no GPU."""
    from mnv3_fast.gpu.compilation import compile_launch, cuda

    cubin = compile_launch(launch, cuda(architecture)).asm["cubin"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return read(disassembled(path))


def disassembled(cubin: Path, *options: str) -> str:
    """What nvdisasm, which comes with Triton, makes of a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return subprocess.run([tool, "-c", *options, cubin], capture_output=True, text=True, check=True).stdout
