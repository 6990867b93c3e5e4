"""squeeze_excite_gate over the real layers of both networks."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.ops.common import layers, rivals, run_layer
from mnv3_fast.testing.layers import RealLayer


@layers("squeeze_excite_gate")
@rivals
def bench_squeeze_excite_gate(compete: Callable[..., None], name: str, layer: RealLayer, rival: str) -> None:
    run_layer(compete, name, layer, rival)
