"""The launches of a pass over images that are not there, which is all that counting them needs."""

from __future__ import annotations

import torch

from mnv3_fast.gpu.launch import Launch
from mnv3_fast.gpu.network import Network


def launches_of(network: Network, shape: tuple[int, int, int, int]) -> list[Launch]:
    """The launches of a pass over images that have no memory. ``network`` may have none either."""
    image = torch.empty(shape, dtype=network.dtype, device="meta")
    output = torch.empty(network.output_shape(shape), dtype=network.dtype, device="meta")
    arena = network.arena(image)
    arena.buffers = {}  # sizes were counted and nothing is kept: what is taken has no memory
    return network.launches(image, output, arena)
