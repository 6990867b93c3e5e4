"""Whole networks as launches on the emulator: what one layer leaves in the arena is what the next one reads."""

from __future__ import annotations

import copy

import pytest
import torch

from mnv3_fast.gpu.network import Network
from mnv3_fast.models.description import describe_net
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.tolerance import op_limit, relative_error
from tests.gpu.artefacts import DTYPES
from tests.gpu.device import Device, garbage


@pytest.mark.parametrize(("net", "dtype"), [("large", "fp16"), ("small", "bf16"), ("small", "fp32")])
@torch.no_grad()
def test_a_network_on_the_emulator(net: str, dtype: str) -> None:
    kind, images = DTYPES[dtype], parity_images(2, 32)
    model = parity_model(net, size=32).to(kind).float()  # weights that the dtype holds
    network = Network(describe_net(model).stages(), kind)
    images = images.to(kind)
    exact = copy.deepcopy(model).double()(images.double())
    theirs = copy.deepcopy(model).to(kind)(images)
    arena = network.arena(images)
    for buffer in arena.buffers.values():
        buffer.fill_(float("nan"))
    output = garbage(*network.output_shape(images.shape), dtype=kind)
    device = Device()
    for launch in network.launches(images, output, arena):
        report = device.run(launch)
        assert report.rewritten == 0, report.kernel
    assert device.faults == []
    writes = device.writes_of(output)
    assert writes is not None and (writes == 1).all()
    assert relative_error(output, exact) <= op_limit(relative_error(theirs, exact), kind)
