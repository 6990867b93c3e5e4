"""Whole networks against torchvision's own, in one interleaved run a cell.

At batch 32 torch allocates and frees maps of many megabytes on each layer; glibc gives those back to the system each
time, unless it is told not to (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``). ``make bench`` runs it
both ways and the allocator's setting stands in ``extra_info``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mnv3_fast.acceleration import accelerate
from mnv3_fast.testing.layers import network_macs
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.rivals import COMPILED, OURS, model_rivals
from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error

RIVALS = ("torchvision eager", "torchvision channels_last", "channels_last, BN folded", COMPILED, *OURS)


def weight_bytes(net: str) -> int:
    """Bytes of a network's parameters."""
    return 4 * sum(p.numel() for p in parity_model(net).parameters())


def run(compete: Callable[..., None], net: str, batch: int, threads: int, rival: str) -> None:
    """One rival in one cell."""
    model, x = parity_model(net), parity_images(batch, 224)
    with torch.no_grad():
        expected = model(x)

    def check(name: str, output: Any) -> float:
        error = relative_error(output, expected)
        assert error <= NET_LIMIT, f"{name} is wrong: {error:.3g}"
        return error

    macs, moved = batch * network_macs(net), weight_bytes(net) + x.numel() * 4
    compete(f"{net}/b{batch}/t{threads}", rival, lambda: model_rivals(model, x), check, OURS[1], macs, moved, threads)


@pytest.mark.parametrize("net", ["large", "small"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rival", RIVALS)
def bench_network(compete: Callable[..., None], net: str, batch: int, threads: int, rival: str) -> None:
    run(compete, net, batch, threads, rival)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["large", "small"])
@pytest.mark.parametrize("rival", RIVALS)
def bench_network_batch32(compete: Callable[..., None], net: str, rival: str) -> None:
    run(compete, net, 32, 1, rival)


@pytest.mark.parametrize("rival", ["torchvision channels_last", "mnv3_fast accelerated"])
def bench_linear_probe(compete: Callable[..., None], rival: str) -> None:
    """One step of a linear probe: a frozen backbone, a trainable classifier, forward and backward, batch 8."""
    model, x = parity_model("large"), parity_images(8, 224)
    model.features.requires_grad_(False)
    torch.manual_seed(0)
    model.classifier = nn.Linear(960, 10)
    target = torch.arange(8)

    def step(m: nn.Module, images: torch.Tensor) -> Callable[[], float]:
        def run_step() -> float:
            with torch.inference_mode(False), torch.enable_grad():
                m.zero_grad()
                loss = nn.functional.cross_entropy(m(images), target)
                loss.backward()
                return loss.item()

        return run_step

    def make() -> dict[str, Callable[[], Any]]:
        nhwc = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(False):
            stock = model.to(memory_format=torch.channels_last)
            return {
                "torchvision channels_last": step(stock, nhwc),
                "mnv3_fast accelerated": step(accelerate(stock), nhwc),
            }

    with torch.inference_mode(False):
        expected = step(model, x)()

    def check(name: str, loss: Any) -> float:
        error = abs(loss - expected) / abs(expected)
        assert error <= 1e-4, f"{name} is wrong: {error:.3g}"
        return error

    compete("linear probe/large/b8", rival, make, check, "mnv3_fast accelerated", 8 * network_macs("large"), 0)
