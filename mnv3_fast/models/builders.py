"""torchvision's builders, accelerated: the same signatures, weights and classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models import MobileNet_V3_Large_Weights, MobileNet_V3_Small_Weights, mobilenetv3

from mnv3_fast.acceleration import _guard_formats, _swaps_for, swap

KNOWN = {"width_mult", "reduced_tail", "dilated", "num_classes", "block", "norm_layer", "dropout", "pretrained"}


def _build(builder: Callable[..., nn.Module], weights: Any, progress: bool, options: dict[str, Any]) -> nn.Module:
    unknown = sorted(set(options) - KNOWN)
    if unknown:
        # torchvision swallows them, so that a misspelled width_mult silently builds the full width.
        warnings.warn(
            f"{builder.__name__}: unknown options are ignored: {', '.join(unknown)}", UserWarning, stacklevel=3
        )
    width = options.get("width_mult", 1.0)
    if not width > 0:
        raise ValueError(f"{builder.__name__}: width_mult must be greater than 0, got {width}")
    model = builder(weights=weights, progress=progress, **options)
    swap(model, _swaps_for(model), [])
    _guard_formats(model)
    return model


def mobilenet_v3_large(
    *, weights: MobileNet_V3_Large_Weights | str | None = None, progress: bool = True, **kwargs: Any
) -> nn.Module:
    """MobileNetV3-Large (Howard et al. 2019): torchvision's model with a fused forward in eval mode.

    Args:
        weights: None, a ``MobileNet_V3_Large_Weights`` or its name; named weights are downloaded by torchvision.
        progress: show the download's progress.
        **kwargs: width_mult, reduced_tail, dilated, num_classes, norm_layer, dropout, block as torchvision's.

    Returns:
        torchvision's ``MobileNetV3`` with the same parameters, keys and submodules.

    Raises:
        ValueError: for width_mult <= 0, or a num_classes that contradicts the weights. Unknown options warn.
    """
    return _build(mobilenetv3.mobilenet_v3_large, weights, progress, kwargs)


def mobilenet_v3_small(
    *, weights: MobileNet_V3_Small_Weights | str | None = None, progress: bool = True, **kwargs: Any
) -> nn.Module:
    """MobileNetV3-Small; see :func:`mobilenet_v3_large`."""
    return _build(mobilenetv3.mobilenet_v3_small, weights, progress, kwargs)
