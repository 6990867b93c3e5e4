"""timm's classes with a fused forward; imported only where a model is timm's."""

from __future__ import annotations

from typing import Any

from timm.models import _efficientnet_blocks as blocks
from timm.models import mobilenetv3
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from mnv3_fast.models import timm
from mnv3_fast.models.description import STOCK, BlockDescription, ConvLayer, NetDescription, Unsupported
from mnv3_fast.nn.base import Fused, FusedBlock, FusedConv, checked_conv
from mnv3_fast.nn.containers import StandIn, like_input
from mnv3_fast.nn.networks import FusedNet, FusedStem, check_accelerated


class InvertedResidual(FusedBlock, blocks.InvertedResidual):
    """timm's block of MobileNetV3 on one fused op."""

    def _reader(self) -> BlockDescription:
        return timm.inverted_residual_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """As timm's."""
        return super().forward(x)


class DepthwiseSeparableConv(FusedBlock, blocks.DepthwiseSeparableConv):
    """timm's block without expansion on one fused op."""

    def _reader(self) -> BlockDescription:
        return timm.separable_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """As timm's."""
        return super().forward(x)


class ConvBnAct(FusedConv, blocks.ConvBnAct):
    """timm's last 1x1 convolution, with norm and activation, on one fused op."""

    def _reader(self) -> ConvLayer:
        return checked_conv(timm.conv_layer(self))

    def forward(self, x: Tensor) -> Tensor:
        """As timm's."""
        return super().forward(x)


class MobileNetV3(FusedNet, FusedStem, StandIn, mobilenetv3.MobileNetV3):
    """timm's network in one op, or its stem, which has no module of its own; maps in the format of the input."""

    def _net_reader(self) -> NetDescription:
        for name in ("forward_features", "forward_head"):
            if name in self.__dict__:  # looked at in each call of forward, too
                raise Unsupported(f"it has a {name} of its own")
        description = timm.read_net(self)
        assert description is not None
        check_accelerated([child for stage in self.blocks for child in stage])
        return description

    def _net_modules(self) -> list[nn.Module]:
        return timm.net_modules(self)

    def _reader(self) -> ConvLayer:
        return timm.stem_layer(self)

    def _stem_modules(self) -> list[nn.Module]:
        return [*self.conv_stem.modules(), *self.bn1.modules()]

    def forward(self, x: Tensor) -> Tensor:
        """As timm's."""
        own = "forward_features" in self.__dict__ or "forward_head" in self.__dict__
        output = None if own else self._fused_net(x)
        return super().forward(x) if output is None else output

    def forward_features(self, x: Tensor) -> Tensor:
        """As timm's."""
        stem = self._fused_stem(x)
        if stem is None:
            output = super().forward_features(x)
        elif self.grad_checkpointing:
            output = checkpoint_seq(self.blocks, stem, flatten=True)
        else:
            output = self.blocks(stem)
        return like_input(output, x)


class MobileNetV3Features(StandIn, mobilenetv3.MobileNetV3Features):
    """timm's feature pyramid; its maps have the format of the input."""

    def forward(self, x: Tensor) -> Any:
        """As timm's."""
        return [like_input(feature, x) for feature in super().forward(x)]


SWAPS: dict[type, type[Fused]] = {
    blocks.InvertedResidual: InvertedResidual,
    blocks.DepthwiseSeparableConv: DepthwiseSeparableConv,
    blocks.ConvBnAct: ConvBnAct,
}
CONTAINERS: dict[type, type] = {
    mobilenetv3.MobileNetV3: MobileNetV3,
    mobilenetv3.MobileNetV3Features: MobileNetV3Features,
}
STOCK.update({fused: stock for swaps in (SWAPS, CONTAINERS) for stock, fused in swaps.items()})
