"""What a plan computes, in plain torch: the specification of csrc/engine, and the executor without kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mnv3_fast.engine.kinds import BLOCK, LINEAR, POINTWISE, POOL, STEM
from mnv3_fast.engine.plan import (
    Node,
    floats_at,
    pointwise_floats,
    read_plan,
    slope_of,
    unpack_panels,
    unpack_pointwise,
)
from mnv3_fast.ops.elements import activate
from mnv3_fast.ops.squeeze_excite_gate.reference import squeeze_excite_gate


def run_plan(input: Tensor, plan: Tensor, geometry: list[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Execute a plan: [N, C, H, W] -> [N, F] or a map. ``dtype`` is the dtype of the arithmetic."""
    steps = {STEM: _stem, BLOCK: _block, POINTWISE: _pointwise, POOL: _pool, LINEAR: _linear}
    x = input.to(dtype)
    for node in read_plan(plan):
        x = steps[node.kind](node, plan.to(input.device), x)
    return x


def _panels(plan: Tensor, offset: int, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    padded = -(-outputs // 16) * 16
    return unpack_panels(floats_at(plan, offset, padded * inputs), outputs).to(dtype)


def _weight(plan: Tensor, offset: int, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    packed = floats_at(plan, offset, pointwise_floats(inputs, outputs))
    return unpack_pointwise(packed, outputs, inputs).to(dtype)


def _vector(plan: Tensor, offset: int, size: int, dtype: torch.dtype) -> Tensor:
    return floats_at(plan, offset, size).to(dtype)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, window: list[int], groups: int) -> Tensor:
    stride, pads, dilation = window[2:4], window[4:8], window[8:10]
    return functional.conv2d(functional.pad(x, pads), weight, bias, stride, 0, dilation, groups)


def _stem(node: Node, plan: Tensor, x: Tensor) -> Tensor:
    words = node.words
    inputs, outputs = words[1], words[2]
    window = [words[3 + i] for i in range(10)]
    if words[16]:
        scale, shift = (_vector(plan, words[i], inputs, x.dtype) for i in (17, 18))
        x = x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    weight = _panels(plan, words[14], outputs, inputs * window[0] * window[1], x.dtype)
    weight = weight.view(outputs, inputs, window[0], window[1])
    return activate(_convolve(x, weight, _vector(plan, words[15], outputs, x.dtype), window, 1), words[13])


def _block(node: Node, plan: Tensor, x: Tensor) -> Tensor:
    words, dtype = node.words, x.dtype
    inputs, hidden, outputs = words[1], words[2], words[3]
    window = [words[4 + i] for i in range(10)]
    y = x
    if words[14]:
        weight = _weight(plan, words[22], hidden, inputs, dtype)[:, :, None, None]
        y = activate(functional.conv2d(y, weight, _vector(plan, words[23], hidden, dtype)), words[15])
    weight = _panels(plan, words[24], hidden, window[0] * window[1], dtype).view(hidden, 1, window[0], window[1])
    y = activate(_convolve(y, weight, _vector(plan, words[25], hidden, dtype), window, hidden), words[16])
    squeeze = words[17]
    if squeeze:
        fc1 = _weight(plan, words[26], squeeze, hidden, dtype), _vector(plan, words[27], squeeze, dtype)
        fc2 = _weight(plan, words[28], hidden, squeeze, dtype), _vector(plan, words[29], hidden, dtype)
        gate = squeeze_excite_gate(y.mean((2, 3)), *fc1, *fc2, words[18], words[19], slope_of(node))
        y = y * gate[:, :, None, None]
    weight = _weight(plan, words[30], outputs, hidden, dtype)[:, :, None, None]
    y = activate(functional.conv2d(y, weight, _vector(plan, words[31], outputs, dtype)), words[32])
    return x + y if words[21] else y


def _pointwise(node: Node, plan: Tensor, x: Tensor) -> Tensor:
    inputs, outputs = node.words[1], node.words[2]
    weight = _weight(plan, node.words[4], outputs, inputs, x.dtype)[:, :, None, None]
    bias = _vector(plan, node.words[5], outputs, x.dtype)
    return activate(functional.conv2d(x, weight, bias), node.words[3])


def _pool(node: Node, plan: Tensor, x: Tensor) -> Tensor:
    return x.mean((2, 3))


def _linear(node: Node, plan: Tensor, x: Tensor) -> Tensor:
    inputs, outputs = node.words[1], node.words[2]
    weight = _weight(plan, node.words[4], outputs, inputs, x.dtype)
    return activate(functional.linear(x, weight, _vector(plan, node.words[5], outputs, x.dtype)), node.words[3])
