"""torchvision's classes with a fused forward. They carry the originals' names, so repr and FX node names stay."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models import mobilenetv3
from torchvision.ops import misc

from mnv3_fast.models.torchvision import read_squeeze_excite
from mnv3_fast.nn.base import Fused, FusedBlock, FusedConv
from mnv3_fast.ops import registration
from mnv3_fast.ops.elements import ACTIVATIONS, GATES
from mnv3_fast.ops.squeeze_excite import op as squeeze_excite


class InvertedResidual(FusedBlock, mobilenetv3.InvertedResidual):
    """torchvision's block of MobileNetV3 on one fused op."""


class Conv2dNormActivation(FusedConv, misc.Conv2dNormActivation):
    """Convolution, norm and activation on one fused op."""


class SqueezeExcitation(Fused, misc.SqueezeExcitation):
    """Squeeze-excite on one fused op; inside of a fused block it is part of that block's op instead."""

    def _reader(self):
        return read_squeeze_excite(self)

    def _run(self, x, description, tensors, arguments):
        codes = ACTIVATIONS[description.activation], GATES[description.gate]
        args = (x, *(tensors or description.tensors()), *codes, description.slope)
        reference = squeeze_excite.reference.squeeze_excite
        return registration.call(squeeze_excite.OP, reference, squeeze_excite.FUNCTION, args)


class Sequential(nn.Sequential):
    """A Sequential whose output has its input's memory format, though the fused modules inside give channels_last."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Sequential."""
        output = super().forward(input)
        if not isinstance(output, Tensor) or not isinstance(input, Tensor) or output.dim() != 4:
            return output
        if input.is_contiguous() and not output.is_contiguous():
            return output.contiguous()
        return output

    def __prepare_scriptable__(self) -> nn.Module:
        copy = nn.Sequential.__new__(nn.Sequential)
        copy.__dict__.update(self.__dict__)
        return copy


SWAPS: dict[type, Callable] = {
    mobilenetv3.InvertedResidual: InvertedResidual,
    misc.Conv2dNormActivation: Conv2dNormActivation,
    misc.SqueezeExcitation: SqueezeExcitation,
}
