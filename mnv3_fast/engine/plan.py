"""Plans: a network, or one block, packed into one uint8 tensor that ``torch.ops.mnv3_fast.run_plan`` executes.

Layout, little-endian: 16 header words of int64 (magic "MNV3PLAN", version, bytes, nodes, input channels, output
channels, whether the output is a map), then 48 words a node (the kind first; see the ``add_*``
methods), then float32 data, each
array on a 64-byte boundary. Offsets count bytes from the start. The packed layouts are the same for every instruction
set, so a plan moves between machines as it is:

- 1x1 convolutions and linear layers ``[ceil(N/16)][K][16]``, a last panel of eight channels or fewer
  ``[ceil(K/2)][8][2]``; depthwise ``[ceil(C/16)][kh*kw][16]``, stem ``[ceil(N/16)][Cin*kh*kw][16]``; biases padded to a
  multiple of 16; padding is zero.

``csrc/engine/plan.cpp`` reads it and checks every word, as ``mnv3_fast.engine.reference.unpack`` does.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from mnv3_fast import _library
from mnv3_fast.engine.kinds import BLOCK, LINEAR, POINTWISE, POOL, STEM
from mnv3_fast.ops.fold_batch_norm.reference import fold_batch_norm
from mnv3_fast.ops.inverted_residual.layout import Layer, unflatten

MAGIC = int.from_bytes(b"MNV3PLAN", "little")
VERSION = 2
HEADER_WORDS = 16
NODE_WORDS = 48
PANEL = 16


def pack_panels(weight: Tensor) -> Tensor:
    """``[N, K]`` -> ``[ceil(N/16), K, 16]``, float32, zero padded."""
    outputs, inputs = weight.shape
    padded = functional.pad(weight.detach().float(), (0, 0, 0, -outputs % PANEL))
    return padded.view(-1, PANEL, inputs).transpose(1, 2).contiguous()


def pack_pointwise(weight: Tensor) -> Tensor:
    """The weight ``[N, K]`` of a 1x1 convolution or linear layer, flat: panels, the last one by pairs if it is half."""
    outputs, inputs = weight.shape
    if not ends_in_pairs(outputs):
        return pack_panels(weight).flatten()
    whole = outputs // PANEL * PANEL
    last = functional.pad(weight[whole:].detach().float(), (0, inputs % 2, 0, PANEL // 2 - (outputs - whole)))
    pairs = last.view(PANEL // 2, -1, 2).transpose(0, 1).flatten()
    return torch.cat([pack_panels(weight[:whole]).flatten(), pairs]) if whole else pairs


def unpack_pointwise(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The inverse of :func:`pack_pointwise`: flat -> ``[N, K]``."""
    if not ends_in_pairs(outputs):
        return unpack_panels(packed, outputs)
    whole = outputs // PANEL * PANEL
    pairs = packed[whole * inputs :].view(-1, PANEL // 2, 2).transpose(0, 1).reshape(PANEL // 2, -1)
    last = pairs[: outputs - whole, :inputs]
    return torch.cat([unpack_panels(packed[: whole * inputs], whole), last]) if whole else last


def ends_in_pairs(outputs: int) -> bool:
    """Whether the last panel of a pointwise weight is packed by pairs of inputs."""
    return (outputs - 1) % PANEL < PANEL // 2


def pointwise_floats(inputs: int, outputs: int) -> int:
    """How many floats :func:`pack_pointwise` makes of a weight."""
    whole = outputs // PANEL * PANEL * inputs
    return whole + 8 * (inputs + inputs % 2) if ends_in_pairs(outputs) else -(-outputs // PANEL) * PANEL * inputs


def pack_vector(vector: Tensor) -> Tensor:
    """``[N]`` -> ``[ceil(N/16) * 16]``, float32, zero padded."""
    return functional.pad(vector.detach().float(), (0, -vector.numel() % PANEL)).contiguous()


def unpack_panels(packed: Tensor, outputs: int) -> Tensor:
    """The inverse of :func:`pack_panels`: flat panels -> ``[N, K]``."""
    inputs = packed.numel() // (-(-outputs // PANEL) * PANEL)
    return packed.view(-1, inputs, PANEL).transpose(1, 2).reshape(-1, inputs)[:outputs]


@dataclass
class Node:
    """One row of the table: the kind and the words after it, and which words are offsets of which data."""

    kind: int
    words: dict[int, int] = field(default_factory=dict)
    data: dict[int, Tensor] = field(default_factory=dict)


class PlanBuilder:
    """Adds nodes in the order of execution and packs them.

    Args:
        input_channels: channels of the image or map that the plan reads.
    """

    def __init__(self, input_channels: int) -> None:
        self._input_channels = self._channels = input_channels
        self._is_map = True
        self._nodes: list[Node] = []
        self._windows: list[int] = []

    def add_stem(
        self,
        weight: Tensor,
        bias: Tensor,
        window: Sequence[int],
        activation: int,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        """A dense convolution of few channels, BatchNorm already folded. weight ``[N, Cin, kh, kw]``.

        Words: 1 Cin, 2 N, 3-12 window, 13 activation, 14 weight, 15 bias, 16 scaled, 17 scale, 18 shift.
        """
        node = Node(STEM, {1: weight.shape[1], 2: weight.shape[0], 13: activation, 16: int(scale is not None)})
        self._set_window(node, 3, window)
        node.data = {14: pack_panels(weight.flatten(1)), 15: pack_vector(bias)}
        if scale is not None and shift is not None:
            node.data |= {17: scale.detach().float(), 18: shift.detach().float()}
        self._append(node, weight.shape[0])

    def add_block(self, tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]) -> None:
        """An inverted residual block in the flattened form of ``mnv3_fast::inverted_residual``.

        Words: 1 inputs, 2 hidden, 3 outputs, 4-13 window, 14 has expand, 15 expand activation, 16 depthwise
        activation, 17 squeeze channels (0: none), 18 squeeze activation, 19 gate, 20 slope (float64), 21 residual,
        22 to 31 weight and bias of expand, depthwise, fc1, fc2, project, 32 project activation.
        """
        block = unflatten(tensors, spec, constants)
        expand = fold_layer(block.expand) if block.expand else None
        depthwise, project = fold_layer(block.depthwise), fold_layer(block.project)
        hidden = depthwise[0].shape[0]
        inputs = expand[0].shape[1] if expand else hidden
        outputs = project[0].shape[0]
        node = Node(BLOCK, {1: inputs, 2: hidden, 3: outputs, 14: int(expand is not None), 15: spec[2], 16: spec[4]})
        node.words |= {18: spec[14], 19: spec[15], 20: _bits(constants[3]), 21: spec[18], 32: spec[17]}
        self._set_window(node, 4, [*depthwise[0].shape[-2:], *spec[5:13]])
        node.data = {24: pack_panels(depthwise[0].flatten(1)), 25: pack_vector(depthwise[1])}
        if expand:
            node.data |= {22: pack_pointwise(expand[0].flatten(1)), 23: pack_vector(expand[1])}
        if block.squeeze_excite:
            fc1_weight, fc1_bias, fc2_weight, fc2_bias = block.squeeze_excite
            node.words[17] = fc1_weight.shape[0]
            node.data |= {26: pack_pointwise(fc1_weight.flatten(1)), 27: pack_vector(fc1_bias)}
            node.data |= {28: pack_pointwise(fc2_weight.flatten(1)), 29: pack_vector(fc2_bias)}
        node.data |= {30: pack_pointwise(project[0].flatten(1)), 31: pack_vector(project[1])}
        self._append(node, outputs)

    def add_pointwise(self, weight: Tensor, bias: Tensor, activation: int) -> None:
        """A 1x1 convolution over a map, BatchNorm already folded. Words: 1 K, 2 N, 3 activation, 4 weight, 5 bias."""
        self._append(_linear_node(POINTWISE, weight, bias, activation), weight.shape[0])

    def add_pool(self) -> None:
        """The mean over a map: ``[N, C, H, W]`` -> ``[N, C]``."""
        self._append(Node(POOL, {1: self._channels}), self._channels)
        self._is_map = False

    def add_linear(self, weight: Tensor, bias: Tensor | None, activation: int) -> None:
        """A fully connected layer over features. Words as for a pointwise node."""
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
        self._append(_linear_node(LINEAR, weight, bias, activation), weight.shape[0])

    def build(self) -> tuple[Tensor, list[int]]:
        """The plan (uint8) and the geometry that ``run_plan``'s fake needs: output kind (0 features, 1 map), output
        channels, then ten ints for each spatial convolution (kernel, stride, pad l r t b, dilation)."""
        arrays: list[Tensor] = []
        position = 8 * (HEADER_WORDS + NODE_WORDS * len(self._nodes))
        table = []
        for node in self._nodes:
            words = [0] * NODE_WORDS
            words[0] = node.kind
            for index, value in node.words.items():
                words[index] = value
            for index in sorted(node.data):
                position += -position % 64
                words[index] = position
                arrays.append(node.data[index])
                position += 4 * node.data[index].numel()
            table += words
        header = [MAGIC, VERSION, position, len(self._nodes), self._input_channels, self._channels, int(self._is_map)]
        plan = torch.empty(position, dtype=torch.uint8)
        _library.prefer_huge_pages(plan)
        plan.zero_()
        words = torch.tensor(header + [0] * (HEADER_WORDS - len(header)) + table, dtype=torch.int64)
        plan[: 8 * words.numel()] = words.view(torch.uint8)
        start = 8 * words.numel()
        for array in arrays:
            start += -start % 64
            plan[start : start + 4 * array.numel()] = array.flatten().view(torch.uint8)
            start += 4 * array.numel()
        return plan, [int(self._is_map), self._channels, *self._windows]

    def _set_window(self, node: Node, first: int, window: Sequence[int]) -> None:
        for index, value in enumerate(window):
            node.words[first + index] = value
        self._windows += window

    def _append(self, node: Node, channels: int) -> None:
        self._nodes.append(node)
        self._channels = channels


def read_plan(plan: Tensor) -> list[Node]:
    """The nodes of a plan with their words; ``data`` holds flat float32 views of everything from each offset on.

    Raises:
        ValueError: if it is not a plan of this version.
    """
    if plan.dtype != torch.uint8 or plan.dim() != 1 or plan.numel() < 8 * HEADER_WORDS:
        dtype = str(plan.dtype).removeprefix("torch.")
        raise ValueError(
            f"plan: expected a uint8 vector of at least {8 * HEADER_WORDS}, got {dtype} {list(plan.shape)}"
        )
    if plan.is_meta:
        raise ValueError("plan: expected one in memory, got one on device meta")
    header = plan[: 8 * HEADER_WORDS].clone().view(torch.int64).tolist()
    if header[0] != MAGIC or header[1] != VERSION or header[2] != plan.numel():
        raise ValueError("plan: not a plan of version 2, or cut off")
    start = 8 * HEADER_WORDS
    if not 1 <= header[3] <= (plan.numel() - start) // (8 * NODE_WORDS):
        raise ValueError(f"plan: its table of {header[3]} nodes lies outside of it")
    words = plan[start : start + 8 * NODE_WORDS * header[3]].clone().view(torch.int64).view(-1, NODE_WORDS).tolist()
    return [Node(row[0], dict(enumerate(row))) for row in words]


def floats_at(plan: Tensor, offset: int, count: int) -> Tensor:
    """``count`` float32 of a plan from byte ``offset`` on.

    Raises:
        ValueError: if they lie outside of it.
    """
    if offset < 0 or offset % 4 or count < 0 or offset + 4 * count > plan.numel():
        raise ValueError(f"plan: {count} numbers from byte {offset} on lie outside of it")
    return plan[offset : offset + 4 * count].clone().view(torch.float32)


def slope_of(node: Node) -> float:
    """The gate's slope, which the words keep as the bits of a float64."""
    return float(struct.unpack("<d", struct.pack("<q", node.words[20]))[0])


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _linear_node(kind: int, weight: Tensor, bias: Tensor, activation: int) -> Node:
    node = Node(kind, {1: weight.flatten(1).shape[1], 2: weight.shape[0], 3: activation})
    node.data = {4: pack_pointwise(weight.flatten(1)), 5: pack_vector(bias)}
    return node


def fold_layer(layer: Layer) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer with its BatchNorm folded in."""
    weight = layer.weight.detach()
    gamma, beta, mean, variance = layer.batch_norm
    if mean is None or variance is None:
        return weight, weight.new_zeros(weight.shape[0]) if layer.bias is None else layer.bias.detach()
    with torch.no_grad():
        return fold_batch_norm(weight, layer.bias, gamma, beta, mean, variance, layer.eps)
