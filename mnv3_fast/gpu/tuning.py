"""Which kernel of a layer is faster on a device: ``mnv3-fast tune`` measures it, for tuned.py to keep.

A layer is timed as an engine runs it: in a CUDA graph, REPEATS times in a row. No time of the CPU is in that, and L2 is
as warm as in a pass, where a layer reads what the one before has just written: what does not fit into L2 there does not
fit here. (L2 emptied before each call would charge reads that a pass does not make, and hide how often a kernel reads
the same.) Depthwise layers come first, with the gate that adds up their sums; a block whose layers are launched one by
one is then timed with the depthwise kernel that is used in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from mnv3_fast.gpu import choice, counts, graphs, tuned
from mnv3_fast.gpu.choice import VARIANTS, Question
from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.gpu.network import Network
from mnv3_fast.gpu.packing import Block
from mnv3_fast.gpu.trial import Layer, Trial
from mnv3_fast.ops.network.layout import Stage
from mnv3_fast.testing.gpu_bench.cells import plain_float32
from mnv3_fast.testing.gpu_bench.timing import EventClock, interleave
from mnv3_fast.testing.measure import Timing
from mnv3_fast.testing.on_device import cast

REPEATS = 20
"""Times that a layer runs between two events."""
SECONDS = 0.2
"""About how long the kernels of one layer are timed."""
ROUNDS, NEEDED = 11, 10
"""Turns of each kernel, and in how many of them one must be faster: of two that are equally fast one is so in 1.2%."""
GAIN = 1.02
"""How many times faster it must be besides, by the median of the rounds' ratios."""


class Clock(Protocol):
    """What times layers (:class:`GraphClock`); tests put one of their own in its place."""

    def repeated(self, launches: Sequence[AnyLaunch], count: int) -> Callable[[], Any]:
        """What runs launches that often, in order, whenever it is called."""

    def times(self, run: Callable[[], Any], count: int, flush: bool) -> list[float]:
        """Seconds of each of some calls."""

    def bandwidth(self) -> float:
        """As ``gpu_bench``'s."""


class GraphClock(EventClock):
    """A CUDA device's own clock, for launches in a graph."""

    def repeated(self, launches: Sequence[AnyLaunch], count: int) -> Callable[[], Any]:
        """As :class:`Clock`.

        Raises:
            RuntimeError: if nothing can be captured now.
        """
        with graphs.turn() as is_ours:
            if not is_ours:
                raise RuntimeError("another CUDA graph is being captured in this process")
            return graphs.captured([*launches] * count, self.device).replay


@dataclass(frozen=True)
class Result:
    """What was found of one question.

    Attributes:
        layers: names of the blocks that ask it.
        seconds: of one run, by variant: the median.
        faster_by: how many times faster the faster one is, by the median of the rounds; None if not both were timed.
        rounds: in how many of the rounds it was faster.
        missing: why a variant was not timed.
        wrong: variants that raised or computed something else, those that lacked memory left out.
        measured: the variant that is to be kept; None where neither is clearly faster.
        used: what a network takes from now on: that, or the one that is better by counting.
    """

    question: Question
    layers: tuple[str, ...]
    seconds: dict[str, float]
    faster_by: float | None
    rounds: int
    missing: dict[str, str]
    wrong: tuple[str, ...]
    measured: str | None
    used: str


def layers_of(stages: Sequence[Stage], shape: Sequence[int], dtype: torch.dtype) -> list[Layer]:
    """The blocks of a network, and their depthwise layers, whether they are computed alone or not.

    Args:
        stages: of ``mnv3_fast.ops.network.layout``, their tensors on the device.
        shape: of the network's input, N, C, H, W.
        dtype: of the arithmetic.
    """
    stages = [replace(stage, tensors=cast(list(stage.tensors), dtype)) for stage in stages]
    network, found, blocks = Network(stages, dtype), [], 0
    for stage, (_, step), before in zip(stages, network.steps, [tuple(shape), *network.shapes(shape)], strict=False):
        if isinstance(step, Block):
            blocks += 1
            for question in choice.block_questions(step, before, dtype):
                why = choice.reason(question, network.device)[1]
                found.append(Layer(f"block {blocks}", question, stage, before, why))
    return found


def tune(layers: Sequence[Layer], device: torch.device, clock: Clock) -> Iterator[Result]:
    """Measure the open ones of some layers of one network, dtype and shape, and keep what was found.

    Args:
        layers: of :func:`layers_of`.
        device: that they are on.
        clock: of it.

    Yields:
        A result for each question, as soon as it is there.

    Raises:
        OSError: if it cannot be kept.
        torch.AcceleratorError: if a kernel leaves the device in an error.
    """
    for op in choice.OPS:  # depthwise layers first
        asked: dict[Question, list[Layer]] = {}
        for layer in layers:
            if layer.is_open and layer.question.op == op:
                asked.setdefault(layer.question, []).append(layer)
        found: dict[Question, str | None] = {}
        try:
            for question, same in asked.items():
                with plain_float32(benchmark=False), torch.inference_mode():
                    result = _measure(same[0], device, clock)
                found[question] = result.measured
                yield replace(result, layers=tuple(layer.name for layer in same))
        finally:  # also what was measured until somebody had enough
            if found:
                tuned.choices().store(device, found)


def decide(timings: Mapping[str, Timing]) -> tuple[str, float, int, bool]:
    """The faster one of both variants, how many times, in how many rounds, and whether that is more than noise."""
    ratios = [a / b for a, b in zip(timings["triton"].rounds, timings["cuda"].rounds, strict=True)]
    gain = statistics.median(ratios)
    variant = "cuda" if gain > 1 else "triton"
    gain = max(gain, 1 / gain)
    rounds = sum(ratio > 1 if variant == "cuda" else ratio < 1 for ratio in ratios)
    return variant, gain, rounds, rounds >= NEEDED and gain > GAIN


def _measure(layer: Layer, device: torch.device, clock: Clock) -> Result:
    trial = Trial(layer, device)
    for variant in VARIANTS:
        trial.attempt(variant, lambda variant=variant: trial.run(variant))
    trial.compare()
    runs: dict[str, Callable[[], Any]] = {}
    for variant, launches in trial.timed().items():
        trial.attempt(variant, lambda v=variant, all=launches: runs.update({v: clock.repeated(all, REPEATS)}))
    timings, failed = interleave(runs, clock, False, SECONDS, ROUNDS)
    for variant, error in failed.items():
        trial.note(variant, error)
    faster_by, rounds, measured = None, 0, None
    if len(timings) == len(VARIANTS):
        variant, faster_by, rounds, is_clear = decide(timings)
        measured = variant if is_clear else None
    elif len(timings) == 1 and trial.wrong:
        (measured,) = timings  # the one that is right
    used = measured or counts.better(layer.question, counts.properties(device))
    seconds = {variant: timing.median / REPEATS for variant, timing in timings.items()}
    wrong = tuple(sorted(trial.wrong))
    return Result(layer.question, (layer.name,), seconds, faster_by, rounds, trial.missing, wrong, measured, used)
