"""What every op's benchmark does: each real layer of both networks, each rival its own entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mnv3_fast.testing.cases import real_case
from mnv3_fast.testing.compare import as_list, prepared, reference_of
from mnv3_fast.testing.layers import RealLayer, double, real_layers
from mnv3_fast.testing.rivals import COMPILED, op_rivals
from mnv3_fast.testing.tolerance import op_limit, relative_error

RIVALS = ("eager", "eager channels_last", "channels_last, BN folded", "mnv3_fast")


def layers(op: str) -> Any:
    """A parametrize mark over the op's layers in both networks; equal layers once."""
    found: dict[tuple, tuple[str, RealLayer]] = {}
    for net in ("large", "small"):
        for layer in real_layers(net):
            if layer.op == op:
                key = tuple(value for name, value in vars(layer).items() if name != "name")
                found.setdefault(key, (f"{net}.{layer.name}", layer))
    return pytest.mark.parametrize(("name", "layer"), list(found.values()), ids=[name for name, _ in found.values()])


rivals = pytest.mark.parametrize("rival", [*RIVALS, pytest.param(COMPILED, marks=pytest.mark.slow)])


def run_layer(compete: Callable[..., None], name: str, layer: RealLayer, rival: str) -> None:
    """One rival on one layer. torch.compile is a group of its own, since it takes seconds to compile each layer."""
    case = real_case(layer, net=name.partition(".")[0])
    args = prepared(case)
    exact = as_list(reference_of(layer.op)(*double(args)))[0]
    torch_error = relative_error(as_list(reference_of(layer.op)(*args))[0], exact)

    def check(which: str, output: Any) -> float:
        error = relative_error(as_list(output)[0], exact)
        # The rule for our op; other libraries are held to a looser one, they only must compute the same thing.
        limit = op_limit(torch_error) if which == "mnv3_fast" else 10 * op_limit(torch_error)
        assert error <= limit, f"{which} is wrong on {name}: {error:.3g}, limit {limit:.3g}"
        return error

    group = f"{layer.op}/{name}" + ("/compiled" if rival == COMPILED else "")
    with torch.inference_mode():
        compete(
            group, rival, lambda: op_rivals(case, rival == COMPILED), check, "mnv3_fast", layer.macs(), layer.bytes()
        )
