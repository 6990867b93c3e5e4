"""Whether the stages of a network fit each other, and their ints what the kernels can do.

Kernels on a GPU read and write by these numbers, and nothing there tells that memory of others was touched. On the CPU
``csrc/engine/plan.cpp`` checks the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from mnv3_fast.engine.kinds import BLOCK, LINEAR, POOL, STEM
from mnv3_fast.ops.checks import MOST
from mnv3_fast.ops.elements import pads_same
from mnv3_fast.ops.inverted_residual.layout import Block, unflatten
from mnv3_fast.ops.network.layout import Stage


class Misfit(ValueError):
    """What does not fit, without the name of an op."""


def check_chain(stages: Sequence[Stage], channels: int) -> tuple[int, bool]:
    """Channels must fit from stage to stage; a map becomes features at a pool, and only features enter a linear layer.

    Args:
        stages: each of tensors that fit it (``check_stages``).
        channels: of the input.

    Returns:
        The channels of the output, and whether it is a map.

    Raises:
        Misfit: saying what does not fit.
    """
    is_map = True
    for i, stage in enumerate(stages):
        if (stage.kind != LINEAR) != is_map:
            raise Misfit(f"node {i} does not fit the one before it")
        if stage.kind == POOL:
            is_map = False
            continue
        if stage.kind == STEM and i != 0:
            raise Misfit("a stem stands inside")
        inputs, outputs = _block(stage) if stage.kind == BLOCK else _layer(stage)
        if inputs != channels:
            raise Misfit(f"node {i} wants another number of channels, {inputs} and not {channels}")
        channels = outputs
    return channels, is_map


def _layer(stage: Stage) -> tuple[int, int]:
    between(stage.spec[1], 0, 2, "an activation")
    weight = stage.tensors[0]
    if stage.kind == STEM:
        _check_window(weight.shape[2:], stage.window())
    return weight.shape[1], weight.shape[0]


def _block(stage: Stage) -> tuple[int, int]:
    spec, block = stage.spec, unflatten(stage.tensors, stage.spec, stage.constants)
    between(spec[18], 0, 1, "a flag")
    for i in (2, 4, 14, 17):
        between(spec[i], 0, 2, "an activation")
    between(spec[15], 0, 1, "a gate")
    _check_window(block.depthwise.weight.shape[2:], spec[5:13])
    hidden, outputs = block.depthwise.weight.shape[0], block.project.weight.shape[0]
    inputs = block.expand.weight.shape[1] if block.expand else hidden
    if spec[18] and (inputs != outputs or not _keeps_size(block, spec[5:13])):
        raise Misfit("a residual block changes the shape of its map")
    return inputs, outputs


def _keeps_size(block: Block, window: Sequence[int]) -> bool:
    stride_h, stride_w, left, right, top, bottom, dilation_h, dilation_w = window
    height, width = block.depthwise.weight.shape[2:]
    as_much = (top + bottom, left + right) == (dilation_h * (height - 1), dilation_w * (width - 1))
    return stride_h == stride_w == 1 and (as_much or pads_same(window))


def _check_window(kernel: Sequence[int], window: Sequence[int]) -> None:
    between(kernel[0], 1, MOST, "a kernel height")
    between(kernel[1], 1, MOST, "a kernel width")
    for stride in window[:2]:
        between(stride, 1, MOST, "a stride")
    for padding in () if pads_same(window) else window[2:6]:
        between(padding, 0, MOST, "a padding")
    for dilation in window[6:8]:
        between(dilation, 1, MOST, "a dilation")


def between(value: int, least: int, most: int, what: str) -> int:
    """A number that lies in a range, itself.

    Raises:
        Misfit: if it does not.
    """
    if not least <= value <= most:
        raise Misfit(f"{what} is {value}")
    return value
