"""Bytes, turns of loops and products of the CUDA kernels of whole blocks, against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("benchmarks.gpu", reason="needs the source tree")

from mnv3_fast.gpu.cuda_rounds import CUDA_KERNELS
from mnv3_fast.gpu.instructions import label, tensor_operations
from mnv3_fast.gpu.launch import CudaLaunch
from mnv3_fast.gpu.traffic import traffic
from mnv3_fast.ops.inverted_residual import cuda_gated_project, cuda_kernel


def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def image(n: int, channels: int, height: int, width: int) -> Tensor:
    return empty(n, height, width, channels).permute(0, 3, 1, 2)


def whole(**changes: Any) -> CudaLaunch:
    """24 to 40 to 16 channels on two maps of 9 x 9, 3x3: four tiles of 5 x 7, 32 hidden channels at a time of 48."""
    arguments: dict[str, Any] = {
        "input": image(2, 24, 9, 9), "expand": empty(3 * 2 * 256), "vectors": empty(11, 48, dtype=torch.float32),
        "project": empty(3 * 256), "project_bias": empty(16, dtype=torch.float32), "residual": None, "fc1": None,
        "output": image(2, 16, 9, 9), "parts": None, "height": 9, "width": 9, "out_height": 9, "out_width": 9,
        "inputs": 24, "hidden": 40, "outputs": 16, "squeeze": 0, "kernel": 3, "stride": 1, "pad_left": 1, "pad_top": 1,
        "dtype": 1, "expand_activation": 2, "depthwise_activation": 2, "project_activation": 0,
        "tile_h": 5, "tile_w": 7, "tiles_w": 2, "slab": 48, "chunk": 32, "splits": 2,
    }  # fmt: skip
    grid = changes.pop("grid", (4, 1, 2))
    constants = {"KERNEL": 3, "STRIDE": 1, "PROJECT": True}
    return CudaLaunch(cuda_kernel.KERNEL, grid, {**arguments, **changes}, 256, 0, constants)


def test_bytes_of_a_block() -> None:
    moved = traffic(whole())
    # Tiles of 7 rows from -1 and 4 on, and of 9 columns from -1 and 6 on.
    rows, columns = 6 + 5, 8 + 3
    expand, project = 3 * 2 * 512, 3 * 512  # fragments of 16 x 16: 40 channels are three, 24 are two
    assert moved.brought == {
        "input": 2 * rows * columns * 24 * 2, "expand": 8 * expand, "vectors": 8 * 11 * 48 * 4,
        "project": 8 * project, "project_bias": 8 * 16 * 4,
    }  # fmt: skip
    assert moved.requested == {**moved.brought, "project_bias": 2 * 81 * 16 * 4}
    assert moved.unique == {
        "input": 2 * 81 * 24 * 2, "expand": expand, "vectors": 11 * 48 * 4, "project": project, "project_bias": 64
    }  # fmt: skip
    assert moved.written == {"output": 2 * 81 * 16 * 2}
    same = image(2, 24, 9, 9)  # what is added is the input, read once more
    again = traffic(whole(input=same, residual=same, output=image(2, 24, 9, 9)))
    assert again.unique == moved.unique
    assert again.requested["residual"] == 2 * 81 * 24 * 2


def test_bytes_up_to_the_gate() -> None:
    """Three slabs of 16 hidden channels each read the input; the weights of a slab are its own."""
    changes = {
        "project": None, "project_bias": None, "fc1": empty(8, 40), "output": image(2, 40, 9, 9),
        "parts": empty(2, 12, 8, dtype=torch.float32), "outputs": 0, "squeeze": 8, "slab": 16, "chunk": 16,
    }  # fmt: skip
    moved = traffic(whole(grid=(4, 3, 2), **changes))
    assert moved.requested == {
        "input": 2 * 3 * 11 * 11 * 24 * 2, "expand": 8 * 3072, "vectors": 8 * 2112, "fc1": 8 * 8 * 40 * 2
    }  # fmt: skip
    assert moved.written == {"output": 2 * 81 * 40 * 2, "parts": 2 * 12 * 8 * 4}


def test_turns_and_products_of_a_block() -> None:
    turns = CUDA_KERNELS["inverted_residual_cuda_kernel"](whole())
    # 7 x 9 pixels are four tiles of 16, by two of hidden channels: one for each warp, one tile at a time.
    assert (turns["chunks"], turns["expand"], turns["two tiles"], turns["one tile"]) == (2, 1, 0, 1)
    assert turns["expand one"] == 1  # two steps of 16 inputs, two a turn
    assert turns["depthwise"] == 3 / 8  # five strips of 7 pixels by 16 pairs of channels are 80 threads, 3 of 8 warps
    assert turns["project"] == 3 * 2 / 8  # 35 pixels are three tiles, by two steps of 16 channels
    assert turns["clear"] == 10 / 8  # 7 x 9 pixels of 32 channels and 8 between rows, in words of 8
    assert turns["copy expand"] == 2 * 2 * 32 / 256
    assert turns["finish"] == 3 / 8  # 70 words
    turns = CUDA_KERNELS["inverted_residual_cuda_kernel"](whole(tile_h=9, height=40, width=40))
    # 11 x 9 pixels are seven tiles: three pairs and one.
    assert (turns["expand"], turns["two tiles"], turns["one tile"]) == (4 * 2 / 8, 0.75, 0.25)
    product = 2 * 16**3
    assert tensor_operations(whole()) == product * 8 * 3 * (4 * 2 + 3 * 1)


def test_the_branches_that_a_launch_takes_are_in_its_label() -> None:
    assert label(whole()) == (
        "inverted_residual_cuda_kernel dtype=float16 KERNEL=3 PROJECT=True STRIDE=1 expand_activation=2 "
        "depthwise_activation=2 project_activation=0"
    )


def gated(**changes: Any) -> CudaLaunch:
    """40 channels of two maps of 49 pixels to 24, 16 squeezed: tiles of 32 pixels and 16 outputs, two slabs."""
    arguments: dict[str, Any] = {
        "hidden": image(2, 40, 7, 7), "parts": empty(2, 12, 16, dtype=torch.float32),
        "fc1_bias": empty(16, dtype=torch.float32), "fc2_weight": empty(3 * 256),
        "fc2_bias": empty(40, dtype=torch.float32), "weight": empty(2 * 3 * 256),
        "bias": empty(24, dtype=torch.float32), "residual": image(2, 24, 7, 7), "output": image(2, 24, 7, 7),
        "partials": empty(2 * 4 * 2 * 512, dtype=torch.float32), "arrivals": empty(2, 4, dtype=torch.int32),
        "slope": 1 / 6, "pixels": 49, "channels": 40, "squeeze": 16, "outputs": 24, "count": 12, "dtype": 1,
        "squeeze_activation": 1, "activation": 0, "gate": 0, "row_warps": 2, "column_warps": 1, "groups": 1,
        "slab_warps": 2, "slab": 32,
    }  # fmt: skip
    grid = changes.pop("grid", (4, 2, 2))
    return CudaLaunch(cuda_gated_project.KERNEL, grid, {**arguments, **changes}, 128, 0, {"GROUPS": 1})


def test_bytes_of_a_gated_projection() -> None:
    moved = traffic(gated())
    assert moved.brought == {
        "hidden": 2 * 2 * 49 * 40 * 2,  # by each of two tiles of outputs
        "parts": 16 * 12 * 16 * 4, "fc1_bias": 16 * 16 * 4,  # by each block
        "fc2_weight": 8 * 3 * 512, "fc2_bias": 8 * 40 * 4,  # by the slabs of each tile, each its own
        "weight": 2 * 2 * 2 * 3 * 512, "bias": 2 * 2 * 24 * 4,  # by each of two tiles of pixels
        "residual": 2 * 49 * 24 * 2, "partials": 2 * 2 * 49 * 24 * 4, "arrivals": 16 * 4,
    }  # fmt: skip
    assert moved.requested == {**moved.brought, "bias": 2 * 49 * 24 * 4}
    assert moved.written == {"output": 2 * 49 * 24 * 2, "partials": 2 * 2 * 49 * 24 * 4, "arrivals": 16 * 4}
    assert moved.unique["hidden"] == 2 * 49 * 40 * 2
    alone = traffic(gated(grid=(4, 1, 2), partials=None, arrivals=None, residual=None, slab=48))
    assert alone.written == {"output": 2 * 49 * 24 * 2}
    assert not {"partials", "arrivals", "residual"} & set(alone.requested)


def test_turns_and_products_of_a_gated_projection() -> None:
    turns = CUDA_KERNELS["gated_project_cuda_kernel"](gated())
    assert turns["copy fc2"] == 2 * 1 * 32 / 128  # two tiles of channels, one step of squeezed ones
    assert turns["copy hidden"] == 32 * 4 / 128
    assert turns["terms"] == 1  # 12 terms, all of them loaded at once by threads side by side
    assert (turns["shares"], turns["gates"]) == (2, 1)  # four warps, two tiles
    assert (turns["project"], turns["warps"]) == (1, 0.5)  # half of the warps add what the others have
    assert turns["slabs"] == 1 / 2  # one of two blocks adds up both
    assert CUDA_KERNELS["gated_project_cuda_kernel"](gated(count=600))["terms"] == 600 / 32 / 8
    gate, project = 2 * 1 * 8, 2 * 1 * 1 * 32  # a product with the squeezed channels has 8 columns
    assert tensor_operations(gated()) == 2 * 16**2 * 16 * (gate + project)
