"""From a flattened network to a plan: folds and packs whatever the stages are made of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mnv3_fast.engine.kinds import BLOCK, POINTWISE, POOL, STEM
from mnv3_fast.engine.plan import PlanBuilder, fold_layer
from mnv3_fast.ops.network.layout import Stage, check_stages, input_channels


def pack_stages(
    stages: Sequence[Stage], scale: Tensor | None = None, shift: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """The plan of a chain of stages, and its geometry (``PlanBuilder.build``); scale and shift as ``stem_conv``'s.

    Raises:
        TypeError, ValueError: for tensors that are not float32 on the CPU, or do not fit their stage.
    """
    check_stages(stages)
    builder = PlanBuilder(input_channels(stages))
    for stage in stages:
        if stage.kind == BLOCK:
            builder.add_block(stage.tensors, stage.spec, stage.constants)
        elif stage.kind == POOL:
            builder.add_pool()
        else:
            layer, activation = stage.layer(), stage.spec[1]
            weight, bias = fold_layer(layer)
            if stage.kind == STEM:
                builder.add_stem(weight, bias, [*weight.shape[2:], *stage.window()], activation, scale, shift)
            elif stage.kind == POINTWISE:
                builder.add_pointwise(weight, bias, activation)
            else:
                builder.add_linear(weight.flatten(1) * stage.constants[0], bias, activation)
    return builder.build()
