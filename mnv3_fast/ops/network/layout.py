"""The flattened form of a network: what ``mnv3_fast::network`` takes besides its input.

A network is a chain of stages. ``spec`` holds for each stage its kind and the ints of ``SPEC``, ``constants`` its
floats, ``tensors`` its tensors: of a convolution weight, bias and BatchNorm as ``inverted_residual`` lists them, of a
linear layer weight and bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mnv3_fast.engine.kinds import BLOCK, LINEAR, POINTWISE, POOL, STEM
from mnv3_fast.ops.elements import convolved_size
from mnv3_fast.ops.inverted_residual.layout import (
    CPU,
    FLOAT32,
    HAS_BIAS,
    Layer,
    check_block,
    check_layer,
    check_vector,
    check_weights,
    count_of_block,
    count_of_layer,
    take_layer,
    unflatten,
)
from mnv3_fast.ops.inverted_residual.layout import SPEC as BLOCK_SPEC

WINDOW = ("stride_h", "stride_w", "pad_left", "pad_right", "pad_top", "pad_bottom", "dilation_h", "dilation_w")
SPEC = {
    STEM: ("flags", "activation", *WINDOW),
    BLOCK: BLOCK_SPEC,
    POINTWISE: ("flags", "activation"),
    POOL: (),
    LINEAR: ("flags", "activation"),
}
"""The ints of each kind of stage after the kind itself."""
CONSTANTS = {STEM: 1, BLOCK: 4, POINTWISE: 1, POOL: 0, LINEAR: 1}
"""How many floats each kind of stage has: a convolution its eps, a block those of ``inverted_residual``, a linear layer
what its input is multiplied by."""


@dataclass(frozen=True)
class Stage:
    """One stage of a network. ``tensors`` are tensors, or their shapes where only these are asked for."""

    kind: int
    spec: Sequence[int]
    constants: Sequence[float]
    tensors: Sequence[Any]

    def layer(self) -> Layer:
        """The convolution of a stem or pointwise stage, the weight and bias of a linear one."""
        return take_layer(list(self.tensors), self.spec[0], self.constants[0])

    def window(self) -> Sequence[int]:
        """The eight window arguments of a stem."""
        return self.spec[2:]


def join(stages: Sequence[Stage]) -> tuple[list[Any], list[int], list[float]]:
    """tensors, spec and constants of a chain of stages; the inverse of :func:`split`."""
    tensors: list[Any] = []
    spec: list[int] = []
    constants: list[float] = []
    for stage in stages:
        tensors += stage.tensors
        spec += [stage.kind, *stage.spec]
        constants += stage.constants
    return tensors, spec, constants


def split(tensors: Sequence[Any], spec: Sequence[int], constants: Sequence[float]) -> list[Stage]:
    """The stages of a flattened network.

    Raises:
        ValueError: if the numbers of tensors, ints or constants do not fit each other.
    """
    stages: list[Stage] = []
    i = j = k = 0
    while i < len(spec) and spec[i] in SPEC:
        kind = spec[i]
        ints = spec[i + 1 : i + 1 + len(SPEC[kind])]
        if len(ints) < len(SPEC[kind]):
            break
        count = 0 if kind == POOL else count_of_block(ints) if kind == BLOCK else count_of_layer(ints[0])
        stages.append(Stage(kind, ints, constants[j : j + CONSTANTS[kind]], tensors[k : k + count]))
        i, j, k = i + 1 + len(ints), j + CONSTANTS[kind], k + count
    if not stages or (i, j, k) != (len(spec), len(constants), len(tensors)):
        raise ValueError(
            f"network: {len(tensors)} tensors, {len(spec)} ints and {len(constants)} constants do not fit each other; "
            "flatten a network with mnv3_fast.models.description.describe_net(model).flatten()"
        )
    return stages


def check_stages(
    stages: Sequence[Stage], dtypes: tuple[torch.dtype, ...] = FLOAT32, device: torch.device = CPU
) -> None:
    """As ``inverted_residual``'s ``check_block``, for each stage; that they fit each other is for ``check_chain``.

    Raises:
        TypeError: for another dtype.
        ValueError: for a shape that does not fit, or another device.
    """
    check_stage_weights(stages)
    for stage in stages:
        if stage.kind == BLOCK:
            check_block(unflatten(stage.tensors, stage.spec, stage.constants), dtypes, device)
        elif stage.kind == LINEAR:
            layer = stage.layer()
            check_vector("network", "linear weight", layer.weight, layer.weight.shape, dtypes, device)
            if layer.bias is not None:
                check_vector("network", "linear bias", layer.bias, layer.weight.shape[:1], dtypes, device)
        elif stage.kind != POOL:
            name = "stem" if stage.kind == STEM else "pointwise"
            check_layer("network", name, stage.layer(), stage.kind == POINTWISE, dtypes, device)


def check_stage_weights(stages: Sequence[Stage]) -> None:
    """The shapes of the weights of each stage by itself, on any device.

    Raises:
        ValueError: for one that does not fit.
    """
    for stage in stages:
        if stage.kind == BLOCK:
            check_weights(unflatten(stage.tensors, stage.spec, stage.constants))
        elif stage.kind == LINEAR:
            shape = stage.tensors[0].shape
            if len(shape) < 2 or _product(shape[1:]) != shape[1]:
                raise ValueError(f"network: linear weight must be [O, I], got {list(shape)}")
        elif stage.kind != POOL and stage.tensors[0].dim() != 4:
            name = "stem" if stage.kind == STEM else "pointwise"
            raise ValueError(f"network: {name} weight must have four dimensions, got {list(stage.tensors[0].shape)}")


def measure(shape: Sequence[int], stages: Sequence[Stage]) -> tuple[Sequence[int], int]:
    """The shape after the stages, and their multiply-adds, for an input of a shape; the tensors may be shapes."""
    macs = 0
    for stage in stages:
        if stage.kind == BLOCK:
            block = unflatten(stage.tensors, stage.spec, stage.constants)
            size = convolved_size(shape[2:], _shape(block.depthwise.weight)[2:], stage.spec[5:13])
            hidden, outputs = _shape(block.depthwise.weight)[0], _shape(block.project.weight)[0]
            taps = _shape(block.depthwise.weight)[2] * _shape(block.depthwise.weight)[3]
            macs += shape[0] * size[0] * size[1] * hidden * (taps + outputs)
            if block.expand:
                macs += shape[0] * shape[2] * shape[3] * shape[1] * hidden
            if block.squeeze_excite:
                macs += 2 * shape[0] * hidden * _shape(block.squeeze_excite[0])[0]
            shape = (shape[0], outputs, *size)
        elif stage.kind == POOL:
            shape = shape[0], shape[1]
        else:
            weight = _shape(stage.tensors[0])
            if stage.kind == STEM:
                shape = (shape[0], weight[0], *convolved_size(shape[2:], weight[2:], stage.window()))
            else:
                shape = (shape[0], weight[0], *shape[2:])
            macs += _product(shape) * _product(weight[1:])
    return shape, macs


def input_channels(stages: Sequence[Stage]) -> int:
    """The channels of what the first stage reads.

    Raises:
        ValueError: if the chain starts with a pool or a linear layer.
    """
    first = stages[0]
    if first.kind in (POOL, LINEAR):
        raise ValueError("network: the first stage must be a stem, a block or a 1x1 convolution")
    depthwise_first = first.kind == BLOCK and not first.spec[0]
    return first.tensors[0].shape[0 if depthwise_first else 1]


def has_bias(bias: Any) -> int:
    """The flags of a linear layer."""
    return 0 if bias is None else HAS_BIAS


def _shape(tensor: Any) -> Sequence[int]:
    return getattr(tensor, "shape", tensor)


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product = product * size
    return product
