"""Which loop of a CUDA source a loop of its compiled code is, by the lines that the compiler notes.

A loop is known by the text of the source's loop, and where several calls have it, of the call. How often the compiler
wrote the body in a row follows from how many of some instructions the code has, and the body.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.sass import Instruction, Source, fp32
from mnv3_fast.gpu.instructions import dtype_of
from mnv3_fast.gpu.launch import CudaLaunch


@dataclass(frozen=True)
class Rule:
    """A loop of a source.

    Attributes:
        name: as in mnv3_fast/gpu/cuda_rounds.py.
        text: its line starts with.
        caller: the line that calls its function contains.
        opcode: the start of the instructions that tell copies; "" counts those in fp32.
        each: how many of them the body has, times what ``times`` gives; 0: there is one copy.
    """

    name: str
    text: str
    caller: str = ""
    opcode: str = ""
    each: int = 0
    times: Callable[[CudaLaunch], int] = lambda launch: 1


def _groups(launch: CudaLaunch) -> int:
    return launch.constants["GROUPS"]


def _words(launch: CudaLaunch) -> int:
    """A row of taps by the channels of a word and the rows of outputs."""
    return launch.constants["KERNEL"] * launch.constants["TILE_H"] * (16 // dtype_of(launch).itemsize)


RULES = {
    "depthwise_conv": (
        Rule("rows", "for (; r < kRows - 1; r++)", each=7, times=_words),
        Rule("taps", "for (int first = threadIdx.y; first < kAll;"),
        Rule("sums", "for (int c = thread; c < width;"),
        Rule("tiles", "for (int tile = 0; tile <"),
    ),
    "inverted_residual": (
        Rule("copy expand", "for (int i = thread; i < words; i +=", "copy(at.expand", opcode="LDGSTS", each=1),
        Rule("copy project", "for (int i = thread; i < words; i +=", "copy(at.project", opcode="LDGSTS", each=1),
        Rule("vectors", "for (int i = warp; i < 2 + kSize * kSize;"),
        Rule("vector", "for (int w = lane; w < across;", opcode="LDGSTS", each=1),
        Rule("places", "for (int i = thread; i < tiles_of(pixels) * 16;", opcode="STS", each=2),
        Rule("clear", "for (int i = thread; i < at.patch_h * at.patch_w", opcode="STS", each=1),
        Rule("input", "for (int row = thread / words,", opcode="LDGSTS", each=1),
        Rule("chunks", "for (int first = hidden.slab_begin;"),
        Rule("expand", "for (int unit = warp; unit < m_units * n_tiles;"),
        Rule("expand two", "for (int k = 0; k <= last; k += 2)", "expand_tiles<2>", opcode="HMMA", each=8),
        Rule("expand one", "for (int k = 0; k <= last; k += 2)", "expand_tiles<1>", opcode="HMMA", each=4),
        Rule("depthwise", "for (int task = thread;"),
        Rule("means", "for (int c = thread; c < channels;"),
        Rule("strips", "for (int strip = 0; strip < strips;", each=1),
        Rule("squeeze", "for (int s = thread; s < a.squeeze;"),
        Rule("squeeze channels", "for (int c = 0; c < channels; c += 8)", each=8),
        Rule("project", "for (int k = split; k < steps;"),
        Rule("finish", "for (int i = threadIdx.x; i < a.tile_h * a.tile_w * vectors;"),
        Rule("splits", "for (int s = 0; s < a.splits;", each=8),
        Rule("chunks", "if (first < slab_end)"),  # where the loop's last step is a copy that the last chunk has not
    ),
    "gated_project": (
        Rule("copy fc1 bias", "for (int i = thread; i < words;", "copy<1>(plan.fc1_bias", opcode="LDGSTS", each=1),
        Rule("copy fc2 bias", "for (int i = thread; i < words;", "copy<1>(plan.fc2_bias", opcode="LDGSTS", each=1),
        Rule("copy fc2", "for (int i = thread; i < words;", "copy<4>(plan.fc2,", opcode="LDGSTS", each=1),
        Rule("copy weight", "for (int i = thread; i < words;", "copy<1>(plan.weight", opcode="LDGSTS", each=1),
        Rule("groups", "for (int j = 0; j < a.column_warps * "),
        Rule("copy hidden", "while (y < a.row_warps * 16)", opcode="LDGSTS", each=1),
        Rule("terms", "if (terms.count <= 0) break;"),
        Rule("pairs", "for (int pair = thread; pair < plan.steps * 8;"),
        Rule("pair", "} while (++i < plan.terms)", each=2),
        Rule("share", "for (; tile >= a.slab"),
        Rule("gates", "for (; tile < tiles; tile +="),
        Rule("gate steps", "for (; step + plan.shares < plan.steps;", opcode="HMMA", each=2),
        Rule("finish gates", "for (int c = thread; c < tiles * 16;"),
        Rule("shares", "while (++share < plan.shares)", each=1),
        Rule("project", "for (int k = threadIdx.z; k < tiles;", opcode="LDSM", each=1),
        Rule("warps", "for (int part = 1; part < a.slab_warps;", each=8, times=_groups),
        Rule("slabs", "for (int left = gridDim.y; left > 0;"),
    ),
}
BRANCHES = {"expand_tiles<2>(first": "two tiles", "expand_tiles<1>(first": "one tile"}
"""Branches of which a launch takes some, by what the line that calls them contains."""
ACTIVATIONS = ("kNone", "kRelu", "kHardswish", "kRelu6")
ACTIVATION = re.compile(r"\bf\(std::integral_constant<Activation, (k\w+)>")
ASKED = re.compile(r"with_activation\(a\.(\w+)")
"""A call on a branch that one activation takes, and which one that is."""


def source_of(launch: CudaLaunch) -> Source:
    """What tells the loops and branches of a launch's kernel apart."""
    kernel = launch.kernel.name

    def loop(all_: Sequence[Instruction], own: Sequence[Instruction], inner: set[str]) -> tuple[str, int]:
        for instruction in (all_[-1], *reversed(own)):  # the branch back, or what the compiler moved behind its line
            for rule in (rule for rule in RULES[kernel] if rule.name not in inner):
                if _matches(rule, [line(place) for place in instruction.places]):
                    each = rule.each * rule.times(launch)
                    return rule.name, max(1, round(_count(own, rule.opcode) / each)) if each else 1
        places = [(place, line(place)) for place in all_[-1].places]
        raise ValueError(f"{kernel}: a loop is none of benchmarks/gpu/loops.py: {places}")

    def branch(instruction: Instruction) -> str | None:
        texts = [line(place) for place in instruction.places]
        called = next((found.group(1) for text in texts if (found := ACTIVATION.search(text))), None)
        asked = next((found.group(1) for text in texts if (found := ASKED.search(text))), None)
        if called and asked and called != ACTIVATIONS[launch.arguments[asked]]:
            return None
        return next((name for words, name in BRANCHES.items() for text in texts if words in text), "")

    return Source(loop, branch)


def _matches(rule: Rule, texts: Sequence[str]) -> bool:
    """Whether a place, and the calls that lead to it, are those of a rule."""
    found = next((i for i, text in enumerate(texts) if text.startswith(rule.text)), None)
    if found is None:
        return False
    return not rule.caller or any(rule.caller in text for text in texts[found + 1 : found + 2])


def _count(instructions: Sequence[Instruction], opcode: str) -> int:
    return sum(one.opcode.startswith(opcode) for one in instructions) if opcode else fp32(instructions)


def line(place: str) -> str:
    """The text of a place "file:line"."""
    file, number = place.rsplit(":", 1)
    return _lines(file)[int(number) - 1].strip()


@functools.cache
def _lines(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines()
