"""Models on which a fault shows.

A fresh MobileNetV3 in eval mode gives logits that hardly depend on the image, so almost any bug passes on it. The
parity model has weights N(0, 2 / fan_in), BatchNorm weights U(.7, 1.3) and biases N(0, .2), running statistics set by
one pass of 16 random images, then variances x U(.8, 1.25) and means + .1 sigma N(0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d


@torch.no_grad()
def randomize_(model: nn.Module, seed: int, size: int = 224, channels: int = 3) -> nn.Module:
    """Make a parity model of a model, in place, and put it in eval mode. The global random state stays as it is.

    Args:
        model: any model whose forward takes images [N, channels, size, size].
        seed: the same seed gives the same model.
        size: side of the 16 images that set the running statistics. Where much smaller images are compared it should be
            near theirs: behind the padding of a 1x1 map little is left of an image if the statistics are of 224 x 224.

    Returns:
        The model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norms = [m for m in model.modules() if isinstance(m, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d))]
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, math.sqrt(2 / fan_in))
                if module.bias is not None:
                    module.bias.normal_(0, 0.1)
        for norm in norms:
            if norm.weight is not None:
                norm.weight.uniform_(0.7, 1.3)
                norm.bias.normal_(0, 0.2)
        _set_statistics(model, norms, torch.randn(16, channels, size, size))
    return model.eval()


def _set_statistics(model: nn.Module, norms: list[Any], images: Tensor) -> None:
    """One pass in which every norm takes its statistics from its own input, then the shake of both."""
    tracked = [norm for norm in norms if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.track_running_stats]
    frozen = [norm for norm in norms if isinstance(norm, FrozenBatchNorm2d)]
    momenta = [norm.momentum for norm in tracked]
    handles = [norm.register_forward_pre_hook(_measure) for norm in frozen]
    model.eval()
    for norm in tracked:
        norm.momentum = 1.0
        norm.train()
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum in zip(tracked, momenta, strict=True):
            norm.momentum = momentum
    for norm in [*tracked, *frozen]:
        norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.25))


def _measure(norm: FrozenBatchNorm2d, args: tuple[Tensor]) -> None:
    """What training mode would do, for a norm that has none."""
    variance, mean = torch.var_mean(args[0], (0, 2, 3))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def parity_model(name: str | Callable[..., nn.Module], seed: int = 0, size: int = 224, **options: Any) -> nn.Module:
    """A parity model in eval mode.

    Args:
        name: "large" or "small" for torchvision's models, or a builder to call.
        seed: the same seed gives the same model.
        size: side of the images that set the running statistics.
        **options: for the builder.
    """
    builder = getattr(torchvision.models, f"mobilenet_v3_{name}") if isinstance(name, str) else name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = builder(**options)
    return randomize_(model, seed, size)


def parity_images(n: int, height: int, width: int | None = None, seed: int = 0) -> Tensor:
    """Random images [n, 3, height, width], the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, height, height if width is None else width, generator=generator)
