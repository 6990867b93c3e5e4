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


METHODS = ("forward_features", "forward_head")
"""What timm's forward calls; as attributes of one object they are somebody's own."""


class TimmStem(FusedStem):
    """Mixin for timm's networks, whose stem is a convolution and a norm of their own."""

    def _reader(self) -> ConvLayer:
        return timm.stem_layer(self)

    def _stem_modules(self) -> list[nn.Module]:
        return timm.stem_modules(self)


class MobileNetV3(FusedNet, TimmStem, StandIn, mobilenetv3.MobileNetV3):
    """timm's network in one op, or its stem, which has no module of its own; maps in the format of the input."""

    def _net_reader(self) -> NetDescription:
        for name in METHODS:
            if name in self.__dict__:  # looked at in each call of forward, too
                raise Unsupported(f"it has a {name} of its own")
        description = timm.read_net(self)
        assert description is not None
        check_accelerated([child for stage in self.blocks for child in stage])
        return description

    def _net_modules(self) -> list[nn.Module]:
        return timm.net_modules(self)

    def forward(self, x: Tensor) -> Tensor:
        """As timm's."""
        own = any(name in self.__dict__ for name in METHODS)
        output = None if own else self._fused_net(x)
        return super().forward(x) if output is None else like_input(output, x)

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

    def forward_intermediates(self, x: Tensor, *args: Any, **keywords: Any) -> Any:
        """As timm's, of whichever version."""
        stem = self._fused_stem(x)
        if stem is None:
            output = super().forward_intermediates(x, *args, **keywords)
        else:
            output = _behind_stem(self, stem).forward_intermediates(x, *args, **keywords)
        if isinstance(output, list):
            return [like_input(feature, x) for feature in output]
        last, features = output
        return like_input(last, x), [like_input(feature, x) for feature in features]


class MobileNetV3Features(TimmStem, StandIn, mobilenetv3.MobileNetV3Features):
    """timm's feature pyramid; its maps have the format of the input."""

    def forward(self, x: Tensor) -> Any:
        """As timm's."""
        stem = self._fused_stem(x)
        if stem is None:
            features = super().forward(x)
        elif self.feature_hooks is None:
            features = self._maps(stem)
        else:
            self.blocks(stem)
            features = self.feature_hooks.get_output(x.device).values()
        return [like_input(feature, x) for feature in features]

    def _maps(self, stem: Tensor) -> list[Tensor]:
        wanted, x = self._stage_out_idx, stem
        maps = [stem] if 0 in wanted else []
        for i, stage in enumerate(self.blocks):
            x = checkpoint_seq((stage,), x) if self.grad_checkpointing else stage(x)
            if i + 1 in wanted:
                maps.append(x)
        return maps


class _Done(nn.Module):
    """What has been computed already."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output


def _behind_stem(network: MobileNetV3, stem: Tensor) -> mobilenetv3.MobileNetV3:
    """timm's own network, of the same modules, whose stem gives what has been computed."""
    original = mobilenetv3.MobileNetV3.__new__(mobilenetv3.MobileNetV3)
    original.__dict__.update(network.__dict__)
    original._modules = network._modules | {"conv_stem": _Done(stem), "bn1": nn.Identity()}
    return original


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
