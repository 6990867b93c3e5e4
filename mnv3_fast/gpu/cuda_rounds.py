"""How often the loops of our CUDA kernels turn, by the arguments of a launch: a warp's mean, by the loop's name.

The names are those of benchmarks/gpu/loops.py, which finds the loops of a source in what was compiled from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mnv3_fast.gpu.launch import AnyLaunch


def _depthwise(launch: AnyLaunch) -> dict[str, float]:
    """Rows of inputs between the first and the last; a thread's share of the taps is a quarter of them at a time; the
    words of channels of a block by its tiles, and these, where there are sums."""
    of = launch.arguments
    vector = 16 // of["input"].element_size()
    return {
        "rows": of["kernel"] - 1,
        "taps": -(-(of["kernel"] ** 2) // ((of["kernel"] ** 2 + 3) // 4 * of["down"])),
        "sums": -(-vector // of["down"]) if of["sums"] is not None else 0,
        "tiles": of["down"],
    }


def _inverted_residual(launch: AnyLaunch) -> dict[str, float]:
    """csrc/ops/inverted_residual/hidden.h and projection.h."""
    of, warps = launch.arguments, launch.warps
    patch, steps, columns = patch_of(of), _tiles(of["inputs"]), _tiles(of["outputs"])
    slab = min(of["slab"], _tiles(of["hidden"]) * 16)
    chunk, strips = min(of["chunk"], slab), of["tile_h"] * of["tile_w"] // STRIP
    m_tiles, n_tiles, rows = _tiles(patch[2]), chunk // 16, _tiles(of["tile_h"] * of["tile_w"])
    each = 2 if (m_tiles + 1) // 2 * n_tiles >= warps else 1
    units, two = -(-m_tiles // each), m_tiles // 2 if each == 2 else 0  # along the pixels, and those of two tiles
    return {
        "copy expand": _mean(n_tiles * steps * 32, warps), "copy project": _mean(n_tiles * columns * 32, warps),
        "vectors": (2 + of["kernel"] ** 2) / warps, "vector": -(-slab // 4 // 32),
        "places": _mean(m_tiles * 16, warps), "clear": _mean(patch[0] * patch[1] * (chunk + 8) // 8, warps),
        "input": _mean(patch[2] * steps * 2, warps), "chunks": -(-slab // chunk), "expand": units * n_tiles / warps,
        "two tiles": two / units, "one tile": 1 - two / units, "expand two": steps / 2, "expand one": steps / 2,
        "depthwise": _mean(strips * chunk // 2, warps), "means": _mean(slab, warps), "strips": strips,
        "squeeze": _mean(of["squeeze"], warps), "squeeze channels": slab / 8, "project": n_tiles * rows / warps,
        "finish": _mean(of["tile_h"] * of["tile_w"] * of["outputs"] // 8, warps), "splits": of["splits"],
    }  # fmt: skip


def _gated_project(launch: AnyLaunch) -> dict[str, float]:
    """csrc/ops/inverted_residual/gated_project.cu. Slabs are added up by one of their blocks."""
    of, warps = launch.arguments, launch.warps
    tiles, steps, slabs = of["slab"] // 16, _tiles(of["squeeze"]), launch.grid[1]
    terms = min(of["count"], launch.threads * 4 // of["squeeze"])
    shares, at_once = max(1, warps // tiles), AT_ONCE // of["groups"]
    return {
        "copy fc1 bias": _mean(of["squeeze"] // 4, warps), "copy fc2 bias": _mean(of["slab"] // 4, warps),
        "copy fc2": _mean(tiles * steps * 32, warps), "copy weight": _mean(tiles * 32, warps),
        "groups": min(of["column_warps"] * of["groups"], _tiles(of["outputs"])),
        "copy hidden": _mean(of["row_warps"] * 16 * tiles * 2, warps),
        "terms": max(1, of["count"] / terms / AHEAD), "pairs": _mean(steps * 8, warps), "pair": terms,
        "share": (shares - 1) / 2, "gates": tiles * shares / warps, "gate steps": steps / shares / 2,
        "finish gates": _mean(tiles * 16, warps), "shares": shares, "project": tiles / of["slab_warps"],
        "warps": (of["slab_warps"] - 1) / of["slab_warps"],
        "slabs": -(-slabs // at_once) / slabs if slabs > 1 else 0,
    }  # fmt: skip


def _mean(threads: int, warps: int) -> float:
    """Turns of a warp where so many threads turn once: all of a warp turn if one does."""
    return -(-threads // 32) / warps


STRIP, AHEAD, AT_ONCE = 7, 8, 8
"""kStrip, kAhead and kAtOnce times kGroups of csrc/ops/inverted_residual."""


def patch_of(of: dict[str, Any]) -> tuple[int, int, int]:
    """Rows and columns of inputs that a tile of a block reads, and how many lie inside of the map at most."""
    rows = (of["tile_h"] - 1) * of["stride"] + of["kernel"]
    columns = (of["tile_w"] - 1) * of["stride"] + of["kernel"]
    return rows, columns, min(rows, of["height"]) * min(columns, of["width"])


def products(launch: AnyLaunch) -> int:
    """Operations of tensor cores in a launch of a block's kernel, the tiles' overhang included; 0 for another one."""
    of, name = launch.arguments, launch.kernel.__name__
    if name == "inverted_residual_cuda_kernel":
        expand = _tiles(patch_of(of)[2]) * _tiles(of["inputs"])
        project = _tiles(of["tile_h"] * of["tile_w"]) * _tiles(of["outputs"])
        return 2 * 16**2 * launch.grid[0] * launch.grid[2] * _tiles(of["hidden"]) * 16 * (expand + project)
    if name == "gated_project_cuda_kernel":
        gate = of["slab"] // 16 * _tiles(of["squeeze"]) * 8
        project = of["row_warps"] * of["column_warps"] * of["groups"] * of["slab"]
        return 2 * 16**2 * launch.grid[0] * launch.grid[1] * launch.grid[2] * (gate + project)
    return 0


def _tiles(count: int) -> int:
    return -(-count // 16)


CUDA_KERNELS: dict[str, Callable[[AnyLaunch], dict[str, float]]] = {
    "depthwise_conv_cuda_kernel": _depthwise,
    "inverted_residual_cuda_kernel": _inverted_residual,
    "gated_project_cuda_kernel": _gated_project,
}
BRANCHES: dict[str, tuple[str, ...]] = {
    "inverted_residual_cuda_kernel": ("expand_activation", "depthwise_activation", "project_activation")
}
"""The arguments of a kernel that choose among branches of its code."""
