"""inverted_residual over the real layers of both networks."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.ops.common import layers, rivals, run_layer
from mnv3_fast.testing.layers import RealLayer


@layers("inverted_residual")
@rivals
def bench_inverted_residual(compete: Callable[..., None], name: str, layer: RealLayer, rival: str) -> None:
    run_layer(compete, name, layer, rival)
