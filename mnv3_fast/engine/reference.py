"""What a plan computes, in plain torch: the specification of csrc/engine, and the executor without kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnv3_fast.engine.kinds import BLOCK, LINEAR, POOL, STEM
from mnv3_fast.engine.op import dtype_of
from mnv3_fast.engine.plan import (
    HEADER_WORDS,
    Node,
    floats_at,
    pointwise_floats,
    read_plan,
    slope_of,
    unpack_panels,
    unpack_pointwise,
)
from mnv3_fast.ops.inverted_residual.layout import HAS_BIAS
from mnv3_fast.ops.network.chain import Misfit, between, check_chain
from mnv3_fast.ops.network.layout import Stage, join
from mnv3_fast.ops.network.reference import network

MOST_CHANNELS, MOST_TAPS = 1 << 20, 64


@dataclass(frozen=True)
class Unpacked:
    """A plan as stages with folded weights (float32 views or copies on the plan's device), and its normalisation."""

    stages: list[Stage]
    scale: Tensor | None
    shift: Tensor | None


def unpack(plan: Tensor) -> Unpacked:
    """The inverse of ``pack_stages``, BatchNorm folded; checks what ``csrc/engine/plan.cpp`` does.

    Raises:
        ValueError: if it is no plan, or not valid.
    """
    nodes, header = read_plan(plan), plan[: 8 * HEADER_WORDS].clone().view(torch.int64).tolist()
    try:
        unpacked = _unpack(plan, nodes)
        output = check_chain(unpacked.stages, header[4])
    except ValueError as error:  # of numbers, or of shapes made of them
        raise ValueError(f"run_plan: the plan is not valid: {error}") from None
    if output != (header[5], header[6] != 0):
        raise ValueError("run_plan: the plan is not valid: its output is not what its header says")
    return unpacked


def _unpack(plan: Tensor, nodes: list[Node]) -> Unpacked:
    scale = shift = None
    if nodes[0].kind == STEM and between(nodes[0].words[16], 0, 1, "a flag"):
        scale, shift = (floats_at(plan, nodes[0].words[i], nodes[0].words[1]) for i in (17, 18))
    return Unpacked([_stage_of(plan, node) for node in nodes], scale, shift)


def run_plan(input: Tensor, plan: Tensor, geometry: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Execute a plan: [N, C, H, W] -> [N, F] or a map. ``dtype`` is that of the arithmetic, by default the engine's."""
    dtype = dtype_of(geometry) if dtype is None else dtype
    unpacked = unpack(plan.to(input.device))
    x = input.to(dtype)
    if unpacked.scale is not None and unpacked.shift is not None:
        x = x * unpacked.scale.to(dtype).view(-1, 1, 1) + unpacked.shift.to(dtype).view(-1, 1, 1)
    tensors, spec, constants = join(unpacked.stages)
    return network(x, [tensor.to(dtype) for tensor in tensors], spec, constants)


def _stage_of(plan: Tensor, node: Node) -> Stage:
    words = node.words
    between(node.kind, STEM, LINEAR, "a node's kind")
    if node.kind == POOL:
        return Stage(POOL, [], [], [])
    if node.kind == BLOCK:
        return _block(plan, node)
    if node.kind == STEM:
        inputs, outputs, window = _channels(words[1]), _channels(words[2]), _window(words, 3)
        weight = _panels(plan, words[14], outputs, inputs * window[0] * window[1])
        tensors = [weight.view(outputs, inputs, *window[:2]), floats_at(plan, words[15], outputs)]
        return Stage(STEM, [HAS_BIAS, words[13], *window[2:]], [0.0], tensors)
    weight = _weight(plan, words[4], _channels(words[2]), _channels(words[1]))
    tensors = [weight if node.kind == LINEAR else weight[:, :, None, None], floats_at(plan, words[5], words[2])]
    return Stage(node.kind, [HAS_BIAS, words[3]], [1.0 if node.kind == LINEAR else 0.0], tensors)


def _block(plan: Tensor, node: Node) -> Stage:
    words = node.words
    inputs, hidden, outputs = (_channels(words[i]) for i in (1, 2, 3))
    squeeze, window = between(words[17], 0, MOST_CHANNELS, "the number of squeeze channels"), _window(words, 4)
    if not words[14] and inputs != hidden:
        raise Misfit("a block without expansion changes the number of channels")
    tensors: list[Tensor] = []
    if words[14]:
        tensors += [_weight(plan, words[22], hidden, inputs)[:, :, None, None], floats_at(plan, words[23], hidden)]
    depthwise = _panels(plan, words[24], hidden, window[0] * window[1]).view(hidden, 1, *window[:2])
    tensors += [depthwise, floats_at(plan, words[25], hidden)]
    tensors += [_weight(plan, words[30], outputs, hidden)[:, :, None, None], floats_at(plan, words[31], outputs)]
    if squeeze:
        tensors += [_weight(plan, words[26], squeeze, hidden), floats_at(plan, words[27], squeeze)]
        tensors += [_weight(plan, words[28], hidden, squeeze), floats_at(plan, words[29], hidden)]
    spec = [words[14], HAS_BIAS, words[15], HAS_BIAS, words[16], *window[2:]]
    spec += [int(squeeze > 0), words[18], words[19], HAS_BIAS, words[32], words[21]]
    return Stage(BLOCK, spec, [0.0, 0.0, 0.0, slope_of(node) if squeeze else 0.0], tensors)


def _channels(value: int) -> int:
    return between(value, 1, MOST_CHANNELS, "a number of channels")


def _window(words: dict[int, int], first: int) -> list[int]:
    """A kernel's sides and the eight window ints behind them, which ``check_chain`` checks."""
    for i in (first, first + 1):
        between(words[i], 1, MOST_TAPS, "a side of a kernel")
    return [words[first + i] for i in range(10)]


def _panels(plan: Tensor, offset: int, outputs: int, inputs: int) -> Tensor:
    padded = -(-outputs // 16) * 16
    return unpack_panels(floats_at(plan, offset, padded * inputs), outputs)


def _weight(plan: Tensor, offset: int, outputs: int, inputs: int) -> Tensor:
    return unpack_pointwise(floats_at(plan, offset, pointwise_floats(inputs, outputs)), outputs, inputs)
