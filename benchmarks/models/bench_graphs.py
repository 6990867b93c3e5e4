"""Captured graphs of an accelerated model beside the eager one: they may not be slower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mnv3_fast.acceleration import accelerate
from mnv3_fast.testing.layers import network_macs
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error

EAGER, COMPILED, EXPORTED = "eager", "torch.compile", "torch.export"


@pytest.mark.parametrize("net", ["large", "small"])
@pytest.mark.parametrize("rival", [EAGER, COMPILED, EXPORTED])
def bench_captured_graph(compete: Callable[..., None], net: str, rival: str) -> None:
    """Batch 1, one thread; "ours" is the eager accelerated model, so a ratio of 1 or less is what is wanted."""
    model, x = accelerate(parity_model(net)), parity_images(1, 224)
    with torch.no_grad():
        expected = model(x)

    def make() -> dict[str, Callable[[], Any]]:
        torch._dynamo.reset()
        with torch.inference_mode(False), torch.no_grad():
            compiled = torch.compile(model, fullgraph=True)
            compiled(x)
            exported = torch.export.export(model, (x,)).module()

        def run_in(graph: Callable[[Any], Any]) -> Callable[[], Any]:
            def run() -> Any:
                with torch.inference_mode(False), torch.no_grad():
                    return graph(x)

            return run

        return {EAGER: run_in(model), COMPILED: run_in(compiled), EXPORTED: run_in(exported)}

    def check(name: str, output: Any) -> float:
        error = relative_error(output, expected)
        assert error <= NET_LIMIT, f"{name} is wrong: {error:.3g}"
        return error

    compete(f"graphs/{net}/b1", rival, make, check, EAGER, network_macs(net), 0)
