"""A network of torchvision's classes as evaluate() runs it: on uint8 images, by the fastest way that there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnv3_fast.acceleration import accelerate
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.gpu import Progress
from mnv3_fast.models.preprocessing import scale_and_shift
from mnv3_fast.models.variants import Preprocessing


@dataclass(frozen=True)
class Runner:
    """What runs a network, which way that is ("frozen", "accelerated" or "torch"), and why no faster one."""

    run: Callable[[Tensor], Tensor]
    way: str
    reason: str | None = None


def normalising(
    network: nn.Module, how: Preprocessing, device: torch.device | str = "cpu"
) -> Callable[[Tensor], Tensor]:
    """A network that takes normalised float32 images as one that takes uint8 images [n, 3, H, W] on ``device``."""
    scale, shift = (values.view(3, 1, 1).to(device) for values in scale_and_shift(how))
    return lambda images: network(images * scale + shift)


def fastest(
    network: nn.Module,
    how: Preprocessing,
    device: torch.device | str = "cpu",
    autocast: bool = False,
    progress: Progress | None = None,
) -> Runner:
    """The network, put into eval mode and moved to ``device``, frozen with its normalising in the first kernel.

    Args:
        network: a classifier; :func:`freeze` copies its weights.
        how: its preprocessing.
        device: where it runs.
        autocast: whether it runs under autocast, which an engine does not follow: it is accelerated then.
        progress: told of kernels that are compiled, on a GPU.
    """
    network, reasons = network.eval().to(device), ["autocast is on"] if autocast else []
    if not autocast:
        scale, shift = scale_and_shift(how)
        try:
            return Runner(freeze(network, scale=scale, shift=shift, progress=progress), "frozen")
        except ValueError as error:
            reasons.append(str(error))
    try:
        return Runner(normalising(accelerate(network), how, device), "accelerated", reasons[0])
    except ValueError as error:
        return Runner(normalising(network, how, device), "torch", "; ".join([*reasons, str(error)]))
