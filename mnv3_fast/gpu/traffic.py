"""The bytes that our Triton kernels ask of the memory system, from their tiles, beside those that differ.

What is asked for more than once comes from the caches, mostly. A thread that a mask switches off asks for nothing. The
emulator of the tests counts the same bytes. Those of the CUDA kernels: ``cuda_traffic.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mnv3_fast.gpu.cuda_traffic import CUDA_KERNELS, FP32, Sizes, bytes_of, reads
from mnv3_fast.gpu.launch import AnyLaunch

REPEATED = {
    (2, 64, 64): 16, (2, 128, 32): 32, (2, 128, 128): 16, (2, 128, 16): 32, (2, 16, 128): 8,
    (4, 64, 64): 8, (4, 64, 32): 16, (4, 64, 16): 16, (4, 16, 64): 8,
}  # fmt: skip
"""How many threads of a program ask for the same bias, by bytes of an element, rows and columns of its tile of outputs:
as the compiler lays out the tile, which the emulator shows. USUAL for other tiles."""
USUAL = 16


@dataclass(frozen=True)
class Traffic:
    """Bytes of one launch, by argument.

    Attributes:
        requested: all that threads ask for.
        unique: different ones among these.
        written: those that are written.
        brought: what blocks bring from L2, where each byte that a block asks for comes once. Of maps that are read with
            overlap, which blocks share in no simple way, the different ones: a little less.
    """

    requested: Sizes
    unique: Sizes
    written: Sizes
    brought: Sizes

    @property
    def unique_bytes(self) -> int:
        """What must move: different bytes read, and those written."""
        return sum(self.unique.values()) + sum(self.written.values())

    @property
    def requested_bytes(self) -> int:
        """All that is asked for: reads, repeated ones too, and writes."""
        return sum(self.requested.values()) + sum(self.written.values())


def traffic(launch: AnyLaunch) -> Traffic:
    """A launch's bytes.

    Raises:
        ValueError: for a kernel that is not known here.
    """
    name = launch.kernel.__name__
    if name in CUDA_KERNELS:
        return Traffic(*CUDA_KERNELS[name](launch))
    if name not in KERNELS:
        raise ValueError(f"traffic: kernel must be one of {', '.join([*KERNELS, *CUDA_KERNELS])}, got {name}")
    return KERNELS[name](launch.arguments, launch.constants)


def _repeated(size: int, rows: int, columns: int) -> int:
    return REPEATED.get((size, rows, columns), USUAL)


def _tiles(count: int, tile: int) -> int:
    return -(-count // tile)


def _depthwise(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    n, channels, height, width = of["input"].shape
    size = of["input"].element_size()
    tile_h, tile_w = constants["TILE_H"], constants["TILE_W"]
    kernel_h, kernel_w = constants["KERNEL_H"], constants["KERNEL_W"]
    tiles = of["tiles_h"] * of["tiles_w"]
    rows = reads(
        height,
        range(-of["pad_top"], of["tiles_h"] * tile_h * of["stride_h"] - of["pad_top"], tile_h * of["stride_h"]),
        range(0, (kernel_h + tile_h - 1) * of["dilation_h"], of["dilation_h"]),
    )
    columns = (tile_w - 1) * constants["STEP_W"] + kernel_w
    across = reads(
        width,
        range(-of["pad_left"], of["tiles_w"] * tile_w * of["stride_w"] - of["pad_left"], tile_w * of["stride_w"]),
        range(0, columns * of["dilation_w"], of["dilation_w"]),
    )
    requested = {
        "input": n * channels * rows * across * size,
        "weight": n * tiles * channels * kernel_h * kernel_w * size,
        "bias": n * tiles * channels * FP32,
    }
    unique = {name: bytes_of(of[name]) for name in requested}
    written = {"output": bytes_of(of["output"])}
    if constants["SUMS"]:
        written["sums"] = bytes_of(of["sums"])
    vectors = _tiles(of["threads"], constants["BLOCK"]) * min(of["groups"], constants["BLOCK"]) * constants["VECTOR"]
    taps = vectors * kernel_h * kernel_w * size
    return Traffic(requested, unique, written, {"input": unique["input"], "weight": taps, "bias": vectors * FP32})


def _pointwise(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    inputs, outputs = of["inputs"] * constants["UNIT_K"], of["outputs"] * constants["UNIT_N"]
    input, weight, output = (bytes_of(of[name]) for name in ("input", "weight", "output"))
    images = of["input"].numel() // (inputs * of["pixels"])
    tiles_m, tiles_n = images * of["tiles_m"], of["tiles_n"]
    unique = {"input": input, "weight": weight, "bias": outputs * FP32}
    repeated = _repeated(of["input"].element_size(), constants["TILE_M"], constants["TILE_N"])
    brought = {"input": input * tiles_n, "weight": weight * tiles_m, "bias": outputs * FP32 * tiles_m}
    if constants["GATE"]:
        unique["gate"] = bytes_of(of["gate"])
        brought["gate"] = unique["gate"] * of["tiles_m"] * tiles_n
    if of["has_residual"]:
        unique["residual"] = brought["residual"] = output
    return Traffic({**brought, "bias": brought["bias"] * repeated}, unique, {"output": output}, brought)


def _stem(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    n, channels, height, width = of["input"].shape
    tile_h, tile_w, tiles_n = constants["TILE_H"], constants["TILE_W"], of["tiles_n"]
    tiles = n * of["tiles_h"] * of["tiles_w"]
    rows = reads(
        height,
        range(-of["pad_top"], of["tiles_h"] * tile_h * of["stride_h"] - of["pad_top"], of["stride_h"]),
        range(0, constants["KERNEL_H"] * of["dilation_h"], of["dilation_h"]),
    )
    across = reads(
        width,
        range(-of["pad_left"], of["tiles_w"] * tile_w * of["stride_w"] - of["pad_left"], of["stride_w"]),
        range(0, constants["KERNEL_W"] * of["dilation_w"], of["dilation_w"]),
    )
    repeated = _repeated(of["weight"].element_size(), tile_h * tile_w, constants["TILE_N"])
    requested = {
        "input": n * channels * rows * across * tiles_n * of["input"].element_size(),
        "weight": bytes_of(of["weight"]) * tiles,
        "bias": bytes_of(of["bias"]) * tiles * repeated,
    }
    unique = {name: bytes_of(of[name]) for name in requested}
    brought = {"input": unique["input"] * tiles_n, "weight": requested["weight"], "bias": unique["bias"] * tiles}
    if constants["NORMALIZE"]:
        for name in ("scale", "shift"):
            unique[name] = bytes_of(of[name])
            brought[name] = unique[name] * tiles * tiles_n
            requested[name] = brought[name] * constants["KERNEL_H"] * constants["KERNEL_W"]
    return Traffic(requested, unique, {"output": bytes_of(of["output"])}, brought)


def _gate(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    channels, squeeze = of["channels"] * constants["UNIT_C"], of["squeeze"] * constants["UNIT_S"]
    programs = _tiles(of["images"], constants["IMAGES"])
    repeated = _repeated(of["means"].element_size(), constants["IMAGES"], constants["TILE_N"])
    means = of["images"] * channels * of["means"].element_size()
    hidden = of["images"] * squeeze * of["hidden"].element_size()
    layers = {name: bytes_of(of[name]) for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")}
    unique = {"sums": bytes_of(of["sums"]), **layers, "means": means, "hidden": hidden}
    requested = {
        "sums": unique["sums"],
        **{name: size * programs * (repeated if "bias" in name else 1) for name, size in layers.items()},
        "means": means * _tiles(squeeze, constants["TILE_N"]),
        "hidden": hidden * _tiles(channels, constants["TILE_N"]),
    }
    brought = {**unique, **{name: size * programs for name, size in layers.items()}}
    return Traffic(requested, unique, {"means": means, "hidden": hidden, "gates": bytes_of(of["gates"])}, brought)


def _channel_sums(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    input = {"input": bytes_of(of["input"])}
    return Traffic(input, input, {"sums": bytes_of(of["sums"])}, input)


def _scale(of: dict[str, Any], constants: dict[str, Any]) -> Traffic:
    unique = {"input": bytes_of(of["input"]), "gates": bytes_of(of["gates"])}
    requested = {"input": unique["input"], "gates": unique["gates"] * of["tiles"]}
    return Traffic(requested, unique, {"output": bytes_of(of["output"])}, requested)


KERNELS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Traffic]] = {
    "depthwise_conv_kernel": _depthwise,
    "pointwise_conv_kernel": _pointwise,
    "stem_conv_kernel": _stem,
    "squeeze_excite_gate_kernel": _gate,
    "channel_sums_kernel": _channel_sums,
    "scale_kernel": _scale,
}
