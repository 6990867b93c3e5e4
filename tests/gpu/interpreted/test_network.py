"""Blocks and whole networks as launches: results in the interpreter, and how many launches and compilations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from mnv3_fast.models.description import describe_net
from mnv3_fast.ops.elements import convolved_size
from mnv3_fast.testing.cases import Case
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.tolerance import assert_close_enough, assert_net_equal
from tests.gpu.interpreted.harness import cases, check, guarded, start

pytest.importorskip("triton")

from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.compilation import key
from mnv3_fast.gpu.network import Network, block_launches
from mnv3_fast.gpu.packing import pack_block

BATCHES = (1, 8, 32, 128, 256)
LEVEL_C = {"large": 62, "small": 48}
"""Launches of a pass with nothing but convolutions, gates and the pool in launches of their own (docs/gpu.md)."""


def allocated(arena: Arena) -> Arena:
    """The arena with memory that shows whatever is read before it is written."""
    arena.allocate()
    for buffer in arena.buffers.values():
        buffer.fill_(float("nan"))
    return arena


def inverted_residual(x: Tensor, tensors: list[Tensor], spec: list[int], constants: list[float]) -> Tensor:
    """The raw op by its launches."""
    block = pack_block(tensors, spec, constants, x.dtype)
    size = convolved_size(x.shape[2:], block.depthwise.kernel, block.depthwise.window)
    with guarded() as memory:
        x, output = memory.input(x), memory.output((x.shape[0], block.project.channels, *size), x.dtype)
        arena = Arena(x.device)
        block_launches(block, x, output, arena)
        launches = block_launches(block, x, output, allocated(arena))
        assert len(launches) <= 4
        start(launches, x.shape[0] == 0)
    return output


@cases("inverted_residual", lambda case: "." not in case.name or case.name in ("large.b4", "small.b0", "small.b8"))
def test_a_block_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, inverted_residual)


def run_network(network: Network, images: Tensor, **options: Any) -> Tensor:
    """A pass in memory of its own."""
    with guarded() as memory:
        images, output = memory.input(images), memory.output(network.output_shape(images.shape), network.dtype)
        arena = Arena(images.device)
        network.launches(images, output, arena)
        start(network.launches(images, output, allocated(arena), **options), False)
    return output


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """A small parity model for images of 40 x 40."""
    return parity_model("small", seed=3, size=40)


def test_a_network_equals_torchvision(model: torch.nn.Module) -> None:
    images = parity_images(2, 40)
    with torch.no_grad():
        expected = model(images)
        network = Network(describe_net(model).stages(), torch.float32)
    output = run_network(network, images)
    assert (output[0] - output[1]).norm() > 0.1 * output[0].norm()
    assert_net_equal(output, expected)
    # An image's place in the batch does not matter to the last bit.
    assert torch.equal(run_network(network, images.flip(0)).flip(0), output)


def test_a_network_in_half_precision(model: torch.nn.Module) -> None:
    images = parity_images(1, 40).half()
    with torch.no_grad():
        half = parity_model("small", seed=3, size=40).half()
        exact = parity_model("small", seed=3, size=40).half().double()(images.double())
        network = Network(describe_net(half).stages(), torch.float16)
        output = run_network(network, images)
        assert_close_enough(output, half(images), exact, dtype=torch.float16)


def test_bytes_with_a_normalisation(model: torch.nn.Module) -> None:
    images = (parity_images(1, 32) * 60 + 128).clamp(0, 255).to(torch.uint8)
    scale, shift = torch.tensor([0.02, 0.01, 0.03]), torch.tensor([-2.0, -1.0, -3.0])
    stages = describe_net(model.features[:2]).stages()
    output = run_network(Network(stages, torch.float32, scale, shift), images)
    with torch.no_grad():
        image = images.double() * scale.view(3, 1, 1).double() + shift.view(3, 1, 1).double()
        exact = parity_model("small", seed=3, size=40).double().features[:2](image)
        assert_close_enough(output, model.features[:2](image.float()), exact)


def test_no_launch_for_no_image(model: torch.nn.Module) -> None:
    network = Network(describe_net(model).stages(), torch.float32)
    images = torch.empty(0, 3, 40, 40)
    output = torch.empty(network.output_shape(images.shape))
    assert network.launches(images, output, network.arena(images)) == []


def launches_of(network: Network, batch: int, size: int = 224) -> list:
    """Those of a pass over images that are not there."""
    images = torch.empty(batch, 3, size, size, dtype=network.dtype, device="meta")
    output = torch.empty(network.output_shape(images.shape), dtype=network.dtype, device="meta")
    arena = Arena(images.device)
    network.launches(images, output, arena)
    arena.allocate()
    return network.launches(images, output, arena)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("net", ["large", "small"])
def test_launches_and_compilations(net: str, dtype: torch.dtype) -> None:
    stages = describe_net(getattr(torchvision.models, f"mobilenet_v3_{net}")().eval()).stages()
    network = Network(stages, dtype)
    keys = set()
    for batch in BATCHES:
        launches = launches_of(network, batch)
        assert len(launches) <= LEVEL_C[net]
        keys |= {key(launch) for launch in launches}
    assert len(keys) <= 20  # for all batches together
