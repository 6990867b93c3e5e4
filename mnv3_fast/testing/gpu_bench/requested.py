"""The bytes that our kernels ask of the memory system, from their tiles, beside those that differ.

What is asked for more than once comes from the caches, mostly. A thread that a mask switches off asks for nothing. The
emulator of the tests counts the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mnv3_fast.gpu.launch import Launch
from mnv3_fast.gpu.network import Network
from mnv3_fast.testing.gpu_bench.levels import FP32

Sizes = dict[str, int]
REPEATED = {
    (2, 64, 64): 16, (2, 128, 32): 32, (2, 128, 128): 16, (2, 128, 16): 32, (2, 16, 128): 8,
    (4, 64, 64): 8, (4, 64, 32): 16, (4, 64, 16): 16, (4, 16, 64): 8,
}  # fmt: skip
"""How many threads of a program ask for the same bias, by bytes of an element, rows and columns of its tile of outputs:
as the compiler lays out the tile, which the emulator shows. USUAL for other tiles."""
USUAL = 16


@dataclass(frozen=True)
class Traffic:
    """Bytes of one launch, by argument: asked for, different ones among these, and written."""

    requested: Sizes
    unique: Sizes
    written: Sizes

    @property
    def unique_bytes(self) -> int:
        """What must move: different bytes read, and those written."""
        return sum(self.unique.values()) + sum(self.written.values())

    @property
    def requested_bytes(self) -> int:
        """All that is asked for: reads, repeated ones too, and writes."""
        return sum(self.requested.values()) + sum(self.written.values())


def launches_of(network: Network, shape: tuple[int, int, int, int]) -> list[Launch]:
    """The launches of a pass over images that have no memory. ``network`` may have none either."""
    image = torch.empty(shape, dtype=network.dtype, device="meta")
    output = torch.empty(network.output_shape(shape), dtype=network.dtype, device="meta")
    arena = network.arena(image)
    arena.buffers = {}  # sizes were counted and nothing is kept: what is taken has no memory
    return network.launches(image, output, arena)


def traffic(launch: Launch) -> Traffic:
    """A launch's bytes.

    Raises:
        ValueError: for a kernel that is not known here.
    """
    name = launch.kernel.__name__
    if name not in KERNELS:
        raise ValueError(f"traffic: kernel must be one of {', '.join(KERNELS)}, got {name}")
    return KERNELS[name](launch.arguments, launch.constants)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _repeated(size: int, rows: int, columns: int) -> int:
    return REPEATED.get((size, rows, columns), USUAL)


def _tiles(count: int, tile: int) -> int:
    return -(-count // tile)


def _reads(size: int, starts: range, offsets: range) -> int:
    """How many of the places start + offset lie inside of a row or column."""
    return sum(0 <= start + offset < size for start in starts for offset in offsets)


def _depthwise(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    n, channels, height, width = of["input"].shape
    size = of["input"].element_size()
    tile_h, tile_w = constants["TILE_H"], constants["TILE_W"]
    kernel_h, kernel_w = constants["KERNEL_H"], constants["KERNEL_W"]
    tiles = of["tiles_h"] * of["tiles_w"]
    rows = _reads(
        height,
        range(-of["pad_top"], of["tiles_h"] * tile_h * of["stride_h"] - of["pad_top"], tile_h * of["stride_h"]),
        range(0, (kernel_h + tile_h - 1) * of["dilation_h"], of["dilation_h"]),
    )
    columns = (tile_w - 1) * constants["STEP_W"] + kernel_w
    across = _reads(
        width,
        range(-of["pad_left"], of["tiles_w"] * tile_w * of["stride_w"] - of["pad_left"], tile_w * of["stride_w"]),
        range(0, columns * of["dilation_w"], of["dilation_w"]),
    )
    requested = {
        "input": n * channels * rows * across * size,
        "weight": n * tiles * channels * kernel_h * kernel_w * size,
        "bias": n * tiles * channels * FP32,
    }
    unique = {name: _bytes(of[name]) for name in requested}
    written = {"output": _bytes(of["output"])}
    if constants["SUMS"]:
        written["sums"] = _bytes(of["sums"])
    return Traffic(requested, unique, written)


def _pointwise(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    inputs, outputs = of["inputs"] * constants["UNIT_K"], of["outputs"] * constants["UNIT_N"]
    input, weight, output = (_bytes(of[name]) for name in ("input", "weight", "output"))
    images = of["input"].numel() // (inputs * of["pixels"])
    tiles_m, tiles_n = images * of["tiles_m"], of["tiles_n"]
    unique = {"input": input, "weight": weight, "bias": outputs * FP32}
    repeated = _repeated(of["input"].element_size(), constants["TILE_M"], constants["TILE_N"])
    requested = {"input": input * tiles_n, "weight": weight * tiles_m, "bias": outputs * FP32 * tiles_m * repeated}
    if constants["GATE"]:
        unique["gate"] = _bytes(of["gate"])
        requested["gate"] = unique["gate"] * of["tiles_m"] * tiles_n
    if of["has_residual"]:
        unique["residual"] = requested["residual"] = output
    return Traffic(requested, unique, {"output": output})


def _stem(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    n, channels, height, width = of["input"].shape
    tile_h, tile_w, tiles_n = constants["TILE_H"], constants["TILE_W"], of["tiles_n"]
    tiles = n * of["tiles_h"] * of["tiles_w"]
    rows = _reads(
        height,
        range(-of["pad_top"], of["tiles_h"] * tile_h * of["stride_h"] - of["pad_top"], of["stride_h"]),
        range(0, constants["KERNEL_H"] * of["dilation_h"], of["dilation_h"]),
    )
    across = _reads(
        width,
        range(-of["pad_left"], of["tiles_w"] * tile_w * of["stride_w"] - of["pad_left"], of["stride_w"]),
        range(0, constants["KERNEL_W"] * of["dilation_w"], of["dilation_w"]),
    )
    repeated = _repeated(of["weight"].element_size(), tile_h * tile_w, constants["TILE_N"])
    requested = {
        "input": n * channels * rows * across * tiles_n * of["input"].element_size(),
        "weight": _bytes(of["weight"]) * tiles,
        "bias": _bytes(of["bias"]) * tiles * repeated,
    }
    unique = {name: _bytes(of[name]) for name in requested}
    if constants["NORMALIZE"]:
        for name in ("scale", "shift"):
            unique[name] = _bytes(of[name])
            requested[name] = unique[name] * tiles * tiles_n * constants["KERNEL_H"] * constants["KERNEL_W"]
    return Traffic(requested, unique, {"output": _bytes(of["output"])})


def _gate(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    channels, squeeze = of["channels"] * constants["UNIT_C"], of["squeeze"] * constants["UNIT_S"]
    programs = _tiles(of["images"], constants["IMAGES"])
    repeated = _repeated(of["means"].element_size(), constants["IMAGES"], constants["TILE_N"])
    means = of["images"] * channels * of["means"].element_size()
    hidden = of["images"] * squeeze * of["hidden"].element_size()
    layers = {name: _bytes(of[name]) for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")}
    unique = {"sums": _bytes(of["sums"]), **layers, "means": means, "hidden": hidden}
    requested = {
        "sums": unique["sums"],
        **{name: size * programs * (repeated if "bias" in name else 1) for name, size in layers.items()},
        "means": means * _tiles(squeeze, constants["TILE_N"]),
        "hidden": hidden * _tiles(channels, constants["TILE_N"]),
    }
    return Traffic(requested, unique, {"means": means, "hidden": hidden, "gates": _bytes(of["gates"])})


def _channel_sums(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    input = {"input": _bytes(of["input"])}
    return Traffic(input, input, {"sums": _bytes(of["sums"])})


def _scale(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    unique = {"input": _bytes(of["input"]), "gates": _bytes(of["gates"])}
    requested = {"input": unique["input"], "gates": unique["gates"] * of["tiles"]}
    return Traffic(requested, unique, {"output": _bytes(of["output"])})


KERNELS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Traffic]] = {
    "depthwise_conv_kernel": _depthwise,
    "pointwise_conv_kernel": _pointwise,
    "stem_conv_kernel": _stem,
    "squeeze_excite_gate_kernel": _gate,
    "channel_sums_kernel": _channel_sums,
    "scale_kernel": _scale,
}
