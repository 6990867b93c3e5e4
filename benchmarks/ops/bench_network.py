"""network: both networks as one op over their original tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mnv3_fast.models.description import describe_net
from mnv3_fast.testing.compare import op_module, reference_of
from mnv3_fast.testing.layers import network_macs
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.rivals import with_layout
from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error


@pytest.mark.parametrize("net", ["large", "small"])
@pytest.mark.parametrize("rival", ["eager", "eager channels_last", "mnv3_fast"])
def bench_network(compete: Callable[..., None], net: str, rival: str) -> None:
    model = parity_model(net)
    args = (parity_images(1, 224), *describe_net(model).flatten())
    reference, op = reference_of("network"), op_module("network").OP
    nhwc = with_layout(args, torch.channels_last)
    runs = {
        "eager": lambda: reference(*args),
        "eager channels_last": lambda: reference(*nhwc),
        "mnv3_fast": lambda: op(*args),
    }
    with torch.inference_mode():
        expected = model(args[0])

    def check(which: str, output: Any) -> float:
        error = relative_error(output, expected)
        assert error <= NET_LIMIT, f"{which} is wrong on {net}: {error:.3g}"
        return error

    weights = sum(4 * tensor.numel() for tensor in args[1])
    with torch.inference_mode():
        compete(f"network/{net}", rival, lambda: runs, check, "mnv3_fast", network_macs(net), weights)
