"""The launches that a layer would take by Triton and by CUDA, without memory: what a choice by counting compares."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mnv3_fast.gpu import choice
from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.choice import Question
from mnv3_fast.gpu.counts import Properties
from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.gpu.network import block_launches
from mnv3_fast.gpu.packing import Block, pack_block
from mnv3_fast.ops.elements import convolved_size
from mnv3_fast.ops.inverted_residual.layout import HAS_BIAS

META = torch.device("meta")


def candidate(question: Question, gpu: Properties, variant: str) -> Sequence[AnyLaunch]:
    """The launches of a layer by a variant, on tensors that have no memory."""
    input = _empty(question.shape, question.dtype)
    size = convolved_size(question.shape[2:], question.kernel, question.window)
    with choice.assume(gpu), choice.force(**{question.op: variant}):
        if question.op == "inverted_residual":
            output = _empty((question.shape[0], question.out, *size), question.dtype)
            return block_launches(_block(question), input, output, Arena(META))
        kernel = choice.depthwise_conv(question, META)
        channels, (height, width) = question.shape[1], question.kernel
        output = _empty((*question.shape[:2], *size), question.dtype)
        weight = torch.empty(height * width, channels, dtype=question.dtype, device=META)
        sums = None
        if question.sums:
            sums = torch.empty(kernel.sums_shape(output, question.kernel, question.window), device=META)
        return kernel.launches(
            input, weight, torch.empty(channels, device=META), output, question.kernel, question.window,
            question.activation, sums,
        )  # fmt: skip


def _empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    n, c, h, w = shape
    return torch.empty(n, h, w, c, dtype=dtype, device=META).permute(0, 3, 1, 2)


def _block(question: Question) -> Block:
    """A block of a question's sizes, with biases in BatchNorm's place."""
    channels, hidden = question.shape[1], question.hidden or question.shape[1]
    shapes: list[tuple[int, ...]] = []
    if question.hidden:
        shapes += [(hidden, channels, 1, 1), (hidden,)]
    shapes += [(hidden, 1, *question.kernel), (hidden,), (question.out, hidden, 1, 1), (question.out,)]
    if question.squeeze:
        shapes += [(question.squeeze, hidden), (question.squeeze,), (hidden, question.squeeze), (hidden,)]
    residual = channels == question.out and question.window[:2] == (1, 1)
    spec = [
        bool(question.hidden), HAS_BIAS, question.activation, HAS_BIAS, question.activation, *question.window,
        bool(question.squeeze), 1, 0, HAS_BIAS, 0, residual,
    ]  # fmt: skip
    return pack_block(
        [torch.empty(shape, device=META) for shape in shapes], spec, (0.0, 0.0, 0.0, 1 / 6), question.dtype
    )
