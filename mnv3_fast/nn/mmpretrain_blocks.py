"""mmpretrain's classes with a fused forward: subclasses of the classes that a model has, made as they are met."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mnv3_fast.models import mmpretrain
from mnv3_fast.models.description import BlockDescription, ConvLayer, NetDescription, SqueezeExciteLayer, stock_class
from mnv3_fast.nn.base import Fused, FusedBlock, FusedConv, FusedSqueezeExcite, checked_conv
from mnv3_fast.nn.containers import StandIn, like_input
from mnv3_fast.nn.networks import FusedNet, check_accelerated
from mnv3_fast.nn.stand_ins import MadeStandIn, stand_in


class InvertedResidual(MadeStandIn, FusedBlock):
    """mmpretrain's block of MobileNetV3 on one fused op."""

    def _reader(self) -> BlockDescription:
        return mmpretrain.block_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """As mmpretrain's."""
        if self._checkpoints(x):
            return super(Fused, self).forward(x)
        return super().forward(x)

    def _checkpoints(self, x: Any) -> bool:
        return bool(self.with_cp) and isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()

    def fallback_reason(self, x: Tensor | None = None) -> str | None:
        """As :meth:`Fused.fallback_reason`."""
        return "with_cp: it checkpoints its input's gradient" if self._checkpoints(x) else super().fallback_reason(x)


class ConvModule(MadeStandIn, FusedConv):
    """mmcv's convolution, norm and activation on one fused op."""

    def _reader(self) -> ConvLayer:
        return checked_conv(mmpretrain.conv_layer(self))

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        """As mmcv's."""
        return super().forward(x) if activate and norm else super(Fused, self).forward(x, activate, norm)


class SELayer(MadeStandIn, FusedSqueezeExcite):
    """mmpretrain's squeeze-excite on one fused op; inside of a fused block it is part of that block's op instead."""

    def _reader(self) -> SqueezeExciteLayer:
        return mmpretrain.squeeze_excite_layer(self)

    def forward(self, x: Tensor) -> Tensor:
        """As mmpretrain's."""
        return super().forward(x)


class MobileNetV3(MadeStandIn, FusedNet, StandIn):
    """mmpretrain's backbone in one op if its last map is all that it gives; maps in the format of the input."""

    def _net_reader(self) -> NetDescription:
        check_accelerated(mmpretrain.backbone_children(self))
        return mmpretrain.read_body(self)

    def _net_modules(self) -> list[nn.Module]:
        return [inside for child in mmpretrain.backbone_children(self) for inside in child.modules()]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """As mmpretrain's."""
        # Both lists may be written to, which the look at a described network does not see.
        whole = mmpretrain.gives_last_map(self) and self.layers == list(self._modules)
        output = self._fused_net(x) if whole else None
        outputs = super().forward(x) if output is None else (output,)
        return tuple(like_input(output, x) for output in outputs)


def stand_ins_for(model: nn.Module) -> tuple[dict[type, type[Fused]], dict[type, type]]:
    """The fused class of each class of a model's, and of its containers; mmcv's only where mmpretrain's blocks are."""
    classes = {stock_class(type(module)) for module in model.modules()}
    guards = {cls: stand_in(MobileNetV3, cls) for cls in classes if mmpretrain.is_theirs(cls, "MobileNetV3")}
    swaps: dict[type, type[Fused]] = {}
    for cls in classes:
        if mmpretrain.is_theirs(cls, "InvertedResidual"):
            swaps[cls] = stand_in(InvertedResidual, cls)
    if not swaps and not guards:
        return {}, {}
    for cls in classes:
        if mmpretrain.is_theirs(cls, "SELayer"):
            swaps[cls] = stand_in(SELayer, cls)
        elif mmpretrain.is_mmcvs(cls, "ConvModule"):
            swaps[cls] = stand_in(ConvModule, cls)
    return swaps, guards
