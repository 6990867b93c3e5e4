"""The bytes that our CUDA kernels ask of the memory system, from the geometry of their launches (``traffic.py``)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mnv3_fast.gpu.launch import AnyLaunch

Sizes = dict[str, int]
FP32 = 4
"""Bytes of biases, sums and gates."""


def bytes_of(tensor: torch.Tensor) -> int:
    """Of its elements."""
    return tensor.numel() * tensor.element_size()


def reads(size: int, starts: range, offsets: range) -> int:
    """How many of the places start + offset lie inside of a row or column."""
    return sum(0 <= start + offset < size for start in starts for offset in offsets)


def _depthwise(launch: AnyLaunch) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """A block reads its taps once; each of its threads reads biases, also one that has no tile."""
    of, constants = launch.arguments, launch.constants
    n, channels, height, width = of["input"].shape
    element, size, stride = of["input"].element_size(), of["kernel"], of["stride"]
    step_h, step_w = constants["TILE_H"] * stride, constants["TILE_W"] * stride
    rows = reads(
        height,
        range(-of["pad_top"], of["tiles_h"] * step_h - of["pad_top"], step_h),
        range(step_h - stride + size),
    )
    across = reads(
        width,
        range(-of["pad_left"], of["tiles_w"] * step_w - of["pad_left"], step_w),
        range(step_w - stride + size),
    )
    vector, tiles, blocks = 16 // element, of["tiles_h"] * of["tiles_w"], launch.grid[0] * launch.grid[1] * n
    idle = blocks * of["across"] * of["down"] - n * tiles * -(-channels // vector)
    vectors = n * tiles * channels + idle * min(vector, channels)
    once = launch.grid[0] * n * channels
    requested = {
        "input": n * channels * rows * across * element,
        "weight": once * size * size * element,
        "bias": vectors * FP32,
    }
    unique = {name: bytes_of(of[name]) for name in requested}
    written = {"output": bytes_of(of["output"])}
    if of["sums"] is not None:
        written["sums"] = bytes_of(of["sums"])
    brought = {"input": unique["input"], "weight": requested["weight"], "bias": once * FP32}
    return requested, unique, written, brought


def _inverted_residual(launch: AnyLaunch) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """A block reads the inputs of its tile once; biases of the projection are read with each pixel."""
    of = launch.arguments
    n, inputs, height, width = of["input"].shape
    slabs, tiles_h = launch.grid[1], launch.grid[0] // of["tiles_w"]
    inside = 1
    for size, pad, tile, count in (
        (height, of["pad_top"], of["tile_h"], tiles_h),
        (width, of["pad_left"], of["tile_w"], of["tiles_w"]),
    ):
        step = tile * of["stride"]
        inside *= reads(size, range(-pad, count * step - pad, step), range(step - of["stride"] + of["kernel"]))
    blocks = n * launch.grid[0]  # each weight is read once by one of the slabs
    brought = {
        "input": n * slabs * inside * inputs * 2,
        "expand": blocks * bytes_of(of["expand"]),
        "vectors": blocks * bytes_of(of["vectors"]),
    }
    written = {"output": bytes_of(of["output"])}
    for name in ("project", "project_bias", "fc1"):
        if of[name] is not None:
            brought[name] = blocks * bytes_of(of[name])
    if of["residual"] is not None:
        brought["residual"] = bytes_of(of["output"])
    if of["parts"] is not None:
        written["parts"] = bytes_of(of["parts"])
    unique = {name: bytes_of(of[name]) for name in brought if name == "input" or of[name] is not of["input"]}
    requested = dict(brought)
    if of["project_bias"] is not None:
        requested["project_bias"] = of["output"].numel() * FP32
    return requested, unique, written, brought


def _gated_project(launch: AnyLaunch) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """What slabs have is written by each and read by one block; a counter is read and written by each."""
    of = launch.arguments
    n, tiles, slabs = launch.grid[2], launch.grid[0], launch.grid[1]
    tiles_m = -(-of["pixels"] // (16 * of["row_warps"]))
    outputs = bytes_of(of["output"]) // 2 * FP32
    brought = {
        "hidden": bytes_of(of["hidden"]) * (tiles // tiles_m),
        "parts": bytes_of(of["parts"]) * tiles * slabs,
        "fc1_bias": bytes_of(of["fc1_bias"]) * n * tiles * slabs,
        "fc2_weight": bytes_of(of["fc2_weight"]) * n * tiles,
        "fc2_bias": bytes_of(of["fc2_bias"]) * n * tiles,
        "weight": bytes_of(of["weight"]) * n * tiles_m,
        "bias": bytes_of(of["bias"]) * n * tiles_m,
    }
    unique = {name: bytes_of(of[name]) for name in brought}
    written = {"output": bytes_of(of["output"])}
    if of["residual"] is not None:
        unique["residual"] = brought["residual"] = bytes_of(of["output"])
    if slabs > 1:
        unique["partials"] = brought["partials"] = written["partials"] = slabs * outputs
        unique["arrivals"] = bytes_of(of["arrivals"])
        brought["arrivals"] = written["arrivals"] = n * tiles * slabs * 4
    return {**brought, "bias": outputs}, unique, written, brought


CUDA_KERNELS: dict[str, Callable[[AnyLaunch], tuple[Sizes, Sizes, Sizes, Sizes]]] = {
    "depthwise_conv_cuda_kernel": _depthwise,
    "inverted_residual_cuda_kernel": _inverted_residual,
    "gated_project_cuda_kernel": _gated_project,
}
"""Requested, unique, written and brought bytes of each kernel."""
