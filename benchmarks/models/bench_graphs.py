"""Captured graphs of an accelerated model beside the eager one: they should not be slower.

Before a compiled function runs, Dynamo looks whether the modules and tensors that it was traced from have changed; an
exported module fetches each parameter through Python. What torch itself spends there is measured, too: with the guards
off (torch's ``skip_all_guards_unsafe``), and from a package by AOTInductor, which has neither.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnv3_fast.acceleration import accelerate
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.testing.layers import network_macs
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error

EAGER, COMPILED, UNGUARDED = "eager", "torch.compile", "torch.compile, guards off"
EXPORTED, PACKAGED, FROZEN = "torch.export", "torch.export, AOTInductor", "torch.compile of the frozen engine"


def packaged(program: torch.export.ExportedProgram) -> Callable[[torch.Tensor], Any]:
    """A program compiled by AOTInductor and loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "model.pt2"))
        return torch._inductor.aoti_load_package(path)


@pytest.mark.parametrize("net", ["large", "small"])
@pytest.mark.parametrize("rival", [EAGER, COMPILED, UNGUARDED, EXPORTED, PACKAGED, FROZEN])
def bench_captured_graph(compete: Callable[..., None], net: str, rival: str) -> None:
    """Batch 1, one thread; "ours" is the eager accelerated model, so a ratio of 1 or less is what is wanted."""
    model, x = accelerate(parity_model(net)), parity_images(1, 224)
    engine = freeze(model)
    with torch.no_grad():
        expected = model(x)

    def make() -> dict[str, Callable[[], Any]]:
        torch._dynamo.reset()
        options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        with torch.inference_mode(False), torch.no_grad():
            program = torch.export.export(model, (x,))
            graphs = {
                EAGER: model,
                COMPILED: torch.compile(model, fullgraph=True),
                UNGUARDED: torch.compile(lambda x: model(x), fullgraph=True, options=options),
                EXPORTED: program.module(),
                PACKAGED: packaged(program),
                FROZEN: torch.compile(engine, fullgraph=True),
            }

        def run_in(graph: Callable[[Any], Any]) -> Callable[[], Any]:
            def run() -> Any:
                with torch.inference_mode(False), torch.no_grad():
                    return graph(x)

            return run

        return {name: run_in(graph) for name, graph in graphs.items()}

    def check(name: str, output: Any) -> float:
        error = relative_error(output, expected)
        assert error <= NET_LIMIT, f"{name} is wrong: {error:.3g}"
        return error

    compete(f"graphs/{net}/b1", rival, make, check, EAGER, network_macs(net), 0)
