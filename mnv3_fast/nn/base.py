"""What all fused modules share: run the fused op where that is right, the original forward everywhere else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mnv3_fast.models.description import BlockDescription, ConvLayer, describe_block, describe_conv, kind_of_conv
from mnv3_fast.nn.fusion import Fusion, describe, functorch_active, fusion_of, input_reason
from mnv3_fast.ops import registration
from mnv3_fast.ops.depthwise_conv import op as depthwise
from mnv3_fast.ops.elements import ACTIVATIONS
from mnv3_fast.ops.inverted_residual import cache
from mnv3_fast.ops.inverted_residual.op import run_block
from mnv3_fast.ops.pointwise_conv import op as pointwise
from mnv3_fast.ops.stem_conv import op as stem


class Fused(nn.Module):
    """Mixin before an original class: ``accelerate`` sets ``module.__class__`` to such a subclass of the same name.

    It adds no parameter, buffer or submodule, so keys, names, repr, hooks and pickling stay those of the original.
    """

    def _reader(self) -> BlockDescription | ConvLayer:
        raise NotImplementedError

    def _run(self, x: Tensor, description: Any, tensors: list[Tensor] | None, arguments: Any) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The original's forward, fused where possible."""
        if self.training or input_reason(x) is not None or functorch_active():
            return super().forward(x)
        if torch.compiler.is_compiling():
            description = self._reader()
            return self._run(x, description, None, None)
        fusion = fusion_of(self, type(self)._reader)
        if isinstance(fusion, str):
            return super().forward(x)
        tensors = fusion.tensors()
        for tensor in tensors:
            if tensor.dtype is not torch.float32:
                return super().forward(x)
        return self._run(x, fusion.description, tensors, fusion.arguments)

    def fallback_reason(self, x: Tensor | None = None) -> str | None:
        """Why this module would run its original forward now (for an input, if one is given); None if it would not."""
        if self.training:
            return "it is in training mode"
        if x is not None and input_reason(x) is not None:
            return input_reason(x)
        fusion = describe(self, type(self)._reader)
        return fusion if isinstance(fusion, str) else fusion.reason()

    def refresh(self) -> None:
        """Forget what was packed from this module's weights."""
        self.__dict__.pop("_fusion", None)
        cache.drop(list(self.parameters()) + list(self.buffers()))

    def train(self, mode: bool = True) -> Any:
        """As nn.Module.train; also forgets packed weights."""
        self.refresh()
        return super().train(mode)

    def __prepare_scriptable__(self) -> nn.Module:
        original = original_class(type(self))  # TorchScript sees the class that this one stands for
        copy = original.__new__(original)
        copy.__dict__.update({key: value for key, value in self.__dict__.items() if key != "_fusion"})
        return copy


def original_class(fused: type) -> type:
    """The class that a fused one stands for: the next of the same name among its bases."""
    return next(base for base in fused.__mro__[1:] if base.__name__ == fused.__name__)


class FusedBlock(Fused):
    """An inverted residual block on ``mnv3_fast::inverted_residual``."""

    def _reader(self) -> BlockDescription:
        return describe_block(self)

    def _run(self, x: Tensor, description: Any, tensors: list[Tensor] | None, arguments: Any) -> Tensor:
        if tensors is None:
            tensors, spec, constants = description.flatten()
        else:
            spec, constants = arguments
        return run_block(x, tensors, spec, constants)


class FusedConv(Fused):
    """A lone convolution with norm and activation on the op of its kind."""

    def _reader(self) -> ConvLayer:
        description = describe_conv(self)
        kind_of_conv(description)
        return description

    def _run(self, x: Tensor, description: Any, tensors: list[Tensor] | None, arguments: Any) -> Tensor:
        return run_conv(x, description)


def run_conv(x: Tensor, layer: ConvLayer) -> Tensor:
    """A described convolution on the op of its kind, differentiably where that is asked for."""
    kind = kind_of_conv(layer)
    activation = ACTIVATIONS[layer.activation]
    norm = layer.batch_norm() or (None, None, None, None, 0.0)
    args = (x, layer.conv.weight, layer.conv.bias, *norm)
    if kind == "pointwise":
        reference = pointwise.reference.pointwise_conv
        return registration.call(pointwise.OP, reference, pointwise.FUNCTION, (*args, None, None, activation))
    if kind == "depthwise":
        reference = depthwise.reference.depthwise_conv
        return registration.call(depthwise.OP, reference, depthwise.FUNCTION, (*args, *layer.window(), activation))
    args = (*args, None, None, *layer.window(), activation)
    return registration.call(stem.OP, stem.reference.stem_conv, stem.FUNCTION, args)


__all__ = ["Fused", "FusedBlock", "FusedConv", "Fusion", "original_class", "run_conv"]
