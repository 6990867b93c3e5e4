"""torchvision's classes with a fused forward. They carry the originals' names, so repr and FX node names stay."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import mobilenetv3
from torchvision.ops import misc

from mnv3_fast.models import torchvision
from mnv3_fast.models.description import (
    STOCK,
    BlockDescription,
    ConvLayer,
    NetDescription,
    SqueezeExciteLayer,
)
from mnv3_fast.nn.base import Fused, FusedBlock, FusedConv, FusedSqueezeExcite, checked_conv
from mnv3_fast.nn.containers import StandIn, like_input
from mnv3_fast.nn.networks import FusedEnd, FusedNet, check_accelerated


class InvertedResidual(FusedBlock, mobilenetv3.InvertedResidual):
    """torchvision's block of MobileNetV3 on one fused op."""

    def _reader(self) -> BlockDescription:
        return torchvision.block_layers(self)


class Conv2dNormActivation(FusedConv, misc.Conv2dNormActivation):
    """Convolution, norm and activation on one fused op."""

    def _reader(self) -> ConvLayer:
        return checked_conv(torchvision.conv_layer(self))


class SqueezeExcitation(FusedSqueezeExcite, misc.SqueezeExcitation):
    """Squeeze-excite on one fused op; inside of a fused block it is part of that block's op instead."""

    def _reader(self) -> SqueezeExciteLayer:
        return torchvision.squeeze_excite_layer(self)


class MobileNetV3(FusedNet, FusedEnd, StandIn, mobilenetv3.MobileNetV3):
    """torchvision's network in one op, or what comes after the blocks (1x1 convolution, pool, classifier) in one."""

    def _net_reader(self) -> NetDescription:
        check_accelerated(self.features)
        description = torchvision.read_net(self)
        assert description is not None
        return description

    def _net_modules(self) -> list[nn.Module]:
        return torchvision.net_modules(self)

    def _reader(self) -> NetDescription:
        return torchvision.read_end(self)

    def _end_modules(self) -> list[nn.Module]:
        return torchvision.end_modules(self)

    def _forward_impl(self, x: Tensor) -> Tensor:
        output = self._fused_net(x)
        if output is not None:
            return output
        if self._fused_end(x) is None:
            return super()._forward_impl(x)
        y = x
        for block in list(self.features)[:-1]:
            y = block(y)
        end = self._fused_end(y)  # once more: what ran since may have changed a weight, or added a hook
        if end is None:
            y = like_input(self.features[-1](y), x)
            return self.classifier(self.avgpool(y).flatten(1))
        return end(y)


SWAPS: dict[type, type[Fused]] = {
    mobilenetv3.InvertedResidual: InvertedResidual,
    misc.Conv2dNormActivation: Conv2dNormActivation,
    misc.SqueezeExcitation: SqueezeExcitation,
}
CONTAINERS: dict[type, type] = {mobilenetv3.MobileNetV3: MobileNetV3}
STOCK.update({fused: stock for swaps in (SWAPS, CONTAINERS) for stock, fused in swaps.items()})
