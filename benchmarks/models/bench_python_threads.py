"""Two Python threads, each with one thread of torch's, beside one: what a server gains from its second core."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from mnv3_fast.engine.freeze import freeze
from mnv3_fast.testing.layers import network_macs
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error

ONE, TWO = "one Python thread", "two Python threads"


@pytest.mark.parametrize("net", ["large", "small"])
@pytest.mark.parametrize("rival", [ONE, TWO])
def bench_python_threads(compete: Callable[..., None], net: str, rival: str) -> None:
    """Twice sixteen calls of an engine, batch 1: one after the other, or side by side."""
    engine, x, calls = freeze(parity_model(net)), parity_images(1, 224), 16
    with torch.no_grad():
        expected = parity_model(net)(x)

    def serve(_: int) -> Any:
        with torch.inference_mode():
            return [engine(x) for _ in range(calls)][-1]

    def make() -> dict[str, Callable[[], Any]]:
        pools = {
            name: ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
            for name, count in ((ONE, 1), (TWO, 2))
        }
        return {name: lambda pool=pool: list(pool.map(serve, range(2))) for name, pool in pools.items()}

    def check(name: str, outputs: Any) -> float:
        error = max(relative_error(output, expected) for output in outputs)
        assert error <= NET_LIMIT, f"{name} is wrong: {error:.3g}"
        return error

    compete(f"python threads/{net}", rival, make, check, TWO, 2 * calls * network_macs(net), 0, threads=2)
