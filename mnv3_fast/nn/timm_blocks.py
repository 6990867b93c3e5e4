"""timm's classes with a fused forward; imported only where a model is timm's."""

from __future__ import annotations

from timm.models import _efficientnet_blocks as blocks

from mnv3_fast.nn.base import FusedBlock, FusedConv


class InvertedResidual(FusedBlock, blocks.InvertedResidual):
    """timm's block of MobileNetV3 on one fused op."""


class DepthwiseSeparableConv(FusedBlock, blocks.DepthwiseSeparableConv):
    """timm's block without expansion on one fused op."""


class ConvBnAct(FusedConv, blocks.ConvBnAct):
    """timm's last 1x1 convolution, with norm and activation, on one fused op."""


SWAPS: dict[type, type] = {
    blocks.InvertedResidual: InvertedResidual,
    blocks.DepthwiseSeparableConv: DepthwiseSeparableConv,
    blocks.ConvBnAct: ConvBnAct,
}
