"""How many instructions a launch issues: of its compiled code, counted beforehand, and how often its loops turn.

``counts.json`` beside this file has the code of both networks' kernels for each architecture, and of the depthwise
kernels in every dtype; ``python -m benchmarks.gpu.instructions`` writes it from what the compilers make. Nothing is
compiled here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from mnv3_fast.gpu.cuda_rounds import BRANCHES, CUDA_KERNELS, products
from mnv3_fast.gpu.launch import AnyLaunch

FILE = Path(__file__).parent / "counts.json"


@dataclass(frozen=True)
class Loop:
    """A loop of a kernel's code.

    Attributes:
        instructions: that are in no loop inside of it; fp32: those in fp32 among them.
        parent: the loop around it.
        name: of the loop of the source, where that is not told by its place.
        copies: times that the compiler wrote the loop's body, one after the other.
    """

    instructions: int
    fp32: int
    parent: int | None
    name: str = ""
    copies: int = 1


@dataclass(frozen=True)
class Code:
    """A kernel: instructions outside of loops, those in fp32 among them, and its loops in the order of their starts."""

    instructions: int
    fp32: int
    loops: tuple[Loop, ...]

    def executed(self, rounds: Sequence[float]) -> tuple[float, float]:
        """Instructions that a warp issues, and those in fp32 among them, where each loop is run some times.

        Args:
            rounds: of each loop, for one run of the loop around it.

        Raises:
            ValueError: if there are not as many as loops.
        """
        if len(rounds) != len(self.loops):
            raise ValueError(f"executed: rounds must have {len(self.loops)} numbers, one a loop, got {len(rounds)}")
        total: float = self.instructions
        fp32: float = self.fp32
        times: list[float] = []
        for loop, count in zip(self.loops, rounds, strict=True):
            times.append(count * (1 if loop.parent is None else times[loop.parent]))
            total += loop.instructions * times[-1]
            fp32 += loop.fp32 * times[-1]
        return total, fp32

    def as_json(self) -> list[Any]:
        """For a file; :meth:`from_json` is the inverse."""
        loops = [[*astuple(loop)[: None if loop.name else 3]] for loop in self.loops]
        return [self.instructions, self.fp32, loops]

    @staticmethod
    def from_json(value: list[Any]) -> Code:
        """The inverse of :meth:`as_json`."""
        return Code(value[0], value[1], tuple(Loop(*loop) for loop in value[2]))


def label(launch: AnyLaunch) -> str:
    """The name of a compilation: kernel, dtype, constants, and the branch that a launch takes where there are some."""
    words = [f"{name}={value}" for name, value in sorted(launch.constants.items()) if name != "DTYPE"]
    if launch.kernel.__name__ in BRANCHES:  # what chooses a branch is no constant, and a count is of one branch
        words += [f"{name}={launch.arguments[name]}" for name in BRANCHES[launch.kernel.__name__]]
    return " ".join([launch.kernel.__name__, f"dtype={str(dtype_of(launch)).removeprefix('torch.')}", *words])


def dtype_of(launch: AnyLaunch) -> torch.dtype:
    """What a launch computes in, whatever the dtype of its input."""
    tensors = (launch.arguments.get(name) for name in ("weight", "means", "input"))
    return next(tensor for tensor in tensors if isinstance(tensor, torch.Tensor)).dtype


@functools.cache
def load() -> dict[str, dict[int, Code]]:
    """The code of the file, by label and architecture."""
    counts = json.loads(FILE.read_text(encoding="utf-8"))["counts"]
    return {
        name: {int(architecture): Code.from_json(code) for architecture, code in codes.items()}
        for name, codes in counts.items()
    }


@functools.cache
def find(name: str, architecture: int) -> Code:
    """The code of a label on an architecture.

    One that was not counted takes the code of that compilation of the same kernel which shares most of its constants;
    an architecture that was not, the nearest older one's, and one older than all the oldest one's.

    Raises:
        ValueError: for a kernel of which no code was counted.
    """
    kernel, *words = name.split(" ")
    known = [other for other in load() if other.startswith(f"{kernel} ")]
    if not known:
        raise ValueError(f"find: kernel must be one that was counted, got {kernel}")
    codes = load()[max(known, key=lambda other: len(set(words) & set(other.split(" "))))]
    older = [each for each in codes if each <= architecture]
    return codes[max(older) if older else min(codes)]


def executed(launch: AnyLaunch, architecture: int) -> tuple[float, float]:
    """Instructions that a warp of a launch issues on an architecture, and those in fp32 among them.

    Raises:
        ValueError: for a kernel that is not known here.
    """
    code = find(label(launch), architecture)
    return code.executed(rounds(launch, code))


def rounds(launch: AnyLaunch, code: Code) -> tuple[float, ...]:
    """How often each loop of a launch's code turns, in the order of the code, for one turn of the one around it.

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
    if name in CUDA_KERNELS:
        return of_source(code, CUDA_KERNELS[name](launch))
    raise ValueError(f"rounds: kernel must be one that a network launches, got {name}")


def of_source(code: Code, turns: dict[str, float]) -> tuple[float, ...]:
    """The turns of each loop of a code from those of the source's loops.

    What the compiler wrote several times in a row turns less often; of loops from the same one the longest comes first,
    and takes as many turns as are whole, and the last one takes what is left. Of two alike of which one has a loop
    inside, the other is for the case that this would not turn once.

    Raises:
        ValueError: for a loop that has no turns.
    """
    found = [0.0] * len(code.loops)
    alike: dict[tuple[int | None, str], list[int]] = {}
    for i, loop in enumerate(code.loops):
        if loop.name not in turns:
            raise ValueError(f"rounds: loops must be {', '.join(turns)}, got {loop.name!r}")
        alike.setdefault((loop.parent, loop.name), []).append(i)
    around = {loop.parent for loop in code.loops}
    for (_, name), all_ in alike.items():
        full = {code.loops[i].copies for i in all_ if i in around}
        left, places = turns[name], [i for i in all_ if i in around or code.loops[i].copies not in full]
        for i in sorted(places, key=lambda i: -code.loops[i].copies):
            copies = code.loops[i].copies
            found[i] = left / copies if i == min(places, key=lambda i: code.loops[i].copies) else left // copies
            left -= found[i] * copies
    return tuple(found)


def tensor_operations(launch: AnyLaunch) -> int:
    """Operations of tensor cores in a launch, the tiles' overhang included; 0 for fp32 and without products."""
    of, constants, name = launch.arguments, launch.constants, launch.kernel.__name__
    programs = launch.grid[0] * launch.grid[1] * launch.grid[2]
    if dtype_of(launch).itemsize != 2:
        return 0
    if name == "pointwise_conv_kernel":
        rows, turns = constants["TILE_M"], _parts(of["inputs"] * constants["UNIT_K"], constants["TILE_K"])
    elif name == "stem_conv_kernel":
        taps = constants["KERNEL_H"] * constants["KERNEL_W"] * constants["CHANNELS"]
        rows, turns = constants["TILE_H"] * constants["TILE_W"], _parts(taps, constants["TILE_K"])
    elif name == "squeeze_excite_gate_kernel":
        channels, squeeze = of["channels"] * constants["UNIT_C"], of["squeeze"] * constants["UNIT_S"]
        tile_n, tile_k = constants["TILE_N"], constants["TILE_K"]
        rows = constants["IMAGES"]
        turns = _parts(squeeze, tile_n) * _parts(channels, tile_k) + _parts(channels, tile_n) * _parts(squeeze, tile_k)
    else:
        return products(launch)
    return 2 * programs * rows * constants["TILE_N"] * constants["TILE_K"] * turns


def _parts(count: int, size: int) -> int:
    return -(-count // size)
