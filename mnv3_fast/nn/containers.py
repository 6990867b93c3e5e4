"""Containers around fused modules: these give channels_last maps, a container gives the memory format of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import _utils
from torchvision.models.detection import ssdlite

from mnv3_fast.models.description import STOCK, stock_class
from mnv3_fast.nn.conditions import transform_active
from mnv3_fast.nn.fusion import REMEMBERED


def like_input(output: Any, input: Any) -> Any:
    """A map in the memory format of the input, as torch's own convolutions would give it; anything else as it is."""
    if not isinstance(output, Tensor) or not isinstance(input, Tensor) or output.dim() != 4 or input.dim() != 4:
        return output
    if input.layout is not torch.strided or transform_active() or output.is_contiguous():
        return output
    if input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
        return output.contiguous()
    return output


class StandIn(nn.Module):
    """Mixin in front of an original class of the same name, which is what TorchScript gets to see."""

    def __prepare_scriptable__(self) -> nn.Module:
        original = stock_class(type(self))
        copy = original.__new__(original)
        copy.__dict__.update({key: value for key, value in self.__dict__.items() if key not in REMEMBERED})
        copy._modules = dict(self._modules)  # torch.jit.script puts the children's stand-ins there
        return copy


class Sequential(StandIn, nn.Sequential):
    """A Sequential whose output has the memory format of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Sequential."""
        return like_input(super().forward(input), input)


class _Maps(StandIn):
    """A dictionary of maps that have the memory format of the input."""

    def forward(self, x: Tensor) -> Any:
        """As torchvision's."""
        output = super().forward(x)
        for name, value in output.items():
            output[name] = like_input(value, x)
        return output


class IntermediateLayerGetter(_Maps, _utils.IntermediateLayerGetter):
    """torchvision's backbone of segmenters and of Faster R-CNN."""


class SSDLiteFeatureExtractorMobileNet(_Maps, ssdlite.SSDLiteFeatureExtractorMobileNet):
    """torchvision's backbone of SSDLite."""


CONTAINERS: dict[type, type] = {
    nn.Sequential: Sequential,
    _utils.IntermediateLayerGetter: IntermediateLayerGetter,
    ssdlite.SSDLiteFeatureExtractorMobileNet: SSDLiteFeatureExtractorMobileNet,
}
STOCK.update({fused: stock for stock, fused in CONTAINERS.items()})
