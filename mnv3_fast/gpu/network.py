"""From blocks and networks to lists of launches: at most four a block.

A block is one CUDA kernel, or two with squeeze-excite, where these are chosen. Else it is expand, depthwise with the
sums of its channels, gate, project: the gate multiplies the projection's input as it is loaded, the residual joins its
output before it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mnv3_fast.engine.kinds import BLOCK, LINEAR, POOL, STEM
from mnv3_fast.gpu import choice, launch
from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.gpu.packing import NO_WINDOW, Block, Convolution, pack_block, pack_layer, pack_vector
from mnv3_fast.ops.depthwise_conv import triton_kernel as triton_depthwise_conv
from mnv3_fast.ops.elements import convolved_size, resolve_window
from mnv3_fast.ops.network.layout import Stage, input_channels
from mnv3_fast.ops.pointwise_conv import triton_kernel as pointwise_conv
from mnv3_fast.ops.squeeze_excite import triton_kernel as squeeze_excite
from mnv3_fast.ops.squeeze_excite_gate import triton_kernel as squeeze_excite_gate
from mnv3_fast.ops.stem_conv import triton_kernel as stem_conv

if TYPE_CHECKING:
    from mnv3_fast.ops.inverted_residual.cuda_kernel import Packed


def convolved(shape: Sequence[int], layer: Convolution) -> tuple[int, int, int, int]:
    """The shape [N, O, OH, OW] of a convolution's output."""
    return shape[0], layer.channels, *convolved_size(shape[2:], layer.kernel, layer.window)


def block_launches(block: Block, input: Tensor, output: Tensor, arena: Arena, upcast: bool = False) -> list[AnyLaunch]:
    """The launches of an inverted residual block: one to four; none for an empty batch.

    Args:
        input: [N, C, H, W], strides (H*W*C, 1, W*C, C), of the weights' dtype.
        output: [N, O, OH, OW], strides likewise; must not share memory with the input.
        arena: gives what lies between the layers.
        upcast: multiply 16-bit operands in fp32, without tensor cores.
    """
    n, dtype, device = input.shape[0], input.dtype, block.depthwise.weight.device
    whole, depthwise = choice.block_questions(block, input.shape, dtype)
    aligned = launch.is_aligned(input) and launch.is_aligned(output)  # or the blocks' kernels cannot read in wide words
    if not upcast and aligned and choice.choose(whole, device) == "cuda":
        from mnv3_fast.ops.inverted_residual import cuda_kernel

        return cuda_kernel.launches(_fused(block), input, output, arena)
    found: list[AnyLaunch] = []
    x = input
    if block.expand:
        x = arena.take("expanded", (n, block.expand.channels, *input.shape[2:]), dtype)
        found += pointwise_conv.launches(
            input, block.expand.weight, block.expand.bias, x, block.expand.activation, upcast=upcast
        )
    layer, squeeze = block.depthwise, block.squeeze_excite
    y = arena.take("depthwise", convolved(x.shape, layer), dtype)
    depthwise_conv = triton_depthwise_conv if upcast else choice.depthwise_conv(depthwise, device)
    sums = gates = None
    if squeeze:
        sums = arena.take("sums", depthwise_conv.sums_shape(y, layer.kernel, depthwise.window), torch.float32)
    found += depthwise_conv.launches(
        x, layer.weight, layer.bias, y, layer.kernel, depthwise.window, layer.activation, sums
    )
    if squeeze and sums is not None:
        gates = arena.take("gates", y.shape[:2], torch.float32)
        workspace = squeeze_excite_gate.workspace_size(n, y.shape[1], squeeze.layers[0].shape[0])
        found += squeeze_excite_gate.launches(
            sums, y.shape[2] * y.shape[3], *squeeze.layers, gates, arena.take("workspace", (workspace,), dtype),
            squeeze.activation, squeeze.gate, squeeze.slope, upcast,
        )  # fmt: skip
    project, residual = block.project, input if block.residual else None
    return found + pointwise_conv.launches(
        y, project.weight, project.bias, output, project.activation, gates, residual, upcast
    )


def _fused(block: Block) -> Packed:
    if block.fused is None:
        raise choice.NoKernel("inverted_residual: its CUDA kernel is asked for, and its weights were packed without it")
    return block.fused


@dataclass(frozen=True)
class Pool:
    """The global mean."""


class Network:
    """The packed weights of a chain of stages (``NetDescription.stages()``), and the launches of a pass.

    Args:
        stages: of ``mnv3_fast.ops.network.layout``, their tensors on one device.
        dtype: of activations and weights: float32, float16 or bfloat16.
        scale, shift: as ``stem_conv``'s.
    """

    def __init__(
        self, stages: Sequence[Stage], dtype: torch.dtype, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> None:
        self.dtype = dtype
        self.device = stages[0].tensors[0].device
        self.input_channels = input_channels(stages)
        self.steps: list[tuple[int, Block | Convolution | Pool]] = []
        for stage in stages:
            self.steps.append((stage.kind, self._pack(stage)))
        self.normalisation: tuple[Tensor | None, Tensor | None] = (None, None)
        if scale is not None or shift is not None:
            channels = len(scale if scale is not None else shift)  # type: ignore[arg-type]
            ones = torch.ones(channels, device=self.device) if scale is None else scale
            packed = (pack_vector(v, channels, self.device) for v in (ones, shift))
            self.normalisation = tuple(packed)  # type: ignore[assignment]

    def _pack(self, stage: Stage) -> Block | Convolution | Pool:
        if stage.kind == BLOCK:
            return pack_block(stage.tensors, stage.spec, stage.constants, self.dtype)
        if stage.kind == POOL:
            return Pool()
        layer, window = stage.layer(), stage.window() if stage.kind == STEM else NO_WINDOW
        if stage.kind == LINEAR and stage.constants[0] != 1:
            layer = replace(layer, weight=layer.weight.detach().float() * stage.constants[0])
        return pack_layer(stage.kind, layer, window, stage.spec[1], self.dtype)

    def kernels(self) -> set[str]:
        """The ops whose Triton kernels a pass takes, or falls back to where it takes CUDA ones."""
        found = {"stem_conv"} if self.starts_with_stem() else set()
        for _, step in self.steps:
            if isinstance(step, Pool):
                found.add("squeeze_excite")
            elif isinstance(step, Block):
                found |= {"depthwise_conv", "pointwise_conv"}
                found |= {"squeeze_excite_gate"} if step.squeeze_excite else set()
            else:
                found.add("pointwise_conv")
        return found - {"pointwise_conv"} if self.starts_with_stem() and len(self.steps) == 1 else found

    def starts_with_stem(self) -> bool:
        """Whether the input is an image, of any strides and perhaps of bytes."""
        return self.steps[0][0] == STEM

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what comes of an input [N, C, H, W]."""
        return self.shapes(shape)[-1]

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """The shapes after each step; of maps that are too small with sizes below 1."""
        found = []
        for _, step in self.steps:
            shape = _shape_after(step, shape)
            found.append(tuple(shape))
        return found

    def variants(self, shape: Sequence[int]) -> list[str]:
        """What computes each step for an input [N, C, H, W]: "Triton", or "CUDA" and the op; where chosen, and why."""
        found = []
        for (_, step), given in zip(self.steps, [tuple(shape), *self.shapes(shape)], strict=False):
            found.append("Triton")
            for question in choice.block_questions(step, given, self.dtype) if isinstance(step, Block) else ():
                variant, why = choice.reason(question, self.device)
                found[-1] = f"CUDA {question.op}: {why}" if variant == "cuda" else f"Triton: {why}"
                if variant == "cuda":
                    break
        return found

    def arena(self, input: Tensor, upcast: bool = False) -> Arena:
        """The memory that passes over inputs of this shape need, as :meth:`launches` makes them now."""
        arena = Arena(self.device)
        shape = self.output_shape(input.shape)
        self.launches(input, torch.empty(shape, dtype=self.dtype, device="meta"), arena, upcast)
        arena.allocate()
        return arena

    def launches(self, input: Tensor, output: Tensor, arena: Arena, upcast: bool = False) -> list[AnyLaunch]:
        """The launches of a pass, in order; none for an empty batch.

        Args:
            input: an image [N, C, H, W] of any strides if the first stage is a stem, else dense NHWC of the dtype.
            output: of the dtype and the shape :meth:`output_shape`, a map dense NHWC.
            arena: of :meth:`arena`.
            upcast: multiply 16-bit operands in fp32, without tensor cores.
        """
        found: list[AnyLaunch] = []
        x = input
        for i, (kind, step) in enumerate(self.steps):
            last = i == len(self.steps) - 1
            shape = _shape_after(step, x.shape)
            y = output if last else arena.take(("even", "odd")[i % 2], shape, self.dtype)
            if isinstance(step, Block):
                found += block_launches(step, x, y, arena, upcast)
            elif isinstance(step, Pool):
                pixels = x.shape[2] * x.shape[3]
                found += squeeze_excite.channel_sums(x, y.view(x.shape[0], 1, x.shape[1]), 1 / pixels)
            elif kind == STEM:
                window = resolve_window(x.shape[2:], step.kernel, step.window)
                found += stem_conv.launches(
                    x, step.weight, step.bias, y, step.kernel, window, step.activation, *self.normalisation, upcast
                )
            else:
                found += pointwise_conv.launches(x, step.weight, step.bias, y, step.activation, upcast=upcast)
            x = y
        return found


def _shape_after(step: Block | Convolution | Pool, shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(step, Pool):
        return tuple(shape[:2])
    if isinstance(step, Block):
        return shape[0], step.project.channels, *convolved(shape, step.depthwise)[2:]
    return (shape[0], step.channels) if len(shape) == 2 else convolved(shape, step)
