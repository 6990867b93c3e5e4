"""Inverted residual blocks by CUDA kernels: one launch, or two with squeeze-excite (``cuda_gated_project``).

The first, or only, launch is ``csrc/ops/inverted_residual/cuda.cu``: expansion, depthwise convolution and projection
with the hidden tensor in shared memory, or up to the gate. The geometry of a launch is computed in Python
(``cuda_geometry``), so that launches can be made and counted where the library is not; C checks it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.cuda_library import CudaKernel
from mnv3_fast.gpu.fragments import COLUMNS, pack_fragments
from mnv3_fast.gpu.launch import CudaLaunch, aligned
from mnv3_fast.gpu.packing import Block
from mnv3_fast.ops.elements import convolved_size, resolve_window
from mnv3_fast.ops.inverted_residual import cuda_gated_project
from mnv3_fast.ops.inverted_residual.cuda_geometry import THREADS, Geometry, Work, geometries, geometry

DTYPES = {torch.float16: 1, torch.bfloat16: 2}
MOST_BLOCKS = 65535
MOST = 1 << 15
"""Rows, columns and channels at most."""


class Arguments(ctypes.Structure):
    """``mnv3_cuda_inverted_residual_arguments`` of ``csrc/ops/inverted_residual/cuda.h``."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("input", "expand", "vectors", "project", "project_bias", "residual")],
        *[(name, ctypes.c_void_p) for name in ("fc1", "output", "parts")],
        *[(name, ctypes.c_int32) for name in ("height", "width", "out_height", "out_width")],
        *[(name, ctypes.c_int32) for name in ("inputs", "hidden", "outputs", "squeeze")],
        *[(name, ctypes.c_int32) for name in ("kernel", "stride", "pad_left", "pad_top", "dtype")],
        *[(name, ctypes.c_int32) for name in ("expand_activation", "depthwise_activation", "project_activation")],
        *[(name, ctypes.c_int32) for name in ("tile_h", "tile_w", "tiles_w", "slab", "chunk", "splits")],
        *[(name, ctypes.c_int32) for name in ("grid_x", "grid_y", "grid_z", "threads", "shared")],
    )


KERNEL = CudaKernel("inverted_residual", "mnv3_cuda_inverted_residual", Arguments)


@dataclass(frozen=True)
class Packed:
    """What the launches need of a block.

    Attributes:
        expand: [E, C] in fragments. vectors: float32 [2 + k * k, E]: biases of expand and depthwise, taps. Both with
            zeros up to a multiple of 16.
        project: [O, E] in fragments, those of 16 hidden channels side by side; None with squeeze-excite.
        project_bias: [O] float32; None with squeeze-excite.
        fc1: [S, E], of the gate; None without squeeze-excite.
        gated: the rest of a block with squeeze-excite.
        inputs, hidden, outputs: C, E, O.
        kernel, window: of the depthwise convolution; the window as a :class:`Convolution`'s.
        activations: of expand, depthwise and project.
        residual: whether the input is added.
    """

    expand: Tensor
    vectors: Tensor
    project: Tensor | None
    project_bias: Tensor | None
    fc1: Tensor | None
    gated: cuda_gated_project.Packed | None
    inputs: int
    hidden: int
    outputs: int
    kernel: tuple[int, int]
    window: tuple[int, ...]
    activations: tuple[int, int, int]
    residual: bool


def is_known(
    dtype: torch.dtype,
    shape: Sequence[int],
    kernel: Sequence[int],
    window: Sequence[int],
    hidden: int,
    squeeze: int,
    outputs: int,
) -> bool:
    """Whether there are kernels for a block.

    Args:
        dtype: of activations and weights.
        shape: of the input, N, C, H, W.
        kernel: h, w of the depthwise convolution.
        window: of it: stride h, w, padding left, right, top, bottom, dilation h, w, as numbers.
        hidden, squeeze, outputs: channels; 0 hidden ones without expansion, 0 squeezed ones without squeeze-excite.
    """
    window = tuple(window)
    images, inputs, height, width = shape
    shaped = tuple(kernel) in ((3, 3), (5, 5)) and window[:2] in ((1, 1), (2, 2)) and window[6:] == (1, 1)
    channels = all(8 <= each <= MOST and each % 8 == 0 for each in (inputs, hidden, outputs))
    if dtype not in DTYPES or not shaped or not channels or images > MOST_BLOCKS:
        return False
    out_height, out_width = convolved_size((height, width), kernel, window)
    if not all(1 <= size <= MOST for size in (height, width, out_height, out_width)):
        return False
    if not all(0 <= each <= MOST for each in window[2:6]):
        return False
    pixels = out_height * out_width
    if squeeze and not cuda_gated_project.is_known(dtype, images, pixels, hidden, squeeze, outputs):
        return False
    outputs = 0 if squeeze else outputs
    work = Work(height, width, out_height, out_width, inputs, hidden, outputs, kernel[0], window[0])
    return next(geometries(work), None) is not None


def pack(block: Block) -> Packed:
    """The weights of a block with an expansion, in float16 or bfloat16."""
    expand, depthwise, project, squeeze = block.expand, block.depthwise, block.project, block.squeeze_excite
    assert expand is not None
    dtype, hidden = expand.weight.dtype, expand.channels
    vectors = torch.cat([expand.bias[None], depthwise.bias[None], depthwise.weight.float()])
    vectors = torch.nn.functional.pad(vectors, (0, -hidden % COLUMNS)).contiguous()
    fragments = None if squeeze else pack_fragments(project.weight, dtype).transpose(0, 1).contiguous()
    return Packed(
        pack_fragments(expand.weight, dtype), vectors, fragments, None if squeeze else aligned(project.bias),
        aligned(squeeze.layers[0]) if squeeze else None, cuda_gated_project.pack(block) if squeeze else None,
        expand.weight.shape[1], hidden, project.channels, depthwise.kernel, depthwise.window,
        (expand.activation, depthwise.activation, project.activation), block.residual,
    )  # fmt: skip


def parts_shape(packed: Packed, images: int, g: Geometry, work: Work) -> tuple[int, int, int]:
    """The shape [N, terms, S] of what the first launch gives of the gate's first layer."""
    assert packed.fc1 is not None
    tiles, slabs = g.grid(work)
    return images, tiles * slabs, packed.fc1.shape[0]


def launches(packed: Packed, input: Tensor, output: Tensor, arena: Arena) -> list[CudaLaunch]:
    """The one launch of a block, or the two of one with squeeze-excite; none for an empty batch.

    Args:
        packed: of :func:`pack`.
        input: [N, C, H, W] of the weights' dtype, strides (H*W*C, 1, W*C, C).
        output: [N, O, OH, OW], strides likewise; must not share memory with the input.
        arena: gives what lies between two launches.

    Raises:
        ValueError: for a block that :func:`is_known` does not know.
    """
    images, _, height, width = input.shape
    window = resolve_window((height, width), packed.kernel, packed.window)
    squeeze = 0 if packed.fc1 is None else packed.fc1.shape[0]
    if not is_known(input.dtype, input.shape, packed.kernel, window, packed.hidden, squeeze, packed.outputs):
        raise ValueError(
            "inverted_residual: there are CUDA kernels for float16 and bfloat16, 3x3 and 5x5 with stride 1 or 2, "
            f"channels that are multiples of 8 and at most {MOST_BLOCKS} images, got {input.dtype}, "
            f"{packed.kernel} with window {window} for {list(input.shape)} -> {packed.hidden} -> {packed.outputs}"
        )
    if images == 0:
        return []
    out_height, out_width = output.shape[2:]
    outputs = 0 if squeeze else packed.outputs
    work = Work(
        height, width, out_height, out_width, packed.inputs, packed.hidden, outputs, packed.kernel[0], window[0]
    )
    g = geometry(work, images)
    residual = input if packed.residual else None
    if packed.gated is None:
        return [_launch(packed, work, g, window, input, output, residual, None)]
    hidden = arena.take("hidden", (images, packed.hidden, out_height, out_width), input.dtype)
    parts = arena.take("parts", parts_shape(packed, images, g, work), torch.float32)
    first = _launch(packed, work, g, window, input, hidden, None, parts)
    return [first, *cuda_gated_project.launches(packed.gated, hidden, parts, output, residual, arena)]


def _launch(
    packed: Packed, work: Work, g: Geometry, window: Sequence[int], input: Tensor, output: Tensor,
    residual: Tensor | None, parts: Tensor | None,
) -> CudaLaunch:  # fmt: skip
    expand_activation, depthwise_activation, project_activation = packed.activations
    arguments = {
        "input": input, "expand": packed.expand, "vectors": packed.vectors, "project": packed.project,
        "project_bias": packed.project_bias, "residual": residual, "fc1": packed.fc1, "output": output, "parts": parts,
        "height": work.height, "width": work.width, "out_height": work.out_height, "out_width": work.out_width,
        "inputs": work.inputs, "hidden": work.hidden, "outputs": work.outputs,
        "squeeze": 0 if parts is None else parts.shape[2], "kernel": work.kernel, "stride": work.stride,
        "pad_left": window[2], "pad_top": window[4], "dtype": DTYPES[input.dtype],
        "expand_activation": expand_activation, "depthwise_activation": depthwise_activation,
        "project_activation": project_activation, "tile_h": g.tile_h, "tile_w": g.tile_w,
        "tiles_w": -(-work.out_width // g.tile_w), "slab": g.slab, "chunk": g.chunk, "splits": g.splits,
    }  # fmt: skip
    constants = {
        "DTYPE": str(input.dtype).removeprefix("torch."), "KERNEL": work.kernel, "STRIDE": work.stride,
        "PROJECT": work.outputs > 0,
    }  # fmt: skip
    return CudaLaunch(KERNEL, (*g.grid(work), input.shape[0]), arguments, THREADS, g.shared, constants)
