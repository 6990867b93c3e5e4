"""The second launch of a block with squeeze-excite on made-up inputs, with what the references say of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mnv3_fast.gpu import packing
from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.ops.elements import ACTIVATIONS, GATES
from mnv3_fast.ops.inverted_residual import cuda_gated_project
from mnv3_fast.ops.pointwise_conv import reference as pointwise_reference
from mnv3_fast.ops.squeeze_excite_gate import reference as gate_reference
from mnv3_fast.testing.layers import RealLayer
from mnv3_fast.testing.tolerance import assert_close_enough
from tests.gpu.operators import in_arena
from tests.gpu.simulator.run import Outcome, run

SLAB = 32
"""Channels of the first launch's blocks, each of which gives a term of the gate's first layer."""
NO_NORM = (None, None, None, None, 0.0)
CHANGED = ("partials", "arrivals")
"""What the kernel does not write whole."""


@dataclass(frozen=True)
class Case:
    """Sizes and options of a launch."""

    images: int
    height: int
    width: int
    channels: int
    squeeze: int
    outputs: int
    dtype: torch.dtype = torch.float16
    squeeze_activation: str = "relu"
    gate: str = "hardsigmoid"
    slope: float = 1 / 6
    activation: str = "none"
    residual: bool = False

    @classmethod
    def of(cls, layer: RealLayer, images: int, dtype: torch.dtype) -> Case:
        """A block of a network."""
        sizes = layer.out_height, layer.out_width, layer.hidden, layer.squeeze, layer.outputs
        return cls(images, *sizes, dtype, residual=layer.residual)


class Simulated:
    """A launch's tensors. They are read-only but for what the kernel writes."""

    def __init__(self, case: Case) -> None:
        self.case, dtype = case, case.dtype
        generator = torch.Generator().manual_seed(case.images + case.height + case.channels + case.squeeze)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to(dtype).float()

        n, c, s, o = case.images, case.channels, case.squeeze, case.outputs
        self.hidden = random(n, c, case.height, case.width)
        self.mean = self.hidden.mean((2, 3)).to(dtype).float()
        self.layers = (
            random(s, c, scale=(2 / c) ** 0.5),
            random(s, scale=0.1),
            random(c, s, scale=1.5 / s**0.5),
            random(c),
        )
        self.weight, self.bias = random(o, c, scale=(2 / c) ** 0.5), random(o, scale=0.3)
        self.residual = random(n, o, case.height, case.width) if case.residual else None
        slabs = zip(self.layers[0].split(SLAB, 1), self.mean.split(SLAB, 1), strict=True)
        self.parts = torch.stack([mean @ fc1.t() for fc1, mean in slabs], 1).contiguous()
        self.output = _map(torch.full((n, o, case.height, case.width), torch.nan), dtype)
        self.block = self._block()
        self.launches = self._launches()

    def _block(self) -> packing.Block:
        case, dtype = self.case, self.case.dtype
        fc1, fc1_bias, fc2, fc2_bias = self.layers
        layers = fc1.to(dtype), fc1_bias, fc2.to(dtype), fc2_bias
        squeeze = packing.SqueezeExcite(layers, ACTIVATIONS[case.squeeze_activation], GATES[case.gate], case.slope)
        project = packing.Convolution(
            self.weight.to(dtype), self.bias, case.outputs, (1, 1), packing.NO_WINDOW, ACTIVATIONS[case.activation]
        )
        return packing.Block(None, project, squeeze, project, case.residual)

    def _launches(self) -> list[AnyLaunch]:
        dtype, packed = self.case.dtype, cuda_gated_project.pack(self.block)
        residual = None if self.residual is None else _map(self.residual, dtype)
        arguments = packed, _map(self.hidden, dtype), self.parts, self.output, residual
        return in_arena(lambda arena: cuda_gated_project.launches(*arguments, arena))

    def run(self, program: Path, wrong: Mapping[str, int] | None = None) -> Outcome:
        """Run the launch in both orders of threads and blocks."""
        (launch,) = self.launches
        return run(program, launch, ("output",), wrong, CHANGED)

    def compute(self, dtype: torch.dtype) -> Tensor:
        """The result by the references in a dtype's arithmetic."""
        case = self.case
        codes = ACTIVATIONS[case.squeeze_activation], GATES[case.gate], case.slope
        mean, *layers = (tensor.to(dtype) for tensor in (self.mean, *self.layers))
        gate = gate_reference.squeeze_excite_gate(mean, *layers, *codes)
        hidden, weight, bias = (tensor.to(dtype) for tensor in (self.hidden, self.weight, self.bias))
        residual = None if self.residual is None else self.residual.to(dtype)
        activation = ACTIVATIONS[case.activation]
        return pointwise_reference.pointwise_conv(hidden, weight, bias, *NO_NORM, gate, residual, activation)

    def check(self) -> None:
        """The output within the tolerance rule, and the counters back at zero."""
        theirs, exact = self.compute(self.case.dtype), self.compute(torch.float64)
        assert_close_enough(self.output, theirs, exact, dtype=self.case.dtype)
        arrivals = self.launches[0].arguments["arrivals"]
        assert arrivals is None or not arrivals.any()  # type: ignore[union-attr]


def _map(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).contiguous(memory_format=torch.channels_last)
